"""How a mixture of experts becomes launches on a GPU.

many rows       slots sorted by expert, rows prepared, two products tile by tile, the weighted sum
few rows        slots sorted by expert, two products, the weighted sum
one row         two products, the second of which sums: only where launches cost time, and weights are not in shards
"""

from __future__ import annotations

from dataclasses import replace

from deepzig.ir import Node, TensorType
from deepzig.targets.base import Emitter, Operand, Table, Variant

from . import moe
from .device import GpuTarget
from .lower_products import _optional, _value, _vectors, sharded
from .lower_tiled import many_rows, prepared
from .moe_one import one_down, one_gate_up
from .tiled_moe import Experts, tiled_experts
from .weights import gate_up_layout, parts, rows_layout


def _moe(e: Emitter, node: Node, gpu: GpuTarget) -> Operand:
    x, ids, weights, gate, up, down = (_value(node, i) for i in range(6))
    residual = _optional(node, 6)
    experts, width, hidden = (int(d) for d in gate.shape)
    shared, top_k, rows = int(str(node.attrs["shared"])), int(ids.shape[1]), x.shape[0]
    slots, gate_type, down_type = top_k + shared, gate.type.dtype, down.type.dtype
    shards = [parts(gate_up_layout, gpu.gpu.binding_bytes, gate.type, up.type)]
    shards += [parts(rows_layout, gpu.gpu.binding_bytes, down.type)]
    whole = all(part is None for each in shards for part in each)
    one = whole and not gpu.gpu.replay and not many_rows(e, rows)
    least = 2 if one else 1
    by_slot = [TensorType(dtype, (rows, slots)) for dtype in ("i32", "f32", "i32", "i32")]
    offsets, slot_rows, slot_weights, slot_experts, places = e.call(
        moe.moe_sort(experts - shared, top_k, shared, least=least), [e.value(ids), e.value(weights)],
        TensorType("i32", (experts + 1,)), *by_slot,
    )  # fmt: skip
    of_rows = e.value(x)
    opened_type, products_type = (TensorType("f32", (rows, slots, size)) for size in (width, hidden))
    if many_rows(e, rows):
        of_rows = prepared(e, gpu.gpu, of_rows, rows, hidden, gate_type, x_shape=(hidden,))
        first = Experts(hidden, width, gate_type, experts, slots, gathered=True, gated=True)
        opened = sharded(
            e, gpu, gate_up_layout, [gate, up], lambda part: tiled_experts(gpu.gpu, replace(first, part=part)),
            [of_rows, offsets, slot_rows], [], opened_type,
        )  # fmt: skip
        of_slots = prepared(
            e, gpu.gpu, opened, rows, width, down_type, x_shape=(slots, width), parts=slots, stride=width
        )  # fmt: skip
        second = Experts(width, hidden, down_type, experts, slots)
        products = sharded(
            e, gpu, rows_layout, [down], lambda part: tiled_experts(gpu.gpu, replace(second, part=part)),
            [of_slots, offsets], [], products_type,
        )  # fmt: skip
    else:
        opened = sharded(
            e, gpu, gate_up_layout, [gate, up],
            lambda part: moe.moe_gate_up(gpu.gpu, hidden, width, experts, slots, gate_type, part, least=least),
            [of_rows, offsets, slot_rows, slot_experts], [], opened_type,
        )  # fmt: skip
        products = sharded(
            e, gpu, rows_layout, [down],
            lambda part: moe.moe_down(gpu.gpu, width, hidden, experts, slots, down_type, part, least=least),
            [opened, offsets, slot_experts], [], products_type,
        )  # fmt: skip
    added = _vectors(e, residual)
    combine = moe.moe_combine(hidden, slots, residual=residual is not None, least=least)
    y = e.call(combine, [products, slot_weights, places, *added], node.output.type)
    if not one:
        return y
    sizes = (experts, top_k, shared)
    first_of_one = one_gate_up(gpu.gpu, hidden, width, *sizes, gate_type)
    second_of_one = one_down(gpu.gpu, width, hidden, *sizes, down_type, residual=residual is not None)
    gate_up = e.weight(gate_up_layout(gate_type, None), gate, up)
    opened = e.update(first_of_one, [of_rows, e.value(ids), gate_up, opened])
    args = [opened, e.value(ids), e.value(weights), e.weight(rows_layout(down_type, None), down), *added]
    return e.update(second_of_one, [*args, y])


EXPERTS: Table = {"moe": (Variant(_moe),)}
"""The op of a mixture of experts."""
