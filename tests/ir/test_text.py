"""Text that round-trips, and errors that say where."""

from __future__ import annotations

import pytest

from deepzig.errors import DeepZigError
from deepzig.ir import parse, same, show, verify

TEXT = """\
param @w: bf16[6, 8]
param @norm: f32[8]
const @freq: f32[2] = [1.0, 0.10000000149011612]
state @cache.0: bf16[pages, 4, 16]
@w.slice: bf16[3, 8] = slice(@w) {axis=0, begin=3, end=6}

graph decode(%x: f32[n, 8], %pos: i32[n]) {rows=4}:
  %0: f32[n, 8] = rms_norm(%x, @norm) {eps=1e-06}  # somewhere:12, layer 3
  %1: f32[n, 3] = linear(%0, @w.slice)  # layer 0
  %2: f32[n, 1, 3] = reshape(%1) {shape=('n', 1, 3)}
  %3.0: i32[n, 2], %3.1: f32[n, 2] = router(%0, @g, _, _) ROUTER
  return %2, %3.0
""".replace("param @norm", "param @g: f32[5, 8]\nparam @norm").replace(
    "ROUTER", "{best=1, groups=1, keep=1, norm_topk_prob=True, scaling=2.5, scoring='sigmoid', top_k=2}"
)


def test_show_of_parse_is_the_text() -> None:
    module = parse(TEXT)
    verify(module)
    assert show(module) == TEXT
    assert same(module, parse(TEXT))


@pytest.mark.parametrize(
    ("old", "new"),
    [("eps=1e-06", "eps=1e-05"), ("rms_norm(%x", "rms_norm(%y"), ("end=6", "end=5"), ("rows=4", "rows=5")],
)
def test_a_changed_module_is_not_the_same(old: str, new: str) -> None:
    text = TEXT.replace(old, new)
    if new.endswith("%y"):
        text = text.replace("(%x: f32[n, 8]", "(%x: f32[n, 8], %y: f32[n, 8]")
    assert not same(parse(TEXT), parse(text))


@pytest.mark.parametrize(
    ("old", "new", "what", "where"),
    [
        ("rms_norm(%x", "rms_norm(%z", "%z is not defined", "t.ir:9:28"),
        ("= linear(", "= linar(", "no op linar", "t.ir:10:19"),
        ("%1: f32", "%0: f32", "%0 is defined twice", "t.ir:10:3"),
        ("graph decode", "grph decode", "neither a declaration nor a graph", "t.ir:8:1"),
        ("  return %2, %3.0\n", "", "graph decode has no return", "t.ir:12:1"),
        ("return %2, %3.0", "return %2, %4", "%4 is not defined", "t.ir:13:14"),
        ("%1: f32[n, 3] =", "%1 =", "%1 needs a type", "t.ir:10:3"),
        ("eps=1e-06", "eps=small", "an attribute is not a literal", "t.ir:9:40"),
        ("  %1: f32[n, 3] = linear(%0, @w.slice)", "  %1 is linear", "not a node", "t.ir:10:1"),
        ("slice(@w)", "slice(@v)", "@v is not defined", "t.ir:6:30"),
        ("[1.0, 0.10000000149011612]", "[1.0]", "the data are not f32[2]", "t.ir:4:23"),
        ("[1.0, 0.10000000149011612]", "[1.0, x]", "the data are not f32[2]", "t.ir:4:23"),
        ("const @freq: f32[2]", "const @freq: q9[2]", "the data are not q9[2]", "t.ir:4:22"),
        (" = [1.0, 0.10000000149011612]", "", "the data are not f32[2]", "t.ir:4:1"),
    ],
)
def test_errors_name_line_and_column(old: str, new: str, what: str, where: str) -> None:
    with pytest.raises(DeepZigError) as error:
        parse(TEXT.replace(old, new), "t.ir")
    assert (error.value.what, error.value.where) == (what, where)


def test_verify_names_a_wrong_type() -> None:
    with pytest.raises(DeepZigError, match=r"linear gives f32\[n, 3\], not f32\[n, 4\]"):
        verify(
            parse(
                TEXT.replace("%1: f32[n, 3]", "%1: f32[n, 4]")
                .replace("reshape(%1) {shape=('n', 1, 3)}", "reshape(%1) {shape=('n', 1, 4)}")
                .replace("%2: f32[n, 1, 3]", "%2: f32[n, 1, 4]")
            )
        )
