"""The router of a mixture of experts: scores of all experts, the choice of a few, their weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.targets.emit import Buffer, Expr, kernel, loop, store, symbols, when

from .emit import each_row, local, variable, vector_of, vector_sum, workspace
from .features import Vectors
from .layout import LANES, blocks
from .methods import method_of
from .product import Columns, Elements, product, rows_of
from .vector import at, exp, sigmoid, splat, total, tree_max

NEVER = float("-inf")
EPSILON = 1e-20
"""What the reference adds to the sum of weights before it divides by it."""


@cache
def router(
    k: int,
    experts: int,
    top_k: int,
    *,
    scoring: str,
    groups: int,
    keep: int,
    best: int,
    norm_topk_prob: bool,
    scaling: float,
    bias: bool,
    forced: bool,
    vectors: Vectors,
) -> PrimFunc:
    """Kernel for routing limited to the best groups (DeepSeek-V3 report, section 2.1.2; V2 paper, section 2.1.3).

    The bias takes part in the choice only. Of equals, the lower index wins.

    Args:
        k: inputs.
        experts: routed experts.
        top_k: experts to choose, in descending order of score + bias.
        scoring: `sigmoid` or `softmax`.
        groups: groups of consecutive experts.
        keep: groups to choose from.
        best: how many of its experts a group is scored by: the sum of its `best` greatest, 1 or 2.
        norm_topk_prob: whether the weights are divided by their sum.
        scaling: what the weights are multiplied with in the end.
        bias: whether there is a bias.
        forced: whether the choice is given, for tests: then only the weights are computed.
        vectors: registers of the CPU.

    Returns:
        (X f32[rows, k], GATE f32 packed by `pack_columns`, bias f32[experts]?, forced i32[rows, top_k]?,
        IDS i32[rows, top_k], WEIGHTS f32[rows, top_k]); the last two are written.
    """
    limit = [f"group{keep}of{groups}by{best}"] if groups > 1 else []
    flags = [name for name, on in (("norm", norm_topk_prob), ("bias", bias), ("forced", forced)) if on]
    with kernel("router", scoring, f"k{k}", f"e{experts}", f"top{top_k}", *limit, f"x{scaling}", *flags) as f:
        (rows,) = symbols("rows")
        X = f.tensor("x", "f32", rows, k)
        GATE = f.tensor("gate", "f32", blocks(experts), k, LANES)
        BIAS: Any = f.tensor("bias", "f32", experts) if bias else None
        FORCED: Any = f.tensor("forced", "i32", rows, top_k) if forced else None
        IDS = f.tensor("ids", "i32", rows, top_k)
        WEIGHTS = f.tensor("weights", "f32", rows, top_k)
        padded = blocks(experts) * LANES
        scores = workspace(rows, padded)
        choice = workspace(rows, padded)

        def output(row: Expr, block: Expr, sums: Sequence[Buffer]) -> None:
            logits = sums[0][at(0)]
            store(scores, sigmoid(logits) if scoring == "sigmoid" else logits, row, at(block * LANES))

        def choose(row: Expr) -> None:
            with loop(experts) as e:
                store(choice, scores[row, e] + BIAS[e] if bias else scores[row, e], row, e)
            if groups > 1:
                keep_groups(choice, row, experts // groups, groups, keep, best)
            with loop(padded, experts) as padding:
                store(choice, T.float32(NEVER), row, padding)
            with loop(top_k) as j:
                # a NaN is never the greatest: no choice at all must not become an index
                expert = T.bind(T.min(argmax(lambda index: choice[row, index], blocks(experts)), T.int32(experts - 1)))
                store(IDS, expert, row, j)
                store(choice, T.float32(NEVER), row, expert)

        def weigh(row: Expr) -> None:
            divisor = variable(T.float32(0))
            with loop(top_k) as j:
                weight = T.bind(scores[row, IDS[row, j]])
                store(WEIGHTS, weight, row, j)
                store(divisor, divisor[0] + weight, 0)
            with loop(top_k) as j:
                weight = WEIGHTS[row, j]
                if norm_topk_prob:
                    weight = weight / (divisor[0] + T.float32(EPSILON))
                store(WEIGHTS, weight * T.float32(scaling), row, j)

        def route(row: Expr) -> None:
            if scoring == "softmax":
                softmax(scores, row, experts)
            if forced:
                with loop(top_k) as j:
                    store(IDS, FORCED[row, j], row, j)
            else:
                choose(row)
            weigh(row)

        product(
            rows,
            blocks(experts),
            lambda taken: Columns(GATE, [(block,) for block in taken], k, "f32"),
            rows_of(X),
            output,
            method_of("f32", vectors),
        )
        each_row(rows, route)
    return f.function


def softmax(scores: Buffer, row: Expr, experts: int) -> None:
    """Emit what turns the first `experts` of scores[row] into e^x / sum(e^x), with sums in order of lanes."""
    vectors = blocks(experts)
    with loop(vectors * LANES, experts) as padding:
        store(scores, T.float32(NEVER), row, padding)
    peak, mass = vector_of(scores[row, at(0)]), vector_sum()
    with loop(vectors, 1) as c:
        store(peak, T.max(peak[at(0)], scores[row, at(c * LANES)]), at(0))
    top = T.bind(tree_max(peak[at(0)]))
    with loop(vectors) as c:
        weight = T.bind(exp(T.bind(scores[row, at(c * LANES)] - splat(top))))
        store(scores, weight, row, at(c * LANES))
        store(mass, mass[at(0)] + weight, at(0))
    whole = T.bind(total(mass[at(0)]))
    with loop(vectors) as c:
        store(scores, scores[row, at(c * LANES)] / splat(whole), row, at(c * LANES))


def argmax(x: Elements, vectors: int) -> Expr:
    """Emit the search for the first of the greatest elements of 16 * vectors; its index is i32."""
    best, where = vector_of(x(at(0))), local(dtype="int32")
    store(where, T.broadcast(T.int32(0), LANES), at(0))
    with loop(vectors, 1) as c:
        value = T.bind(x(at(c * LANES)))
        greater = value > best[at(0)]
        store(where, T.Select(greater, T.broadcast(T.Cast("int32", c), LANES), where[at(0)]), at(0))
        store(best, T.max(value, best[at(0)]), at(0))
    index = where[at(0)] * T.broadcast(T.int32(LANES), LANES) + T.ramp(T.int32(0), 1, LANES)
    none = T.broadcast(T.int32(vectors * LANES), LANES)
    candidates = T.Select(best[at(0)] == splat(T.bind(tree_max(best[at(0)]))), index, none)
    return T.call_llvm_pure_intrin("int32", "llvm.vector.reduce.smin", candidates)


def keep_groups(choice: Buffer, row: Expr, size: int, groups: int, keep: int, best: int) -> None:
    """Emit what makes the experts of all but the `keep` best groups, of `size` each, ineligible in choice[row]."""
    padded = blocks(groups) * LANES
    score, kept, two = workspace(padded), workspace(padded, dtype="int32"), local(2)
    with loop(padded) as g:
        store(score, T.float32(NEVER), g)
        store(kept, T.int32(0), g)
    with loop(groups) as g:
        store(two, T.float32(NEVER), 0)
        store(two, T.float32(NEVER), 1)
        with loop(size) as e:
            value = T.bind(choice[row, g * size + e])
            store(two, T.max(two[1], T.min(two[0], value)), 1)
            store(two, T.max(two[0], value), 0)
        store(score, two[0] + two[1] if best == 2 else two[0], g)
    with loop(keep):
        group = T.bind(T.min(argmax(lambda index: score[index], blocks(groups)), T.int32(groups - 1)))
        store(score, T.float32(NEVER), group)
        store(kept, T.int32(1), group)
    with loop(groups) as g, when(kept[g] == 0), loop(size) as e:
        store(choice, T.float32(NEVER), row, g * size + e)
