"""Token ids and chats in JavaScript, against Python's."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepzig.errors import DeepZigError
from deepzig.runtime.text import Detokenizer
from deepzig.runtime.tokenizer import Tokenizer

from ..runtime import fake
from ..runtime.fake import TEXTS
from ..runtime.templates import CHATS, NAMED, TEMPLATES, TOOLS, VARIABLES
from .conftest import REFERENCE
from .javascript import SOURCE, run

Texts = dict[str, str]
Ask = Callable[..., Any]

KNOWN = {
    "generation-blocks": "what a block of `generation` sets is seen behind it",
    "loop-controls": "`break` and `continue` drop what this turn of the loop has written",
    "special-tokens": "true is written in small letters",
    "granite": "loops are not recursive",
    "dicts": "there is no `dict`",
    "private-namespace": "no name is private",
    "divides": "a division by zero gives infinity",
}
"""Templates that `@huggingface/jinja` renders otherwise, and why. None of them is that of a model of ours."""


@pytest.fixture(scope="module")
def ask(node: str, packages: Path) -> Ask:
    """Run the body of a program with `tokenizer(files)`; what it returns."""

    def with_tokenizer(body: str, given: Any) -> Any:
        opened = """
            const bytes = (files) => new Map(Object.entries(files).map(([name, text]) =>
              [name, new TextEncoder().encode(text)]));
            const tokenizer = (files) => new Tokenizer(bytes(files), "folder");
        """
        return run(node, opened + body, given, tokenizer="Tokenizer")

    return with_tokenizer


def texts_of(folder: Path) -> Texts:
    files = [p for p in folder.rglob("*") if p.suffix in (".json", ".jinja")]
    return {p.relative_to(folder).as_posix(): p.read_text() for p in files}


def fake_texts(folder: Path, **config: Any) -> tuple[Texts, Tokenizer]:
    fake.write_tokenizer(folder, **config)
    return texts_of(folder), Tokenizer(folder)


CODE = """
    return given.map(({ files, texts, tokens }) => {
      const one = tokenizer(files);
      return {
        encoded: texts.map((text) => [one.encode(text), one.encode(text, { special: false })]),
        decoded: tokens.map((ids) => [one.decode(ids), one.decode(ids, { skipSpecial: false })]),
      };
    });
"""


def coded(tokenizer: Tokenizer, texts: list[str], tokens: list[list[int]]) -> Any:
    return {
        "encoded": [[tokenizer.encode(text), tokenizer.encode(text, special=False)] for text in texts],
        "decoded": [[tokenizer.decode(ids), tokenizer.decode(ids, skip_special=False)] for ids in tokens],
    }


def test_ids_and_texts(ask: Ask, tmp_path: Path) -> None:
    """With and without the tokens that begin and end a text; random tokens too, unknown ones among them."""
    rng = random.Random(3)
    flags = [(bos, eos) for bos in (True, False, None) for eos in (True, False, None)]
    tokenizers = [fake_texts(tmp_path / str(i), add_bos_token=b, add_eos_token=e) for i, (b, e) in enumerate(flags)]
    tokens = [rng.choices(range(303), k=rng.randint(0, 60)) for _ in range(50)]
    told = ask(CODE, [{"files": files, "texts": TEXTS, "tokens": tokens} for files, _ in tokenizers])
    assert told == [coded(tokenizer, TEXTS, tokens) for _, tokenizer in tokenizers]


def test_ids_and_texts_of_the_reference_model(ask: Ask) -> None:
    rng, tokenizer = random.Random(4), Tokenizer(REFERENCE)
    known = [i for i in range(512) if tokenizer.decode([i], skip_special=False) and i < 509]  # the rest is reserved
    tokens = [rng.choices(known, k=rng.randint(1, 60)) for _ in range(50)]
    texts = [*TEXTS, "What is 12 plus 30?", "Set the age to 66: {\"name\": \"Finn\"}"]
    (told,) = ask(CODE, [{"files": texts_of(REFERENCE), "texts": texts, "tokens": tokens}])
    assert told == coded(tokenizer, texts, tokens)


def test_a_second_beginning(ask: Ask, tmp_path: Path) -> None:
    files, tokenizer = fake_texts(tmp_path)
    texts = [f"{fake.BOS}ab", f"{fake.BOS}{fake.BOS}ab", f"ab{fake.EOS}"]
    (told,) = ask(CODE, [{"files": files, "texts": texts, "tokens": []}])
    assert told == coded(tokenizer, texts, [])


@pytest.mark.parametrize("seed", range(3))
def test_streams(seed: int, ask: Ask, tmp_path: Path) -> None:
    """Texts and random tokens, piece by piece."""
    files, tokenizer = fake_texts(tmp_path, add_bos_token=False)
    streams = [tokenizer.encode(text) for text in fake.CORPUS]
    streams.append(random.Random(seed).choices(range(300), k=200))
    given = {"files": files, "streams": streams, "module": (SOURCE / "text.js").as_uri()}
    told = ask("""
        const { Detokenizer } = await import(given.module);
        const one = tokenizer(given.files);
        return given.streams.map((tokens) => {
          const texts = new Detokenizer((ids) => one.decode(ids));
          return tokens.map((token) => texts.push(token)).concat(texts.flush());
        });
    """, given)  # fmt: skip
    for tokens, pieces in zip(streams, told, strict=True):
        texts = Detokenizer(tokenizer.decode)
        assert pieces == [*(texts.push(token) for token in tokens), texts.flush()]


def options_of(variables: dict[str, Any]) -> dict[str, Any]:
    """Python's arguments as JavaScript has them."""
    rest = {k: v for k, v in variables.items() if k not in ("tools", "continue_final_message")}
    resume = variables.get("continue_final_message", False)
    return {"tools": variables.get("tools"), "continueFinalMessage": resume, "variables": rest}


