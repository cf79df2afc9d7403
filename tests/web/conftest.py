"""The reference model for WebAssembly, for WebGPU, and for this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options
from deepzig.runtime import Model, load

from ..runtime.conftest import cli
from .javascript import WEB

__all__ = ["cli"]

PACKAGES = WEB / "node_modules"
REFERENCE = Path(__file__).parents[2] / "models" / "reference"


@pytest.fixture(scope="session")
def node() -> str:
    """The program; skips the test where there is none."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed")
    return found


@pytest.fixture(scope="session")
def packages() -> Path:
    """The folder of npm's packages; skips the test where they are not installed."""
    if not (PACKAGES / ".package-lock.json").is_file():
        pytest.skip("npm's packages are not installed: make node-modules")
    return PACKAGES


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("web") / "f32"
    compile_model(REFERENCE, out, Options(target="wasm", dtype="f32"))
    return out


@pytest.fixture(scope="session")
def gpu_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("web") / "webgpu"
    compile_model(REFERENCE, out, Options(target="webgpu", dtype="f32"))
    return out


@pytest.fixture(scope="module")
def model(artifact: Path, node: str) -> Iterator[Model]:
    with load(artifact, cache_tokens=2000) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    out = tmp_path_factory.mktemp("native") / "f32"
    compile_model(REFERENCE, out, Options(dtype="f32", self_check="none"))
    with load(out, cache_tokens=2000) as loaded:
        yield loaded
