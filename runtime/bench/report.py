"""The results as a table for people."""

from __future__ import annotations

from deepzig.runtime.inspect.text import printable, table

from .cases import Prefill
from .results import Results, Speed


def digits(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def _speed_row(speed: Speed) -> list[str]:
    case, rate = speed.case, speed.tokens_per_second
    share = "" if speed.share is None else f"{100 * speed.share:.0f} %"
    if isinstance(case, Prefill):
        return [str(case), "", "", digits(rate), digits(1000 / rate), "", share]
    return ["decode", str(case.batch), str(case.depth), digits(rate), digits(1000 * case.batch / rate), share, ""]


HEADS = ["", "batch", "depth", "tokens/s", "ms/token", "of bandwidth", "of f32 product"]
"""Tokens a second are those of all sequences, milliseconds those of one. Shares are of what the machine did."""


def report(results: Results) -> str:
    """Everything that `deepzig bench` prints without `--json`."""
    s = results.setting
    rounds = f"{results.rounds} round{'s' if results.rounds != 1 else ''}"
    where = f"{s.threads} of {s.cores} cores of {s.cpu}" if s.gpu is None else f"{s.gpu.device}, {s.gpu.name}"
    title = f"{s.artifact}: build {s.build}, {where}; medians of {rounds}"
    if not results.complete:
        title += "\ninterrupted: not every case has as many rounds"
    reads = "memory read by this machine" if s.gpu is None else "memory of the GPU gives"
    facts = (
        ("first token from process start", results.first_token, 1.0, "s"),
        ("peak memory of that process", results.peak_bytes, 1e-6, "MB"),
        ("of it private, not mapped files", results.peak_private_bytes, 1e-6, "MB"),
        (reads, results.bandwidth, 1e-9, "GB/s"),
        ("f32 product by this machine", results.gemm, 1e-9, "GFLOP/s"),
    )
    known = [(name, digits(value * scale), unit) for name, value, scale, unit in facts if value is not None]
    blocks = (
        printable(title),
        "\n".join(table([HEADS, *map(_speed_row, results.speeds)], range(1, len(HEADS)))),
        "\n".join(f"{name:<32} {value:>8} {unit}" for name, value, unit in known),
        "\n".join(f"skipped {why}" for why in s.skipped),
    )
    return "\n\n".join(block for block in blocks if block)
