"""What `sample` means: which token is drawn from a row of logits.

Everything after the scaled logit is integer arithmetic, so sums don't depend on their order and every target draws the
same token from the same logits:

    gap    = max(logits) - logit                       float32; the smaller, the likelier
    weight = 2^31 * 2^(-gap * log2(e) / T)             an integer; 0 for tokens 2^-32 as likely as the best
    draw   = the first token, in vocabulary order, whose running sum of kept weights exceeds u * total / 2^32

with u the first word of Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) under the
key `seed` and the counter (position, 0, 0, 0). Filters are thresholds on gap and weight: tokens that tie with the last
one kept are kept too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]

EXP2_COEFFICIENTS = (2147483645, 1488521945, 515877823, 119165869, 20572593, 2739202, 234782)
"""2^31 times the absolute Chebyshev coefficients of 2^-g on [0, 1]; signs alternate. Within 2.3e-9 of 2^-g."""
NO_TOKEN = -1
"""What is drawn from logits that are no numbers."""
MIN_TEMPERATURE = 1e-6
"""Temperatures above zero are raised to this, which keeps gap / T finite."""


def sample_tokens(logits: F32, temperature: F32, top_k: I32, top_p: F32, min_p: F32, seed: I32, position: I32) -> I32:
    """Draw one token a row.

    Args:
        logits: f32[r, v].
        temperature: f32[r]; 0 or less is greedy, where the lowest id wins a tie.
        top_k: i32[r]; the k likeliest are kept, 0 or less keeps all.
        top_p: f32[r]; the fewest likeliest whose weights reach this share of what top_k kept; 1 or more keeps all.
        min_p: f32[r]; tokens at least this likely relative to the best are kept.
        seed: i32[r, 2], the low and the high word of the key.
        position: i32[r], position of the drawn token in its sequence.

    Returns:
        Token ids, i32[r]; NO_TOKEN where the largest logit is not finite: one is NaN or infinite, or all are -inf.
    """
    rows = zip(logits, temperature, top_k, top_p, min_p, seed, position, strict=True)
    return np.array([_sample_row(*row) for row in rows], np.int32)


def _sample_row(
    logits: F32, temperature: np.float32, top_k: int, top_p: np.float32, min_p: np.float32, seed: I32, position: int
) -> int:
    if not np.isfinite(logits.max()):
        return NO_TOKEN
    if temperature <= 0:
        return int(np.argmax(logits))
    gap = logits.max() - logits
    weight = weights(gap, temperature)
    keep = np.ones(len(logits), np.bool_)
    likeliest = np.argsort(gap, kind="stable")
    if 0 < top_k < len(logits):
        keep &= gap <= gap[likeliest[top_k - 1]]
    if top_p < 1:
        needed = _share(int(weight[keep].sum()), top_p)
        reached = np.cumsum(np.where(keep, weight, 0)[likeliest], dtype=np.uint64) >= needed
        keep &= gap <= gap[likeliest[np.argmax(reached)]]
    keep &= weight >= np.float64(min_p) * 2.0**31
    keep |= gap == 0
    running = np.cumsum(np.where(keep, weight, 0), dtype=np.uint64)
    word = philox4x32((int(position), 0, 0, 0), (int(seed[0]), int(seed[1])))[0]
    return int(np.argmax(running > (word * int(running[-1]) >> 32)))


def weights(gap: F32, temperature: np.float32) -> U64:
    """2^31 * exp(-gap / temperature) as integers, by a polynomial in fixed point (see EXP2_COEFFICIENTS)."""
    scale = np.float32(np.log2(np.e)) / np.maximum(temperature, np.float32(MIN_TEMPERATURE))
    halvings = np.minimum(gap * scale, np.float32(32))
    fixed = (halvings * np.float32(2**24)).astype(np.uint64)
    whole, part = fixed >> np.uint64(24), fixed & np.uint64(2**24 - 1)
    mantissa = np.full_like(part, EXP2_COEFFICIENTS[-1])
    for coefficient in EXP2_COEFFICIENTS[-2::-1]:
        mantissa = np.uint64(coefficient) - (mantissa * part >> np.uint64(24))
    return mantissa >> whole


def _share(total: int, top_p: np.float32) -> int:
    """top_p of the total, rounded up, at least 1; top_p is taken in units of 2^-24."""
    units = int(np.ceil(np.float64(max(top_p, np.float32(0))) * 2**24))
    return max(1, (units * total + 2**24 - 1) >> 24)


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox4x32 on 32-bit words; negative words are taken modulo 2^32."""
    mask = 2**32 - 1
    a, b, c, d = (word & mask for word in counter)
    low, high = (word & mask for word in key)
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = right >> 32 ^ b ^ low, right & mask, left >> 32 ^ d ^ high, left & mask
        low, high = (low + 0x9E3779B9) & mask, (high + 0xBB67AE85) & mask
    return a, b, c, d
