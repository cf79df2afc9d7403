"""The command `deepzig-compile`: what it prints, what it refuses, what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from deepzig.artifacts.reader import open_artifact
from deepzig.compiler import cli, driver
from deepzig.compiler.pipeline import PIPELINE, pass_names
from deepzig.errors import DeepZigError
from deepzig.ir import parse, same, show, verify
from deepzig.models.random_checkpoint import write as write_random

from ..models.folders import config, random_weights, write

COMMAND = Path(sys.executable).parent / "deepzig-compile"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("cli") / "model", random_weights(config(), 31))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.command, [str(a) for a in arguments], prog_name="deepzig-compile")


def refused(result: Result, what: str, where: str, hint: str) -> None:
    assert result.exit_code == 2
    assert result.stderr == f"error: {what}\n  at: {where}\n  fix: {hint}\n"
    assert result.stdout == ""


@pytest.fixture(scope="module")
def compiled(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Result]:
    """One compilation with everything on: artifact, dumps, result."""
    folder = tmp_path_factory.mktemp("compiled")
    result = run(model, "-o", folder / "out", "--dtype", "f32", "--dump-ir", folder / "ir", "--json")
    return folder / "out", folder / "ir", result


def test_json_is_one_object(compiled: tuple[Path, Path, Result]) -> None:
    out, _, result = compiled
    assert result.exit_code == 0 and result.stderr == ""
    report = json.loads(result.stdout)
    assert report.keys() == {"artifact", "seconds", "kernels", "weights_bytes"}
    manifest = open_artifact(out, full=True).manifest
    assert report["artifact"] == str(out)
    (build,) = manifest.builds
    assert report["kernels"] == len({call.kernel for calls in build.calls.values() for call in calls})
    assert report["weights_bytes"] == json.loads((out / "manifest.json").read_text())["memory"]["weights_bytes"]
    assert 0 < report["weights_bytes"] < sum(e.size for e in manifest.files.values())


def test_dumps_are_numbered_and_round_trip(compiled: tuple[Path, Path, Result]) -> None:
    files = sorted(compiled[1].iterdir())
    passes = [*(p.__name__ for p in PIPELINE), "hoist_weights"]
    assert [f.name for f in files] == [f"{i:02}-{name}.ir" for i, name in enumerate(["trace", *passes])]
    texts = [f.read_text() for f in files]
    for text in texts:
        module = parse(text)
        verify(module)
        assert show(module) == text
    assert len(set(texts)) >= len(texts) - 4, "most passes change this model"
    assert "mla_decode" in texts[-1] and "mla_decode" not in texts[0]


def test_a_dump_that_can_not_be_written(model: Path, tmp_path: Path) -> None:
    (tmp_path / "ir").write_text("a file")
    result = run(model, "--stop-after", "fuse_mla", "--dump-ir", tmp_path / "ir")
    refused(result, "the IR can't be written: File exists", str(tmp_path / "ir"), "name another folder with --dump-ir")


@pytest.mark.parametrize("name", pass_names())
def test_stop_after_prints_ir_that_parses(name: str, model: Path, tmp_path: Path) -> None:
    result = run(model, "--stop-after", name, "--dump-ir", tmp_path)
    assert result.exit_code == 0
    module = parse(result.stdout)
    verify(module)
    last = sorted(tmp_path.iterdir())[-1]
    assert last.name.endswith(f"-{name}.ir") and same(module, parse(last.read_text()))


def test_fuse_limit_counts_rewrites(model: Path) -> None:
    def nodes(*options: object) -> list[str]:
        result = run(model, "--stop-after", "fuse_residual_into_moe", *options)
        return [n.op.name for n in parse(result.stdout).graph("decode").nodes]

    none, one, free = nodes("--fuse-limit", 0), nodes("--fuse-limit", 1), nodes()
    assert "router" not in none and "router" in free
    assert len(free) < len(one) < len(none) or one.count("router") == 0  # the first rewrite is in `prefill`
    assert none == nodes("--fuse-limit", 0)


def test_help_has_examples_and_every_option() -> None:
    text = run("--help").stdout
    assert "Examples:\n" in text and len(re.findall(r"^    deepzig-compile ", text, re.MULTILINE)) >= 3
    for parameter in cli.command.params:
        if parameter.param_type_name == "option":
            assert parameter.opts[-1] in text


@pytest.mark.parametrize(
    ("arguments", "what", "where", "hint"),
    [
        (["--target", "z80"], "no target is called 'z80'", "--target", "choose from llvm, native, amx, "),
        (["--target", "llvm:cpu=i386"], "no target is called 'i386'", "--target", "choose from llvm, native, "),
        (["--target", "x86-64-v3+native+x86-64-v3"], "the target x86-64-v3 is named twice", "--target", "name it once"),
        (["--target", "cuda:arch=sm_70"], "the target cuda has no arch 'sm_70'", "--target", "choose from sm_80, "),
        (["--dtype", "int3"], "no dtype is called 'int3'", "--dtype", "choose from f32, bf16, f16"),
        (["--stop-after", "fly"], "no pass is called 'fly'", "--stop-after", "choose from eliminate_dead, fuse_router"),
        (["-o", ""], "there is nowhere to write the artifact", "--output", "name a folder with -o DIR"),
    ],
)
def test_options_that_are_wrong(
    arguments: list[str], what: str, where: str, hint: str, model: Path, tmp_path: Path
) -> None:
    output = [] if arguments[0] == "-o" else ["-o", str(tmp_path / "out")]
    result = run(model, *output, *(arguments if output else []))
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith(f"error: {what}\n  at: {where}\n  fix: {hint}")
    assert len(result.stderr.splitlines()) == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "value"), [("--chunk", "63"), ("--chunk", "4097"), ("--fuse-limit", "-1")])
def test_numbers_out_of_range(name: str, value: str, model: Path) -> None:
    result = run(model, name, value)
    assert result.exit_code == 2 and f"Invalid value for '{name}': {value} is not in the range" in result.stderr


def test_what_is_no_checkpoint(tmp_path: Path, compiled: tuple[Path, Path, Result]) -> None:
    artifact = compiled[0]
    result = run(artifact, "-o", tmp_path / "out")
    refused(result, "the folder is an artifact, compiled already", str(artifact), f"run it: deepzig run {artifact}")
    assert not list(tmp_path.iterdir())


def test_output_that_is_taken(model: Path, tmp_path: Path, compiled: tuple[Path, Path, Result]) -> None:
    """Nothing but an artifact is ever replaced, and that only when asked."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    hint = "choose another folder; only an artifact is ever replaced"
    for force in ([], ["--force"]):
        result = run(model, "-o", tmp_path / "thesis", *force)
        refused(result, "the output folder is not empty", str(tmp_path / "thesis"), hint)
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]
    hint = "choose another folder, or replace it with --force"
    refused(run(model, "-o", compiled[0]), "the output folder is not empty", str(compiled[0]), hint)


