"""The demo page in headless Chromium: it loads, answers, and does so again without a server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .browser import in_browser
from .javascript import WEB

DEMO = WEB / "demo"


@pytest.fixture
def root(artifact: Path, packages: Path, tmp_path: Path) -> Path:
    """A folder with the page in `demo`."""
    shutil.copytree(artifact, tmp_path / "root" / "demo" / "wasm")
    subprocess.run([sys.executable, DEMO / "build.py", tmp_path / "root" / "demo"], check=True)
    return tmp_path / "root"


DRIVE = """
    const frame = document.createElement("iframe");
    const at = (id) => frame.contentDocument?.getElementById(id);
    const until = async (check) => {
      while (!check()) {
        if (at("error")?.textContent) throw new Error(at("error").textContent);
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    };
    const opened = () => until(() => at("state")?.textContent === "Ready");
    const ask = async (question) => {
      at("question").value = question;
      at("form").requestSubmit();
      await until(() => at("stop").hidden === false);
      await until(() => at("stop").hidden);
      return at("log").lastElementChild.lastElementChild.textContent;
    };
    frame.src = "demo/";
    document.body.append(frame);
"""


def test_it_answers_and_works_offline(root: Path, tmp_path: Path) -> None:
    told = in_browser(root, tmp_path / "profile", f"""
        {DRIVE}
        export default async function () {{
          await opened();
          const answers = [await ask("What is 12 plus 30?"), await ask("Reverse the word lamp.")];
          const measured = ["speed", "first", "memory"].map((id) => at(id).textContent);
          await until(() => at("offline").textContent === "works");
          await fetch("/stop", {{ method: "POST" }});
          const gone = await fetch("test.html").then(() => false, () => true);
          frame.contentWindow.location.reload();
          await until(() => at("log")?.childElementCount === 0);
          await opened();
          answers.push(await ask("Reverse the word lamp."));
          const assets = frame.contentWindow.performance.getEntriesByType("resource").map(({{ name }}) => name);
          return {{ answers, measured, gone, outside: assets.filter((name) => !name.startsWith(location.origin)) }};
        }}
    """)  # fmt: skip
    assert told["answers"] == ["2+0=2, 1+3=4: 42", "pmal", "pmal"]
    assert told["gone"] and told["outside"] == []
    patterns = (r"[1-9]\d* tokens/s", r"[1-9]\d* ms", r"[1-9]\d\.\d MB")
    assert all(re.fullmatch(*both) for both in zip(patterns, told["measured"], strict=True)), told["measured"]


def test_what_it_tells(root: Path, tmp_path: Path) -> None:
    """An answer is stopped; what was said is told in words; everything that one can use has a name; errors show."""
    told = in_browser(root, tmp_path / "profile", f"""
        {DRIVE}
        export default async function () {{
          await opened();
          const named = [...frame.contentDocument.querySelectorAll("button, input, select, progress, ol")].map((one) =>
            one.textContent.trim() || one.labels?.[0]?.textContent.trim() || one.getAttribute("aria-label") ||
            frame.contentDocument.getElementById(one.getAttribute("aria-labelledby"))?.textContent);
          const answer = await ask("Which is larger, 41 or 14?");
          const said = at("said").textContent;
          at("question").value = "Write a story with Ben, a black cat and the farm.";
          at("form").requestSubmit();
          at("stop").click();
          await until(() => at("stop").hidden);
          const cut = at("log").lastElementChild.classList.contains("cut");
          const focused = frame.contentDocument.activeElement.id;
          await until(() => at("offline").textContent === "works");
          await caches.delete("deepzig"); // the model's parts
          await fetch("/stop", {{ method: "POST" }});
          at("device").dispatchEvent(new Event("change"));
          await until(() => at("error").textContent);
          const error = at("error").textContent;
          const unnamed = named.filter((name) => !name).length;
          return {{ unnamed, count: named.length, answer, said, cut, focused, error }};
        }}
    """)  # fmt: skip
    assert told["answer"] == told["said"] == "41" and told["cut"] and told["focused"] == "question"
    assert told["unnamed"] == 0 and told["count"] >= 9
    assert told["error"] == (
        "a part can't be fetched: Failed to fetch\n"
        "To mend it: check the connection, and that the server may be asked from here"
    )


@pytest.mark.slow
def test_it_runs_on_webgpu(root: Path, gpu_artifact: Path, tmp_path: Path) -> None:
    """Where the page has an artifact for it; WebAssembly comes first."""
    shutil.copytree(gpu_artifact, root / "demo" / "webgpu")
    subprocess.run([sys.executable, DEMO / "build.py", root / "demo"], check=True)
    told = in_browser(root, tmp_path / "profile", f"""
        {DRIVE}
        export default async function () {{
          await opened();
          const [first, other] = [...at("device").options].map((one) => one.label + (one.disabled ? "?" : ""));
          at("device").selectedIndex = 1;
          at("device").dispatchEvent(new Event("change"));
          await until(() => at("state").textContent !== "Ready");
          await opened();
          return [first, other, await ask("Reverse the word lamp.")];
        }}
    """, 400)  # fmt: skip
    assert told == ["WebAssembly", "WebGPU", "pmal"]


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme: str) -> None:
    """Texts have at least 4.5 to 1 (level AA), in both colour schemes."""
    light, dark = re.findall(r":root \{(.*?)\}", (DEMO / "style.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", light if scheme == "light" else dark))
    pairs = [(text, ground) for text in ("text", "quiet") for ground in ("page", "card", "own")]
    for text, ground in [*pairs, ("on-accent", "accent"), ("wrong", "page"), ("quiet", "line"), ("accent", "page")]:
        low, high = sorted((luminance(colours[text]), luminance(colours[ground])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)
