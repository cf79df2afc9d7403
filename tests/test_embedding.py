"""docs/embedding.md: the app in it is the file beside it, and runs without a compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deepzig.artifacts.pack import pack
from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options

ROOT = Path(__file__).parents[1]
APP = ROOT / "docs" / "embedding" / "app.py"
WATCHED = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    unwanted = {"tvm", "torch", "deepzig.ir", "deepzig.compiler", "deepzig.models"}
    print(sorted(unwanted & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedding")
    compile_model(Path("reference"), folder / "out", Options())
    pack(folder / "out", folder / "model.deepzig")
    return folder / "model.deepzig"


def run(*arguments: object, text: str) -> subprocess.CompletedProcess[str]:
    # PyTorch is hidden: tvm_ffi imports it wherever it is installed
    hidden = "import sys; sys.modules['torch'] = None" + WATCHED
    command = [sys.executable, "-P", "-c", hidden, str(APP), *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True)


def test_the_page_shows_the_file() -> None:
    page = (ROOT / "docs" / "embedding.md").read_text()
    assert f"```python\n{APP.read_text()}```\n" in page


def test_the_app_answers(packed: Path) -> None:
    done = run(packed, text="Reverse the word lamp.\n\nWhich is larger, 41 or 14?\n")
    assert done.stdout == "> Reverse the word lamp.\npmal\n> Which is larger, 41 or 14?\n41\n"
    assert (done.returncode, done.stderr) == (0, "['torch']\n")


def test_the_app_tells_errors_in_three_lines(tmp_path: Path) -> None:
    done = run(tmp_path / "nothing.deepzig", text="x\n")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(
        f"error: there is no artifact\n  at: {tmp_path / 'nothing.deepzig'}\n  fix: make one with deepzig-compile\n"
    )
