"""The module walk: one ONNX graph for prompts and single tokens alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnx import GraphProto, TensorProto, helper

from deepzig.artifacts.onnx_file import INPUT_IDS, LOGITS, MASK, POSITIONS
from deepzig.compiler.passes.attention import fuse_mla
from deepzig.compiler.passes.moe import fuse_experts
from deepzig.compiler.passes.weights import hoist_weights
from deepzig.errors import DeepZigError
from deepzig.ir import Module, eliminate_dead, verify
from deepzig.ir.fp8 import FP8

from .context import BATCH, PAST, SEQUENCE, TOTAL, Context
from .emitter import typed
from .external import ExternalTensor
from .lower import lower

PASSES = (eliminate_dead, fuse_experts, fuse_mla)
"""What is fused for ONNX: attention, to be absorbed, and experts, to be sparse. All else stays as it is defined."""

ROWS = {"tokens": INPUT_IDS, "pos": POSITIONS}
"""Input of the IR, of flat rows -> input of the model; what the others say is in `attention_mask`."""


def exported(module: Module) -> Module:
    """The module with one graph, which is exported: `decode`, whose attention is absorbed.

    Args:
        module: the traced module, before any pass.

    Raises:
        DeepZigError: a matrix is stored in a way that ONNX does not know.
    """
    decode = module.graph("decode")
    caches = len(module.states_of(decode))
    graph = replace(decode, outputs=(decode.outputs[0], *decode.outputs[-caches:]))  # without hidden states
    for run in PASSES:
        graph = run(graph)
    if any(v.type.dtype == FP8 for v in graph.globals()):
        raise DeepZigError("fp8 matrices can't be exported to ONNX", "--quant", "choose q8 or q4")
    module = hoist_weights(replace(module, graphs=(graph,)))
    verify(module)
    return module


def onnx_graph(module: Module, name: str, domain: str) -> tuple[GraphProto, Sequence[ExternalTensor]]:
    """The graph of a module that `exported` returned.

    Args:
        module: the module.
        name: the graph's name.
        domain: of products with quantised matrices: empty for standard ops.

    Returns:
        The graph without its weights, and these.

    Raises:
        DeepZigError: an op has no form in ONNX.
    """
    (graph,) = module.graphs
    states = module.states_of(graph)
    c = Context(states, domain)
    for input_ in graph.inputs:
        if input_.name in ROWS:
            c.names[input_] = c.emit.op("Reshape", ROWS[input_.name], c.emit.ints(-1), out=input_.name)
    for node in graph.nodes:
        lower(c, node)
    c.emit.origin = {}
    logits = graph.outputs[0]
    c.emit.op("Reshape", c.use(logits), c.shape(BATCH, SEQUENCE, int(logits.shape[1])), out=LOGITS)
    inputs = [typed(INPUT_IDS, TensorProto.INT64, [BATCH, SEQUENCE])]
    inputs += [typed(MASK, TensorProto.INT64, [BATCH, TOTAL]), typed(POSITIONS, TensorProto.INT64, [BATCH, SEQUENCE])]
    outputs = [typed(LOGITS, TensorProto.FLOAT, [BATCH, SEQUENCE, int(logits.shape[1])])]
    for state in states:
        past, present, element = c.cache(state)
        width = int(state.shape[-1])
        inputs.append(typed(past, element, [BATCH, PAST, width]))
        outputs.append(typed(present, element, [BATCH, TOTAL, width]))
    made = helper.make_graph(c.emit.nodes, name, inputs, outputs, list(c.emit.constants.values()))
    return made, list(c.tensors.values())
