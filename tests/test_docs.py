"""The generated pages are as the code would write them now, and every op and pass has something to say."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

import pytest

from deepzig.compiler.pipeline import PIPELINE
from deepzig.ir import OPS

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """docs/generate.py, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["ops.md", "passes.md"])
def test_the_committed_page_is_not_stale(name: str, generate: ModuleType) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == generate.PAGES[name](), "run `make docs`"


def test_no_op_is_left_out(generate: ModuleType) -> None:
    assert {op.meaning.__module__ for op in OPS.values()} == generate.CHAPTERS.keys()


def test_all_have_docstrings() -> None:
    assert not [op.name for op in OPS.values() if not op.doc]
    assert not [f.__name__ for f in PIPELINE if not inspect.getdoc(f)]