def test_traceback_raises(tmp_path: Path) -> None:
    result = run(tmp_path, "-o", tmp_path / "out", "--traceback")
    assert isinstance(result.exception, DeepZigError) and result.stderr == ""


@pytest.mark.parametrize(
    ("variable", "value", "check"),
    [
        ("DEEPZIG_DTYPE", "int3", lambda r: "no dtype is called 'int3'" in r.stderr),
        ("DEEPZIG_TARGET", "z80", lambda r: "no target is called 'z80'" in r.stderr),
        ("DEEPZIG_STOP_AFTER", "fuse_mla", lambda r: "mla_decode" in r.stdout),
        ("DEEPZIG_CHUNK", "1", lambda r: "'--chunk': 1 is not in the range" in r.stderr),
        ("DEEPZIG_TRACEBACK", "1", lambda r: isinstance(r.exception, DeepZigError)),
    ],
)
def test_environment_variables(
    variable: str,
    value: str,
    check: Callable[[Any], bool],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, value)
    source = tmp_path if variable == "DEEPZIG_TRACEBACK" else model
    assert check(run(source, "-o", tmp_path / "out"))


def test_an_interrupted_compilation_says_so(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "compile_model", interrupt)
    result = run(model, "-o", tmp_path / "out")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted; nothing was written\n")


def test_a_full_disk_leaves_nothing(model: Path, tmp_path: Path) -> None:
    """Files may not grow beyond 100 kB from the moment that the kernels are built, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("kernels", 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))

    try:
        with pytest.raises(DeepZigError) as error:
            driver.compile_model(model, tmp_path / "out", driver.Options(), fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.what == "the artifact can't be written: File too large"
    assert error.value.where == str(tmp_path / "out")
    assert error.value.hint == "make room and compile again"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle(number: signal.Signals, tmp_path: Path) -> None:
    write_random(tmp_path / "model", "tiny")
    (tmp_path / "out").mkdir()
    command = [str(COMMAND), str(tmp_path / "model"), "-o", str(tmp_path / "out" / "artifact")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        while not os.listdir(tmp_path / "out"):
            time.sleep(0.01)
            assert process.poll() is None
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted; nothing was written\n")
    assert not os.listdir(tmp_path / "out")


@pytest.mark.slow
def test_without_the_compiler_installed() -> None:
    script = "import sys; sys.modules['tvm'] = None; from deepzig.compiler.cli import main; main()"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    told = "the compiler is not installed\n  at: deepzig-compile\n  fix: pip install 'deepzig[compile]'"
    assert (done.returncode, done.stderr) == (2, f"error: {told}\n")
