"""A loaded artifact that answers."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deepzig.artifacts.manifest import Manifest
from deepzig.artifacts.reader import open_artifact
from deepzig.errors import DeepZigError

from .pages import PagePool
from .pages import Sequence as CacheSequence
from .sampling import SamplingOptions, TokenLogprob, logprob_of
from .text import Detokenizer, StopFinder
from .tokenizer import Tokenizer

Array = npt.NDArray[Any]
Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]
"""A text, chat messages, or token ids."""

DEFAULT_CACHE_TOKENS = 16384


@dataclass(frozen=True)
class Result:
    """An answer.

    Attributes:
        text: what the tokens say, up to where it ended.
        token_ids: the generated tokens, the end token not among them.
        finish_reason: `stop` (an end token or a stop text) or `length`.
        logprobs: one entry a token, if they were asked for.
        prompt_tokens: length of the prompt in tokens.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] | None
    prompt_tokens: int


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
        """Stop the model's thread."""
        self.backend.close()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with a beginning-of-sequence token where the tokenizer adds one."""
        return self.tokenizer.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode(token_ids)

    def generate(self, prompt: Prompt, **options: Any) -> Result:
        """Answer a prompt; the options are those of `SamplingOptions`.

        Raises:
            DeepZigError: an option or a prompt that does not fit, or a full cache.
        """
        tokens, parsed = self._tokens(prompt), SamplingOptions.parse(options)
        pieces = list(self._stream(tokens, parsed))
        last = pieces[-1].finish_reason if pieces else None
        shown = [p for p in pieces if p.token_id >= 0]
        return Result(
            text="".join(p.text for p in pieces),
            token_ids=tuple(p.token_id for p in shown),
            finish_reason=last or "length",
            logprobs=tuple(p.logprob for p in shown if p.logprob) if parsed.logprobs else None,
            prompt_tokens=len(tokens),
        )

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[Piece]:
        """As `generate`, one piece per token as it comes."""
        tokens, parsed = self._tokens(prompt), SamplingOptions.parse(options)
        return self._stream(tokens, parsed)

    def logits(self, token_ids: Sequence[int], route: Array | None = None) -> npt.NDArray[np.float32]:
        """Logits of all positions, f32 [n, vocab].

        Args:
            token_ids: the text.
            route: the expert choice to force, i32 [n, MoE layers, k], for an artifact made with --debug-route.
        """
        tokens = self._checked(token_ids)
        parts = []
        with CacheSequence(self.pool) as sequence:
            for begin, end in self._cuts(len(tokens)):
                sequence.reserve(end)
                wanted = np.arange(end - begin)
                forced = None if route is None else np.asarray(route)[begin:end]
                parts.append(self._forward_one(tokens[begin:end], begin, sequence, wanted, forced))
        return np.concatenate(parts)

    def forward(
        self, tokens: Array, seq: Array, pos: Array, block_table: Array, out_rows: Array, route: Array | None = None,
        entry: str | None = None,
    ) -> npt.NDArray[np.float32]:  # fmt: skip
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
            DeepZigError: ids, positions or pages out of range (kernels do not check them).
        """
        bounds = self.manifest.bounds
        vocab = int(self.manifest.model["vocab_size"])
        page_of = pos // bounds.page_size
        _check("tokens", tokens, 0, vocab)
        _check("seq", seq, 0, len(block_table))
        _check("pos", pos, 0, min(bounds.positions, block_table.shape[1] * bounds.page_size))
        _check("block_table", block_table, 0, self.pool.count)
        _check("out_rows", out_rows, 0, len(tokens))
        if not len(tokens) == len(seq) == len(page_of) or not 0 < len(tokens) <= bounds.rows:
            raise DeepZigError(f"{len(tokens)} rows do not fit", "forward", f"give 1 to {bounds.rows} rows")
        if entry is None:
            _, counts = np.unique(seq, return_counts=True)
            entry = "prefill" if counts.max() > bounds.decode_rows else "decode"
        inputs = {"tokens": tokens, "seq": seq, "pos": pos, "block_table": block_table, "out_rows": out_rows}
        names = [spec.name for spec in self.manifest.entry_points[entry].inputs]
        if ("route" in names) != (route is not None):
            raise DeepZigError(
                "the expert choice is forced only where the artifact asks for it", "route", "compile with --debug-route"
            )
        if route is not None:
            inputs["route"] = route
        (logits,) = self.backend.call(entry, inputs)
        return logits

    def _tokens(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self._checked(self.encode(prompt))
        if prompt and isinstance(prompt[0], Mapping):
            return self._checked(self.tokenizer.encode_chat(prompt))  # type: ignore[arg-type]
        return self._checked(prompt)  # type: ignore[arg-type]

    def _checked(self, tokens: Sequence[int]) -> list[int]:
        ids = [int(t) for t in tokens]
        positions = self.manifest.bounds.positions
        if not ids:
            raise DeepZigError("the prompt is empty", "prompt", "give at least one token")
        if len(ids) > positions:
            raise DeepZigError(f"the prompt has {len(ids)} tokens", "prompt", f"give at most {positions}")
        _check("prompt", np.array(ids), 0, int(self.manifest.model["vocab_size"]))
        return ids

    def _cuts(self, end: int) -> Iterator[tuple[int, int]]:
        """Chunks of a prompt, cut at absolute multiples so that load never changes a result."""
        chunk = self.manifest.bounds.chunk
        return ((begin, min(begin + chunk, end)) for begin in range(0, end, chunk))

    def _forward_one(
        self, tokens: Sequence[int], begin: int, sequence: CacheSequence, out_rows: Array, route: Array | None = None
    ) -> npt.NDArray[np.float32]:
        rows = len(tokens)
        return self.forward(
            np.array(tokens, np.int32),
            np.zeros(rows, np.int32),
            np.arange(begin, begin + rows, dtype=np.int32),
            np.array([sequence.pages], np.int32),
            out_rows.astype(np.int32),
            route,
        )

    def _stream(self, prompt: list[int], options: SamplingOptions) -> Iterator[Piece]:
        positions = self.manifest.bounds.positions
        limit = min(options.max_tokens or positions, positions - len(prompt))
        seed = secrets.randbits(63) if options.seed is None else options.seed % 2**64
        ends = {*options.stop_token_ids}
        if not options.ignore_eos:
            ends.update(self.manifest.model.get("eos_token_ids", ()))
        texts, stops, generated = Detokenizer(self._decode_piece), StopFinder(options.stop), list[int]()
        with CacheSequence(self.pool) as sequence:
            if limit <= 0:
                return
            logits = self._read_prompt(prompt, sequence)
            while True:
                token, logprob = self._draw(logits, options, seed, prompt, generated)
                if token in ends:
                    text, found = stops.push(texts.flush())
                    yield Piece(text + ("" if found else stops.flush()), -1, None, "stop")
                    return
                generated.append(token)
                text, found = stops.push(texts.push(token))
                if found:
                    yield Piece(text, token, logprob, "stop")
                    return
                if len(generated) == limit:
                    rest, found = stops.push(texts.flush())
                    tail = rest + ("" if found else stops.flush())
                    yield Piece(text + tail, token, logprob, "stop" if found else "length")
                    return
                yield Piece(text, token, logprob)
                position = len(prompt) + len(generated) - 1
                sequence.reserve(position + 1)
                logits = self._forward_one([token], position, sequence, np.zeros(1, np.int32))

    def _read_prompt(self, prompt: list[int], sequence: CacheSequence) -> npt.NDArray[np.float32]:
        """Run a prompt through the model; logits [1, vocab] of its last token."""
        logits = np.empty((0, 0), np.float32)
        for begin, end in self._cuts(len(prompt)):
            sequence.reserve(end)
            last = np.array([end - begin - 1] if end == len(prompt) else [], np.int32)
            logits = self._forward_one(prompt[begin:end], begin, sequence, last)
        return logits

    def _decode_piece(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens) if self.tokenizer.present else ""

    def _draw(
        self, logits: Array, options: SamplingOptions, seed: int, prompt: list[int], generated: list[int]
    ) -> tuple[int, TokenLogprob | None]:
        """Draw one token by the artifact's own sampling op."""
        plain = logits
        if options.edits:
            logits = logits.copy()
            options.edit(logits[0], prompt, generated)
        words = np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32).view(np.int32)
        inputs = {
            "logits": logits,
            "temperature": np.array([options.temperature], np.float32),
            "top_k": np.array([options.top_k], np.int32),
            "top_p": np.array([options.top_p], np.float32),
            "min_p": np.array([options.min_p], np.float32),
            "seed": words[None],
            "position": np.array([len(prompt) + len(generated)], np.int32),
        }
        token = int(self.backend.call("sample", inputs)[0][0])
        return token, logprob_of(plain[0], token, options.top_logprobs) if options.logprobs else None


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
    artifact = open_artifact(Path(path), full=full_check)
    bounds = artifact.manifest.bounds
    tokens = min(bounds.positions, DEFAULT_CACHE_TOKENS) if cache_tokens is None else cache_tokens
    pages = max(1, -(-tokens // bounds.page_size))
    from .vm import VirtualMachine

    machine = VirtualMachine(artifact, pages, threads)
    return Model(artifact.manifest, Tokenizer(Path(path)), machine, PagePool(pages, bounds.page_size), Path(path))


def _check(name: str, values: Array, least: int, end: int) -> None:
    if values.size and (values.min() < least or values.max() >= end):
        bad = values[(values < least) | (values >= end)].ravel()[0]
        raise DeepZigError(f"{name} has {bad}", name, f"use {least} to {end - 1}")