def rendered(tokenizer: Tokenizer, chat: str, variables: dict[str, Any]) -> Any:
    """Text and token ids, None where the template refuses."""
    try:
        return [tokenizer.render_chat(CHATS[chat], **variables), tokenizer.encode_chat(CHATS[chat], **variables)]
    except DeepZigError:
        return None


@pytest.fixture(scope="module")
def renderings(ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, Any, Any]]]:
    """Template -> name of the chat, Python's text and ids, and JavaScript's."""
    root = tmp_path_factory.mktemp("templates")
    made = {name: fake_texts(root / name, chat_template=t, pad_token="<｜▁pad▁｜>") for name, t in TEMPLATES.items()}
    cases = [(chat, variables) for chat in CHATS for variables in VARIABLES]
    given = {
        "files": [files for files, _ in made.values()],
        "cases": [[CHATS[chat], {k: v for k, v in options_of(vs).items() if v is not None}] for chat, vs in cases],
    }
    told = ask("""
        return given.files.map((files) => {
          const one = tokenizer(files);
          return given.cases.map(([messages, options]) => {
            try { return [one.renderChat(messages, options), one.encodeChat(messages, options)]; } catch (error) {
              if (error instanceof DeepZigError) return null;
              throw error;
            }
          });
        });
    """, given)  # fmt: skip
    return {
        name: [(chat, rendered(tokenizer, chat, vs), got) for (chat, vs), got in zip(cases, answers, strict=True)]
        for (name, (_, tokenizer)), answers in zip(made.items(), told, strict=True)
    }


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in KNOWN])
def test_templates_render_as_in_python(name: str, renderings: dict[str, list[tuple[str, Any, Any]]]) -> None:
    """Of a list of blocks, where a template knows no blocks, Python shows its own notation."""
    for chat, want, got in renderings[name]:
        if chat != "blocks" or not (want is None or "{'type'" in want[0]):
            assert got == want, chat


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_to_differ(name: str, renderings: dict[str, list[tuple[str, Any, Any]]]) -> None:
    """A package that has learned it is no longer in the table."""
    assert any(got != want for chat, want, got in renderings[name] if chat != "blocks")


