"""Muon: momentum whose matrices are orthogonalised by Newton-Schulz iterations.

After Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/; five different steps as in modded-nanogpt.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

STEPS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""Coefficients of x, x^3 and x^5 by iteration."""


class Muon(torch.optim.Optimizer):
    """For weights whose last two dimensions are a matrix; the dimensions before them are a stack."""

    def __init__(self, weights: Iterable[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.01) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update with Nesterov momentum; steps are scaled to AdamW's root mean square of 0.2."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                mean = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(mean, group["momentum"]))
                weight.mul_(1 - group["lr"] * group["decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * max(weight.shape[-2:]) ** 0.5)


def orthogonal(g: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: the singular values land between 0.7 and 1.2. g [..., m, n]."""
    x = g.reshape(-1, *g.shape[-2:])
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-12)
    for a, b, c in STEPS:
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).reshape(g.shape)
