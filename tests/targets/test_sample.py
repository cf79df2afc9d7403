"""The sampling kernel against its meaning, the meaning against the definition of sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm

from deepzig.sampling import philox4x32, sample_tokens, weights
from deepzig.targets.cpu.sample import sample

from .conftest import compile_kernel


def aligned(array: Any) -> Any:
    """A copy at a 64-byte boundary, as a TVM tensor."""
    array = np.asarray(array)
    raw = np.empty(array.nbytes + 64, np.uint8)
    offset = -raw.ctypes.data % 64
    out = raw[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return tvm.runtime.from_dlpack(out)


def run(vocab: int, *options: Any) -> Any:
    """The kernel's tokens for (logits, temperature, top_k, top_p, min_p, seed, position)."""
    executable, name = compile_kernel(sample(vocab))
    tokens = aligned(np.full(len(options[0]), -1, np.int32))
    executable[name](*map(aligned, options), tokens)
    return tokens.numpy()


def options(rows: int, vocab: int, rng: np.random.Generator) -> tuple[Any, ...]:
    """Random logits, some rounded so that they tie, under every combination of filters."""
    logits = rng.normal(0, 4, (rows, vocab)).astype(np.float32)
    logits[::3] = np.round(logits[::3])
    logits[1::5, rng.integers(1, max(vocab, 2)) :: 7] = -np.inf
    return (
        logits,
        rng.choice(np.array([0, 0.3, 0.7, 1, 2.5, 1e-9], np.float32), rows, p=[0.1, 0.2, 0.2, 0.2, 0.2, 0.1]),
        rng.choice(np.array([0, 1, 2, 5, 40, vocab, -1, vocab + 9], np.int32), rows),
        rng.choice(np.array([1, 0.95, 0.5, 0.1, 0, 1.5], np.float32), rows),
        rng.choice(np.array([0, 0, 0.01, 0.3, 1], np.float32), rows),
        rng.integers(-(2**31), 2**31, (rows, 2)).astype(np.int32),
        rng.integers(0, 2**31 - 1, rows).astype(np.int32),
    )


@pytest.mark.parametrize("vocab", [1, 17, 515, 4099])
def test_kernel_draws_what_the_meaning_draws(vocab: int) -> None:
    """Token for token, with ties, infinities and all filters."""
    given = options(300, vocab, np.random.default_rng(vocab))
    np.testing.assert_array_equal(run(vocab, *given), sample_tokens(*given))


@pytest.mark.parametrize("vocab", [1, 5, 16, 19, 515])
def test_no_token_is_drawn_from_what_are_no_numbers(vocab: int) -> None:
    """NaN anywhere, infinity as the largest, or nothing but -inf; the rows between them are drawn as ever."""
    rng = np.random.default_rng(vocab)
    given = options(120, vocab, rng)
    logits = given[0]
    for row, value in zip(range(0, 120, 2), 20 * [np.nan, -np.float32(np.nan), np.inf], strict=True):
        logits[row, rng.integers(vocab)] = value
    logits[::24] = -np.inf
    got = run(vocab, *given)
    assert np.all(got[::2] == -1) and np.all(got[1::2] >= 0)
    np.testing.assert_array_equal(got, sample_tokens(*given))


def test_both_zeros_tie() -> None:
    """-0 is as likely as 0, whichever comes first and whatever the filter."""
    zeros = np.zeros((400, 6), np.float32)
    zeros[np.random.default_rng(2).random(zeros.shape) < 0.5] *= -1
    given = (zeros, *options(400, 6, np.random.default_rng(3))[1:])
    got = run(6, *given)
    np.testing.assert_array_equal(got, sample_tokens(*given))
    assert len(np.unique(got)) == 6


def test_rows_do_not_depend_on_their_neighbours_or_threads() -> None:
    """A row alone draws what it draws in company, on one thread and on two."""
    given = options(64, 515, np.random.default_rng(5))
    together = run(515, *given)
    config = tvm.get_global_func("runtime.config_threadpool")
    config(1, 1)
    try:
        alone = np.concatenate([run(515, *(a[i : i + 1] for a in given)) for i in range(0, 64, 16)])
    finally:
        config(1, 2)
    np.testing.assert_array_equal(alone, together[::16])


def test_philox_known_answers() -> None:
    """The vectors published with Random123 for philox4x32, 10 rounds."""
    assert philox4x32((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox4x32((-1, -1, -1, -1), (-1, -1)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    assert philox4x32((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)) == (
        0xD16CFE09,
        0x94FDCCEB,
        0x5001E420,
        0x24126EA1,
    )


def test_weights_are_the_exponential() -> None:
    """Within 1e-6 of exp(-gap / T) while it is above 2^-9, and never off by more than 6e-8 of the largest."""
    gap = np.random.default_rng(0).uniform(0, 40, 5000).astype(np.float32)
    for temperature in np.array([0.25, 1, 3], np.float32):
        got, want = weights(gap, temperature) / 2**31, np.exp(-gap.astype(np.float64) / temperature)
        assert np.abs(got - want).max() < 6e-8
        likely = want > 2.0**-9
        assert (np.abs(got - want) / want)[likely].max() < 1e-6


def test_frequencies_follow_the_filtered_distribution() -> None:
    """20,000 draws: each token within five standard deviations, dropped tokens never."""
    logits = np.array([2.0, 1.0, 1.0, 0.5, -1.0, -3.0, 0.0], np.float32)
    rows, temperature = 20_000, 0.8
    p = np.exp(logits / temperature)
    p[[3, 4, 5, 6]] = 0  # top_k=2 keeps the tie at the second place
    p /= p.sum()
    tokens = run(
        7,
        np.tile(logits, (rows, 1)),
        np.full(rows, temperature, np.float32),
        np.full(rows, 2, np.int32),
        np.ones(rows, np.float32),
        np.zeros(rows, np.float32),
        np.tile(np.array([123, 456], np.int32), (rows, 1)),
        np.arange(rows, dtype=np.int32),
    )
    counts = np.bincount(tokens, minlength=7)
    assert np.all(np.abs(counts - rows * p) <= 5 * np.sqrt(rows * p * (1 - p)))
