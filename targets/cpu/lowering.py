"""The table of ops and the CPU kernels that compute them; best variant first."""

from __future__ import annotations

from functools import partial
from typing import Any

from deepzig.ir import Node, TensorType, Value
from deepzig.ir.quantize import FORMATS
from deepzig.targets.base import Emitter, Layout, Operand, Table, Variant
from deepzig.targets.plain import RAW

from . import attention, linear, moe, norm, prefill, router, sample
from .features import CpuTarget
from .layout import (
    pack_columns,
    pack_gate_up,
    pack_quantized,
    pack_quantized_gate_up,
    packed_type,
    padded,
)
from .plain import PLAIN

Cpu = CpuTarget


COLUMNS = Layout("columns", packed_type, pack_columns)


def _gate_up_type(gate: TensorType, up: TensorType) -> TensorType:
    packed, lead = packed_type(gate), len(gate.shape) - 1
    return TensorType(packed.dtype, (*packed.shape[:lead], 2, *packed.shape[lead:]))


GATE_UP = Layout("gate-up", _gate_up_type, pack_gate_up)

QUANTIZED_COLUMNS = {
    dtype: Layout(f"columns-{dtype}", packed_type, partial(pack_quantized, dtype=dtype)) for dtype in FORMATS
}
QUANTIZED_GATE_UP = {
    dtype: Layout(f"gate-up-{dtype}", _gate_up_type, partial(pack_quantized_gate_up, dtype=dtype)) for dtype in FORMATS
}


def _columns(w: Value) -> Layout:
    return QUANTIZED_COLUMNS.get(w.type.dtype, COLUMNS)


def _gate_up(gate: Value) -> Layout:
    return QUANTIZED_GATE_UP.get(gate.type.dtype, GATE_UP)


def _optional(node: Node, index: int) -> Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _value(node: Node, index: int) -> Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _int(node: Node, name: str, default: int = 0) -> int:
    return int(str(node.attrs.get(name, default)))


def _float(node: Node, name: str, default: float = 0.0) -> float:
    return float(str(node.attrs.get(name, default)))


def _dim(value: Value, axis: int) -> int:
    return int(value.shape[axis])


def _vectors(e: Emitter, *values: Value | None) -> list[Operand]:
    """Optional f32 operands: parameters as they are, others as values."""
    return [e.weight(RAW, v) if v.kind == "param" else e.value(v) for v in values if v is not None]


def _proj(e: Emitter, node: Node, cpu: Cpu) -> Operand:
    x, w = _value(node, 0), _value(node, 1)
    norm_w, bias, residual = (
        (None, _optional(node, 2), None) if node.op.name == "linear" else [_optional(node, i) for i in (2, 3, 4)]
    )
    m, k = _dim(w, 0), _dim(w, 1)
    kernel = linear.proj(
        k, m, w.type.dtype, x_width=_dim(x, 1), begin=_int(node, "begin"),
        norm_eps=_float(node, "eps") if norm_w else None, bias=bias is not None, residual=residual is not None,
        vectors=cpu.vectors,
    )  # fmt: skip
    args = [e.value(x), e.weight(_columns(w), w), *_vectors(e, norm_w, bias, residual)]
    return e.call(kernel, args, node.output.type)


def _linear(e: Emitter, node: Node, cpu: Cpu) -> Operand:
    rank = len(_value(node, 0).shape)
    return (_proj if rank == 2 else PLAIN["linear"][0].lower)(e, node, cpu)


def _gated_proj(e: Emitter, node: Node, cpu: Cpu) -> Operand:
    x, gate, up = (_value(node, i) for i in range(3))
    norm_w = _optional(node, 3)
    kernel = linear.gated_proj(
        _dim(gate, 1), _dim(gate, 0), gate.type.dtype, norm_eps=_float(node, "eps") if norm_w else None,
        vectors=cpu.vectors,
    )  # fmt: skip
    return e.call(kernel, [e.value(x), e.weight(_gate_up(gate), gate, up), *_vectors(e, norm_w)], node.output.type)


def _router(e: Emitter, node: Node, cpu: Cpu) -> Any:
    x, gate = _value(node, 0), _value(node, 1)
    bias, forced = _optional(node, 2), _optional(node, 3)
    kernel = router.router(
        _dim(gate, 1), _dim(gate, 0), _int(node, "top_k"), scoring=str(node.attrs["scoring"]),
        groups=_int(node, "groups"), keep=_int(node, "keep"), best=_int(node, "best"),
        norm_topk_prob=bool(node.attrs["norm_topk_prob"]), scaling=_float(node, "scaling"),
        bias=bias is not None, forced=forced is not None, vectors=cpu.vectors,
    )  # fmt: skip
    args = [e.value(x), e.weight(COLUMNS, gate), *_vectors(e, bias, forced)]
    return e.call(kernel, args, *(v.type for v in node.outputs))


def _moe(e: Emitter, node: Node, cpu: Cpu) -> Operand:
    x, ids, weights, gate, up, down = (_value(node, i) for i in range(6))
    residual, shared = _optional(node, 6), _int(node, "shared")
    experts, width, hidden = (int(d) for d in gate.shape)
    kernel = moe.moe(
        hidden, width, experts - shared, _dim(ids, 1), shared, gate.type.dtype, down.type.dtype,
        residual=residual is not None, vectors=cpu.vectors,
    )  # fmt: skip
    args = [*map(e.value, (x, ids, weights)), e.weight(_gate_up(gate), gate, up), e.weight(_columns(down), down)]
    return e.call(kernel, [*args, *_vectors(e, residual)], node.output.type)


