"""The rules of the house: who may import whom, who may name what, and what the package tables must list."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]

FRONT = {
    "deepzig", "deepzig.cache", "deepzig.errors", "deepzig.log", "deepzig.sampling", "deepzig.tensorfile",
}  # fmt: skip
"""The front door's modules that every room may use."""

MAY_IMPORT = {
    "deepzig": {"click", "numpy"},
    "ir": {"numpy"},
    "models": {"deepzig.ir", "gguf", "numpy", "tokenizers"},
    "targets": {"deepzig.artifacts.machines", "deepzig.ir", "numpy", "tvm", "tvm_ffi"},
    "compiler": {"deepzig.artifacts", "deepzig.ir", "deepzig.models", "deepzig.targets"}
    | {"click", "numpy", "onnx", "rich", "threadpoolctl", "tvm", "tvm_ffi"},
    "artifacts": {"numpy", "onnx"},
    "web": set(),
    "server": {
        "deepzig.runtime", "anyio", "click", "fastapi", "opentelemetry", "orjson", "prometheus_client", "pydantic",
        "starlette", "uvicorn",
    },
    "runtime": {
        "deepzig.artifacts", "deepzig.web", "click", "jinja2", "llguidance", "matplotlib", "numpy", "onnxruntime",
        "tokenizers", "tvm_ffi",
    },
}
"""Room -> what it may import beside itself, the front door and the standard library."""

WORKSHOP = {"models/reference": {"matplotlib", "safetensors", "torch", "transformers"}, "web/demo": set[str]()}
"""Folders that are not in the wheel, since they are no packages -> what of the `dev` extra they may import as well."""

NPM = {"LICENSE", "README.md", "package-lock.json", "tsconfig.json"}
"""Files of `web` that are only npm's; what it makes there is not in git."""

MAX_LINES = 450


@dataclass(frozen=True)
class Import:
    """One imported module, absolute; `lazy` when it stands inside a function."""

    module: str
    line: int
    level: int
    lazy: bool


def sources(*rooms: str) -> list[Path]:
    return sorted(p for room in rooms for p in (ROOT / room).rglob("*.py") if "built" not in p.parts)


def package(path: Path) -> str:
    """`ir/ops.py` -> `deepzig.ir`; `compiler/passes/mla.py` -> `deepzig.compiler.passes`."""
    folder = ".".join(path.relative_to(ROOT).parts[:-1])
    return folder if folder == "deepzig" else f"deepzig.{folder}"


