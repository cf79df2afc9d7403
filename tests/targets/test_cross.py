"""Code for other kinds of machines: run where that can be, looked into where not."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import lief
import numpy as np
import pytest

from deepzig.artifacts.cpu_features import this_machine
from deepzig.artifacts.machines import MACHINES
from deepzig.artifacts.reader import open_artifact
from deepzig.cache import cache_folder
from deepzig.compiler import build, link, wheels
from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options
from deepzig.compiler.platforms import PLATFORMS
from deepzig.errors import DeepZigError
from deepzig.models import random_checkpoint
from deepzig.targets.cpu.features import CpuTarget

from ..runtime.conftest import BOUNDS, CONFIG

TOKENS = [5, 601, 33, 9, 250, 77, 12, 4, 1, 300, 8]
PROGRAM = f"""
import json, sys
from deepzig.runtime import load
with load(sys.argv[1], threads=2) as model:
    logits = model.logits({TOKENS})
    print(json.dumps({{"build": model.backend.artifact.build.name, "logits": logits.tolist()}}))
"""
LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4", "avx512-vnni", "avx512-bf16")
QEMU = shutil.which("qemu-aarch64-static")
PACKAGES = (
    "libbz2-1.0", "libc6", "libexpat1", "libffi8", "libgcc-s1", "liblzma5", "libpython3.11-minimal",
    "libpython3.11-stdlib", "libssl3", "libstdc++6", "libuuid1", "python3.11-minimal", "zlib1g",
)  # fmt: skip
"""Debian's Python for Arm and what it needs."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cross") / "checkpoint"
    random_checkpoint.write(folder, CONFIG)
    return folder


STORED = {
    "fp8": {"dtype": "f32", "quant": "fp8,lm_head=fp8"},
    "q8": {"dtype": "f32", "quant": "q8"},
    "bf16 and q8": {"dtype": "bf16", "quant": "q8,self_attn=float"},
}
"""What stands for more than an element type -> the options of the compiler."""


def compiled(checkpoint: Path, target: str, dtype: str = "f32") -> Path:
    out = checkpoint.parent / f"{target}-{dtype}"
    if not out.exists():
        stored = STORED.get(dtype, {"dtype": dtype})
        compile_model(checkpoint, out, Options(bounds=BOUNDS, target=target, **stored))
    return out


