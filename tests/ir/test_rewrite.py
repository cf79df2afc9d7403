"""The rewriter: what matches, and what must not."""

from __future__ import annotations

import pytest

from deepzig.ir import Graph, eliminate_dead, fuse_limit, parse, rewrite, show_graph

HEAD = "param @g: f32[6, 8]\nparam @u: f32[6, 8]\n\n"
SWIGLU = """
    %g = linear(%x, %gate)
    %s = silu(%g)
    %u = linear(%x, %up)
    %y = mul(%s, %u)
"""


def graph(body: str) -> Graph:
    return parse(f"{HEAD}graph f(%x: f32[n, 8], %z: f32[n, 8]):\n{body}").graphs[0]


def fuse(g: Graph) -> Graph:
    return rewrite(g, SWIGLU, lambda b, m: b.gated_proj(m["x"], m["gate"], m["up"]))


GOOD = """\
  %0: f32[n, 6] = linear(%x, @g)
  %1: f32[n, 6] = silu(%0)
  %2: f32[n, 6] = linear(%x, @u)
  %3: f32[n, 6] = mul(%1, %2)
  return %3
"""


def test_a_match_is_replaced() -> None:
    assert "%3.0: f32[n, 6] = gated_proj(%x, @g, @u)" in show_graph(fuse(graph(GOOD)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("linear(%x, @u)", "linear(%z, @u)"),
        ("return %3", "return %3, %0"),
        ("mul(%1, %2)", "mul(%0, %2)"),
        ("mul(%1, %2)", "add(%1, %2)"),
        ("return %3", "%4: f32[n, 6] = add(%2, %3)\n  return %4"),
    ],
)
def test_near_misses_give_the_same_object_back(old: str, new: str) -> None:
    g = graph(GOOD.replace(old, new))
    assert fuse(g) is g


def test_all_matches_up_to_the_limit() -> None:
    second = GOOD.replace("%3", "%7").replace("%0", "%4").replace("%1", "%5").replace("%2", "%6")
    twice = graph(GOOD.replace("  return %3\n", "") + second.replace("return", "return %3,"))
    assert show_graph(fuse(twice)).count("gated_proj") == 2
    with fuse_limit(1):
        assert show_graph(fuse(twice)).count("gated_proj") == 1
    with fuse_limit(0):
        assert fuse(twice) is twice


def test_a_replacement_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match=r"%3 is f32\[n, 6\], its replacement f32\[n, 8\]"):
        rewrite(graph(GOOD), SWIGLU, lambda b, m: m["x"])


def test_dead_nodes_go() -> None:
    g = graph(GOOD.replace("return %3", "return %1"))
    assert [n.op.name for n in eliminate_dead(g).nodes] == ["linear", "silu"]
    whole = graph(GOOD)
    assert eliminate_dead(whole) is whole
