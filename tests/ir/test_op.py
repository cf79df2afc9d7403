"""Signatures: arity, attributes, element types and shapes; errors name the line of the definition."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from deepzig.errors import DeepZigError
from deepzig.ir import OPS, Builder, TensorType, Value
from deepzig.ir.op import ShapeError, op


def infer(name: str, *types: str | None, **attrs: Any) -> str:
    """The output types of an op, as text; inputs as `f32[n, 8]`."""
    return ", ".join(map(str, OPS[name].infer([t and parse(t) for t in types], attrs)))  # type: ignore[misc]


def parse(text: str) -> TensorType:
    dtype, _, dims = text.removesuffix("]").partition("[")
    return TensorType(dtype, tuple(int(d) if d.isdigit() else d for d in dims.split(", ") if d))


@pytest.mark.parametrize(
    ("types", "attrs", "name", "result"),
    [
        (["f32[n, 8]", "bf16[6, 8]"], {}, "linear", "f32[n, 6]"),
        (["f32[b, t, 8]", "f16[6, 8]", "f32[6]"], {}, "linear", "f32[b, t, 6]"),
        (["f32[8]", "f32[6, 8]", None], {}, "linear", "f32[6]"),
        (["i32[n]", "bf16[67, 40]"], {}, "embed", "f32[n, 40]"),
        (["i32[n]", "f32[3]"], {"scale": 1.0}, "rope_angles", "f32[n, 6]"),
        (["bf16[pages, 4, 26]", "i32[b, p]"], {}, "cache_read", "f32[b, p*4, 26]"),
        (["f32[n, 8]"], {"k": 3}, "topk", "i32[n, 3]"),
        (["f32[n, 9]"], {"axis": 1, "begin": 2, "end": 7}, "slice", "f32[n, 5]"),
        (["f32[n, 9]", "f32[n, 4]"], {"axis": 1}, "concat", "f32[n, 13]"),
        (["f32[n, 12]"], {"shape": ("n", 3, 4)}, "reshape", "f32[n, 3, 4]"),
        (["f32[3, 5, 7]"], {"axes": (2, 0, 1)}, "transpose", "f32[7, 3, 5]"),
        (["f32[n, 5]"], {"axis": 1, "size": 3}, "expand", "f32[n, 3, 5]"),
        (["i32[n, 4, 2]"], {"layer": 1}, "forced_route", "i32[n, 2]"),
    ],
)
def test_types_follow_the_signature(types: list[str | None], attrs: dict[str, Any], name: str, result: str) -> None:
    assert infer(name, *types, **attrs) == result


@pytest.mark.parametrize(
    ("types", "attrs", "name", "what"),
    [
        (["f32[n, 8]"], {}, "linear", "linear needs input w"),
        (["f32[n, 8]"] * 4, {}, "linear", "linear takes 3 inputs, 4 given"),
        (["f32[n, 8]", "f32[6, 7]"], {}, "linear", "linear: w is f32[6, 7], but k is 8"),
        (["f32[n, 8]", "f32[6, 8]", "f32[5]"], {}, "linear", "linear: bias is f32[5], but m is 6"),
        (["f32[n, 8]", "i32[6, 8]"], {}, "linear", "linear: w must be float, not i32"),
        (["bf16[n, 8]", "f32[6, 8]"], {}, "linear", "linear: x must be f32, not bf16"),
        (["f32[n, 8]", "f32[8]"], {}, "linear", "linear: w is f32[8], 2 dimensions expected"),
        (["f32[]", "f32[6, 8]"], {}, "linear", "linear: x is f32[], leading dimensions None expected"),
        (["f32[n, 8]", "f32[m, 8]"], {}, "add", "add: b is f32[m, 8], leading dimensions ('n', 8) expected"),
        (["f32[n, 8]", "f32[8]"], {}, "rms_norm", "rms_norm needs attribute eps"),
        (["f32[n, 8]"], {"axis": 1}, "silu", "silu has no attribute axis"),
        (["f32[n, 9]"], {"axis": 1, "begin": 2, "end": 10}, "slice", "slice [2:10] of dimension 1 of f32[n, 9]"),
        (["f32[n, 9]"], {"axis": 1, "begin": 3, "end": 3}, "slice", "slice [3:3] of dimension 1 of f32[n, 9]"),
        (["f32[n, 9]"], {"axis": 0, "begin": 0, "end": 1}, "slice", "slice [0:1] of dimension 0 of f32[n, 9]"),
        (["f32[n, 9]", "f32[m, 4]"], {"axis": 1}, "concat", "concat of f32[n, 9] and f32[m, 4] in dimension 1"),
        (["f32[n, 9]", "bf16[n, 4]"], {"axis": 1}, "concat", "concat of f32[n, 9] and bf16[n, 4] in dimension 1"),
        (["f32[n, 9]"], {"shape": ("n", 8)}, "reshape", "reshape of f32[n, 9] to ['n', 8]"),
        (["f32[n, 9]"], {"shape": (9, "n")}, "reshape", "reshape of f32[n, 9] to [9, 'n']"),
        (["f32[3, 5]"], {"axes": (0, 0)}, "transpose", "transpose of f32[3, 5] by (0, 0)"),
        (["f32[n, 3, 6]", "f32[n, 4]"], {"interleaved": True}, "rope", "rope of f32[n, 3, 6] by angles f32[n, 4]"),
    ],
)
def test_what_does_not_fit(types: list[str | None], attrs: dict[str, Any], name: str, what: str) -> None:
    with pytest.raises(ShapeError) as error:
        infer(name, *types, **attrs)
    assert str(error.value) == what


def test_errors_name_the_line_of_the_definition() -> None:
    b = Builder()
    x, w = b.input("x", "f32", ("n", 8)), b.input("w", "f32", (6, 7))
    with pytest.raises(DeepZigError) as error:
        b.linear(x, w)
    line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
    assert error.value.what == "linear: w is f32[6, 7], but k is 8"
    assert error.value.where == f"{__name__}:{line}"
    assert error.value.hint == f"check the arguments of linear: {OPS['linear'].signature}"


def test_nodes_remember_their_line() -> None:
    b = Builder()
    b.silu(b.input("x", "f32", ("n", 8)))
    line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
    assert b.nodes[0].where == f"{__name__}:{line}"


def test_no_such_op() -> None:
    with pytest.raises(AttributeError, match="no op 'fly'"):
        Builder().fly()


def inputs(b: Builder, name: str) -> list[Value | None]:
    """Values of the right element type and no shape."""
    kinds = {"float": "bf16", "any": "f32"}
    return [
        None if s.optional else b.input(s.name, kinds.get(s.dtype, s.dtype), tuple(s.shape or ()))
        for s in OPS[name].inputs
    ]


@pytest.mark.parametrize("name", OPS)
def test_every_op_checks_its_arity_types_and_attributes(name: str) -> None:
    operation = OPS[name]
    attrs = {k: 1 for k, v in operation.attrs.items() if v is inspect.Parameter.empty}
    required = sum(not s.optional for s in operation.inputs)
    with pytest.raises(ShapeError, match=f"{name} needs input {operation.inputs[0].name}"):
        operation.infer([], attrs)
    with pytest.raises(ShapeError, match=rf"{name} takes {len(operation.inputs)} inputs, "):
        operation.infer([None] * (len(operation.inputs) + 1), attrs)
    with pytest.raises(ShapeError, match=f"{name} has no attribute zz"):
        operation.infer([None] * required, {**attrs, "zz": 1})
    if attrs:
        with pytest.raises(ShapeError, match=f"{name} needs attribute"):
            operation.infer([], {})
    typed = next((s for s in operation.inputs if s.dtype != "any"), None)
    if typed is not None:
        types = [v and TensorType("u7", v.shape) for v in inputs(Builder(), name)]
        with pytest.raises(ShapeError, match="must be"):
            operation.infer(types, attrs)


@pytest.mark.parametrize("name", OPS)
def test_every_op_says_what_it_means(name: str) -> None:
    operation = OPS[name]
    assert operation.name == name and operation.doc.strip() and operation.outputs
    parameters = inspect.signature(operation.meaning).parameters.values()
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in positional] == [s.name for s in operation.inputs]
    assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} == operation.attrs.keys()


def test_a_declaration_is_enough() -> None:
    try:

        @op("x: f32[..., k], w?: float[k] -> f32[2*k, ...]")
        def doubled(x: Any, w: Any = None, *, by: int = 3) -> Any:
            """Twice."""
            return x

        assert infer("doubled", "f32[n, 5]") == "f32[10, n]"
        assert infer("doubled", "f32[n, 5]", "f16[5]", by=2) == "f32[10, n]"
        with pytest.raises(ShapeError, match=r"doubled: w is f16\[4\], but k is 5"):
            infer("doubled", "f32[n, 5]", "f16[4]")
    finally:
        del OPS["doubled"]
