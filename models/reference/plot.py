"""Draw a run: loss and exact answers over the steps, and the experts' loads.

python -P -m deepzig.models.reference.plot build/reference models/reference
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import pyplot

from .batches import Encoder
from .evaluate import expert_loads
from .export import load
from .tokenizer import build


def entries(log: Path, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the log's lines that have the key."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    found = [(line["step"], line[key]) for line in lines if key in line]
    return [step for step, _ in found], [value for _, value in found]


def main() -> None:
    """Write `curve.png` and `load.png`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    torch.set_num_threads(1)

    figure, left = pyplot.subplots(figsize=(7, 3.5))
    for key, style in (("loss", "-"), ("draft", "--")):
        left.plot(*entries(arguments.run / "log.jsonl", key), f"C0{style}", label=f"{key} (cross-entropy of answers)")
    left.set(xlabel="step of 4096 tokens", ylabel="loss", yscale="log")
    right = left.twinx()
    for key, style in (("exact", "o-"), ("arithmetic", "s--")):
        right.plot(*entries(arguments.run / "log.jsonl", key), f"C1{style}", markersize=3, label=f"{key} (held out)")
    right.set(ylabel="exact answers", ylim=(0, 1.02))
    figure.legend(loc="upper center", ncol=2, fontsize=7, bbox_to_anchor=(0.5, 1.04))
    figure.savefig(arguments.folder / "curve.png", dpi=80, bbox_inches="tight")

    model = load(arguments.run / "checkpoint.pt")
    loads = expert_loads(model, Encoder(build()))
    figure, axes = pyplot.subplots(len(loads), 1, figsize=(7, 1.3 * len(loads)), sharex=True, sharey=True)
    for axis, layer, values in zip(axes, ("layer 1", "layer 2", "layer 3", "MTP"), loads, strict=True):
        axis.bar(range(len(values)), values.tolist())
        axis.axhline(1, color="C1", linewidth=0.8)
        axis.set_ylabel(layer, fontsize=8)
    axes[-1].set_xlabel("expert; load on held-out chats in parts of the mean")
    figure.savefig(arguments.folder / "load.png", dpi=80, bbox_inches="tight")


if __name__ == "__main__":
    main()
