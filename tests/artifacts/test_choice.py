"""Which build is taken, and for which device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deepzig.artifacts import choice
from deepzig.artifacts.choice import choose, find_gpu, obstacle
from deepzig.artifacts.devices import HOST, Device, Gpu
from deepzig.artifacts.machines import WASM, WEB, Machine
from deepzig.artifacts.manifest import Build, Manifest
from deepzig.errors import DeepZigError

from . import made

LINUX = Machine("x86_64-linux", frozenset({"avx2", "fma"}))
MAC = Machine("aarch64-macos", frozenset({"neon", "dotprod"}))
PATH = Path("somewhere")


def build(name: str, device: str = "cuda", features: str = "", platform: str = "x86_64-linux") -> Build:
    words = frozenset(features.split())
    return Build(name, platform, "", words, f"code/{name}.so", "lib/runtime", {}, device, ("lib/more",))


def manifest(*builds: Build) -> Manifest:
    return replace(Manifest.from_json(made.manifest_json(), "test"), builds=builds)


def gpu(device: Device) -> Gpu:
    """Two GPUs of CUDA, of different age, and that of a Mac."""
    if device.kind == "metal":
        return Gpu(device, "M")
    if device.index > 1:
        raise DeepZigError("no such GPU", "here", "choose another")
    return Gpu(device, f"G{device.index}", 1 << 30, [(8, 6), (9, 0)][device.index])


def chosen(*builds: Build, device: Device | None = None, machine: Machine = LINUX) -> tuple[str, Device]:
    found = choose(manifest(*builds), machine, PATH, device, gpu)
    return found.build.name, found.device


def refusal(*builds: Build, device: Device | None = None, machine: Machine = LINUX) -> str:
    with pytest.raises(DeepZigError) as caught:
        choose(manifest(*builds), machine, PATH, device, gpu)
    return str(caught.value)


AMPERE = build("ampere", features="sm_80 ptx_80")
HOPPER = build("hopper", features="sm_90a sm_90 avx2")
PLAIN = build("plain", "cpu")


def test_webassembly_runs_everywhere() -> None:
    """Where there is nothing better, whatever instruction sets the machine has."""
    web = build("web", "cpu", "simd128", WASM)
    for machine in (LINUX, MAC):
        assert chosen(web, machine=machine) == ("web", HOST) and obstacle(web, machine) == ""
    assert chosen(web, PLAIN) == ("plain", HOST) and chosen(web, PLAIN, machine=MAC) == ("web", HOST)
    assert refusal(web, device=Device("cuda")).startswith("the artifact is for the device cpu, not for cuda\n")


def test_pages_run_everywhere() -> None:
    """On the GPU that a browser takes."""
    page = build("page", "webgpu", "", WEB)
    for machine in (LINUX, MAC):
        found = choose(manifest(page), machine, PATH)
        assert (found.build, found.device) == (page, Device("webgpu")) and obstacle(page, machine) == ""
    assert refusal(page, device=HOST) == (
        "the artifact is for the device webgpu, not for cpu\n  at: somewhere\n"
        "  fix: deepzig-compile m --target llvm:cpu=native -o DIR"
    )


def test_a_gpu_comes_before_the_cpu() -> None:
    assert chosen(PLAIN, AMPERE) == ("ampere", Device("cuda"))
    assert chosen(PLAIN, AMPERE, device=HOST) == ("plain", HOST)
    assert chosen(AMPERE, HOPPER, device=Device("cuda", 1)) == ("hopper", Device("cuda", 1))
    assert chosen(AMPERE, HOPPER) == ("ampere", Device("cuda"))


def test_the_cpu_where_there_is_no_gpu_for_it() -> None:
    assert chosen(PLAIN, HOPPER) == ("plain", HOST)
    apple = build("apple", "metal", "", "aarch64-macos")
    assert chosen(replace(PLAIN, platform="aarch64-macos"), apple, machine=MAC) == ("apple", Device("metal"))
    assert chosen(PLAIN, apple) == ("plain", HOST)


@pytest.mark.parametrize(
    ("builds", "device", "what", "where", "hint"),
    [
        ([HOPPER], None, "the artifact has code for sm_90, sm_90a, and G0 is sm_86", "somewhere, device cuda:0",
         "deepzig-compile m --target cuda:arch=sm_86 -o DIR"),
        ([build("none")], None, "the artifact has code for no GPU, and G0 is sm_86", "somewhere, device cuda:0",
         "deepzig-compile m --target cuda:arch=sm_86 -o DIR"),
        ([AMPERE], HOST, "the artifact is for the device cuda, not for cpu", "somewhere",
         "deepzig-compile m --target llvm:cpu=x86-64-v2 -o DIR"),
        ([PLAIN], Device("cuda"), "the artifact is for the device cpu, not for cuda", "somewhere",
         "deepzig-compile m --target cuda -o DIR"),
        ([AMPERE], Device("cuda", 2), "no such GPU", "here", "choose another"),
        ([build("apple", "metal", "", "aarch64-macos")], None,
         "the artifact is for aarch64-macos, this machine is x86_64-linux", "somewhere",
         "deepzig-compile m --target metal -o DIR"),
        ([build("wide", features="sm_80 avx512f avx2")], None, "this CPU lacks avx512f, which the artifact needs",
         "somewhere", "deepzig-compile m --target cuda -o DIR"),
    ],
)  # fmt: skip
def test_refusals(builds: list[Build], device: Device | None, what: str, where: str, hint: str) -> None:
    machine = Machine("x86_64-linux", frozenset({"avx2", "sse4.2"}))
    assert refusal(*builds, device=device, machine=machine) == f"{what}\n  at: {where}\n  fix: {hint}"


@pytest.mark.parametrize(
    ("one", "device", "why"),
    [
        (PLAIN, None, ""),
        (AMPERE, None, ""),
        (HOPPER, None, "G0 is sm_86"),
        (HOPPER, Device("cuda", 1), ""),
        (AMPERE, Device("cuda", 2), "no such GPU"),
        (PLAIN, Device("cuda"), "it is not for cuda:0"),
        (build("wide", features="sm_80 avx512f"), None, "this CPU lacks avx512f"),
        (build("arm", platform="aarch64-linux"), None, "this machine is x86_64-linux"),
    ],
    ids=lambda value: value.name if isinstance(value, Build) else str(value),
)
def test_obstacles(one: Build, device: Device | None, why: str) -> None:
    assert obstacle(one, LINUX, device, gpu) == why


def test_gpus_that_need_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "cuda_gpu", lambda device: gpu(device))
    assert find_gpu(Device("cuda", 1)).name == "G1"
    assert find_gpu(Device("metal")).capability is None
    with pytest.raises(DeepZigError) as caught:
        find_gpu(Device("metal", 1))
    assert str(caught.value) == "there is no device metal:1\n  at: device metal:1\n  fix: choose metal:0"
