"""A loaded artifact that answers."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deepzig.artifacts.manifest import Manifest
from deepzig.artifacts.reader import open_artifact
from deepzig.errors import DeepZigError

from .pages import PagePool
from .pages import Sequence as CacheSequence
from .prompt import ChatOptions, Prompt, prompt_tokens, token_ids
from .rows import check_range, checked_rows
from .sampling import SamplingOptions, TokenLogprob, logprob_of
from .text import Detokenizer, StopFinder
from .tokenizer import Tokenizer

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

DEFAULT_CACHE_TOKENS = 16384
END = -1
"""The token_id of a piece that holds only the rest of the text, after an end token."""


@dataclass(frozen=True)
class Choice:
    """One answer.

    Attributes:
        text: what the tokens say, up to where it ended.
        token_ids: the generated tokens, the end token not among them.
        finish_reason: `stop` (an end token or a stop text) or `length`.
        logprobs: one entry a token, if they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] | None


@dataclass(frozen=True)
class Result(Choice):
    """The first answer, and all of them.

    Attributes:
        prompt_tokens: length of the prompt in tokens.
        choices: the `n` answers.
    """

    prompt_tokens: int
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Piece:
    """One token of an answer and the text that may be shown since; the last piece has a finish_reason."""

    text: str
    token_id: int
    logprob: TokenLogprob | None = None
    finish_reason: str | None = None


