"""What the prose promises is there: make targets, commands, options, extras, files; and the example runs."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from deepzig import cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("artifacts/*.md")])

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = [*(f"deepzig {name}" for name in cli.COMMANDS if name != "keys"), "deepzig keys add", "deepzig-compile"]
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def blocks(text: str, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(text) if found == language]


def commands(*names: str) -> list[list[str]]:
    """Shell lines of all pages, as words, that begin with one of the names (after an assignment)."""
    joined = [block.replace("\\\n", "") for page in PAGES for block in blocks(page.read_text(), "sh")]
    lines = [line for block in joined for line in block.splitlines()]
    split = [shlex.split(line, comments=True) for line in lines]
    bare = [[w for i, w in enumerate(words) if i or "=" not in w] for words in split]
    return [words for words in bare if words and words[0] in names]


def section(title: str) -> str:
    return (ROOT / "README.md").read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def run(*command: object, cwd: Path) -> str:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env={**os.environ, "PATH": path})
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_make_targets_exist() -> None:
    listed = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    in_blocks = {word for words in commands("make") for word in words[1:]}
    in_prose = {name for page in PAGES for name in re.findall(r"`make ([a-z-]+)`", page.read_text())}
    assert in_blocks | in_prose <= listed


def test_make_help_lists_every_target() -> None:
    listed = set(re.findall(r"^  make ([a-z-]+)", run("make", cwd=ROOT), re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None and listed == set(phony[1].split())


@pytest.mark.parametrize("name", COMMANDS)
def test_options_exist(name: str) -> None:
    program, *rest = name.split()
    known = run(program, *rest, "--help", cwd=ROOT)
    used = [words[1 + len(rest) :] for words in commands(program) if words[1 : 1 + len(rest)] == rest]
    options = {word for words in used for word in words if word.startswith("-")}
    assert not [option for option in options if not re.search(rf"(?<!\S){re.escape(option)}\b", known)]


def test_subcommands_exist() -> None:
    known = run("deepzig", "--help", cwd=ROOT)
    in_prose = {n for page in PAGES for n in re.findall(r"`deepzig ([a-z]+)", page.read_text())}
    assert not [name for name in in_prose if not re.search(rf"^  {name}\b", known, re.MULTILINE)]


def test_extras_exist() -> None:
    lists = [found for page in PAGES for found in re.findall(r"install '\.\[([\w,]+)\]'", page.read_text())]
    named = {extra for found in lists for extra in found.split(",")}
    assert named
    assert not [extra for extra in named if f"\n{extra} = [" not in (ROOT / "pyproject.toml").read_text()]


def test_the_readme_tells_of_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    told = re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\| (`.*?) \|", section("Install"), re.MULTILINE)))
    assert set(told) == set(extras) - {"dev"}


def test_modules_exist() -> None:
    named = {words[2] for words in commands("python") if words[1] == "-m"}
    assert all(find_spec(module) for module in named)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = [t for t in LINK.findall(page.read_text()) if "://" not in t]
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_python_blocks_parse() -> None:
    for page in PAGES:
        for block in blocks(page.read_text(), "python"):
            ast.parse(block)


def test_the_program_of_the_onnx_page_runs(tmp_path: Path) -> None:
    """With nothing of ours, it says what `deepzig run` says."""
    run("deepzig-compile", ROOT / "models" / "reference", "--onnx", tmp_path / "out" / "model.onnx", cwd=tmp_path)
    (program,) = blocks((ROOT / "docs" / "onnx.md").read_text(), "python")
    words = ("out/model.onnx", "One day, Finn", "--max-tokens", "16", "--ignore-eos")
    assert run(sys.executable, "-c", program, cwd=tmp_path) == run("deepzig", "run", *words, cwd=tmp_path)


def test_the_program_of_the_engine_page_runs(tmp_path: Path) -> None:
    run("deepzig-compile", "reference", "-o", tmp_path / "artifact", cwd=tmp_path)
    first, *others = blocks((ROOT / "docs" / "engine.md").read_text(), "python")
    told = run(sys.executable, "-c", "\n".join([first, *others]), cwd=tmp_path)
    assert "42" in told and "pmal stop" in told


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    """The section "Use", from a checkpoint to Python, beside the models; then its look at the IR, and the session."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    for block in [*blocks(section("Use"), "sh"), *blocks(section("How it works"), "sh")]:
        run("bash", "-euc", block, cwd=tmp_path)
    assert list((tmp_path / "ir").glob("*.ir"))
    asked = re.findall(r"^> (.*)\n(.*)$", blocks(section("Try it"), "")[0], re.MULTILINE)
    assert len(asked) >= 3
    for question, answer in asked:
        assert run("bash", "-c", f"deepzig chat artifact <<< {shlex.quote(question)}", cwd=tmp_path) == f"{answer}\n"
    program = "\n".join(blocks(section("Use"), "python"))
    assert run(sys.executable, "-c", program, cwd=tmp_path).strip()
