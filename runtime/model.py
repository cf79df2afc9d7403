"""A loaded model that answers."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.artifacts.manifest import Manifest
from deepzig.errors import DeepZigError

from .backend import Backend
from .chat import ChatGeneration, ChatResult
from .engine import Admit, Engine, Generation, Settings
from .engine.reading import Embedding, Reading, Score
from .executor import Executor
from .guide import Guide, GuideFactory
from .pages import PagePool
from .pages import Sequence as CacheSequence
from .parsers import Parser, parser_for, tool_guide
from .prompt import ChatOptions, Prompt, prompt_tokens, token_ids
from .result import Piece, Result
from .rows import check_range, checked_rows
from .sampling import SamplingOptions, TokenLogprob
from .structured import StructuredOutputs
from .tensors import Tensor
from .tokenizer import Tokenizer

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

HIDDEN = "hidden"


@dataclass
class Model:
    """An artifact or ONNX model ready to run; made by `deepzig.runtime.load`. Safe to use from several threads."""

    manifest: Manifest
    tokenizer: Tokenizer
    backend: Backend
    pool: PagePool
    path: Path = field(default_factory=Path)
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        self.engine = Engine(self.manifest, self.backend, self.pool, self._decode_piece, self.path, self.settings)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what is being answered, stop the model's threads and free its memory."""
        self.engine.close()
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

    def submit(
        self,
        prompt: Prompt,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        admit: Admit | None = None,
        **options: Any,
    ) -> Generation:
        """Ask for answers, beside whatever else the model is asked, and return at once.

        Args:
            prompt: a text, chat messages or token ids.
            tools: as in `ChatOptions`.
            chat_template: as in `ChatOptions`.
            chat_template_kwargs: as in `ChatOptions`.
            priority: requests with a lower number go first.
            cache_salt: prompts with different ones share no pages of the cache.
            admit: is told the tokens of the prompt, the most tokens of an answer and the number of answers before the
                request enters, and may refuse it by raising.
            options: those of `SamplingOptions`.

        Raises:
            DeepZigError: an option or a prompt that does not fit.
            EngineBusyError: too many requests wait.
        """
        parsed = self._options(options)
        chat = ChatOptions(tools, chat_template, chat_template_kwargs or {})
        tokens = self._fitting(prompt_tokens(prompt, self.tokenizer, chat), self.context - 1)
        guides: list[Guide] = []
        if structure := parsed.structured_outputs:
            guides = self._guides(structure, parser_for(self.tokenizer, None, tokens), parsed.n)
        return self.engine.submit(tokens, parsed, priority=priority, salt=cache_salt, guides=guides, admit=admit)

    def submit_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: Any = None,
        parallel_tool_calls: bool = True,
        parser: str | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        admit: Admit | None = None,
        **options: Any,
    ) -> ChatGeneration:
        """As `submit`, for chat messages; answers are taken apart in content, reasoning and calls of tools.

        Args:
            messages: what was said.
            tools: as in `ChatOptions`.
            tool_choice: as in OpenAI's API: `none`, `auto`, `required`, or one function. All but `none` and None, where
                the model is free, need the extra `[structured]`: its calls are held to the schemas of the tools.
            parallel_tool_calls: whether one answer may have several calls, where they are held to schemas.
            parser: how the model writes calls, a name of `parsers.FORMATS` or `plain`; by default found by its tokens.
            chat_template: as in `ChatOptions`.
            chat_template_kwargs: as in `ChatOptions`.
            priority: as in `submit`.
            cache_salt: as in `submit`.
            admit: as in `submit`.
            options: those of `SamplingOptions`.

        Raises:
            DeepZigError: an option or a message that does not fit.
            EngineBusyError: too many requests wait.
        """
        parsed = self._options(options)
        shown = None if tool_choice == "none" else tools
        chat = ChatOptions(shown, chat_template, chat_template_kwargs or {})
        tokens = self._fitting(prompt_tokens(messages, self.tokenizer, chat), self.context - 1)
        parsers = [parser_for(self.tokenizer, shown, tokens, parser) for _ in range(parsed.n)]
        structure = parsed.structured_outputs
        if tool_choice is not None and tools is not None:
            structure = tool_guide(parsers[0], tools, tool_choice, parallel_tool_calls) or structure
        guides = self._guides(structure, parsers[0], parsed.n) if structure else []
        generation = self.engine.submit(
            tokens, parsed, priority=priority, salt=cache_salt, guides=guides, admit=admit
        )  # fmt: skip
        return ChatGeneration(generation, parsers)

    def generate(self, prompt: Prompt, **asked: Any) -> Result:
        """Answer a prompt; the arguments and errors are those of `submit`."""
        with self.submit(prompt, **asked) as generation:
            return generation.result()

    def stream(self, prompt: Prompt, **asked: Any) -> Iterator[Piece]:
        """As `generate`, one piece per token as it comes; what does not fit is told at once."""
        _check_one_answer(asked)
        return self.submit(prompt, **asked).pieces()

    def chat(self, messages: Sequence[Mapping[str, Any]], **asked: Any) -> ChatResult:
        """Answer chat messages; the arguments and errors are those of `submit_chat`."""
        with self.submit_chat(messages, **asked) as generation:
            return generation.result()

    async def achat(self, messages: Sequence[Mapping[str, Any]], **asked: Any) -> ChatResult:
        """As `chat`, for an event loop."""
        with self.submit_chat(messages, **asked) as generation:
            return await generation.aresult()

    async def agenerate(self, prompt: Prompt, **asked: Any) -> Result:
        """As `generate`, for an event loop."""
        with self.submit(prompt, **asked) as generation:
            return await generation.aresult()

    def astream(self, prompt: Prompt, **asked: Any) -> AsyncIterator[Piece]:
        """As `stream`, for an event loop."""
        _check_one_answer(asked)
        return self.submit(prompt, **asked).apieces()

    def score(self, prompt: Prompt, top_logprobs: int = 0) -> tuple[TokenLogprob | None, ...]:
        """The log-probability of each token of a text after those before it; none for the first.

        Args:
            prompt: a text, chat messages or token ids; as long as the context at most.
            top_logprobs: how many likeliest alternatives to tell, 0 to 20.

        Raises:
            DeepZigError: the prompt or the option does not fit.
        """
        generation, score = self.submit_score(prompt, top_logprobs)
        with generation:
            generation.wait()
        return tuple(score.logprobs)

    def submit_score(
        self, prompt: Prompt, top_logprobs: int = 0, *, priority: int = 0, admit: Admit | None = None
    ) -> tuple[Generation, Score]:
        """As `score`, returning at once: the log-probabilities are complete when the generation has ended.

        Args:
            prompt: as in `score`.
            top_logprobs: as in `score`.
            priority: as in `submit`.
            admit: as in `submit`.

        Raises:
            DeepZigError: the prompt or the option does not fit.
            EngineBusyError: too many requests wait.
        """
        SamplingOptions(logprobs=True, top_logprobs=top_logprobs)  # checks it
        tokens = self._fitting(prompt_tokens(prompt, self.tokenizer, ChatOptions()), self.context)
        score = Score(tokens, top_logprobs)
        return self.engine.read(tokens, score, priority=priority, admit=admit), score

    def embed(self, texts: Sequence[str | Sequence[int]]) -> F32:
        """Embeddings: of each text the state of its last token, after the last norm, of length 1; f32 [n, hidden].

        A language model that was not trained for it gives rough ones.

        Args:
            texts: texts or lists of token ids.

        Raises:
            DeepZigError: a text that does not fit, or the artifact has no hidden states to give.
        """
        with ExitStack() as stack:
            asked = self.submit_embeddings(texts)
            for generation, _ in asked:
                stack.enter_context(generation)
            for generation, _ in asked:
                generation.wait()
        vectors = [one.vector for _, one in asked]
        return np.stack(vectors) if vectors else np.empty((0, int(self.manifest.model["hidden_size"])), np.float32)

    def submit_embeddings(
        self, texts: Sequence[str | Sequence[int]], admit: Admit | None = None
    ) -> list[tuple[Generation, Embedding]]:
        """As `embed`, returning at once: each embedding is there when its generation has ended.

        Args:
            texts: as in `embed`.
            admit: as in `submit`, for each text.

        Raises:
            DeepZigError: a text that does not fit, or the artifact has no hidden states to give.
            EngineBusyError: too many requests wait.
        """
        if isinstance(texts, str):
            raise DeepZigError("embed is given one text", "texts", "give a list of texts")
        if not any(spec.name == HIDDEN for spec in self.manifest.entry_points["decode"].outputs):
            what = "the artifact gives no hidden states"
            raise DeepZigError(what, str(self.path), "compile the model with --embeddings")
        prompts = [
            self._fitting(prompt_tokens(text, self.tokenizer, ChatOptions()), self.context) for text in texts
        ]  # fmt: skip
        with ExitStack() as stack:
            asked = []
            for tokens in prompts:
                embedding = Embedding()
                asked.append((stack.enter_context(self.engine.read(tokens, embedding, admit=admit)), embedding))
            stack.pop_all()
        return asked

    def save_prefix(self, path: str | Path, prompt: Prompt | None = None, cache_salt: str | None = None) -> int:
        """Keep what was read of prompts for another process that loads the same artifact on the same kind of machine.

        Args:
            path: the file to write.
            prompt: is read first, if it is given.
            cache_salt: of the prompts.

        Returns:
            How many tokens are kept: those of whole pages that other prompts can use.

        Raises:
            DeepZigError: the prompt does not fit, or the file can't be written.
        """
        if prompt is not None:
            tokens = self._fitting(prompt_tokens(prompt, self.tokenizer, ChatOptions()), self.context)
            with self.engine.read(tokens, Reading(), salt=cache_salt) as generation:
                generation.wait()
        return self.engine.save_prefixes(Path(path), self._identity, cache_salt)

    def load_prefix(self, path: str | Path, cache_salt: str | None = None) -> int:
        """Take up what `save_prefix` wrote: prompts that begin so are answered sooner, and the same.

        Returns:
            How many tokens it holds.

        Raises:
            DeepZigError: the file is damaged or was saved with another artifact, or the cache has no room for it.
        """
        return self.engine.load_prefixes(Path(path), self._identity, cache_salt)

    @cached_property
    def _identity(self) -> bytes:
        """Whose cache it is: pages of another artifact, or of other code for it, are of no use."""
        build = self.backend.artifact.build.name if isinstance(self.backend, Executor) else ""
        return hashlib.sha256(f"{build}\n{self.manifest.to_json()}".encode()).digest()

    def logits(self, token_ids: Sequence[int], route: Array | None = None) -> F32:
        """Logits of all positions, f32 [n, vocab].

        Args:
            token_ids: the text.
            route: the expert choice to force, i32 [n, MoE layers, k], for an artifact made with --debug-route.
        """
        tokens = self._fitting(token_ids, self.context)
        parts, chunk = [], self.manifest.bounds.chunk
        with CacheSequence(self.pool) as sequence:
            for begin in range(0, len(tokens), chunk):
                part = np.array(tokens[begin : begin + chunk], np.int32)
                sequence.reserve(begin + len(part))
                rows = np.arange(len(part), dtype=np.int32)
                given = {
                    "tokens": part, "seq": np.zeros_like(rows), "pos": begin + rows, "out_rows": rows,
                    "block_table": np.array([sequence.pages], np.int32),
                }  # fmt: skip
                if route is not None:
                    given["route"] = np.asarray(route)[begin : begin + len(part)]
                parts.append(np.asarray(self._run(None, given)[0]))
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
        """Outputs of an entry point, where they lie, for rows that are checked first as those of `forward` are.

        `hidden` is an input of `draft`: states of the model, f32 [n, hidden]. Pages are the caller's choice, so what
        the cache has of prompts is forgotten.
        """
        if self.engine.tree:
            self.engine.tree.clear()
        return self._run(entry, given, hidden)

    def _run(self, entry: str | None, given: Mapping[str, Array], hidden: Tensor | None = None) -> tuple[Tensor, ...]:
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
        return parsed

    def _guides(self, structure: StructuredOutputs, parser: Parser, count: int) -> list[Guide]:
        """A guide for each answer; what is thought before an answer is free."""
        make = self._guide_factory.guide
        return [make(structure, parser.armed_after, parser.opened_by) for _ in range(count)]

    @cached_property
    def _guide_factory(self) -> GuideFactory:
        model = self.manifest.model
        return GuideFactory(self.tokenizer, int(model["vocab_size"]), model["eos_token_ids"])

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

    def _decode_piece(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens) if self.tokenizer.present else ""


def _check_one_answer(asked: Mapping[str, Any]) -> None:
    if asked.get("n") not in (None, 1):
        raise DeepZigError(f"a stream has one answer, not {asked['n']}", "option n", "use generate, or n=1")
