"""The router of a mixture of experts: from the logits of all experts to the choice of a few and their weights."""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.targets.emit import Buffer, Expr, kernel, loop, store, symbols, when

from .device import SUBGROUP
from .emit import Threads, barrier, launch, shared, subgroup_max, subgroup_sum, variable
from .greatest import NEVER, ranked, subgroup_first

EPSILON = 1e-20
"""What the reference adds to the sum of weights before it divides by it."""


@cache
def route(
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
) -> PrimFunc:
    """Kernel for routing limited to the best groups (DeepSeek-V3 report, section 2.1.2; V2 paper, section 2.1.3).

    The bias takes part in the choice only. Of equals, the lower index wins. A subgroup of threads has a row.

    Args:
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

    Returns:
        (LOGITS f32[rows, experts], bias f32[experts]?, forced i32[rows, top_k]?, IDS i32[rows, top_k],
        WEIGHTS f32[rows, top_k]); the last two are written.
    """
    limit = [f"group{keep}of{groups}by{best}"] if groups > 1 else []
    flags = [name for name, on in (("norm", norm_topk_prob), ("bias", bias), ("forced", forced)) if on]
    with kernel("route", scoring, f"e{experts}", f"top{top_k}", *limit, f"x{scaling}", *flags) as f:
        (rows,) = symbols("rows")
        LOGITS = f.tensor("logits", "f32", rows, experts)
        BIAS: Any = f.tensor("bias", "f32", experts) if bias else None
        FORCED: Any = f.tensor("forced", "i32", rows, top_k) if forced else None
        IDS = f.tensor("ids", "i32", rows, top_k)
        WEIGHTS = f.tensor("weights", "f32", rows, top_k)
        with launch(SUBGROUP, rows) as t:
            row = t.block[0]
            scores, chosen = shared(experts), shared(top_k, dtype="int32")
            with t.each(experts) as e:
                logit = T.bind(LOGITS[row, e])
                value = T.float32(1) / (T.float32(1) + T.exp(-logit)) if scoring == "sigmoid" else logit
                store(scores, value, e)
            if scoring == "softmax":
                softmax(t, scores, experts)
            if forced:
                with t.each(top_k) as j:
                    store(chosen, FORCED[row, j], j)
            else:
                # the places of the scores in the order of all floats, so that a NaN is never the greatest
                choice, values = shared(experts, dtype="int32"), shared(experts)
                with t.each(experts) as e:  # of experts that other threads don't read before the next barrier
                    store(values, scores[e] + BIAS[e] if bias else scores[e], e)
                    store(choice, ranked(values[e]), e)
                barrier()
                if groups > 1:
                    keep_groups(t, values, choice, experts // groups, groups, keep, best)
                with loop(top_k) as j:
                    expert = first(t, choice, experts)
                    barrier()
                    with when(t.thread == 0):
                        store(chosen, expert, j)
                        store(choice, T.int32(NEVER - 1), expert)
                    barrier()
            barrier()
            divisor = variable(T.float32(0))
            if norm_topk_prob:
                with loop(top_k) as j:
                    store(divisor, divisor[0] + scores[chosen[j]], 0)
            with t.each(top_k) as j:
                weight = T.bind(scores[chosen[j]])
                if norm_topk_prob:
                    weight = weight / (divisor[0] + T.float32(EPSILON))
                store(IDS, chosen[j], row, j)
                store(WEIGHTS, weight * T.float32(scaling), row, j)
    return f.function


def softmax(t: Threads, scores: Buffer, size: int) -> None:
    """Emit what turns the scores, of which each thread has its own, into e^x / sum(e^x)."""
    peak, mass = variable(T.min_value("float32")), variable(T.float32(0))
    with t.each(size) as i:
        store(peak, T.max(peak[0], scores[i]), 0)
    top = subgroup_max(peak[0])
    with t.each(size) as i:
        weight = T.bind(T.exp(scores[i] - top))
        store(scores, weight, i)
        store(mass, mass[0] + weight, 0)
    whole = subgroup_sum(mass[0])
    with t.each(size) as i:
        store(scores, scores[i] / whole, i)


def first(t: Threads, places: Buffer, size: int) -> Expr:
    """Emit the search for the first of the greatest places: its index, i32, below `size` whatever they are."""
    best, where = variable(T.int32(NEVER - 1), "int32"), variable(T.int32(size - 1), "int32")
    with t.each(size) as i, when(places[i] > best[0]):
        store(best, places[i], 0)
        store(where, T.Cast("int32", i), 0)
    return subgroup_first(best[0], where[0])[1]


def keep_groups(t: Threads, values: Buffer, choice: Buffer, size: int, groups: int, keep: int, best: int) -> None:
    """Emit what makes the experts of all but the `keep` best groups, of `size` each, ineligible in `choice`.

    Args:
        t: where the code is: one subgroup.
        values: f32[experts], what experts are chosen by.
        choice: i32[experts], their places.
        size: experts of a group.
        groups: how many.
        keep: how many of them to choose from.
        best: how many values a group is scored by.
    """
    score, kept = shared(groups, dtype="int32"), shared(groups, dtype="int32")
    lowest = T.min_value("float32")
    with t.each(groups) as g:
        greatest, second = variable(lowest), variable(lowest)
        with loop(size) as e:
            value = T.bind(values[g * size + e])
            store(second, T.max(second[0], T.min(greatest[0], value)), 0)
            store(greatest, T.max(greatest[0], value), 0)
        total = greatest[0] + second[0] if best == 2 else greatest[0]
        store(score, ranked(T.bind(total)), g)
        store(kept, T.int32(0), g)
    barrier()
    with loop(keep):
        group = first(t, score, groups)
        barrier()
        with when(t.thread == 0):
            store(score, T.int32(NEVER - 1), group)
            store(kept, T.int32(1), group)
        barrier()
    with t.each(size * groups) as e, when(tirx.Not(kept[e // size] == 1)):
        store(choice, T.int32(NEVER), e)
    barrier()
