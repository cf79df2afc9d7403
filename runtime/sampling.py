"""What a caller may ask of sampling, and the edits of logits that only the host can make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.errors import DeepZigError

from .structured import StructuredOutputs

WHOLE: dict[str, tuple[float, float]] = {
    "max_tokens": (1, math.inf),
    "min_tokens": (0, math.inf),
    "top_k": (0, 2**31 - 1),
    "top_logprobs": (0, 20),
    "seed": (-(2**63), 2**64 - 1),
    "n": (1, 128),
    "speculate": (0, 16),
}
"""Least and greatest value of each whole number, as OpenAI's API has them where it has them."""

NUMBERS: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0.01, 100),
}
"""Likewise of every other number."""

BIAS = (-100, 100)
ALIASES = {"max_completion_tokens": "max_tokens"}
"""OpenAI's newer names -> ours."""

CHOICE_STRIDE = 0x9E3779B97F4A7C15
"""Between the keys of choices: odd, so they differ, and far from the small numbers that people take as seeds."""


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen and when generation ends. The names are OpenAI's, where OpenAI has the option.

    Logits are edited in this order: bias, repetition penalty, frequency and presence penalty, temperature, top-k,
    top-p, min-p. Log-probabilities are those of the model, before any of it (as vLLM reports them).

    Attributes:
        max_tokens: the most tokens to generate (also `max_completion_tokens`); None for as many as fit.
        min_tokens: how many have to come before a token may end the answer. Stop texts end it all the same, and so does
            what `structured_outputs` asks for.
        temperature: 0 takes the likeliest token.
        top_p: keep the likeliest tokens whose probabilities reach this sum.
        top_k: keep the k likeliest tokens; 0 for all.
        min_p: keep tokens at least this likely, relative to the likeliest.
        stop: a text or texts that end the answer; they are not part of it.
        stop_token_ids: tokens that end the answer, beside the model's own.
        seed: the same seed gives the same answer; None for a new one every time.
        ignore_eos: don't end at the model's end token.
        logprobs: report the log-probability of each token.
        top_logprobs: report that many likeliest alternatives too; needs `logprobs`.
        n: how many answers to draw. The first is the one that n=1 gives.
        speculate: how many tokens to guess ahead: by the artifact's layer for multi-token prediction, or without one
            from what the text has repeated. The answer is the same, and comes sooner where guesses are right.
        presence_penalty: taken from the logit of every token that was generated.
        frequency_penalty: taken once for each time it was.
        repetition_penalty: divides positive and multiplies negative logits of all tokens so far (Keskar et al., 2019).
        logit_bias: added to the logits of these tokens, from -100 to 100.
        structured_outputs: what the answer has to be: a mapping with one of `json`, `json_object`, `regex`, `choice`
            and `grammar`, see `StructuredOutputs.parse`; needs the extra `[structured]`. Reasoning comes before it.

    Raises:
        DeepZigError: a value of the wrong type or range.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: str | tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    n: int = 1
    speculate: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    structured_outputs: StructuredOutputs | None = None
    min_tokens: int = 0

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if value is not None or name not in ("max_tokens", "seed", "structured_outputs"):
                object.__setattr__(self, name, _checked(name, value))
        if self.top_logprobs and not self.logprobs:
            what = "top_logprobs is given without logprobs"
            raise DeepZigError(what, "option top_logprobs", "give logprobs=True too")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            what = f"min_tokens is {self.min_tokens}, and max_tokens {self.max_tokens}"
            raise DeepZigError(what, "option min_tokens", "give no more than max_tokens")

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> SamplingOptions:
        """From what a caller gave; None stands for an option's default.

        Raises:
            DeepZigError: an unknown option, one given twice, or a value of the wrong type or range.
        """
        known = [f.name for f in fields(cls)]
        given: dict[str, Any] = {}
        for key, value in options.items():
            name = ALIASES.get(key, key)
            if name not in known:
                raise DeepZigError(f"there is no option {key!r}", "generate", f"choose from {', '.join(known)}")
            if value is None:
                continue
            if name in given:
                raise DeepZigError(f"{name} is given twice", f"option {key}", "give one of the two names")
            given[name] = value
        return cls(**given)

    def check_tokens(self, vocab_size: int) -> None:
        """Raises DeepZigError if `logit_bias` names a token that the vocabulary lacks."""
        for token in self.logit_bias:
            if not 0 <= token < vocab_size:
                raise DeepZigError(
                    f"token {token} is not in the vocabulary", "option logit_bias", f"use 0 to {vocab_size - 1}"
                )

    def key(self, seed: int, choice: int) -> npt.NDArray[np.int32]:
        """The key of the random numbers of a choice, its low and its high word: i32 [2]."""
        key = (seed + choice * CHOICE_STRIDE) % 2**64
        return np.array([key & 0xFFFFFFFF, key >> 32], np.uint32).view(np.int32)

    @property
    def edits(self) -> bool:
        """Whether logits have to be edited before a token is drawn."""
        penalties = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        return bool(penalties or self.logit_bias)

    def edit(self, logits: npt.NDArray[np.float32], prompt: Sequence[int], generated: Sequence[int]) -> None:
        """Apply bias and penalties to one row of logits, in place; the tokens of the bias must have been checked."""
        for token, bias in self.logit_bias.items():
            logits[token] += np.float32(bias)
        if self.repetition_penalty != 1:
            seen = np.unique(np.array([*prompt, *generated], np.int64))
            values, penalty = logits[seen], np.float32(self.repetition_penalty)
            logits[seen] = np.where(values > 0, values / penalty, values * penalty)
        if generated and (self.presence_penalty or self.frequency_penalty):
            tokens, counts = np.unique(np.array(generated, np.int64), return_counts=True)
            logits[tokens] -= (self.presence_penalty + self.frequency_penalty * counts).astype(np.float32)


