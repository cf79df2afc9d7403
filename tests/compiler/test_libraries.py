"""TVM's runtime libraries that an artifact carries, for the host and for its device."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from deepzig.artifacts.cpu_features import this_machine
from deepzig.compiler import build
from deepzig.compiler.platforms import PLATFORMS
from deepzig.errors import DeepZigError
from deepzig.targets.base import Target
from deepzig.targets.registry import find_targets


def target(spec: str) -> Target:
    (found,), _ = find_targets(spec, this_machine())
    return found


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("x86-64-v3", ["lib/x86_64-linux/libtvm_runtime.so"]),
        ("aarch64-macos", ["lib/aarch64-macos/libtvm_runtime.dylib"]),
        (
            "cuda:host=x86_64-linux",
            ["lib/x86_64-linux/libtvm_runtime.so", "lib/x86_64-linux/libtvm_runtime_cuda.so"],
        ),
        (
            "cuda:host=x86_64-windows",
            ["lib/x86_64-windows/tvm_runtime.dll", "lib/x86_64-windows/tvm_runtime_cuda.dll"],
        ),
        ("metal", ["lib/aarch64-macos/libtvm_runtime.dylib", "lib/aarch64-macos/libtvm_runtime_metal.dylib"]),
    ],
)
def test_parts(spec: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime first, since the device's needs it."""
    monkeypatch.setattr(build, "wheel_file", lambda wanted: Path(wanted.member))
    found = build.libraries(target(spec))
    assert list(found) == names
    assert [Path(name).name for name in names] == [file.name for file in found.values()]


def test_installed_ones_are_those_that_are_known() -> None:
    """Artifacts for this machine carry the same as those that are cross-compiled for it."""
    platform = this_machine().platform
    folder = build.libraries(target("native")).popitem()[1].parent
    for wanted in PLATFORMS[platform].libraries:
        file = folder / Path(wanted.member).name
        assert hashlib.sha256(file.read_bytes()).hexdigest() == wanted.sha256


def test_a_device_that_the_platform_has_not() -> None:
    wrong = replace(target("metal"), platform="x86_64-linux")  # type: ignore[type-var]
    with pytest.raises(DeepZigError) as caught:
        build.libraries(wrong)
    assert str(caught.value) == (
        "TVM has no runtime library for metal on x86_64-linux\n  at: target metal\n  fix: choose another host"
    )


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["cuda:host=aarch64-linux", "cuda:host=x86_64-windows", "metal"])
def test_those_of_other_platforms_are_fetched(spec: str) -> None:
    """Their hashes are checked when they are."""
    marks = {"so": b"\x7fELF", "dll": b"MZ", "dylib": b"\xcf\xfa\xed\xfe"}
    files = build.libraries(target(spec)).values()
    assert len(files) == 2
    assert all(file.read_bytes().startswith(marks[file.suffix.lstrip(".")]) for file in files)
