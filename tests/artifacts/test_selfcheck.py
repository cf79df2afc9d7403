"""Noise, draws and sketches: the same on every machine, and sharp enough."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from deepzig.artifacts.selfcheck import CheckedCall, Choice, Draw, Noise, SelfCheck, Sketch


def test_noise_is_what_it_always_was() -> None:
    """Artifacts carry seeds: other values for them would make every one of them fail."""
    assert Noise(3, (2, 3)).make().tolist() == NOISE
    assert Noise(3, (2, 3), bits=6, scale=0.5).make().tolist() == SIXTEENTHS
    assert Draw(3, (2, 4), 11).make().tolist() == DRAWN


NOISE = [
    [1.033076524734497, 0.7387783527374268, 0.1023106575012207],
    [1.5089924335479736, 1.1538898944854736, -0.6997396945953369],
]
SIXTEENTHS = [[0.5, 0.34375, 0.03125], [0.75, 0.5625, -0.375]]
DRAWN = [[0, 8, 5, 10], [2, 9, 8, 1]]


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_six_bits_are_exact_in_every_type(kind: type) -> None:
    x = Noise(71, (57, 19), bits=6, scale=1 / 16).make()
    assert np.array_equal(x.astype(kind).astype(np.float32), x)
    assert not np.array_equal(Noise(71, (57, 19)).make().astype(kind).astype(np.float32), Noise(71, (57, 19)).make())


def test_noise_is_spread_evenly() -> None:
    x = Noise(72, (101, 1003), scale=1 / 4).make() * 4
    assert x.dtype == np.float32 and -2 <= x.min() < -1.99 and 1.99 < x.max() < 2
    assert abs(x.mean()) < 0.02 and abs(x.var() - 4 / 3) < 0.02
    other = Noise(73, (101, 1003)).make()
    assert abs(np.corrcoef(x.ravel(), other.ravel())[0, 1]) < 0.02


@pytest.mark.parametrize(("count", "experts"), [(1, 1), (1, 2), (2, 2), (3, 5), (6, 64), (8, 257)])
def test_draws_take_few_experts_and_none_twice(count: int, experts: int) -> None:
    drawn = Draw(74, (61, count), experts).make()
    assert drawn.dtype == np.int32 and drawn.shape == (61, count)
    assert all(len(set(row)) == count for row in drawn.tolist())
    few = min(max(2 * count, 2), experts)
    used = set(drawn.ravel().tolist())
    assert {0, experts - 1} <= used and len(used) == few and max(used) < experts


@pytest.mark.parametrize("shape", [(1, 7), (51, 1003)])
def test_a_sketch_tells_one_wrong_element(shape: tuple[int, int]) -> None:
    x = Noise(75, shape).make()
    sketch, index = Sketch.of(x), (shape[0] - 1, shape[1] // 2)
    assert sketch.distance(x) == 0
    for by in (1e-2, -3.0):
        wrong = x.copy()
        wrong[index] += by
        want = abs(by) / np.linalg.norm(x)
        assert sketch.distance(wrong) == pytest.approx(want, rel=1e-3)
    swapped = x.reshape(-1).copy()
    swapped[[0, -1]] = swapped[[-1, 0]]
    assert sketch.distance(swapped.reshape(shape)) > 1e-4
    for bad in (np.nan, np.inf):
        wrong[index] = bad
        assert sketch.distance(wrong) == math.inf


def test_padding_is_no_part_of_a_sketch() -> None:
    x = Noise(76, (5, 3, 7)).make()
    padded = np.pad(x, ((0, 0), (0, 0), (0, 9)), constant_values=8)
    assert Sketch.of(x).distance(padded) == 0
    assert Sketch.of(padded).distance(x) == math.inf


def test_vectors_go_through_json() -> None:
    inputs = {"tokens": [3, 1], "hidden": Noise(1, (2, 5), 6, 0.5)}
    forced = {"4": Noise(5, (2, 5), 24, 1 / 16), "7.0": Draw(6, (2, 3), 9)}
    choice = Choice({"7.0": [[1, 2, 3], [4, 5, 6]]}, (1,))
    call = CheckedCall("decode", inputs, {"4": Sketch.of(Noise(2, (2, 5)).make())}, forced, (choice,))
    vectors = SelfCheck((0, 3), 4, (call,))
    again = SelfCheck.from_text(vectors.to_json(), "x")
    assert again == vectors
