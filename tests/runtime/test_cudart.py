"""CUDA's runtime library is found, and loaded where a part of an artifact needs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from deepzig.errors import DeepZigError
from deepzig.runtime import cudart, library

PART = Path("lib/x86_64-linux/libtvm_runtime_cuda.so")


class Loader:
    """ctypes.CDLL of a machine that has some libraries; `after` needs another one to be loaded before."""

    def __init__(self, *have: str, after: dict[str, str] | None = None) -> None:
        self.have, self.after, self.loaded = have, after or {}, list[str]()

    def __call__(self, name: str, mode: int = 0) -> None:
        if name not in self.have or self.after.get(name, name) not in (name, *self.loaded):
            raise OSError(f"{name}: cannot open shared object file")
        self.loaded.append(name)


Install = Callable[[Loader, str], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """A machine with a loader, an operating system, and a folder for the package `nvidia`."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        cudart, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path / name)])
    )

    def make(loader: Loader, system: str = "Linux") -> None:
        monkeypatch.setattr(cudart.ctypes, "CDLL", loader)
        monkeypatch.setattr(cudart.platform, "system", lambda: system)

    return make


def touched(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return str(path)


@pytest.mark.parametrize(
    ("system", "place"),
    [
        ("Linux", "cu13/lib/libcudart.so.13"),
        ("Linux", "cuda_runtime/lib/libcudart.so.13"),
        ("Windows", "cu13/bin/x86_64/cudart64_13.dll"),
    ],
)
def test_that_of_a_wheel(system: str, place: str, install: Install, tmp_path: Path) -> None:
    """It comes before the system's."""
    file = touched(tmp_path / "nvidia" / place)
    loader = Loader(file, Path(place).name)
    install(loader, system)
    cudart.load_cudart()
    assert loader.loaded == [file]


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_that_of_a_toolkit(
    variable: str, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv(variable, str(tmp_path / "cuda"))
    broken = touched(tmp_path / "nvidia" / "cu13/lib/libcudart.so.13")
    file = touched(tmp_path / "cuda" / "lib64/libcudart.so.13")
    loader = Loader(file)
    install(loader, "Linux")
    cudart.load_cudart()
    assert loader.loaded == [file] and broken != file


@pytest.mark.parametrize(("system", "name"), [("Linux", "libcudart.so.13"), ("Windows", "cudart64_13.dll")])
def test_that_of_the_system(system: str, name: str, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader(name)
    install(loader, system)
    monkeypatch.setattr(cudart, "find_spec", lambda name: None)
    cudart.load_cudart()
    assert loader.loaded == [name]


def test_none(install: Install) -> None:
    install(Loader(), "Linux")
    with pytest.raises(DeepZigError) as caught:
        cudart.load_cudart()
    assert str(caught.value) == (
        "CUDA's runtime library is not installed\n  at: libcudart.so.13\n  fix: pip install 'deepzig[cuda]'"
    )


def test_a_part_that_needs_it(install: Install) -> None:
    loader = Loader(str(PART), "libcudart.so.13", after={str(PART): "libcudart.so.13"})
    install(loader, "Linux")
    library._open(PART)
    assert loader.loaded == ["libcudart.so.13", str(PART)]


def test_a_part_that_does_not_need_it(install: Install) -> None:
    """Any that can be loaded without."""
    loader = Loader(str(PART))
    install(loader, "Linux")
    library._open(PART)
    assert loader.loaded == [str(PART)]


@pytest.mark.parametrize(
    ("part", "have"), [(PART, ["libcudart.so.13"]), (PART.with_name("libtvm_runtime_metal.dylib"), [])]
)
def test_a_part_that_can_not_be_loaded(part: Path, have: list[str], install: Install) -> None:
    install(Loader(*have), "Linux")
    with pytest.raises(DeepZigError) as caught:
        library._open(part)
    assert str(caught.value) == (
        f"a library can't be loaded: {part}: cannot open shared object file\n  at: {part}\n"
        "  fix: update the system and its drivers, or compile the model for another device"
    )
