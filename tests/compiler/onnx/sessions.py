"""Running exported models: one call, a batch with padding, and greedy text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

from deepzig.compiler.driver import read_model
from deepzig.compiler.onnx import export_onnx
from deepzig.compiler.options import Options

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Sequence[Array]]
"""Inputs by name -> logits, then the caches."""

TOLERANCE = 2e-5
"""f32, norm-relative."""


def export(checkpoint: Path, out: Path, options: Options, **more: Any) -> Path:
    """Export a checkpoint to out/model.onnx; the model is checked."""
    source, module = read_model(checkpoint, options)
    export_onnx(module, out / "model.onnx", source, quant=options.quant, **more)
    onnx.checker.check_model(str(out / "model.onnx"), full_check=True)
    return out / "model.onnx"


def runtime(model: Path) -> Run:
    """The model in onnxruntime, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    return lambda inputs: session.run(None, dict(inputs))


def reference(model: Path) -> Run:
    """The model in onnx's own evaluator."""
    evaluator = ReferenceEvaluator(str(model))
    return lambda inputs: evaluator.run(None, dict(inputs))


def latents(stem: str, caches: Sequence[Array]) -> dict[str, Array]:
    """Caches as inputs or outputs, by name."""
    return {f"{stem}.{number}.latent": cache for number, cache in enumerate(caches)}


def empty(model: Path, batch: int) -> list[Array]:
    """Caches without tokens."""
    graph = onnx.load(model, load_external_data=False).graph
    types = [value.type.tensor_type for value in graph.input if value.name.startswith("past")]
    return [
        np.zeros((batch, 0, t.shape.dim[2].dim_value), onnx.helper.tensor_dtype_to_np_dtype(t.elem_type)) for t in types
    ]


def call(run: Run, tokens: Array, mask: Array, caches: Sequence[Array]) -> tuple[Array, list[Array]]:
    """Logits and caches after more tokens [b, s]; `mask` [b, t] tells tokens, old and new, from padding."""
    positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -tokens.shape[1] :]
    inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
    logits, *caches = run({**inputs, **latents("past_key_values", caches)})
    return logits, caches


def greedy(run: Run, prompt: Array, caches: Sequence[Array], count: int) -> tuple[Array, list[int]]:
    """Logits of a prompt [t], and the tokens that follow."""
    answer: list[int] = []
    first, kept = call(run, prompt[None], np.ones((1, len(prompt)), np.int64), caches)
    logits = first
    while True:
        answer.append(int(logits[0, -1].argmax()))
        if len(answer) == count:
            return first[0], answer
        mask = np.ones((1, len(prompt) + len(answer)), np.int64)
        logits, kept = call(run, np.array([answer[-1:]]), mask, kept)


def distance(got: Array, want: Array) -> float:
    """Norm-relative difference."""
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))
