"""What the host does for a kernel, as data: launches, and the conditions and loops around them.

A host that has no compiled code, such as a page with WebGPU, interprets it. Expressions are numbers, names of
variables, and lists of an operator of OPERATORS and its two operands; all are integers, and none is negative.
Statements are lists as well:

    ["if", condition, statements]
    ["for", variable, count, statements]            for 0 to count - 1
    ["let", variable, expression]
    ["launch", kernel, arguments, numbers, grid]    indices of the arguments that are its buffers; other parameters, and
                                                    blocks along x and y, as expressions
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Call

Expression = Any
"""See the module."""
Statement = list[Any]

OPERATORS = {
    tirx.Add: "+",
    tirx.Sub: "-",
    tirx.Mul: "*",
    tirx.FloorDiv: "/",
    tirx.FloorMod: "%",
    tirx.Div: "/",
    tirx.Mod: "%",
    tirx.Min: "min",
    tirx.Max: "max",
    tirx.LT: "<",
    tirx.LE: "<=",
    tirx.GT: ">",
    tirx.GE: ">=",
    tirx.EQ: "==",
    tirx.And: "and",
    tirx.Or: "or",
}
"""Node of TVM -> its name."""

SHIFTS = {"tirx.shift_left": "*", "tirx.shift_right": "/"}
"""What TVM makes of products and quotients with powers of two -> what they were."""


DATA = "tirx.buffer_data"
"""The operator that makes a pointer of a buffer."""


@dataclass(frozen=True)
class Program:
    """What the host does for a kernel.

    Attributes:
        sizes: variable -> argument, and which of its dimensions.
        body: statements.
    """

    sizes: dict[str, tuple[int, int]]
    body: list[Statement]


def programs(module: Any) -> dict[str, Program]:
    """Of a module whose launches are functions, the programs of those that launch."""
    functions = {str(name.name_hint): f for name, f in module.functions.items()}
    return {
        name: _program(f)
        for name, f in functions.items()
        if isinstance(f, tirx.PrimFunc) and "tirx.kernel_launch_params" not in (f.attrs or {})
    }


def _program(function: Any) -> Program:
    sizes: dict[str, tuple[int, int]] = {}
    for i, parameter in enumerate(function.params):
        for axis, size in enumerate(parameter.ty.shape):
            if isinstance(size, tirx.Var):
                sizes.setdefault(str(size.name), (i, axis))
    return Program(sizes, _Writer(list(function.params)).block(function.body))


class _Writer:
    """Writes the statements of a function with these arguments."""

    def __init__(self, buffers: list[Any]) -> None:
        self._buffers = [[buffer] for buffer in buffers]
        """Of each argument the variables that stand for it."""

    def block(self, statement: Any) -> list[Statement]:
        """A statement of TVM as ours."""
        if isinstance(statement, tirx.SeqStmt):
            return [each for part in statement for each in self.block(part)]
        if isinstance(statement, tirx.DeclBuffer):
            place = self._place(statement.data)
            assert place is not None
            self._buffers[place].append(statement.buffer)
            return []
        if isinstance(statement, tirx.AttrStmt):
            return self.block(statement.body)
        if isinstance(statement, tirx.Bind):
            return [["let", str(statement.var.name), expression(statement.value)]]
        if isinstance(statement, tirx.IfThenElse):
            assert statement.else_case is None
            return [["if", expression(statement.condition), self.block(statement.then_case)]]
        if isinstance(statement, tirx.For):
            assert expression(statement.min) == 0
            body = self.block(statement.body)
            return [["for", str(statement.loop_var.name), expression(statement.extent), body]]
        if isinstance(statement, tirx.Evaluate) and isinstance(statement.value, Call):
            return [self._launch(statement.value)]
        raise TypeError(f"the host can't interpret {type(statement).__name__}: {statement}")

    def _launch(self, call: Any) -> Statement:
        kernel, *arguments = call.args
        tags = [str(tag) for tag in call.attrs["launch_params"]]
        given, launched = arguments[: -len(tags)], dict(zip(tags, arguments[-len(tags) :], strict=True))
        places = [self._place(argument) for argument in given]
        numbers = [expression(argument) for argument, place in zip(given, places, strict=True) if place is None]
        grid = [expression(launched.get(f"blockIdx.{axis}", 1)) for axis in "xy"]
        return ["launch", str(kernel.value), [place for place in places if place is not None], numbers, grid]

    def _place(self, data: Any) -> int | None:
        """Which argument the data is of; None if it is a number."""
        if not _calls(data, DATA):
            return None
        of = data.args[0]
        return next(i for i, names in enumerate(self._buffers) if any(of.same_as(name) for name in names))


def expression(e: Any) -> Expression:
    """An expression of TVM as ours."""
    if isinstance(e, int | tirx.IntImm):
        return int(e)
    if isinstance(e, tirx.Var):
        return str(e.name)
    if isinstance(e, tirx.Cast):
        return expression(e.value)
    if type(e) in OPERATORS:
        return [OPERATORS[type(e)], expression(e.a), expression(e.b)]
    for name, operator in SHIFTS.items():
        if _calls(e, name):
            value, bits = e.args
            return [operator, expression(value), 1 << int(bits)]
    raise TypeError(f"the host can't interpret {type(e).__name__}: {e}")


def _calls(e: Any, name: str) -> bool:
    return isinstance(e, Call) and str(getattr(e.op, "name", "")) == name
