"""What fits, and what the caches take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deepzig.artifacts.manifest import EntryPoint, TensorSpec
from deepzig.errors import DeepZigError
from deepzig.runtime.bench.cases import Decode, Plan, Prefill, cache_bytes, make_plan

from ..fake import manifest

CACHE = (TensorSpec("kv0", "bf16", ("pages", 4, 37)), TensorSpec("kv1", "f32", ("pages", 4, 11)))
MADE = replace(manifest(300), cache=CACHE)
"""24 rows, 3 sequences, pages of 4 tokens, a context of 60."""


def test_bytes_of_a_token() -> None:
    assert cache_bytes(MADE) == 2 * 37 + 4 * 11
    reads = replace(MADE, entry_points={"decode": EntryPoint((), ("kv1",), (), ())})
    assert cache_bytes(reads, "decode") == 4 * 11
    assert cache_bytes(MADE, "decode") == 0


def test_all_of_it_fits() -> None:
    plan = make_plan(MADE, [13], [1, 3, 3], [0, 17], 5, None)
    cases = (Prefill(13), Decode(1, 0), Decode(3, 0), Decode(1, 17), Decode(3, 17))
    assert plan == Plan(cases, 5, (17, 17, 17), (22, 22, 22), ())
    assert plan.cache_tokens(4) == 3 * 24


def test_only_a_prompt() -> None:
    plan = make_plan(MADE, [13, 7], [9], [3], 5, None)
    assert plan.cases == (Prefill(13), Prefill(7)) and plan.rooms == (13,) and plan.cache_tokens(4) == 16


def test_what_does_not_fit_is_named() -> None:
    # a page of 4 tokens is 472 bytes: 12 pages for three sequences of 13 tokens, 4 pages for one
    plan = make_plan(MADE, [61, 14], [1, 3, 4], [8, 56], 5, 12 * 472 - 1)
    assert plan.cases == (Prefill(14), Decode(1, 8))
    assert plan.skipped == (
        "prefill 61: 61 tokens are more than the context of 60",
        "decode batch 3 depth 8: its cache takes 0.0 GB, 0.0 GB are available",
        "decode batch 4 depth 8: the artifact takes at most 3 sequences",
        *(f"decode batch {b} depth 56: 61 tokens are more than the context of 60" for b in (1, 3, 4)),
    )
    assert make_plan(MADE, [61, 14], [1, 3, 4], [8, 55], 5, 12 * 472).cases[-1] == Decode(3, 8)


def test_sequences_have_the_context_that_their_cases_need() -> None:
    plan = make_plan(MADE, [13], [1, 3], [2, 40], 5, 12 * 472)
    assert plan.cases == (Prefill(13), Decode(1, 2), Decode(3, 2), Decode(1, 40))
    assert plan.contexts == (40, 2, 2) and plan.rooms == (45, 7, 7)


def test_nothing_fits() -> None:
    with pytest.raises(DeepZigError) as error:
        make_plan(MADE, [70], [7], [0], 5, None)
    assert str(error.value) == (
        "nothing to measure fits: prefill 70: 70 tokens are more than the context of 60\n"
        "  at: --batch, --depth, --prompt\n  fix: ask for less"
    )
