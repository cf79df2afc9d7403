"""`deepzig inspect`: what it prints and writes, for real artifacts, foreign and hostile ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from deepzig.artifacts.pack import pack
from deepzig.cli import main
from deepzig.runtime.inspect import inspect_artifact
from deepzig.runtime.inspect.text import WIDTH, printable

from ...artifacts import made


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in this process: words -> (exit code, output, errors)."""

    def run(*words: object) -> tuple[int, str, str]:
        code = 0
        try:
            main(["inspect", *map(str, words)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_text(cli: Any, artifact: Path) -> None:
    code, out, err = cli(artifact, "--ram", "2GiB")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "checkpoint" and lines[2] == "  runs here: yes, build native"
    titles = [line.split("(")[0].strip() for line in lines if line[:1].isupper()]
    assert titles == [
        "Builds", "Memory", "Speed, one sequence", "Layers", "Entry points",
        "Kernels of native, and how often each entry point calls them", "Passes", "Versions", "Parts",
    ]  # fmt: skip
    assert "  fits in 2.00 GiB: the whole context of 1,024 tokens" in out and "\x1b" not in out
    assert not [line for line in lines if line != line.rstrip()]
    assert lines[lines.index("Layers") + 1 :][:2] == ["  dense  1 alike  0", "  MoE    1 alike  1"]
    assert max(map(len, lines)) < 1.8 * WIDTH


def test_text_without_measuring_where_it_does_not_fit(cli: Any, artifact: Path) -> None:
    code, out, _ = cli(artifact, "--ram", "9MB", "--no-measure")
    assert code == 0 and "  not measured\n" in out and "tokens/s" not in out
    assert "  does not fit in 8.58 MiB: " in out and out.count("are needed before the first token\n") == 1


def test_json(cli: Any, artifact: Path) -> None:
    code, out, err = cli(artifact, "--json", "--no-measure", "--ram", "1GiB")
    facts, _ = inspect_artifact(artifact, 1 << 30)
    assert (code, err) == (0, "") and json.loads(out) == json.loads(json.dumps(facts.to_json()))
    memory = json.loads(out)["memory"]
    assert sum(memory["weights_by_kind"].values()) == memory["weights"]
    assert json.loads(cli(artifact, "--json")[1])["reading"]["bandwidth"] > 1e8


def test_html(cli: Any, artifact: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert cli(artifact, "--html", page, "--no-measure") == (0, "", f"wrote {page}\n")
    first = page.read_text()
    assert first.startswith("<!doctype html>") and "checkpoint: DeepZig artifact" in first
    code, out, _ = cli(artifact, "--html", page, "--json", "--no-measure")
    assert code == 0 and json.loads(out)["model"]["name"] == "checkpoint" and page.read_text() == first
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_a_page_that_cannot_be_written(cli: Any, artifact: Path, tmp_path: Path) -> None:
    fix = "  fix: choose another place with --html\n"
    for place, why in ((tmp_path, "Is a directory"), (tmp_path / "no" / "page.html", "No such file or directory")):
        want = f"error: the page can't be written: {why}\n  at: {place}\n{fix}"
        assert cli(artifact, "--no-measure", "--html", place) == (2, "", want)
    assert not list(tmp_path.iterdir())
    assert not [p for p in tmp_path.parent.iterdir() if p.name.startswith(f".{tmp_path.name}")]


@pytest.mark.parametrize("text", ["16 cats", "0", "GiB", "-1GiB"])
def test_no_amount_of_memory(text: str, cli: Any, artifact: Path) -> None:
    want = f"error: {text!r} is no amount of memory\n  at: --ram\n  fix: write it like 16GiB or 800MB\n"
    assert cli(artifact, "--ram", text) == (2, "", want)


def test_errors_are_three_lines(cli: Any, artifact: Path, tmp_path: Path) -> None:
    assert cli(tmp_path) == (
        2, "", f"error: there is no artifact\n  at: {tmp_path}\n  fix: make one with deepzig-compile\n"
    )  # fmt: skip
    shutil.copytree(artifact, tmp_path / "copy")
    part = tmp_path / "copy" / "graphs.json"
    part.write_bytes(part.read_bytes()[:-2] + b" \n")
    want = "the file was changed: its SHA-256 differs from the manifest's"
    told = f"error: {want}\n  at: {part}\n  fix: copy or compile the artifact again\n"
    assert cli(tmp_path / "copy", "--no-measure") == (2, "", told)


def test_an_artifact_for_another_platform(cli: Any, artifact: Path, tmp_path: Path) -> None:
    """With all that is known of it, and why it does not run here."""
    shutil.copytree(artifact, tmp_path / "copy")
    made.edit(tmp_path / "copy", lambda m: m["builds"][0].update(platform="riscv64-plan9", features=["vector"]))
    code, out, err = cli(tmp_path / "copy", "--no-measure")
    assert (code, err) == (0, "")
    assert "\n  runs here: no, the artifact is for riscv64-plan9, this machine is " in out and "moe_h" in out
    page = tmp_path / "page.html"
    assert cli(tmp_path / "copy", "--html", page)[0] == 0 and "riscv64-plan9" in page.read_text()


def test_the_code_is_not_loaded(cli: Any, artifact: Path, tmp_path: Path) -> None:
    """Nor are weights needed: a manifest and its graphs tell all."""
    (tmp_path / "bare").mkdir()
    for name in ("manifest.json", "graphs.json"):
        shutil.copy(artifact / name, tmp_path / "bare" / name)
    assert cli(tmp_path / "bare", "--no-measure")[0] == 0


def test_a_packed_artifact(cli: Any, artifact: Path, tmp_path: Path) -> None:
    packed = tmp_path / "one.deepzig"
    pack(artifact, packed)
    folder, file = (json.loads(cli(path, "--json", "--no-measure")[1]) for path in (artifact, packed))
    assert file.pop("path") == str(packed) and folder.pop("path") == str(artifact) and file == folder
    page = tmp_path / "page.html"
    assert cli(packed, "--no-measure", "--html", page)[0] == 0 and "mla_decode" in page.read_text()


HOSTILE = "\x1b[2J\x9b1m\u202e<b>\n\r\tname"


def test_hostile_texts_stay_texts(cli: Any, tmp_path: Path) -> None:
    """Neither moves the cursor, nor begins a line, nor ends in a traceback."""
    artifact = made.write(tmp_path / "out")

    def change(m: dict[str, Any]) -> None:
        m["model"] |= {"name": HOSTILE, "dtype": HOSTILE}
        m["created_by"] = HOSTILE
        m["passes"] = [HOSTILE]
        m["abi"]["more"] = HOSTILE
        m["files"][HOSTILE] = {"size": 1, "sha256": "0" * 64}
        m["builds"][0] |= {"name": HOSTILE, "features": [HOSTILE]}
        m["builds"][0]["calls"]["decode"][0] |= {"kernel": HOSTILE, "op": HOSTILE}
        m["entry_points"][HOSTILE] = m["entry_points"]["decode"]
        m["memory"] |= {f"{HOSTILE}_bytes": 7}

    made.edit(artifact, change)
    code, out, err = cli(artifact, "--no-measure")
    assert (code, err) == (0, "")
    assert out.count(r"\x1b[2J\x9b1m\u202e<b>\n\r\tname") > 9
    assert all(c.isprintable() or c == "\n" for c in out) and "\nname" not in out
    assert cli(artifact, "--no-measure", "--json")[0] == 0
    assert cli(artifact, "--no-measure", "--html", tmp_path / "page.html")[0] == 0


def test_printable() -> None:
    assert printable("a\nü→\t\x00\x7f\u2028\U000e0001") == r"a" "\n" r"ü→\t\x00\x7f\u2028\U000e0001"
