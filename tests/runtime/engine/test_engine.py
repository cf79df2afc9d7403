"""The engine over a backend that remembers tokens: nothing that others do changes an answer, and no page is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from deepzig.errors import DeepZigError
from deepzig.runtime.engine import EngineBusyError, Settings
from deepzig.runtime.model import Model

from .. import fake

VOCAB = 300


def model(pages: int = 15, settings: Settings | None = None, **bounds: int) -> Model:
    return fake.model(None, fake.babble(VOCAB), pages=pages, settings=settings, **bounds)


def prompts(seed: int, count: int, longest: int) -> list[list[int]]:
    """Random ones, of which some begin alike."""
    rng = np.random.default_rng(seed)
    common = rng.integers(2, VOCAB, longest).tolist()
    made = []
    for _ in range(count):
        length = int(rng.integers(1, longest))
        alike = int(rng.integers(0, length + 1)) if rng.random() < 0.6 else 0
        made.append(common[:alike] + rng.integers(2, VOCAB, length - alike).tolist())
    return made


def options(i: int) -> dict[str, Any]:
    """Of the ith request."""
    sampled = {"temperature": 1.0, "seed": i, "top_p": 0.9} if i % 3 else {}
    return {"max_tokens": 3 + i * 7 % 23, "ignore_eos": i % 2 == 0, **sampled, "n": 2 if i % 5 == 4 else 1}


def test_many_at_once_are_answered_as_alone() -> None:
    """64 requests, cancels among them, on a cache for a tenth of them: preempted ones get the same answers."""
    asked = prompts(5, 64, 40)
    alone = [model(settings=Settings(prefix_reuse=False)).generate(p, **options(i)) for i, p in enumerate(asked)]
    needed = sum(-(-(len(p) + len(a.token_ids)) // 4) for p, a in zip(asked, alone, strict=True))
    crowded = model(pages=max(needed // 10, 15), batch=16, rows=48)
    calls: list[list[int]] = []
    call = crowded.backend.call

    def noting(entry: str, inputs: Mapping[str, Any]) -> Any:
        if entry != "sample":
            check(crowded, inputs)
            calls.append(inputs["pos"].tolist())
        return call(entry, inputs)

    crowded.backend.call = noting  # type: ignore[method-assign]
    generations = [crowded.submit(p, **options(i)) for i, p in enumerate(asked)]
    for i in range(0, 64, 7):
        generations[i].cancel()
    for i, generation in enumerate(generations):
        if i % 7:
            assert generation.result() == alone[i]
    stats = crowded.engine.stats()
    assert stats.preemptions > 0 and stats.cached_tokens > 0 and (stats.running, stats.waiting) == (0, 0)
    assert max(map(len, calls)) > 8
    assert crowded.engine.tree is not None
    crowded.engine.tree.clear()
    assert crowded.pool.free == crowded.pool.count == stats.pages
    assert not any(crowded.pool.holders(page) for page in range(crowded.pool.count))


def check(crowded: Model, inputs: Mapping[str, Any]) -> None:
    """Rows as kernels take them, and nobody writes to a page that another holds too."""
    bounds, size = crowded.manifest.bounds, crowded.manifest.bounds.page_size
    seq, pos = inputs["seq"], inputs["pos"]
    assert len(seq) <= bounds.rows and len(inputs["block_table"]) <= bounds.batch
    for i, pages in enumerate(inputs["block_table"]):
        mine = pos[seq == i]
        assert np.array_equal(mine, np.arange(mine[0], mine[0] + len(mine)))
        for page in {int(pages[p // size]) for p in mine}:
            assert crowded.pool.holders(page) == 1
    written = [int(inputs["block_table"][s, p // size]) * size + p % size for s, p in zip(seq, pos, strict=True)]
    assert len(set(written)) == len(written)


@pytest.mark.parametrize("step_tokens", [1, 5, 13])
def test_the_budget_of_a_step_changes_no_answer(step_tokens: int) -> None:
    asked = prompts(6, 12, 30)
    want = [model().generate(p, **options(i)) for i, p in enumerate(asked)]
    small = model(pages=60, settings=Settings(step_tokens=step_tokens))
    got = [g.result() for g in [small.submit(p, **options(i)) for i, p in enumerate(asked)]]
    assert got == want


def test_prompts_that_begin_alike_are_read_once() -> None:
    served = model(pages=40)
    first = served.generate(list(range(2, 40)), max_tokens=3)
    before = served.engine.stats().steps
    # 38 tokens, cut at 8: the last chunk has 6 rows, so all whole pages can be shared
    second = served.generate([*range(2, 40), 7], max_tokens=3)
    assert (first.cached_tokens, second.cached_tokens) == (0, 36)
    assert served.engine.stats().steps - before == 3
    assert second == model(pages=40, settings=Settings(prefix_reuse=False)).generate([*range(2, 40), 7], max_tokens=3)
    assert served.generate([*range(2, 40)], max_tokens=3, cache_salt="other").cached_tokens == 0


def test_rows_in_another_form_are_not_shared() -> None:
    """35 tokens: of the chunk that begins at 32 three rows are left, which `decode` reads; 36 tokens: `prefill`."""
    served = model(pages=40, page_size=1)
    served.generate(list(range(2, 37)), max_tokens=1)
    assert served.generate(list(range(2, 38)), max_tokens=1).cached_tokens == 32
    assert served.generate(list(range(2, 37)), max_tokens=1).cached_tokens == 32
    assert served.generate(list(range(2, 40)), max_tokens=1).cached_tokens == 36


def test_urgent_requests_go_first() -> None:
    served = model(pages=15, settings=Settings(max_running=1))
    gate = threading.Event()
    call, order = served.backend.call, list[int]()

    def waiting(entry: str, inputs: Mapping[str, Any]) -> Any:
        gate.wait()
        if entry != "sample" and inputs["pos"][0] == 0:
            order.append(int(inputs["tokens"][-1]))
        return call(entry, inputs)

    served.backend.call = waiting  # type: ignore[method-assign]
    asked = {9: 0, 10: 2, 11: 1, 12: 0, 13: -1}
    first, *others = (served.submit([5, 6, i], priority=p, max_tokens=20, ignore_eos=True) for i, p in asked.items())
    gate.set()
    for generation in (first, *others):
        generation.result()
    assert order in ([9, 13, 12, 11, 10], [13, 9, 12, 11, 10])


def test_too_many_are_refused() -> None:
    served = model(settings=Settings(max_running=1, max_waiting=2))
    gate = threading.Event()
    call = served.backend.call
    served.backend.call = lambda *given: (gate.wait(), call(*given))[1]  # type: ignore[method-assign]
    held = [served.submit([5], max_tokens=2)]
    while served.engine.stats().running == 0:
        pass
    held += [served.submit([6], max_tokens=2), served.submit([7], max_tokens=2)]
    with pytest.raises(EngineBusyError) as caught:
        served.submit([8])
    assert str(caught.value) == (
        "2 requests wait already\n  at: engine\n  fix: try again later, or load the model with a larger max_waiting"
    )
    gate.set()
    assert all(g.result().token_ids for g in held)


@pytest.mark.parametrize("name", ["max_running", "max_waiting", "step_tokens"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_settings_that_do_not_fit(name: str, value: Any) -> None:
    with pytest.raises(DeepZigError) as caught:
        Settings(**{name: value})
    assert str(caught.value) == f"{name} is {value!r}\n  at: option {name}\n  fix: give a whole number from 1"


def test_event_loops() -> None:
    served = model(pages=60)
    asked = prompts(8, 9, 20)
    want = [model().generate(p, **options(i)) for i, p in enumerate(asked)]

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(served.agenerate(p, **options(i)) for i, p in enumerate(asked)))

    async def streamed() -> list[int]:
        return [piece.token_id async for piece in served.astream(asked[0], **options(0))]

    async def left() -> None:
        async for _ in served.astream([5] * 9, ignore_eos=True):
            break

    assert asyncio.run(all_of_them()) == want
    assert tuple(asyncio.run(streamed())) == want[0].token_ids
    asyncio.run(left())
    served.generate([5], max_tokens=1)
    assert served.engine.stats().running == 0


def test_a_failing_call_ends_those_that_it_served_only() -> None:
    served = model(pages=60)
    call = served.backend.call

    def failing(entry: str, inputs: Mapping[str, Any]) -> Any:
        if entry != "sample" and 66 in inputs["tokens"]:
            raise DeepZigError("a", "b", "c")
        return call(entry, inputs)

    served.backend.call = failing  # type: ignore[method-assign]
    with pytest.raises(DeepZigError, match="a\n  at: b"):
        served.generate([66, 5])
    assert served.generate([7, 5], max_tokens=3, ignore_eos=True).token_ids
    assert served.pool.free == served.pool.count


def test_an_idle_engine_has_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepzig.runtime.engine.engine.IDLE", 0.01)
    served = model()
    for _ in range(3):
        served.generate([5], max_tokens=2)
        threads = [t for t in threading.enumerate() if t.name == "deepzig-engine"]
        for thread in threads:
            thread.join(5)
            assert not thread.is_alive()
    served.close()
    with pytest.raises(DeepZigError, match="the model is closed"):
        served.generate([5])


@pytest.mark.parametrize("speculate", [0, 4])
def test_an_answer_has_its_least_length(speculate: int) -> None:
    """Ends are not drawn before, neither the model's nor the caller's, and as ever after; guesses change nothing."""
    said = [9, 8, 9, 8, 9, 8, 7]

    def logits(past: Any) -> Any:
        """The model would end after three tokens, and does so as soon as it may after seven."""
        at = len(past) - 5
        row = np.zeros(VOCAB, np.float32)
        row[said[at] if at < len(said) else 1] = 5
        row[1] += 9 * (at >= 3)
        row[6] += 7 * (at == 2)
        return row

    served = fake.model(None, logits, pages=60)
    ask = lambda **more: served.generate([2, 9, 8, 9, 8], speculate=speculate, **more).token_ids  # noqa: E731
    assert ask() == (9, 8, 6) and ask(stop_token_ids=[6]) == (9, 8)
    assert ask(stop_token_ids=[6, 10**6], min_tokens=5) == tuple(said[:5])
    assert ask(min_tokens=7) == (9, 8, 6, *said[3:])
