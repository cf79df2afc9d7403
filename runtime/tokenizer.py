"""The artifact's tokenizer and chat templates, with Hugging Face's conventions."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from deepzig.errors import DeepZigError

TOKENIZER, CONFIG, TEMPLATE, MORE_TEMPLATES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates",
)  # fmt: skip
MAX_TOKENIZER = 256 << 20
"""Bytes; those of 160,000 tokens have 20 million."""

SHOWN = (*range(33, 127), *range(161, 173), *range(174, 256))
BYTES = {
    **{chr(byte): byte for byte in SHOWN},
    **{chr(256 + i): byte for i, byte in enumerate(sorted({*range(256)} - {*SHOWN}))},
}
"""How byte-level BPE writes bytes: those that can be shown as their own letters, the rest as letters from 256 on."""

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The named tokens; templates see those that the config has."""


class Tokenizer:
    """tokenizer.json, tokenizer_config.json and templates of an artifact; read when first needed."""

    def __init__(self, folder: Path, listed: Collection[str] | None = None) -> None:
        """Read from `folder`; with `listed`, only the files of these names: others are nobody's."""
        self._folder, self._listed = folder, listed

    def _has(self, path: Path) -> bool:
        known = self._listed is None or path.relative_to(self._folder).as_posix() in self._listed
        return known and path.is_file()

    @cached_property
    def present(self) -> bool:
        """Whether the artifact has a tokenizer at all."""
        return self._has(self._folder / TOKENIZER)

    @cached_property
    def _tokenizer(self) -> Any:
        path = self._folder / TOKENIZER
        if not self._has(path):
            raise DeepZigError(
                "the artifact has no tokenizer",
                str(path),
                "give token ids, or compile a checkpoint with tokenizer.json",
            )
        import tokenizers

        if path.stat().st_size > MAX_TOKENIZER:
            raise DeepZigError("the tokenizer is too large", str(path), "compile the model again")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing more specific
            raise DeepZigError(f"the tokenizer can't be read: {error}", str(path), "compile the model again") from None
        tokenizer.no_truncation()  # settings of training, which transformers ignores too
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _config(self) -> dict[str, Any]:
        path = self._folder / CONFIG
        if not self._has(path):
            return {}
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            config = None
        if not isinstance(config, dict):
            raise DeepZigError("the tokenizer's config is not a JSON object", str(path), "compile the model again")
        return config

    @cached_property
    def _special(self) -> dict[str, str]:
        """Name -> text of the special tokens."""
        found = ((name, self._config.get(name)) for name in SPECIAL)
        texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in found}
        return {name: text for name, text in texts.items() if isinstance(text, str)}

    def _edge(self, name: str) -> list[int]:
        """The id of a special token, if there is one."""
        token = self._tokenizer.token_to_id(self._special[name]) if name in self._special else None
        return [] if token is None else [token]

    def token_id(self, token: str) -> int | None:
        """The id of the token that is written so; None if there is none, or no tokenizer."""
        return self._tokenizer.token_to_id(token) if self.present else None

    def written(self, token: int) -> str:
        """How the vocabulary writes a token: byte-level BPE shows a space as `Ġ`, for example."""
        return self._tokenizer.id_to_token(token) or ""

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for, which need not make whole characters; of a special token, its name."""
        if not self.present:
            return b""
        written = self.written(token)
        if token not in self._added and all(letter in BYTES for letter in written):
            return bytes(BYTES[letter] for letter in written)
        return written.encode()

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self._tokenizer.get_added_tokens_decoder())

    def to_json(self) -> str:
        """What tokenizer.json says, as the tokenizers library writes it."""
        text: str = self._tokenizer.to_str()
        return text

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: special tokens in it are recognised.
            special: add the tokens that begin and end a sequence: those that `add_bos_token` and `add_eos_token` of the
                config say, or where it says nothing, those of tokenizer.json. A text that starts with the
                beginning-of-sequence token does not get a second one. (transformers 5 ignores what the config says
                beside a tokenizer.json; DeepSeek's says it there.)
        """
        config, named = self._config, ("bos_token", "eos_token")
        explicit = any(f"add_{name}" in config for name in named)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special and not explicit).ids
        if not special:
            return ids
        begin, end = (self._edge(name) if config.get(f"add_{name}") else [] for name in named)
        ids = [*begin, *ids, *end]
        bos = self._edge("bos_token")
        while bos and ids[:2] == bos * 2:
            del ids[0]
        return ids

    def decode(self, tokens: Sequence[int], skip_special: bool = True) -> str:
        """Text of token ids."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special)
        return text

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation, as `render_chat` writes it."""
        # the template writes the special tokens itself
        return self.encode(self.render_chat(messages, tools, template, **variables), special=False)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation, up to where the answer starts.

        Args:
            messages: what was said.
            tools: JSON schemas of the functions that the model may call.
            template: the name of one of the model's templates, or a template; by default `tool_use` if there are tools
                and such a template, else `default`.
            variables: what the template understands beside it, such as `enable_thinking`; `add_generation_prompt` is
                true unless it is given.

        Raises:
            DeepZigError: there is no such template, or it refuses the messages.
        """
        from .chat_template import render

        source = self._template(template, tools is not None)
        return render(
            source,
            messages,
            str(self._folder),
            **{**self._special, "add_generation_prompt": True, "documents": None, **variables},
            tools=None if tools is None else list(tools),
        )

    def _template(self, name: str | None, tools: bool) -> str:
        templates = self.templates
        if name is None:
            name = "tool_use" if tools and "tool_use" in templates else "default"
        elif name not in templates and "{" in name:
            return name
        if name in templates:
            return templates[name]
        if not templates:
            raise DeepZigError(
                "the model has no chat template", str(self._folder), "give a text or token ids instead of messages"
            )
        raise DeepZigError(
            f"no chat template is called {name!r}", str(self._folder), f"choose from {', '.join(sorted(templates))}"
        )

    @cached_property
    def templates(self) -> dict[str, str]:
        """Name -> source of the chat templates. Files come before the config, as in transformers."""
        files = {p.stem: p for p in sorted((self._folder / MORE_TEMPLATES).glob("*.jinja")) if self._has(p)}
        if self._has(self._folder / TEMPLATE):
            files["default"] = self._folder / TEMPLATE
        if files:
            return {name: _text(path) for name, path in files.items()}
        template = self._config.get("chat_template")
        if isinstance(template, list):
            return dict(self._named(entry) for entry in template)
        return {"default": template} if isinstance(template, str) else {}

    def _named(self, entry: Any) -> tuple[str, str]:
        """Name and source of an entry of the config."""
        name, source = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(source, str):
            what = "the chat templates are not a list of name and template"
            raise DeepZigError(what, str(self._folder / CONFIG), "compile the model again")
        return name, source


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise DeepZigError("the chat template is no UTF-8 text", str(path), "compile the model again") from None
