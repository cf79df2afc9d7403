"""Libraries that carry code for a GPU: what is in them, and that TVM's runtime hands it to the driver."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lief
import numpy as np
import pytest
import tvm
import tvm_ffi

from deepzig.compiler.build import build
from deepzig.compiler.platforms import PLATFORMS
from deepzig.errors import DeepZigError
from deepzig.targets.emit import kernel, store, symbols
from deepzig.targets.gpu import embed, nvcc
from deepzig.targets.gpu.device import CUDA, METAL, Gpu, GpuTarget
from deepzig.targets.gpu.emit import block_sum, launch, variable
from deepzig.targets.gpu.preludes import AS_TEXT, prelude

from .sass import architectures, disassembled

WIDTH = 301
ARCHS = frozenset({"sm_80", "sm_90a", "ptx_80"})
KERNEL = "squares_kernel"
HERE = Path(__file__).parent


def module() -> Any:
    """Sums of the squares of each row."""
    with kernel("squares") as f:
        (n,) = symbols("n")
        x, w, y = f.tensor("x", "f32", n, WIDTH), f.tensor("w", "f32", WIDTH), f.tensor("y", "f32", n)
        with launch(96, n) as t:
            part = variable(tvm.tirx.const(0, "float32"))
            with t.each(WIDTH) as i:
                store(part, part[0] + x[t.block[0], i] * x[t.block[0], i] * w[i], 0)
            store(y, block_sum(t, part[0]), t.block[0])
    return tvm.IRModule({"squares": f.function})


def target(gpu: Gpu, platform: str) -> GpuTarget:
    return GpuTarget(gpu, ARCHS if gpu is CUDA else frozenset(), platform, gpu.kind)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """For each platform a library, as the compiler links it."""
    if nvcc.find_tool("nvcc") is None:
        pytest.skip("nvcc is not installed")
    made = {}
    for gpu, platform in ((CUDA, "x86_64-linux"), (CUDA, "aarch64-linux"), (METAL, "aarch64-macos")):
        folder = tmp_path_factory.mktemp(platform)
        made[platform] = folder / f"code{PLATFORMS[platform].suffix}"
        build(module(), target(gpu, platform), made[platform])
    return made


def embedded(path: Path) -> embed.DeviceCode:
    """The device code in a library."""
    binary = lief.parse(str(path))
    name = tvm_ffi.get_global_func("runtime.ModuleImportsBlobName")()
    if isinstance(binary, lief.PE.Binary):
        (at,) = (e.address for e in binary.get_export().entries if e.name == name)
    else:
        (at,) = (s.value for s in binary.symbols if s.name in (name, f"_{name}"))
    size = int.from_bytes(bytes(binary.get_content_from_virtual_address(at, 8)), "little")
    (code,) = embed.device_codes(bytes(binary.get_content_from_virtual_address(at, 8 + size)))
    return code


@pytest.mark.parametrize("platform", ["x86_64-linux", "aarch64-linux"])
def test_a_library_for_cuda_carries_machine_code(platform: str, libraries: Mapping[str, Path]) -> None:
    """Whatever machine runs it, and with no trace of the source."""
    code = embedded(libraries[platform])
    assert (code.kind, code.format) == ("cuda", embed.FATBIN)
    assert code.functions == (embed.Function(KERNEL, ("handle", "handle", "handle", "int32")),)
    fatbin = code.code[8:]
    assert architectures(fatbin) == ARCHS
    assert set(disassembled(fatbin, "sm_90a")) == {KERNEL}
    assert b"__global__" not in libraries[platform].read_bytes()


@pytest.mark.slow
def test_a_library_for_windows(libraries: Mapping[str, Path], tmp_path: Path) -> None:
    build(module(), target(CUDA, "x86_64-windows"), tmp_path / "code.dll")
    assert embedded(tmp_path / "code.dll") == embedded(libraries["x86_64-linux"])


def test_code_for_the_device_does_not_depend_on_the_host(libraries: Mapping[str, Path]) -> None:
    assert embedded(libraries["x86_64-linux"]) == embedded(libraries["aarch64-linux"])


def test_a_library_for_metal_carries_source(libraries: Mapping[str, Path]) -> None:
    code = embedded(libraries["aarch64-macos"])
    assert (code.kind, code.format) == ("metal", "metal")
    assert [f.name for f in code.functions] == [KERNEL]
    text = code.code.decode("latin1")
    assert text.count(prelude("metal")) == 1 and f"kernel void {KERNEL}(" in text


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Libraries in the place of CUDA's, for Linux; in the order to load them."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a C compiler for Linux is needed")
    folder = tmp_path_factory.mktemp("driver")
    version = folder / "versions"
    version.write_text("libcudart.so.13 { global: *; };\n")
    made = []
    for name, options in (("libcuda.so.1", ["-DDRIVER"]), ("libcudart.so.13", [f"-Wl,--version-script={version}"])):
        words = [compiler, "-shared", "-fPIC", "-w", *options, f"-Wl,-soname,{name}", str(HERE / "driver.c")]
        subprocess.run([*words, "-o", str(folder / name)], check=True)
        made.append(str(folder / name))
    return made


PROGRAM = """
import ctypes, sys
library, *driver = sys.argv[1:]
for name in driver:
    ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
