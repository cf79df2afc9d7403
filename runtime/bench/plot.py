"""The results as a picture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from deepzig.errors import DeepZigError

from .cases import Decode
from .report import digits
from .results import Results


def check_plot() -> None:
    """Ask for matplotlib before anything is measured.

    Raises:
        DeepZigError: it is not installed.
    """
    if find_spec("matplotlib") is None:
        raise DeepZigError("matplotlib is not installed", "--plot", "pip install 'deepzig[plot]'")


def plot(results: Results, path: Path) -> None:
    """Draw decode speed by depth, a line for each batch, and the speed that the memory allows one sequence.

    Raises:
        DeepZigError: the file can't be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    speeds = [(s, s.case) for s in results.speeds if isinstance(s.case, Decode)]
    for batch in dict.fromkeys(case.batch for _, case in speeds):
        line = sorted((case.depth, s.tokens_per_second, s.share) for s, case in speeds if case.batch == batch)
        (drawn,) = axes.plot(
            [depth for depth, _, _ in line], [speed for _, speed, _ in line], marker="o", label=f"batch {batch}"
        )
        limits = [(depth, speed / share) for depth, speed, share in line if share]
        if limits:
            label = f"limit of {digits((results.bandwidth or 0) / 1e9)} GB/s, batch {batch}"
            axes.plot(*zip(*limits, strict=True), linestyle="--", marker=".", color=drawn.get_color(), label=label)
    prefills = ", ".join(
        f"{s.case}: {digits(s.tokens_per_second)} tokens/s" for s in results.speeds if not isinstance(s.case, Decode)
    )
    axes.set_title(f"{Path(results.setting.artifact).name}, {results.setting.threads} threads\n{prefills}")
    axes.set_xlabel("tokens in the cache")
    axes.set_ylabel("tokens/s, all sequences together")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if speeds:
        axes.legend()
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        what = f"the picture can't be written: {error.strerror}"
        raise DeepZigError(what, str(path), "choose another place with --plot") from None
    finally:
        pyplot.close(figure)
