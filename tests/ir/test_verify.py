"""The verifier: each of its rules has a module that breaks it and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from deepzig.errors import DeepZigError
from deepzig.ir import Graph, Module, TensorType, Value, parse, same, verify, verify_graph

TEXT = """\
param @w: bf16[6, 8]
param @g: f32[8]
state @cache: bf16[pages, 4, 16]
@part: bf16[3, 8] = slice(@w) {axis=0, begin=3, end=6}

graph decode(%x: f32[n, 8]):
  %0: f32[n, 8] = rms_norm(%x, @g) {eps=1e-06}  # models.x:7
  %1: f32[n, 3] = linear(%0, @part)  # models.x:8
  %2: f32[n, 3] = silu(%1)  # models.x:9
  return %2
"""
HINT = "this is a bug in a pass or a definition; bisect it with --fuse-limit"


def graph(module: Module, change: Callable[[Graph], Graph]) -> Module:
    return replace(module, graphs=(change(module.graphs[0]),))


def swap_nodes(g: Graph) -> Graph:
    return replace(g, nodes=(g.nodes[1], g.nodes[0], *g.nodes[2:]))


def other_input(g: Graph) -> Graph:
    foreign = Value("y", TensorType("f32", ("n", 8)))
    return replace(g, nodes=(replace(g.nodes[0], inputs=(foreign, g.nodes[0].inputs[1])), *g.nodes[1:]))


def other_type(g: Graph) -> Graph:
    """Another value in the place of %1, everywhere, with a type that its op does not give."""
    old, new = g.nodes[1].output, Value("1", TensorType("f32", ("n", 4)))
    return replace(
        g, nodes=(g.nodes[0], replace(g.nodes[1], outputs=(new,)), replace(g.nodes[2], inputs=(new,))),
        outputs=tuple(new if v is old else v for v in g.outputs),
    )  # fmt: skip


BROKEN: dict[str, tuple[Callable[[Module], Module], str, str]] = {
    "use before definition": (
        lambda m: graph(m, swap_nodes), "%0 is used before its definition", "decode, linear, models.x:8",
    ),
    "value of another graph": (
        lambda m: graph(m, other_input),
        "%y is used before its definition", "decode, rms_norm, models.x:7",
    ),
    "parameter that the module lacks": (
        lambda m: replace(m, params=m.params[:1]), "@g is used before its definition", "decode, rms_norm, models.x:7",
    ),
    "returned but not defined": (
        lambda m: graph(m, lambda g: replace(g, outputs=(Value("9", TensorType("f32", ("n", 3))),))),
        "%9 is returned but not defined", "decode",
    ),
    "node twice": (
        lambda m: graph(m, lambda g: replace(g, nodes=(*g.nodes, g.nodes[2]))), "%2 is defined twice", "decode",
    ),
    "input twice": (lambda m: graph(m, lambda g: replace(g, inputs=g.inputs * 2)), "%x is defined twice", "decode"),
    "parameter twice": (lambda m: replace(m, params=(*m.params, m.params[0])), "@w is defined twice", "module"),
    "state twice": (lambda m: replace(m, states=m.states * 2), "@cache is defined twice", "module"),
    "weight twice": (lambda m: replace(m, weights=m.weights * 2), "@part is defined twice", "weights"),
    "weight of what is not there": (
        lambda m: replace(m, params=m.params[1:]), "@w is used before its definition", "weights, slice, ",
    ),
    "signature": (
        lambda m: graph(m, lambda g: replace(g, nodes=(replace(g.nodes[0], attrs={}), *g.nodes[1:]))),
        "rms_norm needs attribute eps", "decode, models.x:7",
    ),
    "recorded type": (lambda m: graph(m, other_type), "linear gives f32[n, 3], not f32[n, 4]", "decode"),
}  # fmt: skip


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_named(rule: str) -> None:
    change, what, where = BROKEN[rule]
    good = parse(TEXT)
    verify(good)
    with pytest.raises(DeepZigError) as error:
        verify(change(good))
    assert (error.value.what, error.value.where, error.value.hint) == (what, where, HINT)


def test_a_graph_alone_takes_the_globals_that_it_uses() -> None:
    verify_graph(parse(TEXT).graphs[0])
    with pytest.raises(DeepZigError, match="%0 is used before its definition"):
        verify_graph(swap_nodes(parse(TEXT).graphs[0]))


@pytest.mark.parametrize(
    ("old", "new", "equal"),
    [
        ("%0", "%norm", True),
        ("# models.x:7", "# elsewhere:1", True),
        ("param @w", "param @v", False),
        ("state @cache: bf16", "state @cache: f16", False),
        ("graph decode", "graph prefill", False),
        ("return %2", "return %1", False),
        ("return %2", "return %2, %1", False),
        ("silu", "sigmoid", False),
    ],
)
def test_same(old: str, new: str, equal: bool) -> None:
    """Names of local values and lines do not count; everything else does."""
    text = TEXT.replace(old, new).replace("slice(@w)", "slice(@v)" if "@v" in new else "slice(@w)")
    assert same(parse(TEXT), parse(text)) is equal
