"""What a caller may ask of sampling, and the edits of logits that only the host can make."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.errors import DeepZigError

RANGES: dict[str, tuple[float, float]] = {
    "max_tokens": (1, math.inf),
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (0, 2**31 - 1),
    "min_p": (0, 1),
    "top_logprobs": (0, 20),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0.01, 100),
    "seed": (-(2**63), 2**64 - 1),
}
"""Least and greatest value of each number, as OpenAI's API has them where it has them."""

WHOLE = {"max_tokens", "top_k", "top_logprobs", "seed"}


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen and when generation ends. The names are OpenAI's, where OpenAI has the option.

    Attributes:
        max_tokens: the most tokens to generate; None for as many as fit.
        temperature: 0 takes the likeliest token.
        top_p: keep the likeliest tokens whose probabilities reach this sum.
        top_k: keep the k likeliest tokens; 0 for all.
        min_p: keep tokens at least this likely, relative to the likeliest.
        stop: texts that end the answer; they are not part of it.
        stop_token_ids: tokens that end the answer, beside the model's own.
        seed: the same seed gives the same answer; None for a new one every time.
        ignore_eos: don't end at the model's end token.
        logprobs: report the log-probability of each token.
        top_logprobs: report that many likeliest alternatives too.
        presence_penalty: taken from the logit of every token that was generated.
        frequency_penalty: taken once for each time it was.
        repetition_penalty: divides positive and multiplies negative logits of all tokens so far (Keskar et al., 2019).
        logit_bias: added to the logits of these tokens.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> SamplingOptions:
        """Check what a caller gave.

        Raises:
            DeepZigError: an unknown option, or a value of the wrong type or range.
        """
        known = [f.name for f in fields(cls)]
        for name, value in options.items():
            if name not in known:
                raise DeepZigError(f"there is no option {name!r}", "generate", f"choose from {', '.join(known)}")
            if name in RANGES and value is not None:
                _check_number(name, value)
        given = {k: v for k, v in options.items() if v is not None}
        if "stop" in given:
            stop = (given["stop"],) if isinstance(given["stop"], str) else tuple(given["stop"])
            if not all(isinstance(s, str) and s for s in stop):
                raise DeepZigError("a stop text is empty or no text", "option stop", "give one text or a list of them")
            given["stop"] = stop
        if "stop_token_ids" in given:
            given["stop_token_ids"] = tuple(map(int, given["stop_token_ids"]))
        if "logit_bias" in given:
            given["logit_bias"] = {int(k): float(v) for k, v in given["logit_bias"].items()}
        return cls(**given)

    @property
    def edits(self) -> bool:
        """Whether logits have to be edited before a token is drawn."""
        penalties = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        return bool(penalties or self.logit_bias)

    def edit(self, logits: npt.NDArray[np.float32], prompt: Sequence[int], generated: Sequence[int]) -> None:
        """Apply penalties and bias to one row of logits, in place."""
        if self.repetition_penalty != 1:
            seen = np.unique(np.array([*prompt, *generated], np.int64))
            values = logits[seen]
            logits[seen] = np.where(values > 0, values / self.repetition_penalty, values * self.repetition_penalty)
        if generated and (self.presence_penalty or self.frequency_penalty):
            tokens, counts = np.unique(np.array(generated, np.int64), return_counts=True)
            logits[tokens] -= self.presence_penalty + self.frequency_penalty * counts.astype(np.float32)
        for token, bias in self.logit_bias.items():
            if not 0 <= token < len(logits):
                raise DeepZigError(
                    f"token {token} is not in the vocabulary", "option logit_bias", f"use 0 to {len(logits) - 1}"
                )
            logits[token] += bias


def _check_number(name: str, value: Any) -> None:
    least, most = RANGES[name]
    kind = int if name in WHOLE else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
        what = "a whole number" if name in WHOLE else "a number"
        raise DeepZigError(f"{name} is {value!r}", f"option {name}", f"give {what} from {least:g} to {most:g}")


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability (natural) of a token, and the likeliest alternatives (token, log-probability)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def logprob_of(logits: npt.NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """Log-probabilities from one row of logits, before temperature and truncation."""
    wide = logits.astype(np.float64)
    log_all = wide - (wide.max() + np.log(np.exp(wide - wide.max()).sum()))
    best = np.argsort(-log_all, kind="stable")[:top]
    return TokenLogprob(token, float(log_all[token]), tuple((int(t), float(log_all[t])) for t in best))
