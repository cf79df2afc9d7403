"""onnxruntime's own mixture of quantised experts."""

from __future__ import annotations

from functools import partial

from deepzig.artifacts.onnx_file import MICROSOFT
from deepzig.ir import Value
from deepzig.ir.quantize import GROUP, QUANTIZED

from .context import Context
from .quant import INT8_ROWS, Quantised, nbits

INTERLEAVED = 1
"""swiglu_fusion of QMoE: rows of gate and up in turn, which is all that its kernel for CPUs knows."""


def qmoe_takes(gate: Value, up: Value, down: Value) -> bool:
    """Whether the op can hold these experts: of one format, and whole groups."""
    formats = {v.type.dtype for v in (gate, up, down)}
    whole = not any(int(v.shape[2]) % GROUP for v in (gate, down))
    return len(formats) == 1 and formats <= QUANTIZED.keys() and whole


def qmoe(
    c: Context, rows: str, chosen: str, share: str, experts: tuple[Value, Value, Value], k: int, out: str
) -> str:  # fmt: skip
    """The SwiGLU of each chosen expert, weighted and summed.

    The op chooses experts by scores and weighs them by others, both [n, e]. Here they are the same: the router's
    weights, which are positive for the chosen experts, and zero for all else.

    Args:
        c: the export.
        rows: f32 [n, h].
        chosen: the experts of each row, [n, k].
        share: their weights, [n, k].
        experts: the stacks gate, up and down.
        k: experts of a row.
        out: the output's name.
    """
    e, (gate, up, down) = c.emit, experts
    count = int(gate.shape[0])
    shape = e.op("Concat", e.op("Shape", chosen, start=0, end=1), e.ints(count), axis=0)
    weights = e.op("ScatterElements", e.op("ConstantOfShape", shape), chosen, share, axis=1)
    both, last = Quantised((gate, up)), Quantised((down,))
    names = f"{gate.name}-and-{up.name}", down.name
    first_codes, first_scales = _stored(c, both, names[0])
    last_codes, last_scales = _stored(c, last, names[1])
    return e.op(
        "QMoE", rows, weights, first_codes, first_scales, "", last_codes, last_scales, *[""] * 7, weights, out=out,
        domain=MICROSOFT, k=k, expert_weight_bits=both.bits, block_size=GROUP, accuracy_level=INT8_ROWS,
        weights_prepacked=0, activation_type="swiglu", swiglu_fusion=INTERLEAVED, activation_alpha=1.0,
        activation_beta=0.0, normalize_routing_weights=0,
    )  # fmt: skip


def _stored(c: Context, matrix: Quantised, name: str) -> tuple[str, str]:
    experts, rows, groups = matrix.shape
    return matrix.store(c, name, partial(nbits, matrix.bits), experts, rows, groups * GROUP * matrix.bits // 8)
