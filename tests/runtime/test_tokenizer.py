"""Token ids and chats, against transformers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from deepzig.errors import DeepZigError
from deepzig.runtime import chat_template
from deepzig.runtime.tokenizer import Tokenizer

from . import fake
from .templates import CHATS, NAMED, TEMPLATES, TOOLS, VARIABLES

BOS, EOS = fake.BOS, fake.EOS


def pair(folder: Path, **config: Any) -> tuple[Tokenizer, Any]:
    """Ours and transformers' of the same files."""
    fake.write_tokenizer(folder, **config)
    return Tokenizer(folder), theirs_of(folder)


def theirs_of(folder: Path) -> Any:
    """transformers 5 reads `add_bos_token` and `add_eos_token` only where there is no tokenizer.json: they are set."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    flags = {name: config.get(name, False) for name in ("add_bos_token", "add_eos_token")}
    if flags.keys() & config.keys():
        for name, value in flags.items():
            setattr(tokenizer, name, value)
    return tokenizer


@pytest.mark.parametrize("eos", [True, False, None])
@pytest.mark.parametrize("bos", [True, False, None])
def test_ids(bos: bool | None, eos: bool | None, tmp_path: Path) -> None:
    """With and without the tokens that begin and end a text; what the config does not say, tokenizer.json does."""
    ours, theirs = pair(tmp_path, add_bos_token=bos, add_eos_token=eos)
    for text in fake.TEXTS:
        want = theirs(text).input_ids
        assert ours.encode(text) == want
        assert ours.encode(text, special=False) == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(want) == theirs.decode(want, skip_special_tokens=True)
        assert ours.decode(want, skip_special=False) == theirs.decode(want)
    assert (theirs("a").input_ids[0] == 0) == bool(bos)


@pytest.mark.parametrize("flag", [True, None])
def test_tokens_that_tokenizer_json_adds(flag: bool | None, tmp_path: Path) -> None:
    """Its post-processor counts only if the config has no flag."""
    fake.write_tokenizer(tmp_path, add_bos_token=flag)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    special = {t: {"id": t, "ids": [i], "tokens": [t]} for i, t in enumerate((BOS, EOS))}
    single = [*({"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}})]
    single.append({"SpecialToken": {"id": EOS, "type_id": 0}})
    data["post_processor"] = {
        "type": "TemplateProcessing", "single": single, "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": special,
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    ours, theirs = Tokenizer(tmp_path), theirs_of(tmp_path)
    want = theirs("ab").input_ids
    assert ours.encode("ab") == want and (want[-1] == 1) == (flag is None)
    assert ours.encode(f"{BOS}ab") == want


def test_the_beginning_once(tmp_path: Path) -> None:
    """Also if the text has it already, where transformers would begin twice."""
    ours, theirs = pair(tmp_path)
    once = ours.encode("ab")
    assert once[0] == 0 and 0 not in once[1:]
    assert ours.encode(f"{BOS}ab") == once and theirs(f"{BOS}ab").input_ids == [0, *once]
    assert ours.encode(f"{BOS}{BOS}ab") == once
    chat = ours.encode_chat([{"role": "user", "content": "hi"}])
    assert chat.count(0) == 1 and chat[0] == 0


def test_a_tokenizer_trained_with_truncation_and_padding(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path)
    backend = theirs.backend_tokenizer
    backend.enable_truncation(5)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(tmp_path).encode("some more words than five") == ours.encode("some more words than five")
    assert Tokenizer(tmp_path).encode("a") == ours.encode("a")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Any]]:
    root = tmp_path_factory.mktemp("templates")
    pad = "<｜▁pad▁｜>"
    return {n: pair(root / n, chat_template=t, pad_token=pad) for n, t in TEMPLATES.items()}


def rendered(theirs: Any, chat: str, variables: dict[str, Any]) -> str | None:
    """transformers' text, None where it refuses."""
    try:
        text = theirs.apply_chat_template(CHATS[chat], tokenize=False, **{"add_generation_prompt": True, **variables})
    except Exception:
        return None
    assert isinstance(text, str)
    return text


def test_templates_are_many() -> None:
    assert len(TEMPLATES) >= 25


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_in_transformers(name: str, folders: dict[str, tuple[Tokenizer, Any]]) -> None:
    """Every conversation with all sets of variables; what transformers refuses is refused in three lines."""
    ours, theirs = folders[name]
    told = refused = 0
    for chat in CHATS:
        for variables in VARIABLES:
            want = rendered(theirs, chat, variables)
            if want is None:
                with pytest.raises(DeepZigError):
                    ours.render_chat(CHATS[chat], **variables)
                refused += 1
                continue
            assert ours.render_chat(CHATS[chat], **variables) == want
            assert ours.encode_chat(CHATS[chat], **variables) == theirs(want, add_special_tokens=False).input_ids
            told += 1
    never = {"forbidden", "private-namespace", "broken"}
    assert (told == 0) == (name in never) and told + refused == len(CHATS) * len(VARIABLES)


