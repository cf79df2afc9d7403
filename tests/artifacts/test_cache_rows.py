"""Rows of a cache of 8 bits: what the format says, what the IR means and how the target lays them out are the same."""

from __future__ import annotations

import numpy as np
import pytest

from deepzig.artifacts.cache_rows import GROUP, decode, encode, row_bytes
from deepzig.ir.quantize import quantize, quantize_rows
from deepzig.targets.cpu.layout import cache_row


@pytest.mark.parametrize("width", [1, 17, 64, 130, 576])
def test_codes_then_scales(width: int) -> None:
    rows = np.random.default_rng(width).standard_normal((3, 5, width), np.float32)
    rows[1, 2] = 0
    stored = encode(rows)
    assert stored.shape == (3, 5, row_bytes(width)) and cache_row("q8", width) == ("i8", row_bytes(width))
    assert stored.shape[-1] % 64 == 0
    assert np.array_equal(decode(stored, width), quantize_rows(rows))
    groups = -(-width // GROUP)
    codes = stored[..., : GROUP * groups].reshape(3, 5, groups, GROUP)
    assert np.abs(codes.astype(int) - quantize(rows, "q8")[0]).max() <= 1
    assert np.abs(codes[0].astype(int)).max(-1).min() == 127 and not stored[1, 2].any()
    assert not stored[..., groups * (GROUP + 4) :].any()


def test_deepseek_takes_640_bytes_instead_of_1152() -> None:
    assert (row_bytes(576), cache_row("bf16", 576)) == (640, ("bf16", 576))
