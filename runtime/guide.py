"""Which tokens keep an answer in the structure that was asked for, by llguidance (https://github.com/guidance-ai/llguidance)."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from deepzig.errors import DeepZigError

from .structured import OPTION, StructuredOutputs
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

F32 = npt.NDArray[np.float32]
U32 = npt.NDArray[np.uint32]
T = TypeVar("T")

STACK = 256 << 20
"""Bytes for the thread that compiles: what MAX_LEVELS and MAX_TEXT of structured.py can come to, three
times over. It is address space; memory is taken where it is written to."""

STEP_ITEMS = 20_000
"""How ambiguous a grammar may be at one place. JSON takes up to 10,000 with 129,000 tokens; a grammar that is made for
it has masks of a second, and with llguidance's own limit of several."""

COMPILED = 32
"""How many compiled grammars are kept."""

HIDDEN = "\ufdd0"
"""Stands around the ids of added tokens in llguidance's table: Unicode promises that no text has it."""

CEILINGS: F32 = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), np.inf, -np.inf
).astype(np.float32)
"""The most that eight logits may be, for each byte of a mask: f32 [256, 8]."""


def apply(mask: U32 | None, logits: F32) -> None:
    """Take the tokens that are not allowed out of one row of logits, f32 [vocab], in place.

    They become -inf, all but those that are no number: the row stays wrong where the model computed nonsense.
    """
    if mask is not None:
        ceilings = CEILINGS.take(mask.view(np.uint8), axis=0).reshape(-1)
        np.minimum(logits, ceilings[: len(logits)], out=logits)


def allows(mask: U32 | None, token: int) -> bool:
    """Whether a mask lets a token pass."""
    return mask is None or bool(mask[token >> 5] >> (token & 31) & 1)


