"""The chat page in headless Chromium, and what it may do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import httpx
import pytest

from deepzig.runtime import Model
from deepzig.server.page import policy

from .conftest import KEY, NAME
from .devtools import Page, opened

ANSWERED = "document.querySelectorAll('article.assistant:not(.running) .figures').length === "
ENTER, ESCAPE = ("Enter", 13), ("Escape", 27)


@pytest.fixture(scope="module")
def page(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(f"{address}/", tmp_path_factory.mktemp("profile")) as one:
        yield one


def source() -> str:
    return (resources.files("deepzig.server") / "page.html").read_text(encoding="utf-8")


def test_a_conversation(page: Page, model: Model) -> None:
    """One test, since a browser takes a while: the key, an answer, a second one that knows the first, a stop."""
    assert page.wait("document.getElementById('error').textContent") == "the API key is missing or wrong"
    assert page.evaluate("document.activeElement.id") == "key"
    page.type(KEY)
    page.press("Tab", 9)
    assert page.wait("document.getElementById('model').value") == NAME
    assert page.evaluate("document.getElementById('error').hidden")

    page.evaluate("document.getElementById('temperature').value = 0, document.getElementById('question').focus()")
    page.type("What is 12 plus 30?")
    page.press(*ENTER)
    page.wait(f"{ANSWERED} 1")
    first = model.chat([{"role": "user", "content": "What is 12 plus 30?"}]).content
    assert page.evaluate("document.querySelector('article.assistant .text').textContent") == first
    assert re.fullmatch(r"\d+ tokens · [\d.]+ tokens/s", page.evaluate("document.querySelector('.figures').innerText"))

    said = "<img src=x onerror=alert(1)>"
    page.type(said)
    page.evaluate("document.getElementById('send').click()")
    page.wait(f"{ANSWERED} 2")
    talk = [("user", "What is 12 plus 30?"), ("assistant", first), ("user", said)]
    second = model.chat([{"role": role, "content": content} for role, content in talk]).content
    assert page.evaluate("document.querySelectorAll('article.assistant .text')[1].textContent") == second
    assert page.evaluate("document.querySelectorAll('img').length") == 0

    page.evaluate("document.getElementById('new').click()")
    assert page.evaluate("document.querySelectorAll('article').length") == 0
    assert page.evaluate("document.activeElement.id") == "question"
    assert not [problem for problem in page.problems if "401" not in problem]


def test_escape_stops(page: Page, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = model.submit_chat
    monkeypatch.setattr(
        model, "submit_chat", lambda messages, **asked: submit(messages, **{**asked, "ignore_eos": True})
    )
    page.evaluate(f"sessionStorage.setItem('key', '{KEY}'), location.reload()")
    page.wait("document.getElementById('model')?.value")
    page.evaluate("document.getElementById('question').focus()")
    page.type("Tell me a story.")
    page.press(*ENTER)
    page.wait("document.querySelector('article.running .text')?.textContent.length > 5")
    page.press(*ESCAPE)
    page.wait(f"{ANSWERED} 1")
    assert page.evaluate("document.querySelector('.figures').innerText").endswith("· stopped")


def test_everything_has_a_name(page: Page) -> None:
    page.evaluate("document.getElementById('settings').open = true")
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    controls = {"button", "combobox", "spinbutton", "textbox"}
    names = [
        node["name"]["value"] for node in nodes if not node["ignored"] and node["role"]["value"] in controls
    ]  # fmt: skip
    assert {"Message", "Model", "Send", "New chat", "API key", "Temperature"} <= set(names) and all(names)


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2.2) of `#rrggbb`."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(dark: bool) -> None:
    """WCAG's AA: 4.5 between texts and what is behind them, 3 for edges of controls."""
    palettes = re.findall(r":root \{(.*?)\}", source(), re.DOTALL)
    colors = dict(re.findall(r"--([\w-]+): (#\w{6})", palettes[dark]))
    texts = [(text, back) for text in ("text", "soft") for back in ("page", "card")]
    texts += [("text", "mine"), ("on-accent", "accent"), ("bad", "bad-back")]
    pairs = [(*pair, 4.5) for pair in texts] + [("edge", back, 3.0) for back in ("page", "card")]
    for front, back, least in pairs:
        lighter, darker = sorted((luminance(colors[front]), luminance(colors[back])), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= least, (front, back)


def test_the_policy(address: str) -> None:
    answer = httpx.get(f"{address}/")
    told = answer.headers["content-security-policy"]
    assert answer.status_code == 200 and told == policy(answer.text)
    assert "unsafe" not in told and told.startswith("default-src 'none';")
    assert "innerHTML" not in answer.text and not re.search(r"(src|href)=\"(?!#)", answer.text)


def test_code_that_is_not_the_page_s_is_not_run(address: str, tmp_path: Path) -> None:
    with opened(f"{address}/", tmp_path / "profile") as page:
        page.evaluate(
            "document.head.append(Object.assign(document.createElement('script'), { textContent: 'window.taken = 1' }))"
        )
        assert page.evaluate("window.taken === undefined")
        assert any("Content Security Policy" in problem for problem in page.problems)