def imports(path: Path) -> Iterator[Import]:
    """What a file imports, `from deepzig import ir` told as `deepzig.ir`."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, 0, lazy)
            elif isinstance(child, ast.ImportFrom):
                yield from modules(child, lazy)
            yield from walk(child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    def modules(node: ast.ImportFrom, lazy: bool) -> Iterator[Import]:
        base = node.module or ""
        if node.level:
            parents = package(path).split(".")
            base = ".".join(parents[: len(parents) - node.level + 1] + ([base] if base else []))
        inner = [f"{base}.{alias.name}" for alias in node.names]
        for module in {name if base == "deepzig" and is_module(name) else base for name in inner}:
            yield Import(module, node.lineno, node.level, lazy)

    yield from walk(ast.parse(path.read_text()), False)


def is_module(name: str) -> bool:
    rest = name.removeprefix("deepzig.").replace(".", "/")
    return any((ROOT / p).exists() for p in (f"{rest}/__init__.py", f"deepzig/{rest}.py"))


def inside(module: str, prefixes: set[str]) -> bool:
    return any(module == p or module.startswith(f"{p}.") for p in prefixes)


def docstrings(tree: ast.AST) -> set[ast.AST]:
    """Strings that stand alone as statements."""
    return {n.value for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}


def strings(path: Path) -> Iterator[tuple[str, int]]:
    """Every string that the code of a file can act on, with its line."""
    tree = ast.parse(path.read_text())
    prose = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            yield node.value, node.lineno


def at(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def manifest() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_checkout_is_not_on_the_path() -> None:
    """With it `import ir` works and every class exists twice: run `make test` or `.venv/bin/pytest`."""
    assert str(ROOT) not in sys.path and "" not in sys.path


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports(room: str) -> None:
    own = {"deepzig" if room == "deepzig" else f"deepzig.{room}"}
    wrong = []
    for path in sources(room):
        for found in imports(path):
            top = found.module.split(".")[0]
            if top in sys.stdlib_module_names or found.module in FRONT:
                continue
            if room == "deepzig" and top == "deepzig":
                if not found.lazy and found.level == 0 and found.module != "deepzig":
                    wrong.append(f"{at(path, found.line)} imports {found.module} at import time")
                continue
            more = WORKSHOP.get(path.parent.relative_to(ROOT).as_posix(), set())
            if not inside(found.module, own | MAY_IMPORT[room] | more):
                wrong.append(f"{at(path, found.line)} imports {found.module}")
    assert not wrong


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_relative_within_a_folder_and_absolute_between(room: str) -> None:
    wrong = []
    for path in sources(room):
        own = package(path)
        for found in imports(path):
            if found.level > 1:
                wrong.append(f"{at(path, found.line)} climbs with {'.' * found.level}")
            elif found.level == 0 and found.module.rpartition(".")[0] == own and own != "deepzig":
                wrong.append(f"{at(path, found.line)} imports {found.module} absolutely")
    assert not wrong


def test_loading_the_runtime_loads_no_compiler() -> None:
    command = [sys.executable, "-c", "import sys, deepzig.runtime; print(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "tests", check=True)
    compiler = {"tvm", "deepzig.compiler", "deepzig.ir", "deepzig.models", "deepzig.targets"}
    assert not {module for module in done.stdout.split() if inside(module, compiler)}


def test_only_models_reads_a_model_type() -> None:
    """`artifacts` carries it as data: there it may be named but not compared, elsewhere not even named."""
    wrong = []
    for path in sources(*MAY_IMPORT.keys() - {"models"}):
        tree = ast.parse(path.read_text())
        carries = path.is_relative_to(ROOT / "artifacts")
        for node in ast.walk(tree):
            if carries and not isinstance(node, ast.Compare | ast.Match):
                continue
            if any(names_model_type(part) for part in (ast.walk(node) if carries else [node])):
                wrong.append(at(path, getattr(node, "lineno", 0)))
    assert not wrong


def names_model_type(node: ast.AST) -> bool:
    return (
        (isinstance(node, ast.Attribute) and node.attr == "model_type")
        or (isinstance(node, ast.Name) and node.id == "model_type")
        or (isinstance(node, ast.Constant) and node.value == "model_type")
    )


def test_only_models_names_a_family() -> None:
    from deepzig.models import FAMILIES

    files = sources(*MAY_IMPORT.keys() - {"models"})
    assert not [at(path, line) for path in files for text, line in strings(path) if text in FAMILIES]


TARGET_KINDS = {"llvm", "cuda", "rocm", "metal", "vulkan", "webgpu", "wasm", "opencl"}


def test_only_targets_names_a_target() -> None:
    """But for the tables of devices and of machines, which are called as some targets are."""
    tables = {ROOT / "artifacts" / name for name in ("devices.py", "machines.py")}
    files = [path for path in sources(*MAY_IMPORT.keys() - {"targets"}) if path not in tables]
    assert not [at(path, line) for path in files for text, line in strings(path) if text in TARGET_KINDS]


def test_packages_match_the_disk() -> None:
    """A package missing from the table works in an editable install and is silently absent from the wheel."""
    table = manifest()["tool"]["setuptools"]
    inits = [path for path in sources(*MAY_IMPORT) if path.name == "__init__.py"]
    on_disk = {package(path): path.parent.relative_to(ROOT).as_posix() for path in inits}
    assert table["package-dir"] == on_disk
    assert table["packages"] == sorted(on_disk)


def test_every_room_has_import_rules() -> None:
    assert {p.parent.name for p in ROOT.glob("*/__init__.py")} == set(MAY_IMPORT)


def test_package_data_matches_the_disk() -> None:
    table = manifest()["tool"]["setuptools"]
    folders = table["package-dir"]
    listed = {Path(folders[owner]) / name for owner, names in table["package-data"].items() for name in names}
    assert not [str(p) for p in listed if not (ROOT / p).is_file()]
    data = {
        p.relative_to(ROOT)
        for folder in folders.values()
        for p in (ROOT / folder).rglob("*")
        if p.is_file() and p.suffix not in {".py", ".pyc"} and not p.name.startswith(".") and "built" not in p.parts
    }
    made = {Path("web") / name for name in ("node_modules", "types")}
    data -= {p for p in data if made & set(p.parents)} | {Path("web") / name for name in NPM}
    shipped = {p for p in data if p.parent.as_posix() not in WORKSHOP}
    assert shipped == {p for p in listed if p.parent.as_posix() not in WORKSHOP}


def test_files_are_short() -> None:
    lengths = {p: len(p.read_text().splitlines()) for p in sources(*MAY_IMPORT, "bench", "docs", "tests")}
    assert not {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > MAX_LINES}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import tvm.relax", "tvm.relax"),
        ("def f():\n    from deepzig import models", "deepzig.models"),
        ("from deepzig import __version__", "deepzig"),
        ("from .x import y", "deepzig.ir.x"),
        ("from . import x", "deepzig.ir"),
        ("from ..y import z", "deepzig.y"),
    ],
)
def test_the_import_reader(code: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for room in ("ir", "models"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").touch()
    (tmp_path / "ir" / "x.py").write_text(code)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert [i.module for i in imports(tmp_path / "ir" / "x.py")] == [found]