def logits(command: list[str], artifact: Path, env: Mapping[str, str]) -> tuple[str, np.ndarray]:
    """The build that was chosen, and what it computes, in a process of its own."""
    done = subprocess.run(
        [*command, "-c", PROGRAM, str(artifact)], capture_output=True, text=True, env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return told["build"], np.array(told["logits"])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_one_artifact_runs_the_right_code_on_every_level(checkpoint: Path) -> None:
    """The CPU's features are masked; what this one lacks is compiled and listed all the same."""
    artifact = compiled(checkpoint, "+".join(LEVELS))
    results = []
    for level in LEVELS:
        if MACHINES[level].features <= this_machine().features:
            mask = {"DEEPZIG_CPU_FEATURES": ",".join(MACHINES[level].features | {"sse4.2"})}
            chosen, values = logits([sys.executable, "-P"], artifact, mask)
            assert chosen == level
            results.append(values)
        assert open_artifact(artifact, machine=MACHINES[level]).build.name == level
    assert len(results) >= 2 and np.abs(results[0]).max() > 0
    assert all(distance(r, results[0]) <= 1e-5 for r in results)
    assert len(list((artifact / "lib").rglob("*.so"))) == 1


def test_levels_differ_in_their_instructions(checkpoint: Path) -> None:
    artifact = compiled(checkpoint, "+".join(LEVELS))
    code = {level: disassembled(artifact / "code" / f"{level}.so") for level in LEVELS}
    assert "ymm" not in code["x86-64-v2"] and "xmm" in code["x86-64-v2"]
    assert "ymm" in code["x86-64-v3"] and "zmm" not in code["x86-64-v3"] and "vfmadd" in code["x86-64-v3"]
    assert "zmm" in code["x86-64-v4"] and "vfmadd" in code["x86-64-v4"]


@pytest.mark.slow
def test_products_use_what_the_machine_has(checkpoint: Path) -> None:
    """The code that an artifact ships, of a model in bf16 whose experts have 8 bits."""
    target = "amx+avx512-bf16+avx512-vnni+aarch64-dotprod-linux"
    artifact = compiled(checkpoint, target, "bf16 and q8") / "code"
    code = {name: disassembled(artifact / f"{name}.so") for name in ("amx", "avx512-bf16", "avx512-vnni")}
    assert all(word in code["amx"] for word in ("tdpbf16ps", "tdpbssd", "ldtilecfg", "tilerelease", "vpdpbusd"))
    assert "vpdpbusd" in code["avx512-bf16"] and "vdpbf16ps" in code["avx512-bf16"]
    assert "vpdpbusd" in code["avx512-vnni"] and "vdpbf16ps" not in code["avx512-vnni"]
    assert not any("tileload" in code[name] for name in ("avx512-bf16", "avx512-vnni"))
    binary = lief.ELF.parse(str(artifact / "aarch64-dotprod-linux.so"))
    words = np.frombuffer(bytes(binary.get_section(".text").content), np.uint32)
    assert (words & 0xFFE0FC00 == 0x4E809400).any()  # sdot v.4s, v.16b, v.16b
    assert (words & 0xFFE0FC00 == 0x4E20CC00).any() or (words & 0xFFC0F400 == 0x4F801000).any()  # fmla v.4s


def disassembled(library: Path) -> str:
    tool = shutil.which("objdump")
    if tool is None:
        pytest.skip("objdump is not installed")
    return subprocess.run([tool, "-d", str(library)], capture_output=True, text=True, check=True).stdout


MACOS = {"memset", "memset_pattern16", "bzero", "__sincosf_stret", "sinf", "cosf"}
"""What code may ask of the system's library."""

BACKEND = {
    "__TVMBackendAllocWorkspace", "__TVMBackendFreeWorkspace", "__TVMBackendParallelLaunch",
    "__TVMBackendParallelBarrier",
}  # fmt: skip
"""Pointers in the code, which TVM's runtime library sets; weak, so that the system may merge them."""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_mach_o(checkpoint: Path, dtype: str) -> None:
    """For a Mac with Apple's chips, signed, since nothing else runs there.

    TVM defines conversions of halves, `__truncsfhf2` and `__extendhfsf2`, weakly in every object, and zig leaves them
    in the symbol table as libSystem's. Code uses instructions instead and never calls them: a call would need a
    binding, which is all that dyld looks up, and they have none.
    """
    artifact = compiled(checkpoint, "aarch64-macos", dtype)
    binary = lief.MachO.parse(str(artifact / "code" / "aarch64-macos.dylib")).at(0)
    assert binary.header.cpu_type == lief.MachO.Header.CPU_TYPE.ARM64
    assert binary.header.file_type == lief.MachO.Header.FILE_TYPE.DYLIB
    assert binary.build_version.minos == [11, 0, 0] and binary.has_code_signature
    assert exported(s.name.removeprefix("_") for s in binary.exported_symbols)
    bound = {b.symbol.name.removeprefix("_") for b in binary.bindings} - {"dyld_stub_binder"}
    assert bound >= BACKEND and bound - BACKEND <= MACOS, bound
    assert [lib.name for lib in binary.libraries] == ["@rpath/code.dylib", "/usr/lib/libSystem.B.dylib"]
    assert_signed((artifact / "code" / "aarch64-macos.dylib").read_bytes(), binary.code_signature.data_offset)
    assert (artifact / "lib/aarch64-macos/libtvm_runtime.dylib").read_bytes()[:4] == b"\xcf\xfa\xed\xfe"


def assert_signed(data: bytes, at: int) -> None:
    """The hashes of an ad-hoc signature are those of the file's pages (Apple's cs_blobs.h; numbers are big-endian)."""
    magic, _, _, slot, directory = struct.unpack_from(">5I", data, at)
    assert (magic, slot) == (0xFADE0CC0, 0)
    at += directory
    magic, _, _, flags, hashes, _, _, count, limit = struct.unpack_from(">9I", data, at)
    size, kind, _, page = struct.unpack_from("4B", data, at + 36)
    assert (magic, size, kind) == (0xFADE0C02, 32, 2) and flags & 2  # a code directory, SHA-256, ad hoc
    pages = [data[i : min(i + (1 << page), limit)] for i in range(0, limit, 1 << page)]
    wanted = [data[at + hashes + 32 * i :][:32] for i in range(count)]
    assert pages and [hashlib.sha256(p).digest() for p in pages] == wanted


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_pe(checkpoint: Path, dtype: str) -> None:
    artifact = compiled(checkpoint, "x86_64-windows", dtype)
    binary = lief.PE.parse(str(artifact / "code" / "x86_64-windows.dll"))
    assert binary.header.machine == lief.PE.Header.MACHINE_TYPES.AMD64
    assert exported(e.name for e in binary.get_export().entries)
    imports = {i.name.lower(): {e.name for e in i.entries} for i in binary.imports}
    assert "kernel32.dll" in imports
    assert all(name == "kernel32.dll" or name.startswith("api-ms-win-crt-") for name in imports), imports.keys()
    assert (artifact / "lib/x86_64-windows/tvm_runtime.dll").read_bytes()[:2] == b"MZ"


def exported(names: object) -> bool:
    """Whether what the loader asks for is there."""
    found = {str(name) for name in names}  # type: ignore[attr-defined]
    return any("tvm_ffi" in name for name in found) and any("mla_attend" in name for name in found)


@pytest.mark.slow
def test_elf_for_arm_needs_an_old_c_library_only(checkpoint: Path) -> None:
    artifact = compiled(checkpoint, "aarch64-linux")
    data = (artifact / "code" / "aarch64-linux.so").read_bytes()
    assert int.from_bytes(data[18:20], "little") == 183  # EM_AARCH64
    versions = {tuple(map(int, v.split(b"."))) for v in re.findall(rb"GLIBC_([\d.]+)", data)}
    assert max(versions, default=(2, 17)) <= (2, 17)


@pytest.fixture(scope="session")
def arm(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, str]]:
    """Debian's Python for Arm under qemu, with this package's wheel and the wheels it needs: command, environment."""
    if QEMU is None:
        pytest.skip("qemu-user-static is not installed")
    folder = tmp_path_factory.mktemp("arm")
    apt = subprocess.run(["apt-get", "download", *(f"{p}:arm64" for p in PACKAGES)], cwd=folder, capture_output=True)
    if apt.returncode:
        pytest.skip("apt-get has no packages for arm64: dpkg --add-architecture arm64, apt-get update")
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(folder / "root")], check=True)
    pip, site = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"], folder / "site"
    root = Path(__file__).parents[2]
    with (tmp_path_factory.getbasetemp().parent / "wheel.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # setuptools builds in the tree, which another worker's fixture does too
        subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(root)], check=True)
    (wheel,) = folder.glob("deepzig-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        needs = re.findall(r"^Requires-Dist: ([^;\n]+)$", archive.read(metadata).decode(), re.M)
    systems = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
    tags = [word for system in systems for word in ("--platform", f"{system}_aarch64")]
    subprocess.run(
        [*pip, "install", "--target", str(site), *tags, "--only-binary=:all:", "--python-version", "3.11", *needs],
        check=True,
    )
    command = [QEMU, "-L", str(folder / "root"), str(folder / "root/usr/bin/python3.11"), "-P"]
    return command, {"PYTHONPATH": str(site), "DEEPZIG_THREADS": "2"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "build"),
    [*((dtype, "aarch64-linux") for dtype in ("f32", "bf16", "f16", "fp8")), ("q8", "aarch64-dotprod-linux")],
)
def test_arm_computes_what_x86_computes(
    dtype: str, build: str, checkpoint: Path, arm: tuple[list[str], dict[str, str]]
) -> None:  # fmt: skip
    """The product's own loader, on Arm: one artifact for both, whose weights are the same."""
    artifact = compiled(checkpoint, f"native+{build}", dtype)
    chosen, values = logits(arm[0], artifact, arm[1])
    assert chosen == build
    here, wanted = logits([sys.executable, "-P"], artifact, {})
    assert here == "native"
    # where rows are rounded to 8 bits, a last bit decides between two neighbours now and then
    assert distance(values, wanted) <= {"f32": 1e-5, "f16": 2e-4, "bf16": 1e-3, "fp8": 1e-5, "q8": 2e-2}[dtype]
    command = [*arm[0], "-m", "deepzig", "verify", str(artifact)]
    verified = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **arm[1]})
    assert verified.returncode == 0 and verified.stdout.startswith(f"ok: build {build},"), verified.stderr


