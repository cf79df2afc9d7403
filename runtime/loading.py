"""Loading an artifact, or an ONNX export."""

from __future__ import annotations

import logging
from numbers import Integral
from pathlib import Path

from deepzig.artifacts.devices import parse_device
from deepzig.artifacts.manifest import Bounds
from deepzig.artifacts.parts import is_onnx
from deepzig.artifacts.reader import open_artifact
from deepzig.errors import DeepZigError
from deepzig.log import configure

from .engine import Settings
from .executor import open_executor
from .model import Model
from .pages import PagePool
from .tokenizer import Tokenizer

log = logging.getLogger(__name__)

DEFAULT_CACHE_TOKENS = 16384


def cache_pages(bounds: Bounds, tokens: int | None) -> int:
    """How many pages hold `tokens` tokens; by default a whole context, unless that is very long."""
    wanted = min(bounds.positions, DEFAULT_CACHE_TOKENS) if tokens is None else int(tokens)
    return -(-wanted // bounds.page_size)


def load(
    path: str | Path, *, threads: int | None = None, cache_tokens: int | None = None, full_check: bool = False,
    device: str | None = None, settings: Settings | None = None,
) -> Model:  # fmt: skip
    """Load an artifact, or an ONNX model that DeepZig exported (docs/onnx.md).

    Args:
        path: the artifact: a folder, or a file made by `deepzig pack`; or the `.onnx` file.
        threads: threads of the kernels; by default DEEPZIG_THREADS, else all processors.
        cache_tokens: tokens that the cache holds, for all sequences together.
        full_check: hash the weights before use.
        device: where it runs, such as `cpu`, `cuda`, `cuda:1` or `metal`; by default where the artifact can, on a GPU
            before the CPU.
        settings: how requests share the model.

    Raises:
        DeepZigError: the artifact is damaged, or does not fit this machine, device or process.
    """
    for name, value in (("threads", threads), ("cache_tokens", cache_tokens)):
        if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < 1):
            raise DeepZigError(f"{name} is {value!r}", f"option {name}", "give a whole number from 1")
    configure()
    chosen = None if device is None else parse_device(device)
    if is_onnx(Path(path)):
        from .onnx_model import load_onnx

        return load_onnx(Path(path), threads, cache_tokens, full_check, chosen, settings or Settings())
    artifact = open_artifact(Path(path), full=full_check, device=chosen)
    made_by, build = artifact.manifest.created_by, artifact.build.name
    log.info("checked %s, made by %s; chose build %s for the device %s", path, made_by, build, artifact.device)
    bounds = artifact.manifest.bounds
    pages = cache_pages(bounds, cache_tokens)
    executor = open_executor(artifact, pages, threads)
    tokenizer = Tokenizer(artifact.folder, artifact.manifest.files)
    pool = PagePool(pages, bounds.page_size)
    return Model(artifact.manifest, tokenizer, executor, pool, Path(path), settings or Settings())
