"""Quantised exports: what codes stand for, by standard ops and by onnxruntime's, and that experts may differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from deepzig.compiler.onnx.quant import halves, nbits, nibbles
from deepzig.errors import DeepZigError
from deepzig.ir.quantize import quantize

from ...models.folders import config
from .sessions import TOLERANCE, Exported, call, distance, export, reference, runtime

WHOLE = {"hidden_size": 128, "moe_intermediate_size": 64, "intermediate_size": 96}
"""Sizes that QMoE takes: whole groups of 64."""

ROUNDED = 2e-2
"""Norm-relative, where rows are rounded to 8 bits: a value between two may become the other, a hundredth of a group's
largest away, and other layers build on it."""


def tokens_of(model: Exported, count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, model.source.config.vocab_size, count)


def kinds(model: Exported) -> set[str]:
    graph = onnx.load(model.path, load_external_data=False).graph
    return {node.op_type for node in graph.node}


@pytest.mark.parametrize("quant", ["q8", "q4", "q4,experts=q8", "q8,o_proj=float,experts.down_proj=q4"])
@pytest.mark.parametrize("sizes", [{}, WHOLE])
def test_standard_ops(quant: str, sizes: dict[str, int], tmp_path: Path) -> None:
    model = export(tmp_path, config(**sizes), quant=quant)
    tokens = tokens_of(model, 11)
    want, _ = model.oracle(tokens)
    for run in (runtime(model.path), reference(model.path)):
        got, _ = call(run, tokens[None], np.ones((1, len(tokens)), np.int64), model.empty(1))
        assert distance(got[0], want) <= TOLERANCE
    assert not onnx.load(model.path, load_external_data=False).opset_import[1:]


@pytest.mark.parametrize("quant", ["q8", "q4", "q4,experts.down_proj=q8"])
@pytest.mark.parametrize("sizes", [{}, WHOLE])
def test_ops_of_onnxruntime(quant: str, sizes: dict[str, int], tmp_path: Path) -> None:
    model = export(tmp_path, config(**sizes), quant=quant, domain="microsoft")
    assert {"MatMulNBits", "QMoE" if sizes and "," not in quant else "Loop"} <= kinds(model)
    tokens = tokens_of(model, 5)
    got, _ = call(runtime(model.path), tokens[None], np.ones((1, len(tokens)), np.int64), model.empty(1))
    assert distance(got[0], model.oracle(tokens, rounded=True)[0]) <= ROUNDED


def test_fp8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeepZigError) as caught:
        export(tmp_path, config(), quant="fp8")
    assert str(caught.value) == "fp8 matrices can't be exported to ONNX\n  at: --quant\n  fix: choose q8 or q4"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [7, 12, 64])
def test_nibbles(size: int) -> None:
    codes = np.random.default_rng(size).integers(-8, 8, (3, size)).astype(np.int8)
    packed = nibbles(codes)
    assert packed.shape == (3, -(-size // 2))
    low, high = packed << 4, packed & 0xF0  # in the high half, where the sign is the byte's
    both = (np.stack([low, high], -1).view(np.int8) >> 4).reshape(3, -1)[:, :size]
    assert (both == codes).all()


def test_unsigned_codes() -> None:
    codes, _ = quantize(np.random.default_rng(1).standard_normal((5, 128), np.float32), "q4")
    first, second = (halves(codes) & 15).astype(int) - 8, (halves(codes) >> 4).astype(int) - 8
    assert (np.concatenate([first, second], -1) == codes).all()
    pairs = nbits(4, codes)
    assert (np.stack([pairs & 15, pairs >> 4], -1).reshape(codes.shape).astype(int) - 8 == codes).all()
    codes, _ = quantize(np.random.default_rng(2).standard_normal((5, 100), np.float32), "q8")
    assert (nbits(8, codes).astype(int) - 128 == codes).all()
