"""The results as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from .cases import Decode
from .results import Results, Speed


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def digits(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def _speed_row(results: Results, speed: Speed) -> list[str]:
    case, share = speed.case, ""
    if speed.share is not None:
        limit = "of bandwidth" if isinstance(case, Decode) else "of f32 product"
        share = f"{100 * speed.share:.0f} % {limit}"
    where = [str(case.batch), str(case.depth)] if isinstance(case, Decode) else ["", ""]
    name = "decode" if isinstance(case, Decode) else str(case)
    sequences = case.batch if isinstance(case, Decode) else 1
    return [name, *where, digits(speed.tokens_per_second), digits(1000 * sequences / speed.tokens_per_second), share]


def report(results: Results) -> str:
    """Everything that `deepzig bench` prints without `--json`."""
    s = results.setting
    rounds = f"{results.rounds} round{'s' if results.rounds != 1 else ''}"
    lines = [
        f"{s.artifact}: build {s.build}, {s.threads} of {s.cores} cores of {s.cpu}; medians of {rounds}",
        "" if results.complete else "interrupted: not every case has as many rounds\n",
        table(
            [
                ["", "batch", "depth", "tokens/s", "ms/token", "share"],
                *(_speed_row(results, speed) for speed in results.speeds),
            ]
        ),
        "",
    ]
    facts = (
        ("first token from process start", results.first_token, 1.0, "s"),
        ("peak memory of that process", results.peak_bytes, 1e-6, "MB"),
        ("of it private, not mapped files", results.peak_private_bytes, 1e-6, "MB"),
        ("memory read by this machine", results.bandwidth, 1e-9, "GB/s"),
        ("f32 product by this machine", results.gemm, 1e-9, "GFLOP/s"),
    )
    known = [[name, digits(value * scale), unit] for name, value, scale, unit in facts if value is not None]
    lines.append("\n".join(f"{name:<32} {value:>8} {unit}" for name, value, unit in known))
    lines += [f"skipped {why}" for why in s.skipped]
    return "\n".join(lines)
