"""A loaded model that answers."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.artifacts.devices import parse_device
from deepzig.artifacts.manifest import Bounds, Manifest
from deepzig.artifacts.parts import is_onnx
from deepzig.artifacts.reader import open_artifact
from deepzig.errors import DeepZigError
from deepzig.log import configure
from deepzig.sampling import NO_TOKEN

from .draw import Backend, Sampler, edited
from .pages import PagePool
from .pages import Sequence as CacheSequence
from .prompt import ChatOptions, Prompt, prompt_tokens, token_ids
from .result import END, Choice, Piece, Result
from .rows import check_range, checked_rows
from .sampling import SamplingOptions, logprob_of
from .speculate import Speculator
from .tensors import Tensor
from .text import Detokenizer, StopFinder
from .tokenizer import Tokenizer

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

DEFAULT_CACHE_TOKENS = 16384
DRAFT = "draft"


@dataclass(frozen=True)
class Read:
    """What the model made of consecutive rows of a sequence.

    Attributes:
        begin: position of the first row.
        logits: of the wanted rows, f32 [r, vocab].
        hidden: what the output head reads, of all rows, f32 [n, hidden]; none where the artifact has no use for it.
    """

    begin: int
    logits: Tensor
    hidden: Tensor | None = None


@dataclass
class Model:
    """An artifact or ONNX model ready to run; made by `deepzig.runtime.load`. Safe to use from several threads."""

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
            speculator = self._speculator(parsed, sequence)
            read = self._read_prompt(tokens, sequence, speculator)
            # one after another on the pages of the prompt: each writes over what the one before wrote after them
            choices = tuple(
                _choice(self._answer(tokens, parsed, parsed.key(seed, i), sequence, read, speculator), parsed.logprobs)
                for i in range(parsed.n)
            )
        return Result(
            **vars(choices[0]), prompt_tokens=len(tokens), choices=choices,
            guessed_tokens=speculator.guessed if speculator else 0,
            accepted_tokens=speculator.right if speculator else 0,
        )  # fmt: skip

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
                read = self._read(tokens[begin:end], begin, sequence, range(end - begin), forced)
                parts.append(np.asarray(read.logits))
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
        return np.asarray(self.run(entry, given if route is None else {**given, "route": route})[0])

    def run(self, entry: str | None, given: Mapping[str, Array], hidden: Tensor | None = None) -> tuple[Tensor, ...]:
        """Outputs of an entry point, where they lie, for rows that are checked first as those of `forward` are."""
        inputs = checked_rows(self.manifest, self.pool.count, given)
        if entry is None:
            longest = np.bincount(inputs["seq"]).max()
            entry = "prefill" if longest > self.manifest.bounds.decode_rows else "decode"
        if entry not in self.manifest.entry_points:
            known = ", ".join(self.manifest.entry_points)
            raise DeepZigError(f"no entry point is called {entry!r}", "forward", f"choose from {known}")
        names = [spec.name for spec in self.manifest.entry_points[entry].inputs]
        if ("route" in names) != ("route" in given):
            raise DeepZigError(
                "the expert choice is forced only where the artifact asks for it", "route", "compile with --debug-route"
            )
        tensors: dict[str, Tensor] = {**inputs}
        if hidden is not None:
            tensors["hidden"] = hidden
        return self.backend.call(entry, tensors)

    def _options(self, options: Mapping[str, Any]) -> SamplingOptions:
        parsed = SamplingOptions.parse(options)
        parsed.check_tokens(int(self.manifest.model["vocab_size"]))
        if parsed.speculate and DRAFT not in self.manifest.entry_points:
            raise DeepZigError(
                "the artifact has no layer for multi-token prediction",
                "option speculate",
                "compile a checkpoint that has one, or leave the option out",
            )
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

    def _read(
        self, tokens: Sequence[int], begin: int, sequence: CacheSequence, out_rows: Iterable[int],
        route: Array | None = None,
    ) -> Read:  # fmt: skip
        """Run consecutive rows of one sequence."""
        given = _rows_of(tokens, begin, sequence, out_rows)
        return Read(begin, *self.run(None, given if route is None else {**given, "route": route}))

    def _speculator(self, options: SamplingOptions, sequence: CacheSequence) -> Speculator | None:
        """What guesses ahead in a sequence, if it shall."""
        if not options.speculate:
            return None

        def draft(tokens: Sequence[int], begin: int, hidden: Tensor, out_rows: Sequence[int]) -> tuple[Tensor, Tensor]:
            logits, states = self.run(DRAFT, _rows_of(tokens, begin, sequence, out_rows), hidden)
            return logits, states

        greedy = Sampler(self.backend, SamplingOptions(), np.zeros(2, np.int32))
        return Speculator(draft, lambda logits: greedy.draw(logits, 0)[0])

    def _read_prompt(self, prompt: list[int], sequence: CacheSequence, speculator: Speculator | None) -> Read:
        """Run a prompt through the model; its last chunk, with the logits of the last token only."""
        read = Read(0, np.empty((0, 0), np.float32))
        for begin, end in self._cuts(len(prompt)):
            sequence.reserve(end)
            last = [end - begin - 1] if end == len(prompt) else []
            read = self._read(prompt[begin:end], begin, sequence, last)
            if speculator and read.hidden is not None and not last:
                speculator.read(prompt[begin + 1 : end + 1], begin, read.hidden)
        return read

    def _stream(self, prompt: list[int], options: SamplingOptions) -> Iterator[Piece]:
        key = options.key(_seed(options), 0)
        with CacheSequence(self.pool) as sequence:
            speculator = self._speculator(options, sequence)
            read = self._read_prompt(prompt, sequence, speculator)
            yield from self._answer(prompt, options, key, sequence, read, speculator)

    def _answer(
        self, prompt: list[int], options: SamplingOptions, key: Array, sequence: CacheSequence, read: Read,
        speculator: Speculator | None,
    ) -> Iterator[Piece]:  # fmt: skip
        """Generate after a prompt whose last chunk was read."""
        room = self.context - len(prompt)
        limit = min(options.max_tokens or room, room)
        ends = {*options.stop_token_ids}
        if not options.ignore_eos:
            ends.update(self.manifest.model["eos_token_ids"])
        texts, stops, generated = Detokenizer(self._decode_piece), StopFinder(options.stop), list[int]()
        guesses: list[int] = []
        sampler = Sampler(self.backend, options, key)
        while True:
            logits, known = read.logits, len(generated)
            if options.edits:
                logits = edited(logits, options, prompt, [*generated, *guesses], known)
            drawn = sampler.draw(logits, len(prompt) + known)
            told = np.asarray(read.logits) if options.logprobs else None
            for row, token in enumerate(drawn):
                if token == NO_TOKEN:
                    what = "the model computed logits that are no numbers"
                    raise DeepZigError(what, str(self.path), "compile with another --dtype")
                if token in ends:
                    yield Piece(stops.last(texts.flush())[0], END, None, "stop")
                    return
                logprob = None if told is None else logprob_of(told[row], token, options.top_logprobs)
                generated.append(token)
                text, found = stops.push(texts.push(token))
                if not found and len(generated) == limit:
                    tail, found = stops.last(texts.flush())
                    yield Piece(text + tail, token, logprob, "stop" if found else "length")
                    return
                yield Piece(text, token, logprob, "stop" if found else None)
                if found:
                    return
                if guesses[row : row + 1] != [token]:
                    break  # the rows after this one belong to another text
                if speculator:
                    speculator.right += 1
            position = len(prompt) + len(generated) - 1
            count = min(options.speculate, limit - len(generated) - 1, self.manifest.bounds.decode_rows - 1)
            sequence.reserve(position + 1 + count)
            if speculator and read.hidden is not None:
                after = [*prompt[read.begin + 1 :], *generated[max(read.begin + 1 - len(prompt), 0) :]]
                guesses = speculator.guess(after, read.begin, read.hidden[: len(after)], count)
            read = self._read([generated[-1], *guesses], position, sequence, range(1 + len(guesses)))

    def _decode_piece(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens) if self.tokenizer.present else ""


def _rows_of(
    tokens: Sequence[int], begin: int, sequence: CacheSequence, out_rows: Iterable[int]
) -> dict[str, Array]:  # fmt: skip
    """The inputs for consecutive rows of one sequence."""
    rows = len(tokens)
    return {
        "tokens": np.array(tokens, np.int32),
        "seq": np.zeros(rows, np.int32),
        "pos": np.arange(begin, begin + rows, dtype=np.int32),
        "block_table": np.array([sequence.pages], np.int32),
        "out_rows": np.array([*out_rows], np.int32),
    }


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


def cache_pages(bounds: Bounds, tokens: int | None) -> int:
    """How many pages hold `tokens` tokens; by default a whole context, unless that is very long."""
    wanted = min(bounds.positions, DEFAULT_CACHE_TOKENS) if tokens is None else int(tokens)
    return -(-wanted // bounds.page_size)


def load(
    path: str | Path, *, threads: int | None = None, cache_tokens: int | None = None, full_check: bool = False,
    device: str | None = None,
) -> Model:  # fmt: skip
    """Load an artifact, or an ONNX model that DeepZig exported (docs/onnx.md).

    Args:
        path: the artifact: a folder, or a file made by `deepzig pack`; or the `.onnx` file.
        threads: threads of the kernels; by default DEEPZIG_THREADS, else all processors.
        cache_tokens: tokens that the cache holds, for all sequences together.
        full_check: hash the weights before use.
        device: where it runs, such as `cpu`, `cuda`, `cuda:1` or `metal`; by default where the artifact can, on a GPU
            before the CPU.

    Raises:
        DeepZigError: the artifact is damaged, or does not fit this machine, device or process.
    """
    for name, value in (("threads", threads), ("cache_tokens", cache_tokens)):
        if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < 1):
            raise DeepZigError(f"{name} is {value!r}", f"option {name}", "give a whole number from 1")
    configure()
    chosen = None if device is None else parse_device(device)
    if is_onnx(Path(path)):
        from .onnx_model import load_onnx

        return load_onnx(Path(path), threads, cache_tokens, full_check, chosen)
    artifact = open_artifact(Path(path), full=full_check, device=chosen)
    made_by, build = artifact.manifest.created_by, artifact.build.name
    log.info("checked %s, made by %s; chose build %s for the device %s", path, made_by, build, artifact.device)
    bounds = artifact.manifest.bounds
    pages = cache_pages(bounds, cache_tokens)
    from .vm import VirtualMachine

    machine = VirtualMachine(artifact, pages, threads)
    tokenizer = Tokenizer(artifact.folder, artifact.manifest.files)
    return Model(artifact.manifest, tokenizer, machine, PagePool(pages, bounds.page_size), Path(path))
