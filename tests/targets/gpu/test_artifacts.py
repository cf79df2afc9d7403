"""Artifacts for GPUs as the compiler makes them, looked into: no GPU takes part."""

from __future__ import annotations

from pathlib import Path

import lief
import pytest

from deepzig.artifacts.manifest import Build
from deepzig.artifacts.reader import read_manifest
from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options
from deepzig.models import random_checkpoint
from deepzig.targets.gpu import embed
from deepzig.targets.gpu.toolkit import find_tool

from ...runtime.conftest import BOUNDS, CONFIG
from ..test_cross import MACOS, assert_signed
from .metal_language import errors
from .sass import architectures, disassembled, matrix_instructions
from .test_embed import embedded

pytestmark = pytest.mark.slow


def compiled(folder: Path, target: str) -> Path:
    random_checkpoint.write(folder / "checkpoint", CONFIG)
    compile_model(folder / "checkpoint", folder / "out", Options(bounds=BOUNDS, target=target, dtype="bf16"))
    return folder / "out"


def only_build(artifact: Path) -> Build:
    """Its build, whose parts are there."""
    manifest = read_manifest(artifact)
    (build,) = manifest.builds
    for part in build.parts:
        assert manifest.files[part].size == (artifact / part).stat().st_size > 0
    return build


def kernels_of(build: Build) -> set[str]:
    return {call.kernel for calls in build.calls.values() for call in calls}


def launched(code: embed.DeviceCode) -> set[str]:
    """The kernels of the manifest whose launches are functions of the device."""
    return {f.name.rpartition("_kernel")[0] for f in code.functions}


def test_cuda(tmp_path: Path) -> None:
    if find_tool("nvcc") is None:
        pytest.skip("nvcc is not installed")
    host = "aarch64-linux"
    artifact = compiled(tmp_path, f"cuda:arch=sm_90a,host={host}")
    build = only_build(artifact)
    assert (build.device, build.platform) == ("cuda", host)
    assert build.features == {"sm_90a", "ptx_90"} and build.code == "code/cuda.so"
    assert build.libraries == (f"lib/{host}/libtvm_runtime_cuda.so",)
    code = embedded(artifact / build.code)
    assert code.format == embed.FATBIN and launched(code) == kernels_of(build)
    assert architectures(code.code[8:]) == {"sm_90a", "ptx_90"}
    listed = disassembled(code.code[8:], "sm_90a")
    assert set(listed) == {f.name for f in code.functions}
    assert any("HMMA" in matrix_instructions(text) for text in listed.values())


def test_metal(tmp_path: Path) -> None:
    """A library for a Mac, whose kernels are text in Metal's language."""
    artifact = compiled(tmp_path, "metal")
    build = only_build(artifact)
    assert (build.device, build.platform, build.features) == ("metal", "aarch64-macos", frozenset())
    assert build.code == "code/metal.dylib" and build.libraries == ("lib/aarch64-macos/libtvm_runtime_metal.dylib",)
    code = embedded(artifact / build.code)
    assert code.format == "metal" and launched(code) == kernels_of(build)
    texts = embed.sources(code)
    assert set(texts) == {f.name for f in code.functions}
    assert not [error for text in texts.values() for error in errors(text)]

    binary = lief.MachO.parse(str(artifact / build.code)).at(0)
    assert binary.header.cpu_type == lief.MachO.Header.CPU_TYPE.ARM64
    assert binary.build_version.minos == [11, 0, 0] and binary.has_code_signature
    bound = {b.symbol.name.removeprefix("_") for b in binary.bindings} - {"dyld_stub_binder"}
    assert bound - MACOS == {
        "__TVMFFIEnvModLookupFromImports", "__TVMFFIFunctionCall", "__TVMFFIHandleInitOnce", "__tvm_ffi__library_ctx"
    }  # fmt: skip
    assert [lib.name for lib in binary.libraries] == ["@rpath/code.dylib", "/usr/lib/libSystem.B.dylib"]
    assert_signed((artifact / build.code).read_bytes(), binary.code_signature.data_offset)

    runtime = lief.MachO.parse(str(artifact / build.libraries[0])).at(0)
    assert runtime.header.cpu_type == lief.MachO.Header.CPU_TYPE.ARM64
    assert any(lib.name.endswith("Metal.framework/Versions/A/Metal") for lib in runtime.libraries)