import numpy as np, tvm
place = tvm.cuda()
rows = np.random.default_rng(3).standard_normal((7, 301), np.float32)
given = [tvm.runtime.tensor(a, place) for a in (rows, rows[0], rows[:, 0].copy())]
assert given[0].numpy().tobytes() == rows.tobytes()
tvm.register_global_func("tvm_callback_cuda_compile", lambda code: 1 / 0, override=True)
tvm.runtime.load_module(library)["squares"](*given)
"""


def test_the_runtime_hands_it_to_the_driver(
    libraries: Mapping[str, Path], driver: list[str], tmp_path: Path
) -> None:  # fmt: skip
    """TVM's own CUDA runtime, with a driver that notes what it is given: no compiler is asked for anything."""
    image, notes = tmp_path / "image", tmp_path / "notes"
    env = {**os.environ, "DRIVER_IMAGE": str(image), "DRIVER_NOTES": str(notes)}
    library = libraries["x86_64-linux"]
    command = [sys.executable, "-P", "-c", PROGRAM, str(library), *driver]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert image.read_bytes() == embedded(library).code[8:]
    assert notes.read_text() == f"{KERNEL} 7 1 1 96 1 1 0 7\n"


def test_other_compilations_of_the_process_are_left_alone() -> None:
    """Neither hooks nor the variable stay; nor does a hook of somebody else get lost."""
    hooks = ("tvm_callback_cuda_postproc", "tvm_callback_metal_compile")
    before = [tvm_ffi.get_global_func(name, allow_missing=True) for name in hooks]
    assert before == [None, None] and AS_TEXT not in os.environ
    tvm_ffi.register_global_func(hooks[0], lambda code, _: "// somebody else's\n" + code)
    try:
        executable = GpuTarget(CUDA, frozenset(), "x86_64-linux", "cuda").compile(module())
        source = executable.mod.imports[0].inspect_source()
        assert source.startswith(prelude("cuda")) and "somebody" not in source
        assert tvm_ffi.get_global_func(hooks[0])("x", None) == "// somebody else's\nx"
    finally:
        tvm_ffi.registry.remove_global_func(hooks[0])
    assert [tvm_ffi.get_global_func(name, allow_missing=True) for name in hooks] == before
    assert AS_TEXT not in os.environ


@pytest.mark.parametrize("kind", ["cuda", "metal"])
def test_preludes_stand_between_their_marks(kind: str) -> None:
    """By which they are found, and something else put in their place."""
    lines = prelude(kind).splitlines()
    assert (lines[0], lines[-1]) == ("// deepzig device functions", "// end of device functions")


def test_a_library_without_code_of_the_kind() -> None:
    executable = GpuTarget(METAL, frozenset(), "x86_64-linux", "metal").compile(module())
    with pytest.raises(ValueError, match="there is no text for cuda"):
        embed.replace_text(embed.library_bytes(executable), "cuda", lambda text: b"")


def test_everything_else_stays_as_it_is() -> None:
    """Beside machine code, only its format and lengths change."""
    executable = GpuTarget(CUDA, frozenset(), "x86_64-linux", "cuda").compile(module())
    before = embed.library_bytes(executable)
    code = np.random.default_rng(5).bytes(777)
    after = embed.replace_text(before, "cuda", lambda text: code if text.startswith(prelude("cuda")) else b"")
    (old,), (new,) = embed.device_codes(before), embed.device_codes(after)
    assert new == embed.DeviceCode("cuda", embed.FATBIN, old.functions, embed._text(code))
    assert int.from_bytes(after[:8], "little") == len(after) - 8
    shift = len(embed.FATBIN) - len("cuda")
    table = before.index(b"cuda", before.index(b"cuda") + 4) + 4
    size = len(before) - len(old.code) - table
    assert after[table + shift :][:size] == before[table:][:size]
    assert after[8 : before.index(b"cuda")] == before[8 : before.index(b"cuda")]


def test_a_refusal_reaches_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc, "find_tool", lambda name: None)
    with pytest.raises(DeepZigError, match="there is no CUDA compiler"):
        build(module(), target(CUDA, "x86_64-linux"), tmp_path / "code.so")
    assert not list(tmp_path.iterdir())
