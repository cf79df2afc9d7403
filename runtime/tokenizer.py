"""The artifact's tokenizer and chat template, with Hugging Face's conventions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from deepzig.errors import DeepZigError

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class Tokenizer:
    """tokenizer.json and tokenizer_config.json of an artifact; read when first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def present(self) -> bool:
        """Whether the artifact has a tokenizer at all."""
        return (self._folder / FILES[0]).is_file()

    @cached_property
    def _tokenizer(self) -> Any:
        path = self._folder / FILES[0]
        if not path.is_file():
            raise DeepZigError(
                "the artifact has no tokenizer",
                str(path),
                "give token ids, or compile a checkpoint with tokenizer.json",
            )
        import tokenizers

        try:
            return tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing more specific
            raise DeepZigError(f"the tokenizer can't be read: {error}", str(path), "compile the model again") from None

    @cached_property
    def _config(self) -> dict[str, Any]:
        path = self._folder / FILES[1]
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return config

    def _special(self, name: str) -> str | None:
        token = self._config.get(name)
        return token.get("content") if isinstance(token, dict) else token

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text; with `special`, after a beginning-of-sequence token (once) if the config asks for it."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        bos = self._special("bos_token")
        if special and self._config.get("add_bos_token") and bos is not None:
            bos_id = self._tokenizer.token_to_id(bos)
            if bos_id is not None and ids[:1] != [bos_id]:
                ids = [bos_id, *ids]
        return ids

    def decode(self, tokens: Sequence[int], skip_special: bool = True) -> str:
        """Text of token ids."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special)
        return text

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        """Token ids of a conversation, rendered by the chat template up to where the answer starts.

        Raises:
            DeepZigError: there is no template, or it refuses the messages.
        """
        # the template writes the special tokens itself
        return self.encode(self.render_chat(messages, **variables), special=False)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The text of a conversation; raises as `encode_chat`."""
        import jinja2

        special = {n: self._special(n) or "" for n in ("bos_token", "eos_token", "unk_token", "pad_token")}
        try:
            text: str = self._template.render(
                **special, **{"messages": list(messages), "add_generation_prompt": True, **variables}
            )
            return text
        except jinja2.TemplateError as error:
            raise DeepZigError(
                f"the chat template refuses the messages: {error}", str(self._folder), "check roles and contents"
            ) from None

    @cached_property
    def _template(self) -> Any:
        """The template as transformers compiles it (utils/chat_template_utils.py)."""
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
            return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = tojson
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            return environment.from_string(self._source())
        except jinja2.TemplateSyntaxError as error:
            raise DeepZigError(
                f"the chat template is wrong: {error}", str(self._folder), "mend it and compile the model again"
            ) from None

    def _source(self) -> str:
        path = self._folder / FILES[2]
        if path.is_file():
            return path.read_text(encoding="utf-8")
        template = self._config.get("chat_template")
        if isinstance(template, list):
            named = {t["name"]: t["template"] for t in template}
            template = named.get("default")
        if not isinstance(template, str):
            raise DeepZigError(
                "the model has no chat template", str(self._folder), "give a text or token ids instead of messages"
            )
        return template