def _wrong(name: str, value: Any, wanted: str) -> DeepZigError:
    return DeepZigError(f"{name} is {value!r}", f"option {name}", f"give {wanted}")


def _number(name: str, value: Any) -> float | int:
    whole = name in WHOLE
    least, most = (WHOLE if whole else NUMBERS)[name]
    fits = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    number: Any = value if fits else math.nan
    if not least <= number <= most:
        kind = "a whole number" if whole else "a number"
        raise _wrong(name, value, f"{kind} from {least:g}" + ("" if math.isinf(most) else f" to {most:g}"))
    return int(number) if whole else float(number)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise _wrong(name, value, "true or false")
    return bool(value)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts: tuple[Any, ...] = (value,) if isinstance(value, str) else _items(value)
    if not all(isinstance(text, str) and text for text in texts):
        raise _wrong(name, value, "a text or a list of texts, none of them empty")
    return texts


def _tokens(name: str, value: Any) -> tuple[int, ...]:
    ids = _items(value)
    if not all(isinstance(i, Integral) and not isinstance(i, bool) for i in ids):
        raise _wrong(name, value, "a list of token ids")
    return tuple(int(i) for i in ids)


def _items(value: Any) -> tuple[Any, ...]:
    """What a list or the like holds; of anything else, something that no check lets pass."""
    return tuple(value) if isinstance(value, Iterable) else (None,)


def _bias(name: str, value: Any) -> dict[int, float]:
    try:
        bias = {int(token): float(amount) for token, amount in value.items()}
    except (AttributeError, TypeError, ValueError):
        raise _wrong(name, value, "token ids with a number for each") from None
    for amount in bias.values():
        if not BIAS[0] <= amount <= BIAS[1]:
            raise _wrong(name, value, f"numbers from {BIAS[0]} to {BIAS[1]}")
    return bias


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys((*WHOLE, *NUMBERS), _number),
    **dict.fromkeys(("ignore_eos", "logprobs"), _flag),
    "stop": _texts,
    "stop_token_ids": _tokens,
    "logit_bias": _bias,
    "structured_outputs": lambda _, value: StructuredOutputs.parse(value),
}
"""Option -> its check, which gives the value in the type that is declared."""


def _checked(name: str, value: Any) -> Any:
    return CHECKS[name](name, value)


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability (natural) of a token, and the likeliest alternatives (token, log-probability)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def logprob_of(logits: npt.NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """Log-probabilities from one row of logits, before edits, temperature and truncation; ties by lowest id."""
    wide = logits.astype(np.float64)
    log_all = wide - (wide.max() + np.log(np.exp(wide - wide.max()).sum()))
    best: npt.NDArray[np.int64] = np.empty(0, np.int64)
    if top:
        top = min(top, len(log_all))
        likely = np.flatnonzero(log_all >= np.partition(log_all, -top)[-top])
        best = likely[np.argsort(-log_all[likely], kind="stable")][:top]
    return TokenLogprob(token, float(log_all[token]), tuple((int(t), float(log_all[t])) for t in best))