class GuideFactory:
    """Makes guides for one model: it has the tokenizer's table, and the grammars that were compiled last.

    Args:
        tokenizer: the model's; byte-level BPE.
        vocab_size: number of logits. Ids that the tokenizer lacks are never allowed.
        eos: tokens that may end a complete answer.

    Raises:
        DeepZigError: llguidance is not installed, or the vocabulary does not fit the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos: Sequence[int]) -> None:
        try:
            from llguidance import LLMatcher, LLParserLimits, LLTokenizer
        except ImportError:
            raise DeepZigError("llguidance is not installed", OPTION, "pip install 'deepzig[structured]'") from None
        try:
            self._table = LLTokenizer(_hide_added(tokenizer.to_json()), n_vocab=vocab_size, eos_token=list(eos))
        except ValueError as error:
            what = f"the tokenizer can't guide answers: {error}"
            raise DeepZigError(what, OPTION, "compile the model again with its own tokenizer") from None
        self._vocab_size, self._eos = vocab_size, frozenset(eos)
        self._limits = LLParserLimits(verbose_errors=False, step_max_items=STEP_ITEMS)
        self._matcher = LLMatcher
        self._grammars: dict[str, Callable[[str], str]] = {
            "json": LLMatcher.grammar_from_json_schema,
            "regex": LLMatcher.grammar_from_regex,
            "choice": _lark_choice,
            "grammar": _lark,
        }
        self._compiled = lru_cache(COMPILED)(self._compile)

    def guide(
        self,
        spec: StructuredOutputs | Mapping[str, Any],
        armed_after: Sequence[int] = (),
        opened_by: int | None = None,
        where: str = OPTION,
    ) -> Guide:
        """A guide for one answer.

        Args:
            spec: what the answer has to be.
            armed_after: tokens that come first, such as `</think>`; up to there anything goes.
            opened_by: the token that starts what comes before, such as `<think>`, where the prompt has not. The answer
                may begin with it; else the guide is armed at once.
            where: what to name in errors.

        Raises:
            DeepZigError: the schema or grammar is wrong, or has what llguidance does not know.
        """
        matcher = self._compiled(StructuredOutputs.parse(spec), where).deep_copy()
        return Guide(matcher, self._vocab_size, self._eos, tuple(armed_after), opened_by)

    def _compile(self, spec: StructuredOutputs, where: str) -> LLMatcher:
        def compile_grammar() -> LLMatcher:
            matcher = self._matcher(self._table, self._grammars[spec.kind](spec.text), log_level=0, limits=self._limits)
            if not matcher.is_error():
                matcher.compute_bitmask()  # finds what nothing can satisfy
            return matcher

        matcher = _with_stack(compile_grammar)
        if matcher.is_error():
            what = f"the {NAMES[spec.kind]} can't be used: {_reason(matcher.get_error())}"
            raise DeepZigError(what, where, "leave that out, or say it another way")
        return matcher


class Guide:
    """Follows one answer. May be used from several threads, one at a time gets through."""

    def __init__(
        self, matcher: LLMatcher, vocab_size: int, eos: frozenset[int], armed_after: tuple[int, ...],
        opened_by: int | None,
    ) -> None:  # fmt: skip
        self._matcher = matcher
        self._words = -(-vocab_size // 32)
        self._eos, self._armed_after, self._opened_by = eos, armed_after, opened_by
        self._armed = not armed_after
        self._recent: tuple[int, ...] | None = () if self._armed or opened_by is None else None
        self._consumed = 0
        self._lock = threading.Lock()

    @property
    def ended(self) -> bool:
        """Whether the answer is complete, and only an end token could follow."""
        with self._lock:
            return self._armed and self._matcher.is_stopped()

    def push(self, token: int) -> None:
        """Go on to the next token.

        Raises:
            DeepZigError: it is not allowed here, or what follows it grew too complex.
        """
        with self._lock:
            if not self._advance(token):
                raise self._stuck()

    def masks(self, guesses: Sequence[int] = ()) -> list[U32 | None]:
        """What may come next, and what after each of the guesses if all before it are right.

        Args:
            guesses: token ids.

        Returns:
            For the next token and after each guess, u32 [ceil(vocab / 32)], bit t % 32 of word t // 32 set where token
            t is allowed, or None where every token is. The list ends early at a guess that is not allowed or that ends
            the answer.

        Raises:
            DeepZigError: the schema or grammar grew too complex.
        """
        with self._lock:
            before = self._armed, self._recent, self._consumed
            try:
                masks = [self._mask()]
                for guess in guesses:
                    if not allows(masks[-1], guess) or (self._armed and guess in self._eos) or not self._advance(guess):
                        break
                    masks.append(self._mask())
            finally:
                self._matcher.rollback(self._consumed - before[2])
                self._armed, self._recent, self._consumed = before
            return masks

    def _mask(self) -> U32 | None:
        choosing = self._recent is None
        if not self._armed and not choosing:
            return None
        mask: U32 = np.empty(self._words, np.uint32)
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._matcher.is_error():
            raise self._stuck()
        if choosing and self._opened_by is not None:
            mask[self._opened_by >> 5] |= np.uint32(1 << (self._opened_by & 31))
        return mask

    def _advance(self, token: int) -> bool:
        """Take a token; False if it does not fit."""
        if self._recent is None:
            self._recent = ()
            if token == self._opened_by:
                return True
            self._armed = True
        if self._armed:
            taken = self._matcher.consume_token(token)
            self._consumed += taken
            return taken
        self._recent = (*self._recent, token)[-len(self._armed_after) :]
        self._armed = self._recent == self._armed_after
        return True

    def _stuck(self) -> DeepZigError:
        what = f"the structure can't be followed: {_reason(self._matcher.get_error())}"
        return DeepZigError(what, OPTION, "give a simpler schema or grammar")


def _hide_added(text: str) -> str:
    """A tokenizer.json where no text is read as an added token, nor allowed where text is; they are known by their ids.

    So a special token gets into a JSON string neither by the model nor by a schema that has its text.
    """
    data = json.loads(text)
    hidden = {token["id"]: f"{HIDDEN}{token['id']}{HIDDEN}" for token in data["added_tokens"]}
    for token in data["added_tokens"]:
        token.update(content=hidden[token["id"]], special=True)
    vocab = data["model"]["vocab"]
    if isinstance(vocab, dict):
        data["model"]["vocab"] = {hidden.get(token, name): token for name, token in vocab.items()}
    data["post_processor"] = None  # it names them
    return json.dumps(data)


def _with_stack(work: Callable[[], T]) -> T:
    """What `work` returns, run on a thread with a large stack."""
    with ThreadPoolExecutor(1) as pool:
        with _STACK_SIZE:
            before = threading.stack_size(STACK)
            try:
                future = pool.submit(work)  # starts the thread
            finally:
                threading.stack_size(before)
        return future.result()


_STACK_SIZE = threading.Lock()
"""Of threads to come, for the process."""


def _lark_choice(text: str) -> str:
    return "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in json.loads(text))


def _lark(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]})  # alone, one that starts with { would be taken for JSON


NAMES = {"json": "JSON schema", "regex": "regular expression", "choice": "choice", "grammar": "grammar"}


def _reason(error: str) -> str:
    """The sentence in what llguidance says: regular expressions have it at the end, all else at the start."""
    lines = error.strip().splitlines() or ["unknown"]
    if lines[0].startswith("NoExtension"):
        return "nothing fits it"
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
