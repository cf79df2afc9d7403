"""`deepzig run` and `deepzig chat`: what they print, where, and how they end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepzig.cli import main
from deepzig.runtime import Model

SHORT = ("--max-tokens", "6", "--ignore-eos")


def test_run_prints_the_text_as_it_comes(cli: Any, artifact: Path, model: Model) -> None:
    want = model.generate("The quick", max_tokens=6, ignore_eos=True).text
    assert cli("run", artifact, "The quick", *SHORT) == (0, want + "\n", "")
    assert cli("run", artifact, "-", *SHORT, stdin="The quick") == (0, want + "\n", "")


def test_run_json(cli: Any, artifact: Path, model: Model) -> None:
    options: dict[str, Any] = {
        "max_tokens": 6, "temperature": 0.8, "seed": 7, "top_k": 90, "top_p": 0.95, "min_p": 0.01
    }  # fmt: skip
    words = [w for name, value in options.items() for w in (f"--{name.replace('_', '-')}", value)]
    code, out, errors = cli("run", artifact, "The quick", "--json", *words)
    result = model.generate("The quick", **options)
    assert (code, errors) == (0, "") and json.loads(out) == {
        "text": result.text, "token_ids": list(result.token_ids), "finish_reason": result.finish_reason,
        "logprobs": None, "prompt_tokens": result.prompt_tokens, "cached_tokens": 0, "guessed_tokens": 0,
        "accepted_tokens": 0,
    }  # fmt: skip


def test_run_stats(cli: Any, artifact: Path) -> None:
    code, out, errors = cli("run", artifact, "x", "--stats", *SHORT)
    assert code == 0 and out.endswith("\n")
    words = errors.split()
    assert errors.startswith("loaded in ") and errors.endswith(" tokens/s\n") and float(words[2]) > 0
    assert float(words[-2]) > 0


def test_run_stop(cli: Any, artifact: Path, model: Model) -> None:
    text = model.generate("The quick", max_tokens=12, ignore_eos=True).text
    stop = text[3:5]
    want = text[: text.index(stop)]
    stops = ("--stop", stop, "--stop", "\x01")
    assert cli("run", artifact, "The quick", "--max-tokens", "12", "--ignore-eos", *stops) == (0, want + "\n", "")


def test_options_from_the_environment(cli: Any, artifact: Path, model: Model) -> None:
    want = model.generate("hi", max_tokens=3, temperature=1.5, seed=4, ignore_eos=True).text
    given = {
        "DEEPZIG_MAX_TOKENS": "3", "DEEPZIG_TEMPERATURE": "1.5", "DEEPZIG_SEED": "4", "DEEPZIG_IGNORE_EOS": "1",
        "DEEPZIG_THREADS": "2", "DEEPZIG_CACHE_TOKENS": "100",
    }  # fmt: skip
    assert cli("run", artifact, "hi", **given) == (0, want + "\n", "")
    code, _, errors = cli("run", artifact, "hi", DEEPZIG_CACHE_TOKENS="16", DEEPZIG_MAX_TOKENS="2")
    assert (code, errors) == (0, "")
    code, out, errors = cli("run", artifact, "hi", DEEPZIG_THREADS="none")
    assert (code, out) == (2, "") and "--threads" in errors


def test_errors_are_three_lines(cli: Any, artifact: Path, tmp_path: Path) -> None:
    want = f"error: there is no artifact\n  at: {tmp_path}\n  fix: make one with deepzig-compile\n"
    for command in (("run", tmp_path, "x"), ("chat", tmp_path)):
        assert cli(*command) == (2, "", want)
    code, out, errors = cli("run", artifact, "x" * 4000, "--cache-tokens", "32")
    assert (code, out) == (2, "") and len(errors.splitlines()) == 3 and "the prompt has" in errors


def test_usage_errors(cli: Any, artifact: Path) -> None:
    for words in (("run",), ("run", artifact, "x", "--top-p", "2"), ("run", artifact, "x", "--max-tokens", "0")):
        code, out, errors = cli(*words)
        assert (code, out) == (2, "") and errors.startswith("Usage: ")


def test_a_traceback_if_asked(artifact: Path, tmp_path: Path) -> None:
    from deepzig.errors import DeepZigError

    with pytest.raises(DeepZigError):
        main(["run", str(tmp_path), "x", "--traceback"])


def test_chat_over_a_pipe(cli: Any, artifact: Path, model: Model) -> None:
    """Each line is a message, each answer a line; what was said before counts until /reset."""

    def answer(*said: str) -> str:
        roles = ["user", "assistant"]
        messages = [{"role": "system", "content": "be brief"}]
        messages += [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
        return model.generate(messages, max_tokens=6, ignore_eos=True).text

    first = answer("hello")
    second = answer("hello", first, "and you?")
    lines = "hello\n\nand you?\n/reset\nhello\n"
    want = f"{first}\n{second}\n{first}\n"
    assert cli("chat", artifact, "--system", "be brief", *SHORT, stdin=lines) == (0, want, "")
    assert cli("chat", artifact, "--system", "be brief", *SHORT, stdin=lines + "/exit\nhello\n") == (0, want, "")


def test_chat_without_a_template(cli: Any, artifact: Path, tmp_path: Path) -> None:
    import hashlib
    import shutil

    shutil.copytree(artifact, tmp_path / "copy")
    config = tmp_path / "copy" / "tokenizer_config.json"
    config.write_text("{}")
    manifest = json.loads((tmp_path / "copy" / "manifest.json").read_text())
    digest = hashlib.sha256(b"{}").hexdigest()
    manifest["files"]["tokenizer_config.json"] = {"size": 2, "sha256": digest}
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps(manifest))
    assert cli("chat", tmp_path / "copy", stdin="hello\n") == (
        2,
        "",
        f"error: the model has no chat template\n  at: {tmp_path}/copy\n"
        "  fix: give a text or token ids instead of messages\n",
    )


def test_an_interrupt_ends_with_130(artifact: Path) -> None:
    """Ctrl-C while text comes."""
    command = [Path(sys.executable).parent / "deepzig", "run", artifact, "hi", "--ignore-eos", "--max-tokens", "900"]
    with subprocess.Popen(
        [str(w) for w in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        errors = process.stderr.read()
        assert process.wait(30) == 130 and "Traceback" not in errors


def test_a_reader_that_goes_away(artifact: Path) -> None:
    """`deepzig run ... | head -c 1` says nothing on the standard error."""
    program = Path(sys.executable).parent / "deepzig"
    done = subprocess.run(
        f"'{program}' run '{artifact}' hi --ignore-eos --max-tokens 900 | head -c 1",
        shell=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
