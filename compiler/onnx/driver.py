"""From a checkpoint to an ONNX model: what `deepzig-compile --onnx` does."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from deepzig.compiler.driver import Report, read_model
from deepzig.compiler.options import Options
from deepzig.compiler.stages import Progress, logged
from deepzig.errors import DeepZigError

from .export import export_onnx

log = logging.getLogger(__name__)

CACHES: Mapping[str, str] = {"f32": "f32", "f16": "f16", "bf16": "f32"}
"""`--dtype` -> how the cache is handed over: onnxruntime's Python knows no arrays of bf16."""


def compile_onnx(
    model: Path, out: Path, options: Options, domain: str = "standard", progress: Progress = lambda *_: None
) -> Report:
    """Export the model at `model` to the file `out`.

    Args:
        model: a checkpoint folder, a GGUF file, or the name of a model in Hugging Face's cache.
        out: the model's file; appears when all is written, or not at all.
        options: what to make.
        domain: one of ONNX_DOMAINS.
        progress: told of every stage.

    Raises:
        DeepZigError: something does not fit; nothing was written.
    """
    start, progress = time.perf_counter(), logged(progress)
    if options.dtype == "bf16":
        log.warning("onnxruntime has no bf16 products on the CPU: it keeps these weights as f32 in memory")
    cache = options.cache or CACHES.get(options.dtype)
    if cache not in (None, *CACHES.values()):
        raise DeepZigError(f"an ONNX model can't have a cache of {cache}", "--cache", "choose from f32, f16")
    source, module = read_model(model, replace(options, cache=cache), formats=())
    checked = options.self_check != "none"
    size = export_onnx(
        module, out, source, domain=domain, quant=options.quant, vectors=checked, force=options.force,
        progress=progress,
    )  # fmt: skip
    return Report(out, time.perf_counter() - start, 0, size)