def test_plain_data_only(folders: dict[str, tuple[Tokenizer, Any]]) -> None:
    """Objects in messages become their types' names; numbers of numpy stay numbers."""

    class Rich(str):
        def __html__(self) -> str:
            return "escaped?"

    chat = [{"role": "user", "content": Rich("hi"), "n": np.int64(3), "t": (1, {"x": np.bool_(False)}), "o": object()}]
    ours, theirs = folders["json"]
    want = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert ours.render_chat(chat) == want and '"<object>"' in want


def refusal(tokenizer: Tokenizer, messages: Any, **options: Any) -> list[str]:
    with pytest.raises(DeepZigError) as caught:
        tokenizer.render_chat(messages, **options)
    return str(caught.value).splitlines()


def test_files_that_are_not_listed_are_ignored(tmp_path: Path) -> None:
    """A template that somebody put beside an artifact's parts is not the artifact's."""
    fake.write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("taken over")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("taken over")
    chat = [{"role": "user", "content": "hi"}]
    own = Tokenizer(tmp_path, {"tokenizer.json", "tokenizer_config.json"})
    assert Tokenizer(tmp_path).render_chat(chat) == "taken over" and "taken over" not in own.render_chat(chat)
    assert "taken over" not in own.render_chat(chat, tools=[{"type": "function", "function": {"name": "f"}}])
    assert own.present and not Tokenizer(tmp_path, {"tokenizer_config.json"}).present


def test_refusals(folders: dict[str, tuple[Tokenizer, Any]], tmp_path: Path) -> None:
    mistral, _ = folders["mistral"]
    where = f"  at: {mistral._folder}"
    assert refusal(mistral, CHATS["system"]) == [
        "the chat template refuses the messages: Only user and assistant roles are supported!",
        where,
        "  fix: check roles and contents",
    ]
    broken, _ = folders["broken"]
    told = refusal(broken, CHATS["one"])
    assert told[0].startswith("the chat template is wrong: Unexpected end of template.")
    assert told[-1] == "  fix: mend it and compile the model again"
    assert refusal(mistral, CHATS["prefill"], continue_final_message=True) == [
        "a message can't be continued and followed by a new one",
        "  at: option chat_template_kwargs",
        "  fix: give add_generation_prompt=False with continue_final_message=True",
    ]
    none = Tokenizer(fake.write_tokenizer(tmp_path, chat_template=None))
    assert refusal(none, CHATS["one"]) == [
        "the model has no chat template",
        f"  at: {tmp_path}",
        "  fix: give a text or token ids instead of messages",
    ]


def test_named_templates(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path, chat_template=NAMED)
    chat, own = CHATS["one"], "mine {{ messages[0].role }}"
    for name, tools in ((None, None), (None, TOOLS), ("rag", None), ("rag", TOOLS), (own, None)):
        want = theirs.apply_chat_template(chat, tools=tools, chat_template=name, tokenize=False)
        assert ours.render_chat(chat, tools, name) == want
    assert refusal(ours, chat, template="fancy") == [
        "no chat template is called 'fancy'",
        f"  at: {tmp_path}",
        "  fix: choose from default, rag, tool_use",
    ]
    for own_name in ("only_this",):
        fake.write_tokenizer(tmp_path, chat_template=[{"name": own_name, "template": "x"}])
        assert refusal(Tokenizer(tmp_path), chat)[0] == "no chat template is called 'default'"
        assert Tokenizer(tmp_path).render_chat(chat, template=own_name) == "x"


def test_templates_in_files(tmp_path: Path) -> None:
    """They come before the config's, as in transformers."""
    fake.write_tokenizer(tmp_path, chat_template="of the config")
    (tmp_path / "chat_template.jinja").write_text("of the file {{ messages[0].content }}\n\n")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    ours, theirs = Tokenizer(tmp_path), transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for tools, name in ((None, None), (TOOLS, None), (TOOLS, "default")):
        want = theirs.apply_chat_template(CHATS["one"], tools=tools, chat_template=name, tokenize=False)
        assert ours.render_chat(CHATS["one"], tools, name) == want
    assert ours.render_chat(CHATS["one"]).startswith("of the file")


