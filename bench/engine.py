"""The engine: what it adds to the kernels, what shared prefixes and guesses save, and how it bears load.

    python bench/engine.py ARTIFACT                                  # all cases but the soak
    python bench/engine.py ARTIFACT --only prefix --only overhead --json engine.json
    python bench/engine.py ARTIFACT --only load --plot engine.png
    python bench/engine.py ARTIFACT --soak 600                       # ten minutes of random requests: is memory flat?

Shares and ratios are of one run. docs/performance.md has tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from engine_cases import CASES, Row, Traffic, show, soak, told

from deepzig.runtime import load
from deepzig.runtime.bench.plot import check_plot


def plot(rows: Sequence[Row], path: Path) -> None:
    """Time to the first token and tokens a second, by offered load."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    loads = [row for row in rows if "requests/s offered" in row]
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    offered = [float(row["requests/s offered"]) for row in loads]
    axes.plot(offered, [float(row["tokens/s"]) for row in loads], marker="o", label="tokens/s")
    axes.set_xlabel("requests a second offered")
    axes.set_ylabel("tokens/s")
    waits = axes.twinx()
    for name, style in (("first token p50 ms", "--"), ("p95 ms", ":")):
        waits.plot(offered, [float(row[name]) for row in loads], style, marker=".", color="tab:red", label=name)
    waits.set_ylabel("ms to the first token")
    waits.set_yscale("log")
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, format="png", dpi=120)
    pyplot.close(figure)


@click.command(help=__doc__)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, type=click.Choice([*CASES]), help="This case; may be repeated.")
@click.option("--soak", "soak_seconds", type=click.FloatRange(1), help="Only send random requests, so many seconds.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="Threads of the kernels.")
@click.option("--cache-tokens", default=16384, show_default=True, type=click.IntRange(1), help="Tokens of the cache.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the rows to this file.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Draw the case `load` to this PNG file.")
def main(
    artifact: Path, only: tuple[str, ...], soak_seconds: float | None, threads: int, cache_tokens: int,
    json_path: Path | None, plot_path: Path | None,
) -> None:  # fmt: skip
    """Measure an artifact."""
    if plot_path:
        check_plot()
    rows: list[Row] = []
    with load(artifact, threads=threads, cache_tokens=cache_tokens) as model:
        traffic = Traffic(model, np.random.default_rng(1))
        wanted = only or (() if soak_seconds else tuple(CASES))
        cases = [CASES[name](traffic) for name in wanted] + ([soak(traffic, soak_seconds)] if soak_seconds else [])
        for case in cases:
            for row in case:
                show(row)
                rows.append(row)
    if json_path:
        json_path.write_text(told(rows) + "\n", encoding="utf-8")
    if plot_path:
        plot(rows, plot_path)


if __name__ == "__main__":
    main()
