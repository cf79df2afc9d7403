"""The reference model as WGSL on software Vulkan: the same answers as on the CPU, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.compiler.driver import compile_model, fuse
from deepzig.compiler.options import Options
from deepzig.compiler.plan import plan_graph
from deepzig.compiler.trace import Bounds
from deepzig.compiler.weights import WeightSource
from deepzig.models.reference.corpus import heldout
from deepzig.runtime import load
from deepzig.targets.gpu.device import WEBGPU, GpuTarget
from deepzig.targets.gpu.lowering import LOWERINGS

from .vulkan import device
from .webgpu_plan import Model, shape_of, stored

REFERENCE = Path(__file__).parents[3] / "models" / "reference"
TARGET = GpuTarget(WEBGPU, frozenset(), "x86_64-linux", "webgpu")
BOUNDS = Bounds(chunk=64, decode_rows=4, rows=64, batch=1, page_size=16)
PAGES, MOST_TOKENS = 16, 60
END = 1


def model(dtype: str, quant: str | None) -> Model:
    """The reference model, with an empty cache."""
    source, module = fuse(REFERENCE, Options("webgpu", dtype, quant, bounds=BOUNDS))
    wanted = ("prefill", "decode", "sample")
    plans = [plan_graph(graph, module, TARGET, LOWERINGS) for graph in module.graphs if graph.name in wanted]
    caches = {t.name: np.zeros(shape_of(t.type, {"pages": PAGES}), np.uint32) for plan in plans for t in plan.states}
    return Model(plans, TARGET, stored(plans, WeightSource(module, source.checkpoint)), caches)


def answer(run: Model, prompt: list[int]) -> Iterator[int]:
    """Greedy tokens after a prompt."""
    tokens, begin = prompt, 0
    for _ in range(MOST_TOKENS):
        for first in range(0, len(tokens), BOUNDS.chunk):
            part = tokens[first : first + BOUNDS.chunk]
            inputs = {
                "tokens": part,
                "seq": np.zeros(len(part)),
                "pos": np.arange(begin, begin + len(part)),
                "block_table": np.arange(PAGES)[None],
                "out_rows": [len(part) - 1],
            }
            name = "prefill" if len(part) > BOUNDS.decode_rows else "decode"
            logits, *_ = run(name, {key: np.asarray(value, np.int32) for key, value in inputs.items()})
            begin += len(part)
        tokens = [greedy(run, logits)]
        if tokens[0] == END:
            return
        yield tokens[0]


def greedy(run: Model, logits: Any) -> int:
    """The token that the sampling op draws at temperature 0."""
    given = {t.name: np.zeros([1, *t.type.shape[1:]], t.type.dtype.replace("i32", "int32").replace("f32", "float32"))
             for t in run.plans["sample"].inputs}  # fmt: skip
    [tokens] = run("sample", {**given, "logits": logits})
    return int(tokens[0])


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "quant"), [("f32", None), ("f16", None), ("f32", "q8")])
def test_held_out_questions_are_answered_as_on_the_cpu(tmp_path: Path, dtype: str, quant: str | None) -> None:
    device()
    compile_model(REFERENCE, tmp_path / "cpu", Options(dtype=dtype, quant=quant, self_check="none"))
    run = model(dtype, quant)
    questions = heldout(None, 2)[:6]
    with load(tmp_path / "cpu") as cpu:
        for question in questions:
            prompt = cpu.tokenizer.encode_chat([{"role": "user", "content": question.question}])
            wanted = [t for t in cpu.generate(prompt, max_tokens=MOST_TOKENS).token_ids if t != END]
            assert list(answer(run, prompt)) == wanted
    assert len(questions) == 6
