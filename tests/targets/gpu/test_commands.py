"""The commands on an artifact for a GPU."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepzig.cli import main
from deepzig.runtime import first_token
from deepzig.runtime.bench import cli as bench
from deepzig.runtime.child import Usage

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Words of the command line -> exit code, output, errors."""

    def run(*words: object) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture
def kind(gpu_folder: Path) -> str:
    return gpu_folder.name


def edit(folder: Path, **memory: int) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "memory": memory}))


def test_bench(cli: Cli, gpu_folder: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the CPU is measured; shares are of what the GPU's memory can give, where that is known."""
    started = []

    def measured(command: list[str]) -> Usage:
        started.append(command)
        return Usage(1.5, 1.25, 3_000_000, 2_000_000)

    monkeypatch.setattr(bench, "measure", measured)
    edit(gpu_folder, weights_bytes=6_724, active_bytes_per_token=164, active_params_per_token=41)
    small = ("--batch", "1,3", "--depth", "0,9", "--prompt", "17", "--tokens", "3", "--rounds", "2", "--threads", "2")
    code, out, err = cli("bench", gpu_folder, *small, "--device", kind, "--json", "--profile", tmp_path)
    assert (code, err) == (0, "")
    found, cuda = json.loads(out), kind == "cuda"
    told = found["machine"]
    assert (told["device"], told["gpu"]) == (f"{kind}:0", "software" if cuda else "the GPU of this Mac")
    assert (told["gpu_memory_bytes"], told["bandwidth_bytes_per_second"]) == ((1 << 34, 2e11) if cuda else (None, None))
    assert told["gemm_flops_per_second"] is None and found["complete"]
    assert [d["share_of_bandwidth"] is not None for d in found["decode"]] == [cuda, False, cuda, False]
    assert started == 2 * [first_token.command(gpu_folder, 2, f"{kind}:0")]
    ops = {row["name"] for part in found["profile"] for row in part["ops"]}
    assert ops == {"write", "state", "head", "sample"}
    code, out, _ = cli("bench", gpu_folder, *small)
    assert code == 0 and out.startswith(f"{gpu_folder}: build {kind}, {kind}:0, {told['gpu']}; medians of 2 rounds\n")
    assert ("memory of the GPU gives               200 GB/s" in out) == cuda and "f32 product by" not in out


def test_inspect(cli: Cli, gpu_folder: Path, kind: str) -> None:
    """The memory is the GPU's, unless it is that of the CPU too."""
    edit(
        gpu_folder, weights_bytes=1 << 33, cache_bytes_per_token=1 << 20, workspace_bytes=1 << 20,
        active_bytes_per_token=1 << 20, active_params_per_token=99,
    )  # fmt: skip
    code, out, err = cli("inspect", gpu_folder, "--json", "--ram", "16GiB", "--no-measure")
    assert (code, err) == (0, "")
    facts, cuda = json.loads(out), kind == "cuda"
    assert facts["verdict"] == {"runs": True, "what": f"build {kind} on {kind}:0", "mend": ""}
    assert facts["here"]["gpu"] == ("software" if cuda else "the GPU of this Mac")
    (build,) = facts["builds"]
    assert (build["device"], build["runs"], build["chosen"], build["why"]) == (kind, True, True, "")
    assert (facts["memory"]["device"], facts["memory"]["process"]) == (f"{kind}:0", 0)
    assert facts["memory"]["ram"] == 16 << 30 and facts["memory"]["cache_tokens"] == (1 << 13) - 4
    assert facts["reading"]["bandwidth"] == (2e11 if cuda else None)
    _, out, _ = cli("inspect", gpu_folder)
    assert re.search(rf"  weights +8\S* GiB +copied to {kind}:0\n", out) and "Python and its libraries" not in out
    assert ("the memory of software gives 200.0 GB/s, so at most:" in out) == cuda
    if cuda:
        assert re.search(r"  fits in 16\S* GiB: the whole context", out)
        _, out, _ = cli("inspect", gpu_folder, "--device", "cuda:1", "--no-measure")
        assert "  runs here: no, there is one GPU\n  fix: choose cuda:0\n" in out
        assert "no: there is one GPU" not in out and "mapped from the artifact" in out
    _, out, _ = cli("inspect", gpu_folder, "--device", "cpu", "--no-measure")
    assert f"  runs here: no, the artifact is for the device {kind}, not for cpu\n" in out


@pytest.mark.parametrize("command", [("run", "PROMPT"), ("chat",), ("verify",), ("bench",)])
def test_the_device_is_checked(command: tuple[str, ...], cli: Cli, gpu_folder: Path, kind: str) -> None:
    name, *rest = command
    code, out, err = cli(name, gpu_folder, *rest, "--device", "cpu")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: the artifact is for the device {kind}, not for cpu\n  at: {gpu_folder}\n")
    assert err.splitlines()[2].startswith("  fix: deepzig-compile gpu --target llvm:cpu=")
    code, out, err = cli(name, gpu_folder, *rest, "--device", "gpu")
    assert (code, out) == (2, "") and err.startswith("error: there is no device 'gpu'\n")


def test_a_run(cli: Cli, gpu_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no tokenizer, so what is asked of it can't be told; but that it was loaded can."""
    code, _, err = cli("run", gpu_folder, "hello", "--device", gpu_folder.name)
    assert code == 2 and err.startswith("error: the artifact has no tokenizer\n")


def test_all_builds(gpu_folder: Path, kind: str) -> None:
    """`verify --all-builds` takes those that run here, each on its device."""
    from dataclasses import replace

    from deepzig.artifacts.cpu_features import this_machine
    from deepzig.artifacts.devices import HOST, Device
    from deepzig.artifacts.reader import open_artifact
    from deepzig.runtime.verify import runnable

    opened = open_artifact(gpu_folder)
    (build,) = opened.manifest.builds
    plain, old = replace(build, name="plain", device="cpu"), replace(build, name="old", features=frozenset({"sm_75"}))
    manifest: Any = replace(opened.manifest, builds=(build, plain, old))
    found = [(one.build.name, one.device) for one in runnable(replace(opened, manifest=manifest), this_machine())]
    assert found[:2] == [(kind, Device(kind)), ("plain", HOST)]
    # metal has no architectures; code for sm_75 runs on 8.6 no more than the driver would
    assert [name for name, _ in found[2:]] == ([] if kind == "cuda" else ["old"])
