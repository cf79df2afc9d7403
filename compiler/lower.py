"""From kernel launches to a TVM module: one Relax function a graph, each distinct kernel once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx

from deepzig.ir import Dim, TensorType

from .plan import Launch, Plan, Tensor

STORED = {"f32": "float32", "i32": "int32", "u32": "uint32", "bf16": "uint16", "f16": "uint16", "i8": "int8"}
"""Types of kernel arguments: half-precision floats travel as bits."""


REPLAYED = ("decode", "draft")
"""Graphs whose launches are recorded, where the device can do that: those that are called for every few tokens."""


def lower(plans: Sequence[Plan], replay: bool = False) -> tvm.IRModule:
    """The TVM module of all plans.

    Args:
        plans: one for each entry point.
        replay: record the launches of REPLAYED once for each set of dimensions of a call, and replay them from then on.
            The caller has to give arguments of the same dimensions at the same addresses every time.
    """
    builder = relax.BlockBuilder()
    symbols = {name: builder.add_func(kernel, name) for name, kernel in _kernels(plans).items()}
    for plan in plans:
        _Function(builder, symbols).build(plan, replay and plan.name in REPLAYED)
    return builder.finalize()


def kernel_module(plans: Sequence[Plan]) -> tvm.IRModule:
    """The TVM module of the kernels alone, to be linked without TVM's runtime."""
    return tvm.IRModule(_kernels(plans)).with_attr("system_lib_prefix", "")


def _kernels(plans: Sequence[Plan]) -> dict[str, Any]:
    kernels: dict[str, Any] = {}
    for launch in (launch for plan in plans for launch in plan.launches):
        first = kernels.setdefault(launch.kernel_name, launch.kernel)
        if not first.same_as(launch.kernel) and not tvm_ffi.structural_equal(first, launch.kernel):
            raise ValueError(f"two kernels are called {launch.kernel_name}")  # a bug of the target's
    return kernels


class _Function:
    """One plan on its way to Relax."""

    def __init__(self, builder: relax.BlockBuilder, kernels: dict[str, Any]) -> None:
        self._builder = builder
        self._kernels = kernels
        self._dims: dict[str, tirx.Var] = {}
        self._exprs: dict[Tensor, Any] = {}

    def build(self, plan: Plan, replay: bool) -> None:
        """Add the plan's function to the builder."""
        arguments = [*plan.inputs, *plan.states, *plan.weights.values()]
        self._exprs = {t: relax.Var(f"a{i}", self._type(t.type)) for i, t in enumerate(arguments)}
        # TVM records what reads only arguments after the inputs, or what is made of them
        attrs: dict[str, Any] = {"num_input": 0 if replay else len(plan.inputs) + len(plan.states)}
        if replay:
            attrs["relax.rewrite_cuda_graph.capture_symbolic_vars"] = list(self._dims)
        if "n" in self._dims:
            attrs["tir_var_upper_bound"] = {"n": int(str(plan.graph.attrs["rows"]))}
        with self._builder.function(plan.name, [self._exprs[t] for t in arguments], attrs=attrs):
            with self._builder.dataflow():
                for launch in plan.launches:
                    self._launch(launch)
                result = self._builder.emit_output(relax.Tuple([self._exprs[t] for t in plan.outputs]))
            self._builder.emit_func_output(result)

    def _launch(self, launch: Launch) -> None:
        kernel = self._kernels[launch.kernel_name]
        args = relax.Tuple([self._exprs[t] for t in launch.args])
        types = [self._type(t.type) for t in launch.outputs]
        if launch.in_place:
            call = relax.op.call_tir_inplace(kernel, args, len(launch.args) - 1, types[0])
        else:
            call = relax.call_tir(kernel, args, types[0] if len(types) == 1 else types)
        result = self._builder.emit(call)
        if len(types) == 1:
            self._exprs[launch.outputs[0]] = result
            return
        for i, output in enumerate(launch.outputs):
            self._exprs[output] = self._builder.emit(relax.TupleGetItem(result, i))

    def _type(self, type_: TensorType) -> relax.TensorType:
        return relax.TensorType([self._dim(d) for d in type_.shape], STORED[type_.dtype])

    def _dim(self, dim: Dim) -> Any:
        if isinstance(dim, int):
            return dim
        name, *factors = dim.split("*")
        if name not in self._dims:
            self._dims[name] = tirx.Var(name, "int64")
        return math.prod(map(int, factors)) * self._dims[name] if factors else self._dims[name]
