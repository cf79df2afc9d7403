"""The distribution: what the wheel and the sdist hold, and what the base install can and cannot do."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
LIMIT = 150e6
"""Bytes that the base install may add to an empty environment."""


REFERENCE = {
    f"reference/{name}"
    for name in (
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    )
}  # fmt: skip
"""The model that the package carries, without the code that made it."""


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd)


def size(folder: Path) -> int:
    return sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_dir())


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "build", "--outdir", out, ROOT, cwd=out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def base(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """An environment with the wheel and its base dependencies only, and the bytes that they added."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder, with_pip=True)
    empty = size(folder)
    done = run(folder / "bin/pip", "install", "--quiet", *dist.glob("*.whl"), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, size(folder) - empty


def sources() -> set[str]:
    """Every source of the packages by its path in the wheel."""
    rooms = [p.parent for p in ROOT.glob("*/__init__.py")]
    packages = [p.parent for room in rooms for p in room.rglob("__init__.py")]
    paths = [p.relative_to(ROOT) for package in packages for p in package.glob("*.py")]
    return {str(p) if p.parts[0] == "deepzig" else f"deepzig/{p}" for p in paths}


def test_the_wheel_holds_the_package_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert {n for n in names if n.endswith(".py")} == sources()
    other = {n for n in names if not n.endswith(".py")}
    plain = {"py.typed", "artifacts/FORMAT.md", "runtime/inspect/page.html", "server/page.html"}
    plain |= {f"targets/gpu/prelude/{n}" for n in ("cuda.cuh", "metal.h", "webgpu.wgsl")}
    plain |= {"web/package.json", *(f"web/src/{p.name}" for p in (ROOT / "web" / "src").glob("*.js"))}
    assert other == {f"deepzig/{n}" for n in plain} | {f"deepzig/models/{n}" for n in REFERENCE}
    assert wheel.stat().st_size < 16e6


def test_the_wheel_carries_the_license(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith("/LICENSE"))
    assert archive.read(name) == (ROOT / "LICENSE").read_bytes()


def test_the_sdist_can_be_built_from(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {n.split("/", 1)[1] for n in archive.getnames() if "/" in n}
    assert {"pyproject.toml", "README.md", "LICENSE", "ir/ops.py", "deepzig/py.typed"} <= names
    tracked = run("git", "ls-files", cwd=ROOT).stdout.splitlines()
    assert not [n for n in tracked if n not in names and n not in (".editorconfig", ".gitignore", "MANIFEST.in")]


def test_the_metadata_are_sound(dist: Path) -> None:
    done = run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir(), cwd=dist)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_base_install_is_small(base: tuple[Path, int]) -> None:
    assert base[1] <= LIMIT, f"{base[1] / 1e6:.0f} MB"


def test_the_base_install_holds_no_compiler(base: tuple[Path, int]) -> None:
    folder, _ = base
    names = {p.name for p in folder.rglob("*")}
    assert not {n for n in names if n.startswith("libtvm_compiler") or "LLVM" in n}
    assert not {"tvm", "torch", "transformers", "onnx"} & {p.name for p in folder.glob("lib/*/site-packages/*")}


def test_the_runtime_can_be_imported(base: tuple[Path, int], tmp_path: Path) -> None:
    done = run(base[0] / "bin/python", "-c", "import deepzig.runtime; print(deepzig.runtime.load)", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command", [["--help"], ["--version"], ["run", "--help"], ["chat", "--help"], ["inspect", "--help"]]
)
def test_the_console_script_runs(command: list[str], base: tuple[Path, int], tmp_path: Path) -> None:
    done = run(base[0] / "bin/deepzig", *command, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout and not done.stderr, done.stderr
    as_module = run(base[0] / "bin/python", "-m", "deepzig", *command, cwd=tmp_path)
    assert as_module.returncode == 0 and as_module.stdout


def test_compiling_without_the_extra_says_which(base: tuple[Path, int], tmp_path: Path) -> None:
    done = run(base[0] / "bin/deepzig-compile", tmp_path, "--target", "llvm", "-o", tmp_path / "out", cwd=tmp_path)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and not done.stdout
    assert len(lines) == 3 and "pip install 'deepzig[compile]'" in lines[2]
    assert not (tmp_path / "out").exists()


def test_the_base_install_runs_a_packed_artifact(base: tuple[Path, int], tmp_path: Path) -> None:
    """Made by the compiler of another environment from the model in the wheel; the app of the guide runs it."""
    bin_ = Path(sys.executable).parent
    done = run(bin_ / "deepzig-compile", "reference", "-o", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for command in (["pack", tmp_path / "out", "-o", tmp_path / "m.deepzig"], ["verify", tmp_path / "m.deepzig"]):
        done = run(base[0] / "bin/deepzig", *command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    app = [base[0] / "bin/python", ROOT / "docs/embedding/app.py", tmp_path / "m.deepzig"]
    done = subprocess.run(app, input="Reverse the word lamp.\n", capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "> Reverse the word lamp.\npmal\n"), done.stderr
