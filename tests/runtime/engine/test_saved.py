"""Prefixes that outlive the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.artifacts.manifest import TensorSpec
from deepzig.errors import DeepZigError
from deepzig.runtime.engine import Settings
from deepzig.runtime.model import Model

from .. import fake

VOCAB = 300
PROMPTS = [list(range(2, 40)), [*range(2, 20), *range(100, 115)], list(range(60, 80))]


def model(pages: int = 40, **settings: Any) -> Model:
    made = fake.model(None, fake.babble(VOCAB), pages=pages, settings=Settings(**settings))
    object.__setattr__(made.manifest, "cache", (TensorSpec("cache", "i32", ("pages", 4, 2)),))
    made.engine._states.append("cache")
    return made


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    first = model()
    for prompt in PROMPTS:
        first.generate(prompt, max_tokens=2)
    assert first.save_prefix(tmp_path / "prefixes") == 4 * (9 + 4 + 5)
    assert first.pool.free == first.pool.count
    return tmp_path / "prefixes"


def test_the_next_process_finds_them(saved: Path) -> None:
    plain, second = model(prefix_reuse=False), model()
    assert second.load_prefix(saved) == 4 * 18
    for prompt, cached in zip(PROMPTS, (36, 32, 16), strict=True):
        got = second.generate(prompt, max_tokens=9)
        assert (got, got.cached_tokens) == (plain.generate(prompt, max_tokens=9), cached)
    assert second.load_prefix(saved) == 4 * 18 and second.pool.free == second.pool.count
    assert second.generate(PROMPTS[0], max_tokens=9, cache_salt="a").cached_tokens == 0


def test_a_prompt_is_read_first(tmp_path: Path) -> None:
    first, second = model(), model()
    assert first.save_prefix(tmp_path / "one", PROMPTS[0]) == 36
    second.load_prefix(tmp_path / "one")
    assert second.generate(PROMPTS[0], max_tokens=3).cached_tokens == 36


def test_nothing_to_save(tmp_path: Path) -> None:
    assert model().save_prefix(tmp_path / "none") == 0 == model().load_prefix(tmp_path / "none")


def refused(path: Path, made: Model | None = None) -> str:
    made = made or model()
    with pytest.raises(DeepZigError) as caught:
        made.load_prefix(path)
    assert made.pool.free == made.pool.count and not made.engine.stats().pages_kept
    return str(caught.value)


def test_files_that_are_refused(saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    bad = tmp_path / "bad"
    bad.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert refused(bad) == f"page 17 was changed\n  at: {bad}\n  fix: save the prefixes again"
    bad.write_bytes(data[:-1])
    assert refused(bad).startswith("the file ends 1 bytes before the tensor does")
    other = model()
    object.__setattr__(other.manifest, "created_by", "another")
    assert refused(saved, other) == (
        f"the prefixes were saved with another artifact, or for another machine\n  at: {saved}\n"
        "  fix: save the prefixes again"
    )
    assert refused(saved, model(pages=15)).startswith("the cache is full: 18 more pages are needed")
    assert refused(tmp_path / "missing").startswith("the file can't be read")
    with pytest.raises(DeepZigError, match="no prefixes are kept"):
        model(prefix_reuse=False).load_prefix(saved)


def test_any_damage_is_told(saved: Path, tmp_path: Path) -> None:
    rng, data, bad = np.random.default_rng(4), saved.read_bytes(), tmp_path / "bad"
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            changed[int(rng.integers(0, len(data)))] = int(rng.integers(0, 256))
        bad.write_bytes(changed)
        made = model()
        try:
            made.load_prefix(bad)
        except DeepZigError:
            assert made.pool.free == made.pool.count


def test_a_place_that_can_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(DeepZigError) as caught:
        model().save_prefix(tmp_path / "no" / "where")
    assert str(caught.value) == (
        f"the file of prefixes can't be written: No such file or directory\n  at: {tmp_path}/no/where\n"
        "  fix: check the path and its permissions"
    )
