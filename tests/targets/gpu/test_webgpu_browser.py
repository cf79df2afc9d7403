"""A small model in Chromium: the page's own interpreter of programs, and the shaders as a browser compiles them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.compiler.pipeline import run_pipeline
from deepzig.compiler.plan import Plan, plan_graph
from deepzig.compiler.weights import WeightSource
from deepzig.ir import interpret
from deepzig.targets.gpu.lowering import LOWERINGS

from ...compiler.test_lowering import TOLERANCE, Stored
from ...compiler.traced import Array, config, distance, parameters, rows, states, traced
from ...web.browser import in_browser
from .test_webgpu_models import TARGET, cache
from .webgpu_plan import compiled, shape_of, sizes_of, stored

MODULE = """
import { Kernels } from "/web/src/webgpu.js";

export default async function () {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) return null;
  const device = await adapter.requestDevice();
  const errors = [];
  device.addEventListener("uncapturederror", (event) => errors.push(event.error.message));
  const read = async (name) => (await fetch(name)).json();
  const [code, plan] = [await read("code.json"), await read("plan.json")];
  const kernels = await Kernels.compile(device, code);
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  const tensors = [];
  for (const { words, shape, file } of plan.tensors) {
    const buffer = device.createBuffer({ size: 4 * Math.max(words, 1), usage });
    if (file) device.queue.writeBuffer(buffer, 0, await (await fetch(file)).arrayBuffer());
    tensors.push({ buffer, shape });
  }
  for (const [result, argument] of plan.same) tensors[result].buffer = tensors[argument].buffer;
  const dispatches = plan.calls.flatMap(([name, places]) => kernels.prepare(name, places.map((i) => tensors[i])));
  kernels.run(dispatches);
  const { buffer } = tensors[plan.output];
  const copy = device.createBuffer({ size: buffer.size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, 0, copy, 0, buffer.size);
  device.queue.submit([encoder.finish()]);
  await copy.mapAsync(GPUMapMode.READ);
  if (errors.length) throw new Error(errors.join("; "));
  return [...new Float32Array(copy.getMappedRange())];
}
"""


SECONDS = 400
"""Software compiles the shaders, on a machine that may do other things."""


def written(folder: Path, plan: Plan, arrays: dict[str, Array]) -> tuple[int, ...]:
    """Write a plan for the page, with the data of its arguments: the shape of its first output."""
    arguments = (*plan.inputs, *plan.states)
    given = [arrays[t.name].shape for t in arguments]
    sizes = sizes_of(arguments, given)
    tensors = [*arguments, *plan.weights.values(), *(t for launch in plan.launches for t in launch.outputs)]
    number = {tensor: i for i, tensor in enumerate(tensors)}
    told: list[dict[str, Any]] = []
    for i, tensor in enumerate(tensors):
        shape = shape_of(tensor.type, sizes)
        told.append({"words": math.prod(shape), "shape": shape})
        if tensor.name in arrays and i < len(arguments) + len(plan.weights):
            told[-1]["file"] = f"{i}.bin"
            (folder / f"{i}.bin").write_bytes(np.ascontiguousarray(arrays[tensor.name]).tobytes())
    calls = []
    for launch in plan.launches:
        places = [*launch.args, *(() if launch.in_place else launch.outputs)]
        calls.append([launch.kernel_name, [number[t] for t in places]])
    same = [[number[x.outputs[0]], number[x.args[-1]]] for x in plan.launches if x.in_place]
    plan_json = {"tensors": told, "calls": calls, "same": same, "output": number[plan.outputs[0]]}
    (folder / "plan.json").write_text(json.dumps(plan_json))
    return shape_of(plan.outputs[0].type, sizes)


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["prefill", "decode"])
def test_a_model_in_chromium_agrees_with_the_interpreter(tmp_path: Path, graph: str) -> None:
    c = config(num_hidden_layers=2)
    module = traced(c, "f16")
    rng = np.random.default_rng(3)
    values, caches, inputs = parameters(module, rng), states(module, rng), rows(c, rng)
    fused = run_pipeline(module)
    [plan] = [plan_graph(g, fused, TARGET, LOWERINGS) for g in fused.graphs if g.name == graph]
    arrays = {**inputs, **stored([plan], WeightSource(fused, Stored(values)))}  # type: ignore[arg-type]
    arrays |= {t.name: cache(t.name, t.type, caches[t.name], "f16") for t in plan.states}
    root = tmp_path / "root"
    root.mkdir()
    shape = written(root, plan, arrays)
    (root / "code.json").write_text(json.dumps(compiled([plan], TARGET).to_json()))
    answer = in_browser(root, tmp_path / "profile", MODULE, SECONDS)
    if answer is None:
        pytest.skip("Chromium has no WebGPU here")
    want = interpret(module, graph, inputs, values, caches)[0][0]
    assert distance(np.array(answer, np.float32)[: math.prod(shape)].reshape(shape), want) <= TOLERANCE
