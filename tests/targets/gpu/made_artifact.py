"""A tiny artifact with code for a GPU, written by hand: a model whose next token hangs on all tokens before it.

Its runtime part for the device is the software GPU of tests/targets/gpu.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.script import tirx as T

from deepzig.artifacts.manifest import FORMAT, Manifest
from deepzig.artifacts.writer import ArtifactWriter
from deepzig.compiler.lower import lower
from deepzig.compiler.plan import Launch, Plan, Tensor
from deepzig.ir import TensorType
from deepzig.targets.emit import either, kernel, loop, store, symbols, when
from deepzig.targets.gpu.device import CUDA, METAL, GpuTarget
from deepzig.targets.gpu.emit import launch, variable
from deepzig.targets.gpu.pipeline import compile_module

from .software import library

VOCAB, HIDDEN, PAGE, WIDTH, ROWS = 41, 5, 4, 3, 24
GPUS = {gpu.kind: gpu for gpu in (CUDA, METAL)}
PLATFORM = f"{platform.machine()}-linux"
WEIGHT = np.random.default_rng(5).standard_normal((VOCAB, VOCAB), np.float32)
INDICES = (("tokens", "n"), ("seq", "n"), ("pos", "n"), ("block_table", "b", "p"), ("out_rows", "r"))
OPTIONS = (
    ("temperature", "f32", "r"), ("top_k", "i32", "r"), ("top_p", "f32", "r"), ("min_p", "f32", "r"),
    ("seed", "i32", "r", 2), ("position", "i32", "r"),
)  # fmt: skip


def state(past: Sequence[int]) -> int:
    """What the model knows of the tokens so far."""
    return sum((token + 1) * (t % 7 + 1) for t, token in enumerate(past)) % VOCAB


def logits(past: Sequence[int]) -> np.ndarray:
    """Those of the next token."""
    return WEIGHT[state(past)]


def _write() -> Any:
    """Tokens into the cache, as floats from 1."""
    with kernel("write") as f:
        n, b, p, pages = symbols("n b p pages")
        tokens, seq, pos = (f.tensor(name, "i32", n) for name in ("tokens", "seq", "pos"))
        table, cache = f.tensor("table", "i32", b, p), f.tensor("cache", "f32", pages, PAGE, WIDTH)
        with launch(32, n) as t, when(t.thread < WIDTH):
            i = t.block[0]
            page = T.bind(table[seq[i], pos[i] // PAGE])
            store(cache, T.Cast("float32", tokens[i] + 1), page, pos[i] % PAGE, t.thread)
    return f.function


def _state() -> Any:
    """Of every row the state of its text, in all columns."""
    with kernel("state") as f:
        n, b, p, pages = symbols("n b p pages")
        seq, pos = (f.tensor(name, "i32", n) for name in ("seq", "pos"))
        table, cache = f.tensor("table", "i32", b, p), f.tensor("cache", "f32", pages, PAGE, WIDTH)
        hidden = f.tensor("hidden", "f32", n, HIDDEN)
        with launch(32, n) as t, when(t.thread < HIDDEN):
            i, known = t.block[0], variable(T.int32(0), "int32")
            with loop(T.Cast("int64", pos[i]) + 1) as at:
                at = T.bind(T.Cast("int32", at))
                value = T.Cast("int32", cache[table[seq[i], at // PAGE], at % PAGE, t.thread % WIDTH])
                store(known, known[0] + value * (at % 7 + 1), 0)
            store(hidden, T.Cast("float32", known[0] % VOCAB), i, t.thread)
    return f.function


def _head(draft: bool) -> Any:
    """Logits of the wanted rows: a row of the weight; of a draft the row after so many as the token says."""
    with kernel("head", "draft" if draft else "main") as f:
        n, r = symbols("n r")
        tokens, rows = f.tensor("tokens", "i32", n), f.tensor("rows", "i32", r)
        hidden, weight = f.tensor("hidden", "f32", n, HIDDEN), f.tensor("weight", "f32", VOCAB, VOCAB)
        out = f.tensor("out", "f32", r, VOCAB)
        with launch(32, r) as t:
            row = T.bind(rows[t.block[0]])
            known = T.Cast("int32", hidden[row, 0]) + (tokens[row] if draft else 0)
            known = T.bind(known % VOCAB)
            with t.each(VOCAB) as v:
                store(out, weight[known, v], t.block[0], v)
    return f.function


def _mix() -> Any:
    """Hidden states as they are, unless the cache has no tokens."""
    with kernel("mix") as f:
        n, pages = symbols("n pages")
        cache, hidden = f.tensor("cache", "f32", pages, PAGE, WIDTH), f.tensor("hidden", "f32", n, HIDDEN)
        out = f.tensor("out", "f32", n, HIDDEN)
        with launch(32, n) as t, t.each(HIDDEN) as h:
            store(out, hidden[t.block[0], h] + T.min(cache[0, 0, 0], T.float32(0)), t.block[0], h)
    return f.function


def _take() -> Any:
    """The wanted rows."""
    with kernel("take") as f:
        n, r = symbols("n r")
        rows, hidden = f.tensor("rows", "i32", r), f.tensor("hidden", "f32", n, HIDDEN)
        out = f.tensor("out", "f32", r, HIDDEN)
        with launch(32, r) as t, t.each(HIDDEN) as h:
            store(out, hidden[rows[t.block[0]], h], t.block[0], h)
    return f.function


def _sample() -> Any:
    """The greatest logit; with a temperature, that of the token after."""
    with kernel("sample", VOCAB) as f:
        (r,) = symbols("r")
        x = f.tensor("logits", "f32", r, VOCAB)
        given = [f.tensor(name, dtype, *(r if d == "r" else d for d in shape)) for name, dtype, *shape in OPTIONS]
        tokens = f.tensor("tokens", "i32", r)
        with launch(32, r) as t, when(t.thread == 0):
            row, best, sum_ = t.block[0], variable(T.int32(0), "int32"), variable(T.float32(0))
            with loop(VOCAB) as v:
                store(sum_, sum_[0] + x[row, v], 0)
                with when(x[row, v] > x[row, best[0]]):
                    store(best, T.Cast("int32", v), 0)
            bits = T.reinterpret("uint32", sum_[0]) & T.uint32(0x7FFFFFFF)
            with either(bits < T.uint32(0x7F800000)) as (numbers, others):
                with numbers:
                    moved = T.Cast("int32", given[0][row] > T.float32(0)) * (given[5][row] + given[4][row, 0])
                    store(tokens, (best[0] + tirx.abs(moved)) % VOCAB, row)
                with others:
                    store(tokens, T.int32(-1), row)
    return f.function


def _node(op: str) -> Any:
    return SimpleNamespace(op=SimpleNamespace(name=op), layer=None, where="made_artifact:1")


def _plan(name: str) -> Plan:
    """An entry point: its inputs, and one launch after the other."""
    if name == "sample":
        x = Tensor("logits", TensorType("f32", ("r", VOCAB)))
        given = tuple(Tensor(n, TensorType(d, tuple(shape))) for n, d, *shape in OPTIONS)
        tokens = Tensor("tokens", TensorType("i32", ("r",)))
        plan = Plan(name, SimpleNamespace(attrs={}), (x, *given), (), outputs=(tokens,))  # type: ignore[arg-type]
        plan.launches.append(Launch(_sample(), (x, *given), (tokens,), False, _node("sample")))
        return plan
    draft = name == "draft"
    inputs = {n: Tensor(n, TensorType("i32", tuple(shape))) for n, *shape in INDICES}
    states = Tensor("hidden", TensorType("f32", ("n", HIDDEN)))
    cache = Tensor(f"cache.{int(draft)}", TensorType("f32", ("pages", PAGE, WIDTH)))
    weight = Tensor("w@raw", TensorType("f32", (VOCAB, VOCAB)))
    written = Tensor("written", cache.type)
    out, taken = Tensor("logits", TensorType("f32", ("r", VOCAB))), Tensor("taken", TensorType("f32", ("r", HIDDEN)))
    mixed = Tensor("mixed", states.type)
    tokens, seq, pos, table, rows = inputs.values()
    launches = [Launch(_write(), (tokens, seq, pos, table, cache), (written,), True, _node("write"))]
    if draft:  # what is recorded has to begin with a kernel whose output TVM allocates
        launches.insert(0, Launch(_mix(), (cache, states), (mixed,), False, _node("mix")))
        launches.append(Launch(_take(), (rows, mixed), (taken,), False, _node("take")))
    else:
        launches.append(Launch(_state(), (seq, pos, table, written), (states,), False, _node("state")))
    read = mixed if draft else states
    launches.append(Launch(_head(draft), (tokens, rows, read, weight), (out,), False, _node("head")))
    return Plan(
        name, SimpleNamespace(attrs={"rows": ROWS}),  # type: ignore[arg-type]
        (*inputs.values(), *([states] if draft else [])), (cache,), {weight: weight},  # type: ignore[dict-item]
        launches, (out, taken if draft else states), {out: "1", states: "0", taken: "0"},
    )  # fmt: skip


def write(out: Path, device: str, **change: Any) -> Path:
    """The artifact with code for a kind of devices; `change` are fields of its build."""
    plans = [_plan(name) for name in ("prefill", "decode", "draft", "sample")]
    target = GpuTarget(GPUS[device], frozenset(), PLATFORM, device)
    executable = compile_module(lower(plans, target.replay), target.tvm_target())
    lib = Path(tvm.__file__).parent / "lib" / "libtvm_runtime.so"
    runtime, more = f"lib/{PLATFORM}/{lib.name}", f"lib/{PLATFORM}/libtvm_runtime_{device}.so"
    code = f"code/{device}.so"
    with ArtifactWriter(out, False) as writer:
        executable.export_library(str(writer.scratch / "code.so"))
        for part, file in ((code, writer.scratch / "code.so"), (runtime, lib), (more, library())):
            writer.add_file(part, file)
        with writer.weights() as file:
            file.declare("w@raw", "f32", WEIGHT.shape)
            file.write("w@raw", [WEIGHT])
        build = {
            "name": device, "platform": PLATFORM, "triple": target.triple, "features": ["sm_80", "ptx_80"],
            "code": code, "runtime": runtime, "calls": {plan.name: _calls(plan) for plan in plans},
            "device": device, "libraries": [more], **change,
        }  # fmt: skip
        writer.finish(Manifest.from_json(_manifest(plans, build), "test"))
    return out


def _calls(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "kernel": launch.kernel_name, "op": launch.op, "layer": None, "where": launch.where,
            "values": [plan.names.get(t, "") for t in launch.outputs],
        }
        for launch in plan.launches
    ]  # fmt: skip


def _manifest(plans: Sequence[Plan], build: dict[str, Any]) -> dict[str, Any]:
    def specs(tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
        return [{"name": t.name, "dtype": t.type.dtype, "shape": list(t.type.shape)} for t in tensors]

    caches = [{"name": f"cache.{i}", "dtype": "f32", "shape": ["pages", PAGE, WIDTH]} for i in range(2)]
    return {
        "format": FORMAT, "created_by": "a test", "memory": {}, "passes": [], "files": {}, "builds": [build],
        "model": {"name": "gpu", "vocab_size": VOCAB, "num_hidden_layers": 1, "eos_token_ids": [1]},
        "abi": {"tvm_ffi": version("apache-tvm-ffi"), "tvm": version("apache-tvm")},
        "bounds": {"rows": ROWS, "batch": 3, "chunk": 8, "decode_rows": 4, "page_size": PAGE, "positions": 120},
        "cache": caches,
        "weights": [{"name": "w@raw", "dtype": "f32", "shape": list(WEIGHT.shape)}],
        "entry_points": {
            plan.name: {
                "inputs": specs(plan.inputs), "states": [t.name for t in plan.states],
                "weights": [t.name for t in plan.weights.values()],
                "outputs": specs(plan.outputs),
            }
            for plan in plans
        },
    }  # fmt: skip