@pytest.mark.parametrize("text", ["[]", "{", "\x00"])
def test_a_config_that_is_none(text: str, tmp_path: Path) -> None:
    fake.write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(DeepZigError) as caught:
        Tokenizer(tmp_path).encode("x")
    assert str(caught.value) == (
        "the tokenizer's config is not a JSON object\n"
        f"  at: {tmp_path}/tokenizer_config.json\n  fix: compile the model again"
    )


def test_a_tokenizer_that_is_none(tmp_path: Path) -> None:
    fake.write_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DeepZigError) as caught:
        Tokenizer(tmp_path).encode("x")
    assert caught.value.what.startswith("the tokenizer can't be read: ")


LOOP = "{% for a in range(99999) %}"
ENDLESS = LOOP * 3 + "{% endfor %}" * 3
STOPPED = [
    (ENDLESS, "it takes more than 0.2 seconds"),
    ("{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n }}{% endmacro %}{{ f(60) }}", "it takes more than 0.2 seconds"),
    ("{% for a in range(9999) %}{{ 'some text' }}{% endfor %}", "it writes more than 5000 characters"),
    ("{{ 'x' * 10000000000 }}", "the result of * is too large"),
    ("{{ (10000000000 * [1])|length }}", "the result of * is too large"),
    ("{{ 10 ** 1000000 }}", "the result of ** is too large"),
    ("{{ '%01000000000d' % 3 }}", "the result of % is too large"),
    ("{{ '%(a).1000000000f' % {'a': 3} }}", "the result of % is too large"),
    ("{{ '%*d' % (1000000000, 3) }}", "the result of % is too large"),
]
"""Templates that want too much, and what is said of them."""


@pytest.mark.parametrize(("template", "why"), STOPPED)
def test_templates_that_want_too_much(template: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(chat_template, "MAX_TEXT", 5000)
    fake.write_tokenizer(tmp_path, chat_template=template)
    with pytest.raises(DeepZigError) as caught:
        Tokenizer(tmp_path).render_chat([{"role": "user", "content": "hi"}])
    hint = "choose another template, or mend it and compile the model again"
    assert str(caught.value) == f"the chat template is stopped: {why}\n  at: {tmp_path}\n  fix: {hint}"


def test_templates_that_compute_a_little(tmp_path: Path) -> None:
    """Within limits, operators and loops mean what they mean in Python."""
    template = "{{ 3 * 4 }} {{ 'ab' * 2 }} {{ 2 ** 10 }} {{ 7 % 4 }} {{ '%05d 1234567' % 42 }} {{ 2.5 * 2 }}"
    template += "{% for c in 'xyz' %}{{ loop.index }}/{{ loop.length }}{{ c }}{{ loop.last }} {% endfor %}"
    fake.write_tokenizer(tmp_path, chat_template=template)
    text = Tokenizer(tmp_path).render_chat([{"role": "user", "content": "hi"}])
    assert text == "12 abab 1024 3 00042 1234567 5.01/3xFalse 2/3yFalse 3/3zTrue "


@pytest.mark.parametrize("templates", [[3], [{"name": "default"}], [{"name": 1, "template": "x"}], [None], ["x"]])
def test_templates_that_are_none(templates: Any, tmp_path: Path) -> None:
    fake.write_tokenizer(tmp_path, chat_template=templates)
    with pytest.raises(DeepZigError) as caught:
        Tokenizer(tmp_path).render_chat([])
    what = "the chat templates are not a list of name and template"
    assert str(caught.value) == f"{what}\n  at: {tmp_path}/tokenizer_config.json\n  fix: compile the model again"


def test_a_template_that_is_no_text(tmp_path: Path) -> None:
    fake.write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff{{ messages }}")
    with pytest.raises(DeepZigError) as caught:
        Tokenizer(tmp_path).render_chat([])
    where = f"{tmp_path}/chat_template.jinja"
    assert str(caught.value) == f"the chat template is no UTF-8 text\n  at: {where}\n  fix: compile the model again"


def test_a_tokenizer_that_is_too_large(tmp_path: Path) -> None:
    """Refused by its size, without reading it."""
    fake.write_tokenizer(tmp_path)
    os.truncate(tmp_path / "tokenizer.json", 1 << 40)
    with pytest.raises(DeepZigError) as caught:
        Tokenizer(tmp_path).encode("a")
    where = f"{tmp_path}/tokenizer.json"
    assert str(caught.value) == f"the tokenizer is too large\n  at: {where}\n  fix: compile the model again"


def test_bytes_of_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer(fake.write_tokenizer(tmp_path))
    for text in fake.CORPUS:
        tokens = tokenizer.encode(text, special=False)
        assert b"".join(map(tokenizer.token_bytes, tokens)) == text.encode()
    end = tokenizer.token_id(fake.EOS)
    assert end is not None and tokenizer.token_bytes(end).decode() == fake.EOS
