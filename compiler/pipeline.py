"""The pipeline, to be read aloud."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deepzig.errors import DeepZigError
from deepzig.ir import Graph, Module, eliminate_dead, fuse_limit, show, verify

from .passes.attention import fuse_latent_write, fuse_mla, merge_latent_projections
from .passes.linear import (
    fuse_norm_into_linear,
    fuse_norm_into_swiglu,
    fuse_residual_into_linear,
    fuse_swiglu,
    split_concat_linear,
)
from .passes.moe import fold_shared_experts, fuse_experts, fuse_residual_into_moe, fuse_router
from .passes.weights import hoist_weights

Pass = Callable[[Graph], Graph]

PIPELINE: tuple[Pass, ...] = (
    eliminate_dead,
    fuse_router,
    fuse_experts,
    fold_shared_experts,
    fuse_residual_into_moe,
    fuse_latent_write,
    fuse_mla,
    fuse_swiglu,
    split_concat_linear,
    fuse_residual_into_linear,
    fuse_norm_into_linear,
    merge_latent_projections,
    fuse_norm_into_linear,
    fuse_norm_into_swiglu,
    eliminate_dead,
)


def pass_names() -> list[str]:
    """Names of all stages, in order of first appearance."""
    return list(dict.fromkeys([*(p.__name__ for p in PIPELINE), hoist_weights.__name__]))


def run_pipeline(
    module: Module, *, dump: Path | None = None, stop_after: str | None = None, limit: int | None = None
) -> Module:
    """Run every pass on every graph, then move the work on weights to compile time.

    Args:
        module: the traced module.
        dump: a folder for the text of the module before and after each pass.
        stop_after: the name of the pass to stop after.
        limit: the most rewrites to make in all.

    Raises:
        DeepZigError: no such pass; a pass broke the module; the dump can't be written.
    """
    if stop_after is not None and stop_after not in pass_names():
        raise DeepZigError(
            f"no pass is called {stop_after!r}", "--stop-after", f"choose from {', '.join(pass_names())}"
        )
    stages = [p.__name__ for p in PIPELINE]
    last = len(stages) if stop_after in (None, hoist_weights.__name__) else len(stages) - stages[::-1].index(stop_after)
    _dump(module, dump, 0, "trace")
    with fuse_limit(limit):
        for number, run in enumerate(PIPELINE[:last], 1):
            module = module.with_graphs(tuple(run(g) for g in module.graphs))
            verify(module)
            _dump(module, dump, number, run.__name__)
    if stop_after not in (None, hoist_weights.__name__):
        return module
    module = hoist_weights(module)
    verify(module)
    _dump(module, dump, last + 1, hoist_weights.__name__)
    return module


def _dump(module: Module, folder: Path | None, number: int, name: str) -> None:
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02}-{name}.ir").write_text(show(module))
    except OSError as error:
        raise DeepZigError(
            f"the IR can't be written: {error.strerror}", str(folder), "name another folder with --dump-ir"
        ) from None