def test_without_a_linker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link.shutil, "which", lambda name: None)
    assert link.linker("x86_64-linux", native=True)[1:] == ["-m", "ziglang", "cc", "-target", "x86_64-linux-gnu.2.17"]
    monkeypatch.setattr(link, "find_spec", lambda name: None)
    for native, more in ((True, ", or install a C++ compiler such as g++"), (False, "")):
        with pytest.raises(DeepZigError) as caught:
            link.linker("x86_64-linux", native)
        assert str(caught.value) == (
            f"there is no linker\n  at: platform x86_64-linux\n  fix: pip install 'deepzig[cross]'{more}"
        )


@pytest.mark.slow
def test_zig_links_for_the_machine_itself(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where there is no C++ compiler."""
    monkeypatch.setattr(link.shutil, "which", lambda name: None)
    compile_model(checkpoint, tmp_path / "out", Options(bounds=BOUNDS, dtype="f32"))
    _, values = logits([sys.executable, "-P"], tmp_path / "out", {})
    assert np.isfinite(values).all()


def test_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEEPZIG_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DeepZigError) as caught:
        wheels.wheel_file(PLATFORMS["aarch64-macos"].runtime)
    assert str(caught.value) == (
        "the runtime library can't be fetched: No matching distribution found for apache-tvm==0.27.0.post1\n"
        "  at: apache-tvm==0.27.0.post1 for macosx_11_0_arm64\n"
        "  fix: connect to a package index once; what was fetched is kept in the cache"
    )
    assert not list((tmp_path / "wheels").rglob("*.dylib"))


def test_a_damaged_copy_in_the_cache_is_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = b"a library"
    wanted = wheels.WheelFile("x==1", ("any",), "0" * 64, "x/lib/libx.so", wheels._sha256(data))

    def download(_: wheels.WheelFile, folder: Path) -> Path:
        with zipfile.ZipFile(folder / "x.whl", "w") as archive:
            archive.writestr("x/lib/libx.so", data)
        return folder / "x.whl"

    monkeypatch.setenv("DEEPZIG_CACHE", str(tmp_path))
    monkeypatch.setattr(wheels, "_download", download)
    path = wheels.wheel_file(wanted)
    assert path.read_bytes() == data
    path.write_bytes(b"something else")
    assert wheels.wheel_file(wanted).read_bytes() == data
    monkeypatch.setattr(wheels, "_download", None)
    assert wheels.wheel_file(wanted) == path  # kept
    data = b"another library"
    monkeypatch.setattr(wheels, "_download", download)
    path.unlink()
    with pytest.raises(DeepZigError) as caught:
        wheels.wheel_file(wanted)
    assert caught.value.what == "x/lib/libx.so has another hash" and not path.exists()


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    data = b"a library"
    kept, wanted = tmp_path / "x" / "libx.so", wheels.WheelFile("x==1", ("any",), "", "libx.so", wheels._sha256(data))
    monkeypatch.setattr(wheels.os, "replace", full)
    with pytest.raises(DeepZigError) as caught:
        wheels._keep(kept, data, wanted)
    assert str(caught.value) == (
        "the runtime library can't be kept: No space left on device\n"
        f"  at: {kept}\n"
        "  fix: make room, or name another folder with DEEPZIG_CACHE"
    )
    assert not list(kept.parent.iterdir())
    kept.write_bytes(data)
    wheels._keep(kept, data, wanted)  # somebody else was faster, and has it open on Windows


@pytest.mark.parametrize("platform", [name for name, platform in PLATFORMS.items() if platform.libraries])
def test_another_tvm_makes_code_for_this_platform_only(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "versions", lambda: {"tvm": "0.28.0", "tvm_ffi": "0.1"})
    target = CpuTarget(frozenset(), platform, "some-target")
    if platform == this_machine().platform:
        assert all(file.is_file() for file in build.libraries(target).values())
        return
    with pytest.raises(DeepZigError) as caught:
        build.libraries(target)
    assert str(caught.value) == (
        "TVM 0.28.0 is installed, and only the libraries of 0.27.0.post1 are known for other platforms\n"
        "  at: target some-target\n"
        "  fix: pip install 'deepzig[compile]'"
    )


def test_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("DEEPZIG_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(DeepZigError) as caught:
        cache_folder("wheels")
    assert str(caught.value) == (
        "this user has no home folder to keep a cache in\n"
        "  at: DEEPZIG_CACHE\n"
        "  fix: name another folder with DEEPZIG_CACHE"
    )


def test_pinned_versions_are_those_that_are_installed() -> None:
    """A new TVM needs new hashes."""
    installed = build.versions()
    files = [file for platform in PLATFORMS.values() for file in platform.libraries]
    assert {file.requirement for file in files} == {f"apache-tvm=={installed['tvm']}"}
