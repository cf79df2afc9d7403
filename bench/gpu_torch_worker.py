"""PyTorch's F.linear on a GPU: reads [[rows, k, n], ...] as JSON and answers with the seconds of each, in bf16."""

from __future__ import annotations

import json
import sys

import torch

LAUNCHES = 200


def seconds(rows: int, k: int, n: int) -> float:
    """Of one product, of many behind each other; weights take turns, so that no cache holds them."""
    x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
    count = max(1, (1 << 28) // (2 * k * n))
    weights = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
    begin, end = (torch.Event("cuda", enable_timing=True) for _ in range(2))
    for i in range(LAUNCHES + 20):
        if i == 20:
            begin.record()
        torch.nn.functional.linear(x, weights[i % count])
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / LAUNCHES / 1e3


print(json.dumps([seconds(*sizes) for sizes in json.load(sys.stdin)]))