class Backend(Protocol):
    """What runs the entry points; the VM, or a stand-in for tests."""

    def call(self, entry: str, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """Outputs of an entry point for these inputs."""
        ...

    def close(self) -> None:
        """Free what it holds."""


@dataclass
class Model:
    """An artifact ready to run; made by `deepzig.runtime.load`. Safe to use from several threads."""

    manifest: Manifest
    tokenizer: Tokenizer
    backend: Backend
    pool: PagePool
    path: Path = field(default_factory=Path)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the model's thread and free its memory."""
        self.backend.close()

    @property
    def context(self) -> int:
        """The most tokens of a prompt and its answer: what the model was made for, or what the cache holds."""
        return min(self.manifest.bounds.positions, self.pool.tokens)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with a beginning-of-sequence token where the tokenizer adds one."""
        return self.tokenizer.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode(token_ids)

    def generate(
        self,
        prompt: Prompt,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Result:
        """Answer a prompt.

        Args:
            prompt: a text, chat messages or token ids.
            tools: as in `ChatOptions`.
            chat_template: as in `ChatOptions`.
            chat_template_kwargs: as in `ChatOptions`.
            options: those of `SamplingOptions`.

        Raises:
            DeepZigError: an option or a prompt that does not fit, or a full cache.
        """
        parsed = self._options(options)
        tokens = self._prompt(prompt, ChatOptions(tools, chat_template, chat_template_kwargs or {}))
        seed = _seed(parsed)
        with CacheSequence(self.pool) as sequence:
            logits = self._read_prompt(tokens, sequence)
            # one after another on the pages of the prompt: each writes over what the one before wrote after them
            choices = tuple(
                _choice(self._answer(tokens, parsed, parsed.key(seed, i), sequence, logits), parsed.logprobs)
                for i in range(parsed.n)
            )
        return Result(**vars(choices[0]), prompt_tokens=len(tokens), choices=choices)

    def stream(
        self,
        prompt: Prompt,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Iterator[Piece]:
        """As `generate`, one piece per token as it comes; what does not fit is told at once."""
        parsed = self._options(options)
        if parsed.n > 1:
            raise DeepZigError(f"a stream has one answer, not {parsed.n}", "option n", "use generate, or n=1")
        tokens = self._prompt(prompt, ChatOptions(tools, chat_template, chat_template_kwargs or {}))
        return self._stream(tokens, parsed)

    def logits(self, token_ids: Sequence[int], route: Array | None = None) -> F32:
        """Logits of all positions, f32 [n, vocab].

        Args:
            token_ids: the text.
            route: the expert choice to force, i32 [n, MoE layers, k], for an artifact made with --debug-route.
        """
        tokens = self._fitting(token_ids, self.context)
        parts = []
        with CacheSequence(self.pool) as sequence:
            for begin, end in self._cuts(len(tokens)):
                sequence.reserve(end)
                forced = None if route is None else np.asarray(route)[begin:end]
                parts.append(self._forward_one(tokens[begin:end], begin, sequence, range(end - begin), forced))
        return np.concatenate(parts)

    def forward(
        self, tokens: Array, seq: Array, pos: Array, block_table: Array, out_rows: Array, route: Array | None = None,
        entry: str | None = None,
    ) -> F32:  # fmt: skip
        """Run rows of several sequences at once.

        Args:
            tokens: i32 [n].
            seq: i32 [n], the row of `block_table`; rows of a sequence are consecutive, in ascending position.
            pos: i32 [n], absolute positions.
            block_table: i32 [b, p], page ids.
            out_rows: i32 [r], the rows whose logits are wanted.
            route: i32 [n, MoE layers, k].
            entry: `prefill` or `decode`; chosen by the rows of a sequence, if not given.

        Returns:
            f32 [r, vocab].

        Raises:
            DeepZigError: ids, positions or pages out of range, or rows in disorder (kernels do not check them).
        """
        given = {"tokens": tokens, "seq": seq, "pos": pos, "block_table": block_table, "out_rows": out_rows}
        inputs = checked_rows(self.manifest, self.pool.count, given if route is None else {**given, "route": route})
        if entry is None:
            longest = np.bincount(inputs["seq"]).max()
            entry = "prefill" if longest > self.manifest.bounds.decode_rows else "decode"
        if entry not in self.manifest.entry_points:
            known = ", ".join(self.manifest.entry_points)
            raise DeepZigError(f"no entry point is called {entry!r}", "forward", f"choose from {known}")
        names = [spec.name for spec in self.manifest.entry_points[entry].inputs]
        if ("route" in names) != (route is not None):
            raise DeepZigError(
                "the expert choice is forced only where the artifact asks for it", "route", "compile with --debug-route"
            )
        (logits,) = self.backend.call(entry, inputs)
        return logits

    def _options(self, options: Mapping[str, Any]) -> SamplingOptions:
        parsed = SamplingOptions.parse(options)
        parsed.check_tokens(int(self.manifest.model["vocab_size"]))
        return parsed

    def _prompt(self, prompt: Prompt, chat: ChatOptions) -> list[int]:
        return self._fitting(prompt_tokens(prompt, self.tokenizer, chat), self.context - 1)

    def _fitting(self, tokens: Iterable[int], most: int) -> list[int]:
        ids = token_ids(tokens)
        if not ids:
            raise DeepZigError("the prompt is empty", "prompt", "give at least one token")
        if len(ids) > most:
            hint = f"give at most {most}"
            if self.context < self.manifest.bounds.positions:
                hint += ", or load the model with a larger cache_tokens"
            raise DeepZigError(f"the prompt has {len(ids)} tokens", "prompt", hint)
        check_range("prompt", np.array(ids, object), int(self.manifest.model["vocab_size"]))
        return ids

    def _cuts(self, end: int) -> Iterator[tuple[int, int]]:
        """Chunks of a prompt, cut at absolute multiples so that load never changes a result."""
        chunk = self.manifest.bounds.chunk
        return ((begin, min(begin + chunk, end)) for begin in range(0, end, chunk))

    def _forward_one(
        self, tokens: Sequence[int], begin: int, sequence: CacheSequence, out_rows: Iterable[int],
        route: Array | None = None,
    ) -> F32:  # fmt: skip
        rows = len(tokens)
        return self.forward(
            np.array(tokens, np.int32),
            np.zeros(rows, np.int32),
            np.arange(begin, begin + rows, dtype=np.int32),
            np.array([sequence.pages], np.int32),
            np.array([*out_rows], np.int32),
            route,
        )

    def _read_prompt(self, prompt: list[int], sequence: CacheSequence) -> F32:
        """Run a prompt through the model; logits [1, vocab] of its last token."""
        logits = np.empty((0, 0), np.float32)
        for begin, end in self._cuts(len(prompt)):
            sequence.reserve(end)
            last = [end - begin - 1] if end == len(prompt) else []
            logits = self._forward_one(prompt[begin:end], begin, sequence, last)
        return logits

    def _stream(self, prompt: list[int], options: SamplingOptions) -> Iterator[Piece]:
        key = options.key(_seed(options), 0)
        with CacheSequence(self.pool) as sequence:
            yield from self._answer(prompt, options, key, sequence, self._read_prompt(prompt, sequence))

    def _answer(
        self, prompt: list[int], options: SamplingOptions, key: Array, sequence: CacheSequence, logits: F32
    ) -> Iterator[Piece]:
        """Generate after a prompt that was read, from the logits [1, vocab] of its last token."""
        room = self.context - len(prompt)
        limit = min(options.max_tokens or room, room)
        ends = {*options.stop_token_ids}
        if not options.ignore_eos:
            ends.update(self.manifest.model["eos_token_ids"])
        texts, stops, generated = Detokenizer(self._decode_piece), StopFinder(options.stop), list[int]()
        while True:
            token, logprob = self._draw(logits, options, key, prompt, generated)
            if token in ends:
                yield Piece(stops.last(texts.flush())[0], END, None, "stop")
                return
            generated.append(token)
            text, found = stops.push(texts.push(token))
            if not found and len(generated) == limit:
                tail, found = stops.last(texts.flush())
                yield Piece(text + tail, token, logprob, "stop" if found else "length")
                return
            yield Piece(text, token, logprob, "stop" if found else None)
            if found:
                return
            position = len(prompt) + len(generated) - 1
            sequence.reserve(position + 1)
            logits = self._forward_one([token], position, sequence, [0])

    def _decode_piece(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens) if self.tokenizer.present else ""

    def _draw(
        self, logits: F32, options: SamplingOptions, key: Array, prompt: list[int], generated: list[int]
    ) -> tuple[int, TokenLogprob | None]:
        """Draw one token by the artifact's own sampling op."""
        if not np.isfinite(logits.max()):
            raise DeepZigError(
                "the model computed logits that are no numbers", str(self.path), "compile with another --dtype"
            )
        plain = logits
        if options.edits:
            logits = logits.copy()
            options.edit(logits[0], prompt, generated)
        inputs = {
            "logits": logits,
            "temperature": np.array([options.temperature], np.float32),
            "top_k": np.array([options.top_k], np.int32),
            "top_p": np.array([options.top_p], np.float32),
            "min_p": np.array([options.min_p], np.float32),
            "seed": key[None],
            "position": np.array([len(prompt) + len(generated)], np.int32),
        }
        token = int(self.backend.call("sample", inputs)[0][0])
        return token, logprob_of(plain[0], token, options.top_logprobs) if options.logprobs else None


def _seed(options: SamplingOptions) -> int:
    return secrets.randbits(63) if options.seed is None else options.seed


def _choice(pieces: Iterator[Piece], logprobs: bool) -> Choice:
    told = list(pieces)
    shown = [p for p in told if p.token_id != END]
    return Choice(
        text="".join(p.text for p in told),
        token_ids=tuple(p.token_id for p in shown),
        finish_reason=told[-1].finish_reason or "length",
        logprobs=tuple(p.logprob for p in shown if p.logprob) if logprobs else None,
    )


def load(
    path: str | Path, *, threads: int | None = None, cache_tokens: int | None = None, full_check: bool = False
) -> Model:
    """Load an artifact.

    Args:
        path: the artifact's folder.
        threads: threads of the kernels; by default DEEPZIG_THREADS, else all processors.
        cache_tokens: tokens that the cache holds, for all sequences together.
        full_check: hash the weights before use.

    Raises:
        DeepZigError: the artifact is damaged, or does not fit this machine or process.
    """
    for name, value in (("threads", threads), ("cache_tokens", cache_tokens)):
        if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < 1):
            raise DeepZigError(f"{name} is {value!r}", f"option {name}", "give a whole number from 1")
    artifact = open_artifact(Path(path), full=full_check)
    bounds = artifact.manifest.bounds
    tokens = min(bounds.positions, DEFAULT_CACHE_TOKENS) if cache_tokens is None else int(cache_tokens)
    pages = -(-tokens // bounds.page_size)
    from .vm import VirtualMachine

    machine = VirtualMachine(artifact, pages, threads)
    return Model(artifact.manifest, Tokenizer(Path(path)), machine, PagePool(pages, bounds.page_size), Path(path))
