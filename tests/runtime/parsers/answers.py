"""Tokenizers with the tokens of models that call tools, and a way to have a parser read a text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers

from deepzig.runtime.parsers import Delta, Parser
from deepzig.runtime.parsers.formats import DEEPSEEK, KIMI, THINK, TURNS
from deepzig.runtime.text import Detokenizer
from deepzig.runtime.tokenizer import Tokenizer

from .. import fake

SIGNS = {
    "deepseek-v3": "{{ '<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + name + '\\n```json\\n' }}",
    "deepseek-v3.1": "{{ '<｜tool▁call▁begin｜>'+ tool['function']['name'] + '<｜tool▁sep｜>' }}",
    "kimi-k2": "<|tool_call_begin|>{{ tool_call['id'] }}<|tool_call_argument_begin|>",
}
"""What the chat templates have of calls."""

VOCAB = 340


def tokenizer(folder: Path, format: str, think: bool = True, template: str | None = None) -> Tokenizer:
    """As the models have them: DeepSeek's marks are shown when text is decoded, Kimi's are not."""
    kimi = format == "kimi-k2"
    fake.write_tokenizer(folder, chat_template=SIGNS.get(format) if template is None else template)
    path = folder / "tokenizer.json"
    made = tokenizers.Tokenizer.from_file(str(path))
    tokens = [*(KIMI if kimi else DEEPSEEK).values(), *(THINK.values() if think else ()), TURNS[kimi]]
    made.add_tokens([tokenizers.AddedToken(t, special=kimi and t.startswith("<|"), normalized=False) for t in tokens])
    made.save(str(path))
    return Tokenizer(folder)


def pieces(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Tokens, each with the text that it completes; then -1 with what is left."""
    texts = Detokenizer(tokenizer.decode)
    for token in tokens:
        yield token, texts.push(token)
    yield -1, texts.flush()


@dataclass
class Read:
    """What a parser read, put together again; calls as (id, name, arguments)."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, deltas: Iterable[Delta]) -> None:
        for delta in deltas:
            assert bool(delta.content) + bool(delta.reasoning) + (delta.call is not None) == 1
            self.content += delta.content
            self.reasoning += delta.reasoning
            if call := delta.call:
                if call.name is not None:
                    assert call.id and call.index == len(self.calls)
                    self.calls.append((call.id, call.name, ""))
                assert call.index == len(self.calls) - 1 and (call.name or call.arguments)
                self.calls[-1] = (*self.calls[-1][:2], self.calls[-1][2] + call.arguments)


def read(parser: Parser, stream: Iterable[tuple[int, str]]) -> Read:
    """What a parser makes of a stream; the last of it has token -1."""
    found = Read()
    for token, text in stream:
        found.add(parser.finish(text) if token < 0 else parser.push(token, text))
    assert parser.calls == len(found.calls)
    return found


def function(name: str, parameters: Mapping[str, object] | None = None) -> dict[str, object]:
    described = {"name": name, "description": "does it"}
    return {"type": "function", "function": described | ({} if parameters is None else {"parameters": parameters})}


WEATHER = function(
    "get_weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 9},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
)
TOOLS = [WEATHER, function("now")]


def arguments(**values: object) -> str:
    return json.dumps(values, ensure_ascii=False)