def _latent_write(e: Emitter, node: Node, cpu: Cpu) -> Operand:
    x, weight, angles, cache, *rows = (_value(node, i) for i in range(7))
    kernel = attention.latent_write(
        _dim(x, 1), _int(node, "begin"), _dim(weight, 0), _dim(angles, 1), _dim(cache, 1), cache.type.dtype,
        _float(node, "eps"), bool(node.attrs["interleaved"]),
    )  # fmt: skip
    args = [e.value(x), e.weight(RAW, weight), e.value(angles), *map(e.value, rows), e.value(cache)]
    return e.update(kernel, args)


def _mla_decode(e: Emitter, node: Node, cpu: Cpu) -> Operand:
    q, angles, cache, w_uk, w_uv, seq, pos, table = (_value(node, i) for i in range(8))
    heads, latent, nope = (int(d) for d in w_uk.shape)
    rope, v_dim, page, dtype = _dim(angles, 1), _dim(w_uv, 1), _dim(cache, 1), w_uk.type.dtype
    absorbed = e.call(
        attention.mla_absorb(heads, nope, rope, latent, dtype, bool(node.attrs["interleaved"]), vectors=cpu.vectors),
        [e.value(q), e.value(angles), e.weight(_columns(w_uk), w_uk)],
        TensorType("f32", (q.shape[0], heads, padded(latent + rope))),
    )
    attended = e.call(
        attention.mla_attend(heads, latent, rope, page, cache.type.dtype, _float(node, "scale"), vectors=cpu.vectors),
        [absorbed, *map(e.value, (cache, seq, pos, table))],
        TensorType("f32", (q.shape[0], heads, padded(latent))),
    )
    lift = attention.mla_lift(heads, latent, v_dim, dtype, vectors=cpu.vectors)
    return e.call(lift, [attended, e.weight(_columns(w_uv), w_uv)], node.output.type)


def _mla_prefill(e: Emitter, node: Node, cpu: Cpu) -> Operand:
    q, angles, cache, w_uk, w_uv, seq, pos, table = (_value(node, i) for i in range(8))
    heads, latent, nope = (int(d) for d in w_uk.shape)
    kernel = prefill.mla_prefill(
        heads, nope, _dim(angles, 1), latent, _dim(w_uv, 1), _dim(cache, 1), cache.type.dtype, w_uk.type.dtype,
        _float(node, "scale"), bool(node.attrs["interleaved"]), vectors=cpu.vectors,
    )  # fmt: skip
    args = [*map(e.value, (q, angles, cache)), e.weight(_columns(w_uk), w_uk), e.weight(_columns(w_uv), w_uv)]
    return e.call(kernel, [*args, *map(e.value, (seq, pos, table))], node.output.type)


def _embed(e: Emitter, node: Node, cpu: Cpu) -> Operand:
    tokens, table = _value(node, 0), _value(node, 1)
    kernel = norm.embed(_dim(table, 0), _dim(table, 1), table.type.dtype)
    return e.call(kernel, [e.value(tokens), e.weight(RAW, table)], node.output.type)


def _take_rows(e: Emitter, node: Node, cpu: Cpu) -> Operand:
    x, rows = _value(node, 0), _value(node, 1)
    return e.call(norm.take_rows(_dim(x, 1)), [e.value(x), e.value(rows)], node.output.type)


def _rms_norm(e: Emitter, node: Node, cpu: Cpu) -> Operand:
    x, w = _value(node, 0), _value(node, 1)
    return e.call(norm.rms_norm(_dim(x, 1), _float(node, "eps")), [e.value(x), e.weight(RAW, w)], node.output.type)


def _rope_angles(e: Emitter, node: Node, cpu: Cpu) -> Operand:
    pos, inv_freq = _value(node, 0), _value(node, 1)
    kernel = norm.rope_angles(2 * _dim(inv_freq, 0), _float(node, "scale"))
    return e.call(kernel, [e.value(pos), e.weight(RAW, inv_freq)], node.output.type)


def _sample(e: Emitter, node: Node, cpu: Cpu) -> Operand:
    args = [_value(node, i) for i in range(7)]
    return e.call(sample.sample(_dim(args[0], 1)), list(map(e.value, args)), node.output.type)


def _only(lower: Any) -> tuple[Variant, ...]:
    return (Variant(lower),)


LOWERINGS: Table = {
    **PLAIN,
    "embed": _only(_embed),
    "take_rows": _only(_take_rows),
    "rope_angles": _only(_rope_angles),
    "rms_norm": _only(_rms_norm),
    "linear": _only(_linear),
    "proj": _only(_proj),
    "gated_proj": _only(_gated_proj),
    "latent_write": _only(_latent_write),
    "mla_decode": _only(_mla_decode),
    "mla_prefill": _only(_mla_prefill),
    "router": _only(_router),
    "moe": _only(_moe),
    "sample": _only(_sample),
}
