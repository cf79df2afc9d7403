"""The calls a benchmark makes, on a backend that refuses to read what was never written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from deepzig.runtime.bench.cases import Decode, Prefill, make_plan
from deepzig.runtime.bench.runner import Runner

from .. import fake


def made(prompts: list[int], batches: list[int], depths: list[int]) -> tuple[Any, Runner, Counter[str]]:
    model = fake.model(None, fake.babble(300), pages=30)
    entered = Counter[str]()

    @contextmanager
    def around(entry: str) -> Iterator[None]:
        entered[entry] += 1
        yield

    return model, Runner(model, make_plan(model.manifest, prompts, batches, depths, 5, None), around), entered


def test_contexts_are_filled_and_decoded_on() -> None:
    model, runner, entered = made([11], [1, 3], [0, 18])
    assert len(list(runner.fill())) == runner.fills == 9
    # chunks of 8, then 2 rows, few enough for the other form
    one = [("prefill", list(range(8))), ("prefill", list(range(8, 16))), ("decode", [16, 17])]
    assert model.backend.calls == 3 * one
    model.backend.calls.clear()
    entered.clear()
    assert runner.run(Decode(3, 18)) > 0
    assert model.backend.calls == [("decode", [18 + step] * 3) for step in range(5)]
    assert entered == {"decode": 5, "sample": 5}
    model.backend.calls.clear()
    runner.run(Decode(1, 18), 2)
    assert model.backend.calls == [("decode", [18]), ("decode", [19])]


def test_a_prompt() -> None:
    model, runner, entered = made([12, 3], [1], [0])
    assert runner.fills == 0
    runner.run(Prefill(12))
    assert model.backend.calls == [("prefill", list(range(8))), ("prefill", [8, 9, 10, 11])]
    runner.run(Prefill(3))
    assert model.backend.calls[2:] == [("decode", [0, 1, 2])] and entered == {"prefill": 2, "decode": 1}


def test_sequences_have_pages_of_their_own_and_other_texts() -> None:
    model, runner, _ = made([11], [3], [18])
    for _ in runner.fill():
        pass
    assert len({page for pages in runner._pages for page in pages}) == 3 * 6
    texts = [model.backend.cache[pages].ravel()[:18] for pages in runner._pages]
    assert not any(np.array_equal(texts[0], other) for other in texts[1:])


def test_every_run_does_the_same_work() -> None:
    caches = []
    for _ in range(2):
        model, runner, _ = made([11], [2], [7])
        for _ in runner.fill():
            pass
        runner.run(Decode(2, 7))
        caches.append(model.backend.cache)
    assert np.array_equal(*caches)
