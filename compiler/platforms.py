"""What there is to know of each platform to link code for it, as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

TVM = "0.27.0.post1"
"""The version whose libraries are listed here: code for another platform can be made with it only."""


@dataclass(frozen=True)
class WheelFile:
    """A file of a wheel on the package index.

    Attributes:
        requirement: package and version.
        tags: platform tags of the wheel, for pip.
        wheel_sha256: of the wheel.
        member: the file's name in it.
        sha256: of the file.
    """

    requirement: str
    tags: tuple[str, ...]
    wheel_sha256: str
    member: str
    sha256: str


@dataclass(frozen=True)
class Platform:
    """How code is linked.

    Attributes:
        zig: what zig calls it; with the oldest C library, or system, that code shall run on. Empty where code is data.
        suffix: of files of code.
        libraries: TVM's runtime library, then those for devices that the platform has, which are loaded after it.
            None where code needs no runtime.
        flags: more arguments of the linker. Without a name a dylib calls itself by the temporary path it is linked at.
        sources: C sources to link in: file name -> text.
        output: arguments that say what is made.
    """

    zig: str
    suffix: str
    libraries: tuple[WheelFile, ...]
    flags: tuple[str, ...] = ()
    sources: tuple[tuple[str, str], ...] = ()
    output: tuple[str, ...] = ("-shared", "-s")

    @property
    def runtime(self) -> WheelFile:
        """TVM's runtime library, of a platform that has one."""
        return self.libraries[0]

    def device_library(self, device: str) -> WheelFile | None:
        """TVM's runtime library for a device, such as `libtvm_runtime_DEVICE.so`."""
        found = (file for file in self.libraries[1:] if PurePosixPath(file.member).stem.endswith(f"_{device}"))
        return next(found, None)


def _wheel(tag: str, sha256: str, *members: tuple[str, str]) -> tuple[WheelFile, ...]:
    """Libraries of a wheel of TVM.

    Args:
        tag: platform tag of the wheel.
        sha256: of the wheel.
        members: of each library its name and its hash.
    """
    return tuple(WheelFile(f"apache-tvm=={TVM}", (tag,), sha256, f"tvm/lib/{name}", h) for name, h in members)


_WORKSPACE = """\
/* Workspaces of kernels lie behind all else in memory, one behind the other: the last that was taken is freed first. */
typedef unsigned char byte;
typedef unsigned long long u64;
#define PAGE 65536ull
#define LINE 64ull

static byte *top;

__attribute__((export_name("workspace"))) void workspace(byte *begin) { top = begin; }

void *TVMBackendAllocWorkspace(int device, int number, u64 size, int code, int bits) {
  byte *place = top;
  u64 end = (__UINTPTR_TYPE__)place + ((size + LINE - 1) & ~(LINE - 1));
  u64 have = __builtin_wasm_memory_size(0) * PAGE;
  if (end > have && __builtin_wasm_memory_grow(0, (end - have + PAGE - 1) / PAGE) == -1ul) return 0;
  top = (byte *)(__UINTPTR_TYPE__)end;
  return place;
}

int TVMBackendFreeWorkspace(int device, int number, void *place) {
  top = place;
  return 0;
}

int TVMFFIEnvModRegisterSystemLibSymbol(const char *name, void *symbol) { return 0; }
"""

_FLTUSED = "int _fltused = 0x9875; /* code for MSVC wants it, zig links MinGW's C library, which lacks it */\n"

PLATFORMS = {
    "x86_64-linux": Platform(
        zig="x86_64-linux-gnu.2.17",
        suffix=".so",
        libraries=_wheel(
            "manylinux_2_28_x86_64",
            "f503fc903b6e16fda5daacac6698ecb8bc38937f57da7aa29f6c7ab169d08657",
            ("libtvm_runtime.so", "43544bbeaea3cd3ffa919f7eac77244753aff28d1440c42f1ba8df03fa6e3948"),
            ("libtvm_runtime_cuda.so", "38782fe727adf51a82fa93de2a003044e16cd421564864a340dbd7f341215ffe"),
        ),
    ),
    "aarch64-linux": Platform(
        zig="aarch64-linux-gnu.2.17",
        suffix=".so",
        libraries=_wheel(
            "manylinux_2_28_aarch64",
            "4acfdb7653e4e1ba7a707bdf2833db72eb8fda7d04d99141f2a4e1da43171fb7",
            ("libtvm_runtime.so", "ba06950fac134b8d71549111fad2c6605cd6f738061fe0482f217c37ccbdff05"),
            ("libtvm_runtime_cuda.so", "c277ef1b0b4afef83d0fa99f50b7ea72632c64a7020ce7ce887d225de13266e6"),
        ),
    ),
    "aarch64-macos": Platform(
        zig="aarch64-macos.11.0",
        suffix=".dylib",
        flags=("-Wl,-undefined,dynamic_lookup", "-Wl,-install_name,@rpath/code.dylib"),
        libraries=_wheel(
            "macosx_11_0_arm64",
            "d61102c6b039b889dd66a2cbd4058d0308e43b02a04d86981478674a0a5de2e9",
            ("libtvm_runtime.dylib", "e99d2e4d2ab1861794b3e1fd1e4423d1ee5c97b308274bce227a65114dd5221d"),
            ("libtvm_runtime_metal.dylib", "4631a88cb2243219c1f5e12dcefb7c56a4899366a96733d197adebdd1b7d2be0"),
        ),
    ),
    "x86_64-windows": Platform(
        zig="x86_64-windows-gnu",
        suffix=".dll",
        sources=(("fltused.c", _FLTUSED),),
        libraries=_wheel(
            "win_amd64",
            "de47a1dc36d2c5f634b8c63c7c03d3fc85fded4fa4891eac4b213c5354215d26",
            ("tvm_runtime.dll", "6eb136b908d5e7a279c21ea2735ea5ca23f30852fdc2b8db4a31a7bf5826b711"),
            ("tvm_runtime_cuda.dll", "a423d3a194595ada26a797675d9bade51cded2d536e95ba75314b5f8e5173527"),
        ),
    ),
    "wasm32": Platform(
        zig="wasm32-freestanding",
        suffix=".wasm",
        flags=("-O2", "-mcpu=generic+simd128+bulk_memory", "-Wl,--no-entry", "-Wl,--gc-sections"),
        libraries=(),
        sources=(("workspace.c", _WORKSPACE),),
        output=("-Wl,--export-dynamic", "-Wl,--strip-all"),
    ),
    "web": Platform(zig="", suffix=".json", libraries=()),
}
"""Platform -> how to link for it. The hashes are those of the wheels on PyPI."""