def test_named_templates(ask: Ask, tmp_path: Path) -> None:
    """Those of the config, and those of files, which come before them."""
    config, tokenizer = fake_texts(tmp_path / "config", chat_template=NAMED)
    fake_texts(tmp_path / "files", chat_template="of the config")
    (tmp_path / "files" / "chat_template.jinja").write_text("of the file {{ messages[0].content }}\n\n")
    (tmp_path / "files" / "additional_chat_templates").mkdir()
    (tmp_path / "files" / "additional_chat_templates" / "tool_use.jinja").write_text("\ufeffwith {{ tools | length }}")
    of_files = Tokenizer(tmp_path / "files")
    own = "mine {{ messages[0].role }}"
    cases = [(None, None), (None, TOOLS), ("default", TOOLS), (own, None)]
    told = ask("""
        return given.all.map((files) => given.cases.map(([template, tools]) =>
          tokenizer(files).renderChat(given.chat, { template: template ?? undefined, tools: tools ?? undefined })));
    """, {"all": [config, texts_of(tmp_path / "files")], "cases": cases, "chat": CHATS["one"]})  # fmt: skip
    for one, answers in zip((tokenizer, of_files), told, strict=True):
        assert answers == [one.render_chat(CHATS["one"], tools, template) for template, tools in cases]


ERRORS: dict[str, tuple[dict[str, str | None], str]] = {
    "no tokenizer": (
        {"tokenizer.json": None},
        "the artifact has no tokenizer\n  at: folder/tokenizer.json\n"
        "  fix: give token ids, or compile a checkpoint with tokenizer.json",
    ),
    "no config": (
        {"tokenizer_config.json": "[]"},
        "the tokenizer's config is not a JSON object\n  at: folder/tokenizer_config.json\n"
        "  fix: compile the model again",
    ),
    "no template": (
        {"tokenizer_config.json": "{}"},
        "the model has no chat template\n  at: folder\n  fix: give a text or token ids instead of messages",
    ),
    "no list": (
        {"tokenizer_config.json": '{"chat_template": [3]}'},
        "the chat templates are not a list of name and template\n  at: folder/tokenizer_config.json\n"
        "  fix: compile the model again",
    ),
    "another name": (
        {"tokenizer_config.json": json.dumps({"chat_template": NAMED[1:]})},
        "no chat template is called 'default'\n  at: folder\n  fix: choose from rag, tool_use",
    ),
    "refused": (
        {"tokenizer_config.json": json.dumps({"chat_template": "{{ raise_exception('Be polite!') }}"})},
        "the chat template refuses the messages: Be polite!\n  at: folder\n  fix: check roles and contents",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str, ask: Ask) -> None:
    changed, want = ERRORS[name]
    files = {k: v for k, v in {**texts_of(REFERENCE), **changed}.items() if v is not None}
    body = "return message(() => tokenizer(given).renderChat([{ role: 'user', content: 'hi' }]));"
    assert ask(body, files) == want


def test_a_tokenizer_and_a_template_that_are_none(ask: Ask) -> None:
    files = texts_of(REFERENCE)
    body = "return message(() => tokenizer(given).renderChat([]));"
    told = ask(body, {**files, "tokenizer.json": "{"})
    assert told.startswith("the tokenizer can't be read: ") and told.endswith(
        "\n  at: folder/tokenizer.json\n  fix: compile the model again"
    )
    told = ask(body, {**files, "chat_template.jinja": "{% for m in messages %}"})
    assert told.startswith("the chat template is wrong: ")
    assert told.endswith("\n  at: folder\n  fix: mend it and compile the model again")


def test_messages_that_can_not_be_continued(ask: Ask) -> None:
    told = ask("""
        const one = tokenizer(given);
        const options = { continueFinalMessage: true }, chat = [{ role: "user", content: "a" }];
        return [
          await message(() => one.renderChat([{ role: "user" }], options)),
          await message(() => one.renderChat([], { ...options, variables: { add_generation_prompt: true } })),
          await message(() => one.renderChat(chat, { ...options, template: "{{ 1 }}" })),
          await message(() => one.renderChat(chat, { ...options, template: "{#content#}" })),
        ];
    """, texts_of(REFERENCE))  # fmt: skip
    assert told == [
        "the last message has no text to continue\n  at: messages\n  fix: give it a content",
        "a message can't be continued and followed by a new one\n  at: option variables\n"
        "  fix: leave add_generation_prompt out with continueFinalMessage",
        "the chat template reads no content\n  at: folder\n  fix: don't ask it to continue a message",
        "the chat template does not show all of the last message\n  at: folder\n  fix: continue another message",
    ]
