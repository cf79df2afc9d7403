"""Rotary frequencies and scales, with YaRN (Peng et al., 2023) as DeepSeek uses it.

After transformers/modeling_rope_utils.py and DeepseekV3Attention, whose f32 arithmetic `inv_freq` follows step by step;
only the power is taken in f64 and rounded, since f32 powers differ from library to library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RopeConfig:
    """How positions rotate.

    Attributes:
        theta: base of the frequencies.
        kind: `default` or `yarn`; the rest is YaRN's.
        factor: how many times the context was extended.
        original_max_position_embeddings: the context before.
        beta_fast: rotations over the original context above which a frequency is kept.
        beta_slow: rotations below which it is divided by `factor`.
        mscale: numerator of the scale on cos and sin.
        mscale_all_dim: its denominator, and the scale of the softmax; 0 for none.
        attention_factor: the scale on cos and sin, where the config sets it.
        truncate: whether the bounds of the blend are rounded to whole dimensions.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None
    truncate: bool = True

    def inv_freq(self, dim: int) -> npt.NDArray[np.float32]:
        """Radians per position of each pair, f32 [dim / 2]."""
        exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
        period = np.power(self.theta, exponent, dtype=np.float64).astype(np.float32)
        if self.kind == "default":
            return np.asarray(1 / period, np.float32)
        low, high = (self._dimension(beta, dim) for beta in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        if low == high:
            high += 0.001
        ramp = (np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
        kept = np.float32(1) - np.clip(ramp, np.float32(0), np.float32(1))
        slow = np.float32(1) / (np.float32(self.factor) * period)
        return np.asarray(slow * (1 - kept) + 1 / period * kept, np.float32)

    def _dimension(self, rotations: float, dim: int) -> float:
        """The dimension that turns `rotations` times over the original context."""
        turns = self.original_max_position_embeddings / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(self.theta))

    @property
    def cos_sin_scale(self) -> float:
        """The factor on cos and sin."""
        if self.kind == "default":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    def softmax_scale(self, qk_head_dim: int) -> float:
        """The factor on q k^T, by the width of un-absorbed keys."""
        scale = float(qk_head_dim) ** -0.5
        if self.kind == "default" or not self.mscale_all_dim:
            return scale
        return scale * self._mscale(self.mscale_all_dim) ** 2

    def _mscale(self, mscale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0
