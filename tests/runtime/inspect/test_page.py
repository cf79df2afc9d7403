"""The page: well-formed, self-contained, nothing of the data is markup; and drawn in a browser, if there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from deepzig.compiler.driver import Options, compile_model
from deepzig.models import random_checkpoint
from deepzig.models.presets import PRESETS
from deepzig.runtime.inspect import inspect_artifact
from deepzig.runtime.inspect.page import page, script_json

from ...artifacts import made
from ...artifacts.test_graphs import DATA, store

VOID = {"meta", "link", "br", "img", "input", "hr"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><script>document.title='taken'</script><!--<img src=x onerror=alert(1)>&quot;\"'`${1}"


class Document(HTMLParser):
    """Checks that every element is closed in turn, and collects elements and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.title = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        if self.open and self.open[-1] == "title":
            self.title += data


def text_of(artifact: Path) -> str:
    return page(*inspect_artifact(artifact, 1 << 30, lambda: 2e10))


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """An artifact that says something nasty wherever it can."""
    artifact = made.write(tmp_path / "out")
    data = json.loads(json.dumps(DATA).replace('"eps"', json.dumps(HOSTILE)))
    data["blocks"][0][0] |= {"op": HOSTILE, "where": HOSTILE, "outputs": [HOSTILE]}
    data["blocks"][0][0]["inputs"][1] = {"params": [HOSTILE], "type": HOSTILE}
    graph = data["graphs"]["decode"]
    graph["before"]["sections"][0] |= {"reads": [HOSTILE], "values": [HOSTILE]}
    graph["after"] = graph["before"]
    data["graphs"][HOSTILE] = graph
    store(artifact, json.dumps(data).encode())

    def change(m: dict[str, Any]) -> None:
        m["model"] |= {"name": HOSTILE, HOSTILE: HOSTILE}
        m["created_by"] = HOSTILE
        m["passes"] = [HOSTILE]
        m["files"][HOSTILE] = {"size": 1, "sha256": "0" * 64}
        m["builds"][0] |= {"name": HOSTILE}
        m["builds"][0]["calls"]["decode"][0] |= {"kernel": HOSTILE, "op": HOSTILE, "values": [HOSTILE]}
        m["entry_points"][HOSTILE] = m["entry_points"]["decode"]
        m["memory"] |= {"active_bytes_per_token": 1000, f"{HOSTILE}_bytes": 700}

    made.edit(artifact, change)
    return artifact


