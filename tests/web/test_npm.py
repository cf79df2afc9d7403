"""The package as npm makes it: what it holds, its types, and what it does where it is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .javascript import WEB

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
LIMIT = 400_000
"""Bytes of kernels, plan and the package's code together."""

USER = {
    "tsconfig.json": json.dumps({
        "compilerOptions": {
            "strict": True, "target": "es2022", "module": "nodenext", "moduleResolution": "nodenext",
            "lib": ["es2023", "dom", "dom.asynciterable"], "types": ["node"], "noUncheckedIndexedAccess": True,
        },
        "files": ["example.ts"],
    }),
    "package.json": json.dumps({"name": "user", "private": True, "type": "module"}),
}  # fmt: skip


def run(*command: object, cwd: Path) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, timeout=300)
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def npm(node: str, packages: Path) -> str:
    found = shutil.which("npm")
    if found is None:
        pytest.skip("npm is not installed")
    return found


@pytest.fixture(scope="module")
def tarball(npm: str, packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, made in a copy of the checkout."""
    copy = tmp_path_factory.mktemp("checkout") / "web"
    shutil.copytree(WEB, copy, ignore=shutil.ignore_patterns("node_modules", "types", "LICENSE"))
    (copy / "node_modules").symlink_to(packages)
    shutil.copyfile(WEB.parent / "LICENSE", copy.parent / "LICENSE")
    run(npm, "pack", cwd=copy)
    (made,) = copy.glob("deepzig-*.tgz")
    return made


def test_what_it_holds(tarball: Path) -> None:
    names = set(run("tar", "--list", "--file", tarball, cwd=tarball.parent).split())
    sources = {p.stem for p in (WEB / "src").glob("*.js")}
    plain = {"package/LICENSE", "package/README.md", "package/package.json"}
    assert names == plain | {f"package/{f}" for s in sources for f in (f"src/{s}.js", f"types/{s}.d.ts")}
    assert tarball.stat().st_size < 60_000


@pytest.fixture(scope="module")
def user(npm: str, packages: Path, tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has installed it."""
    folder = tmp_path_factory.mktemp("user")
    for name, text in USER.items():
        (folder / name).write_text(text)
    run(npm, "install", "--prefer-offline", "--no-audit", "--no-fund", tarball, cwd=folder)
    (folder / "node_modules" / "@types").symlink_to(packages / "@types")
    shutil.copyfile(HERE / "example.ts", folder / "example.ts")
    return folder


def test_a_program_of_a_user(user: Path, packages: Path, node: str, artifact: Path) -> None:
    """It compiles under strict types, and answers."""
    run(node, packages / "typescript" / "bin" / "tsc", cwd=user)
    told = json.loads(run(node, "example.js", artifact, cwd=user))
    assert told == {
        "share": 1, "text": "pmal", "count": 4, "again": "lamp", "told": "temperature is hot", "reason": told["reason"],
        "missing": 0,
    }  # fmt: skip
    assert isinstance(told["reason"], str)


def test_the_program_of_the_readme(user: Path, node: str, artifact: Path) -> None:
    (program, *_) = re.findall(r"^```js\n(.*?)^```$", (WEB / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    shutil.copytree(artifact, user / "page", dirs_exist_ok=True)
    (user / "program.js").write_text(program)
    assert run(node, "program.js", cwd=user) == "pmal"


def test_without_the_packages(node: str, artifact: Path, tmp_path: Path) -> None:
    """Token ids need none; who wants texts is told."""
    shutil.copytree(WEB / "src", tmp_path / "src")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "program.js").write_text("""
        import { load } from "./src/node.js";
        const model = await load(process.argv[2]);
        const first = await model.generate([5, 6, 7]).next();
        const error = await model.generate("12+30=").next().catch((caught) => caught);
        console.log(JSON.stringify([typeof first.value, error.what, error.where, error.hint]));
    """)
    kind, what, where, hint = json.loads(run(node, "program.js", artifact, cwd=tmp_path))
    assert kind == "number" and what.startswith("the tokenizer's packages can't be loaded: Cannot find package")
    assert where == "@huggingface/tokenizers, @huggingface/jinja"
    assert hint == "install them with npm, or name them in the page's import map"


def test_all_code_is_small(artifact: Path) -> None:
    code = [*(WEB / "src").glob("*.js"), *(p for p in (artifact / "code").iterdir() if p.is_file())]
    assert sum(p.stat().st_size for p in code) < LIMIT
