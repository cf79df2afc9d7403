"""What a compilation can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepzig.artifacts.onnx_file import MICROSOFT
from deepzig.targets.registry import DEFAULT

from .trace import Bounds

DTYPES = ("f32", "bf16", "f16")
CACHES = (*DTYPES, "q8")
ONNX_DOMAINS = {"standard": "", "microsoft": MICROSOFT}
"""Names of `--onnx-domain` -> the domain whose ops multiply by quantised matrices."""
SELF_CHECKS = ("sampled", "full", "none")

DEFAULT_BOUNDS = Bounds()


@dataclass(frozen=True)
class Options:
    """What `deepzig-compile` can be asked for.

    Attributes:
        target: the text of `--target`.
        dtype: how matrices are stored: one of DTYPES.
        quant: which matrices are quantised, see `precision.parse_quant`; None for none.
        cache: how the cache is stored: one of CACHES; None: as matrices.
        bounds: the sizes that the artifact fixes.
        embeddings: `prefill` and `decode` return hidden states too, as they do anyhow for a model with a layer for
            multi-token prediction.
        debug_route: adds an input that forces the expert choice.
        dump_ir: a folder for the module's text before and after each pass.
        stop_after: a pass after which to stop; nothing is written.
        fuse_limit: the most rewrites to make, to bisect a wrong one.
        force: replace `out` if it is an artifact.
        self_check: one of SELF_CHECKS: how many layers `deepzig verify` can check.
    """

    target: str = DEFAULT
    dtype: str = "bf16"
    quant: str | None = None
    cache: str | None = None
    bounds: Bounds = DEFAULT_BOUNDS
    embeddings: bool = False
    debug_route: bool = False
    dump_ir: Path | None = None
    stop_after: str | None = None
    fuse_limit: int | None = None
    force: bool = False
    self_check: str = "sampled"
