"""How latent attention becomes launches on a GPU.

latent_write    a launch
mla_decode      queries move into latent space, attend in sections, and come back: a product of few rows in each
head, attention with the joining of sections, a product
mla_prefill     the same with products and attention of many rows
"""

from __future__ import annotations

from typing import Any

from deepzig.ir import Node, TensorType, Value
from deepzig.targets.base import Emitter, Layout, Operand, Table, Variant
from deepzig.targets.plain import RAW

from .attention import Sizes
from .device import GpuTarget
from .few import heads_product
from .latent import latent_write
from .mla import mla_attend, mla_flash, scratch
from .mla_one import one_values
from .operands import Encoding, prepare
from .tiled import tiled_heads
from .weights import rows_layout


def _value(node: Node, index: int) -> Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _latent_write(e: Emitter, node: Node, gpu: GpuTarget) -> Operand:
    x, weight, angles, cache, *rows = (_value(node, i) for i in range(7))
    kernel = latent_write(
        gpu.gpu, int(x.shape[1]), int(str(node.attrs["begin"])), int(weight.shape[0]), int(angles.shape[1]),
        int(cache.shape[1]), cache.type.dtype, float(str(node.attrs["eps"])), bool(node.attrs["interleaved"]),
    )  # fmt: skip
    args = [e.value(x), e.weight(RAW, weight), e.value(angles), *map(e.value, rows), e.value(cache)]
    return e.update(kernel, args)


def _heads(
    e: Emitter, gpu: GpuTarget, x: Operand, w: Value, layout: Layout, k: int, n: int, places: dict[str, Any],
    output: TensorType,
) -> Operand:  # fmt: skip
    """A product in each head, for as many rows as the graph has.

    Args:
        e: where to.
        gpu: the target.
        x: f32[rows, ...].
        w: the weight.
        layout: of the weight: [heads, n, words of k].
        k: inputs of a head.
        n: outputs of a head.
        places: of the operands, as `heads_product` has them.
        output: the type of the result.
    """
    heads, weight = int(w.shape[0]), e.weight(layout, w)
    if e.graph != "prefill":
        return e.call(heads_product(gpu.gpu, heads, k, n, w.type.dtype, **places), [x, weight], output)
    encoding = Encoding.of(gpu.gpu, k, w.type.dtype)
    kernel = prepare(
        encoding, x_shape=places["x_shape"], begin=places["x_offset"], parts=heads, stride=places["x_stride"]
    )
    prepared = e.call(kernel, [x], TensorType(encoding.dtype, (output.shape[0], heads, encoding.pitch)))
    after = {name: places[name] for name in ("y_shape", "y_offset", "y_stride")}
    return e.call(tiled_heads(gpu.gpu, heads, k, n, w.type.dtype, **after), [prepared, weight], output)


def _mla(e: Emitter, node: Node, gpu: GpuTarget) -> Operand:
    q, angles, cache, w_uk, w_uv, *rows = (_value(node, i) for i in range(8))
    heads, latent, nope = (int(d) for d in w_uk.shape)
    v = int(w_uv.shape[1])
    s = Sizes(
        heads, nope, int(angles.shape[1]), latent, int(cache.shape[1]), cache.type.dtype,
        float(str(node.attrs["scale"])), bool(node.attrs["interleaved"]),
    )  # fmt: skip
    in_latents = {"shape": (heads, s.latent_pitch), "offset": 0, "stride": s.latent_pitch}
    in_queries = {"shape": (heads * (nope + s.rope),), "offset": 0, "stride": nope + s.rope}
    in_outputs = {"shape": (heads * v,), "offset": 0, "stride": v}

    def places(x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
        return {f"x_{name}": value for name, value in x.items()} | {f"y_{name}": value for name, value in y.items()}

    latents = TensorType("f32", (q.shape[0], heads, s.latent_pitch))
    down = rows_layout(w_uk.type.dtype, None)
    absorbed = _heads(e, gpu, e.value(q), w_uk, down, nope, latent, places(in_queries, in_latents), latents)
    args = [absorbed, *map(e.value, (q, angles, cache, *rows))]
    least, sections = 1, None
    if e.graph == "prefill":
        attended = e.call(mla_flash(s, gpu=gpu.gpu), args, latents)
    else:
        least = 1 if gpu.gpu.replay else 2
        sums = TensorType("f32", scratch(gpu.gpu, s))
        sections, attended = e.call(mla_attend(s, gpu=gpu.gpu, least=least), args, sums, latents)
    up, up_places = rows_layout(w_uv.type.dtype, None), places(in_latents, in_outputs) | {"least": least}
    y = _heads(e, gpu, attended, w_uv, up, latent, v, up_places, node.output.type)
    if least == 1:
        return y
    values = one_values(s, v, w_uv.type.dtype, gpu=gpu.gpu)
    return e.update(values, [sections, e.value(rows[1]), e.weight(up, w_uv), y])


def _only(lower: Any) -> tuple[Variant, ...]:
    return (Variant(lower),)


ATTENTION: Table = {"latent_write": _only(_latent_write), "mla_decode": _only(_mla), "mla_prefill": _only(_mla)}