def test_well_formed_and_self_contained(artifact: Path) -> None:
    text = text_of(artifact)
    document = Document(text)
    assert document.title == "checkpoint: DeepZig artifact"
    tags = [tag for tag, _ in document.elements]
    assert tags.count("script") == 2 and not {"link", "img", "iframe", "object"} & set(tags)
    assert not [a for _, attributes in document.elements for a in attributes if a in ("src", "href") and a == "src"]
    policy = next(a["content"] for _, a in document.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none';")
    assert set(re.findall(r"https?://[^\s\"'<>)]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function", document.scripts[1])


def test_the_data_are_the_facts(artifact: Path) -> None:
    facts, drawing = inspect_artifact(artifact, 1 << 30, lambda: 2e10)
    data = json.loads(Document(page(facts, drawing)).scripts[0])
    assert data["facts"] == json.loads(json.dumps(facts.to_json()))
    assert drawing is not None and set(data["drawing"]["graphs"]["graphs"]) == set(facts.entry_points)
    decode = data["drawing"]["graphs"]["graphs"]["decode"]["after"]["sections"]
    moe = data["drawing"]["kernels"]["decode"][str(decode[2]["block"])][-1]
    assert [symbol.split("_")[0] for symbol in moe] == ["moe"]


def test_hostile_texts_are_data(hostile: Path) -> None:
    text = text_of(hostile)
    document = Document(text)
    assert [tag for tag, _ in document.elements].count("script") == 2
    assert document.title == f"{HOSTILE}: DeepZig artifact"
    data = json.loads(document.scripts[0])
    assert data["facts"]["model"]["name"] == HOSTILE and data["facts"]["passes"] == [HOSTILE]
    assert HOSTILE in data["drawing"]["graphs"]["graphs"] and "taken'</script>" not in text


@pytest.mark.parametrize("text", ["</script>", "<!--", "]]>", "&lt;", "\u2028", "\ud800", "ü", "{{data}}"])
def test_script_json(text: str) -> None:
    written = script_json({text: [text]})
    assert json.loads(written) == {text: [text]} and written.isascii() and not set(written) & set("<>&")


def test_names_of_places_in_the_template(tmp_path: Path) -> None:
    """A model called as a place of the template is no place."""
    artifact = made.write(tmp_path / "out")
    made.edit(artifact, lambda m: m["model"].update(name="{{data}}"))
    document = Document(text_of(artifact))
    assert document.title == "{{data}}: DeepZig artifact"
    assert json.loads(document.scripts[0])["facts"]["model"]["name"] == "{{data}}"


def test_an_artifact_without_graphs(tmp_path: Path) -> None:
    assert json.loads(Document(text_of(made.write(tmp_path / "out"))).scripts[0])["drawing"] is None


V3 = {
    **PRESETS["small"], "vocab_size": 331, "hidden_size": 40, "intermediate_size": 52, "moe_intermediate_size": 4,
    "num_hidden_layers": 61, "first_k_dense_replace": 3, "num_attention_heads": 2, "num_key_value_heads": 2,
    "q_lora_rank": 20, "kv_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 10,
    "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def v3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """61 layers in V3's pattern: 3 dense ones, 58 of 256 experts."""
    folder = tmp_path_factory.mktemp("v3")
    random_checkpoint.write(folder / "layers-61", V3)
    compile_model(folder / "layers-61", folder / "out", Options(target="x86-64-v3"))
    return folder / "out"


def drawn(text: str, folder: Path) -> tuple[str, str]:
    """The text of the page once it has drawn itself, and what its console says."""
    assert BROWSER is not None
    (folder / "page.html").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
         "--virtual-time-budget=3000", "--enable-logging=stderr", "--dump-dom", f"file://{folder / 'page.html'}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    said = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    body = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", done.stdout, flags=re.DOTALL)
    return body, said


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_in_a_browser(v3: Path, tmp_path: Path) -> None:
    body, said = drawn(text_of(v3), tmp_path)
    assert said == ""
    words = re.sub(r"<[^>]*>", " ", body)
    for want in ("layers-61", "Runs here: ", "58 × MoE", "MoE: layers 3–60", "As traced: 52 ops", "Fused: 8 ops",
                 "moe_h", "in all", "163,840 tokens"):  # fmt: skip
        assert want in words, want
    assert [body.count(f'class="{name}"') for name in ("cell", "band", "box before", "box after")] == [63, 8, 52, 8]
    assert body.count('class="edge') > 60 and "NaN" not in body and "undefined" not in body


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_hostile_artifact_in_a_browser(hostile: Path, tmp_path: Path) -> None:
    body, said = drawn(text_of(hostile), tmp_path)
    assert said == "" and "<title>taken" not in body and "<img" not in body
    assert "onerror=alert" in body  # as a text


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_little_is_known_in_a_browser(tmp_path: Path) -> None:
    """An artifact without graphs and without a memory plan, for another platform, on a machine of unknown memory."""
    artifact = made.write(tmp_path / "out")
    made.edit(artifact, lambda m: m["builds"][0].update(platform="riscv64-plan9"))
    facts, drawing = inspect_artifact(artifact)
    memory = replace(facts.memory, ram=None, largest_context=None, cache_tokens=None)
    body, said = drawn(page(replace(facts, memory=memory), drawing), tmp_path)
    words = re.sub(r"<[^>]*>", " ", body)
    assert said == "" and "Runs here: no, the artifact is for riscv64-plan9" in words
    assert "The artifact carries no graphs." in words and "the memory here is not known" in words
    assert "NaN" not in words and "undefined" not in words and "null" not in words


@pytest.mark.slow
def test_the_page_of_61_layers_is_small(v3: Path) -> None:
    assert len(text_of(v3)) < 400_000
    facts, _ = inspect_artifact(v3)
    assert [(kind.name, len(kind.layers)) for kind in facts.layers] == [("dense", 3), ("MoE", 58)]
