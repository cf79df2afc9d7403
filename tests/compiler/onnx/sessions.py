"""Exported models and ways to run them: onnxruntime, onnx's own evaluator, and the interpreter as the oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from deepzig.compiler import export_onnx
from deepzig.compiler.precision import parse_quant
from deepzig.compiler.trace import Bounds, trace
from deepzig.compiler.weights import WeightSource, as_f32
from deepzig.ir import Module, Value, interpret
from deepzig.ir.quantize import QUANTIZED, QuantizedMatrix
from deepzig.models import ModelConfig
from deepzig.models.source import Source, open_source

from ...models.folders import random_weights, write

onnxruntime = pytest.importorskip("onnxruntime", reason="Python 3.10 has no onnxruntime that knows the opset")

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Sequence[Array]]
"""Inputs by name -> logits, then the caches."""

TOLERANCE = 2e-5
"""f32, norm-relative."""

BOUNDS = Bounds(page_size=128)
F32_ROWS = {"session.qdq_matmulnbits_accuracy_level": "1"}
"""Has onnxruntime leave the rows alone that quantised matrices multiply."""


@dataclass(frozen=True)
class Exported:
    """A model as ONNX, and what it was made of."""

    path: Path
    source: Source
    module: Module

    def empty(self, batch: int) -> list[Array]:
        """Caches without tokens."""
        kinds = {"f32": np.float32, "f16": np.float16}
        states = self.module.states_of(self.module.graph("decode"))
        return [np.zeros((batch, 0, int(s.shape[-1])), kinds[s.type.dtype]) for s in states]

    def oracle(self, tokens: Array, rounded: bool = False) -> tuple[Array, list[Array]]:
        """Logits of every token of one sequence, and its caches, by the unfused graph and the weights that are stored.

        With `rounded`, rows that meet quantised matrices are rounded, as the IR has it.
        """
        plain = trace(self.source.config, "f32", BOUNDS, cache=self.module.states[0].type.dtype)
        weights = WeightSource(self.module, self.source.checkpoint)
        params = {v.name: stored(weights, v, not rounded) for v in self.module.params}
        n = len(tokens)
        rows = {"tokens": tokens, "seq": np.zeros(n), "pos": range(n), "block_table": [[0]], "out_rows": range(n)}
        inputs = {name: np.array(x, np.int32) for name, x in rows.items()}
        states = {s.name: np.zeros((1, *map(int, s.shape[1:])), np.float32) for s in plain.states}
        (logits,), after = interpret(self.module if rounded else plain, "prefill", inputs, params, states)
        return logits, [after[s.name][0, :n] for s in plain.states]


def stored(weights: WeightSource, value: Value, rounded: bool) -> Array:
    """A parameter as f32; of a quantised one what its codes stand for, or what it was."""
    whole = np.stack(list(weights.pieces(value))) if len(value.shape) == 3 else weights.whole(value)
    floats = as_f32(whole, value.type.dtype)
    return QuantizedMatrix.of(floats, value.type.dtype).values if rounded and value.type.dtype in QUANTIZED else floats


def export(
    folder: Path, c: ModelConfig, dtype: str = "f32", cache: str | None = None, quant: str | None = None, **more: Any
) -> Exported:
    """A model with random weights, exported and checked."""
    write(folder / "hf", random_weights(c, 5))
    source = replace(open_source(folder / "hf"), config=c)
    module = trace(c, dtype, BOUNDS, quant=parse_quant(quant), cache=cache)
    path = folder / "out" / "model.onnx"
    export_onnx(module, path, source, quant=quant, **more)
    onnx.checker.check_model(str(path), full_check=True)
    return Exported(path, source, module)


def runtime(model: Path, settings: Mapping[str, str] = F32_ROWS) -> Run:
    """The model in onnxruntime, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    return lambda inputs: session.run(None, dict(inputs))


def reference(model: Path) -> Run:
    """The model in onnx's own evaluator."""
    evaluator = ReferenceEvaluator(str(model))
    return lambda inputs: evaluator.run(None, dict(inputs))


def call(run: Run, tokens: Array, mask: Array, caches: Sequence[Array]) -> tuple[Array, list[Array]]:
    """Logits and caches after more tokens [b, s]; `mask` [b, t] tells tokens, old and new, from padding."""
    positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -tokens.shape[1] :]
    inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
    past = {f"past_key_values.{number}.latent": cache for number, cache in enumerate(caches)}
    logits, *present = run({**inputs, **past})
    return logits, present


def greedy(run: Run, prompt: Array, caches: Sequence[Array], count: int) -> tuple[Array, list[int]]:
    """Logits of a prompt [t], and the tokens that follow."""
    first, kept = call(run, prompt[None], np.ones((1, len(prompt)), np.int64), caches)
    logits, answer = first, [int(first[0, -1].argmax())]
    while len(answer) < count:
        mask = np.ones((1, len(prompt) + len(answer)), np.int64)
        logits, kept = call(run, np.array([answer[-1:]]), mask, kept)
        answer.append(int(logits[0, -1].argmax()))
    return first[0], answer


def distance(got: Array, want: Array) -> float:
    """Norm-relative difference."""
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))
