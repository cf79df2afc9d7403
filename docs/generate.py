"""Writes the pages that follow from the code: docs/ops.md and docs/passes.md. Run by `make docs`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

from deepzig.compiler.passes.weights import hoist_weights
from deepzig.compiler.pipeline import PIPELINE
from deepzig.ir import OPS, Op

FOLDER = Path(__file__).parent
NOTE = "<!-- Written by `make docs` from {source}: edit that instead. -->"

CHAPTERS = {
    "deepzig.ir.ops": "Ops that model definitions are written in",
    "deepzig.ir.fused": "Ops that passes make",
}
"""Module that declares ops -> heading of its chapter."""


def ops_page() -> str:
    """The op reference: every op's signature, attributes and meaning."""
    lines = [
        NOTE.format(source="the declarations in `ir/`"),
        "# Ops",
        "",
        "An op is declared once, in `ir/`, as a signature and a numpy function. The signature is read",
        "`inputs -> outputs`; `?` marks an input that may be absent, `float` is any of f32, bf16 and f16,",
        "`...` any leading dimensions, and equal names are equal sizes. Attributes are given by name;",
        "those with a value shown may be left out.",
    ]
    for module, title in CHAPTERS.items():
        lines += ["", f"## {title}"]
        for op in OPS.values():
            if op.meaning.__module__ == module:
                lines += ["", *_op(op)]
    return "\n".join(lines) + "\n"


def passes_page() -> str:
    """The passes in the order they run, with the rewrite that each makes."""
    lines = [
        NOTE.format(source="`compiler/pipeline.py`"),
        "# Passes",
        "",
        "In this order, each over every graph of the module. `deepzig-compile --dump-ir DIR` writes the",
        "module after each of them, `--stop-after PASS` ends with one, and `--fuse-limit N` allows only the",
        "first N rewrites, which bisects a wrong one.",
        "",
        *(f"{number}. {_pass(function)}" for number, function in enumerate(PIPELINE, 1)),
        "",
        "Last, over the module as a whole:",
        "",
        f"{len(PIPELINE) + 1}. {_pass(hoist_weights)}",
    ]
    return "\n".join(lines) + "\n"


def _op(op: Op) -> Iterator[str]:
    yield f"### {op.name}"
    yield ""
    yield op.doc
    yield ""
    yield "```"
    yield op.signature
    yield "```"
    if op.attrs:
        yield ""
        yield f"Attributes: {', '.join(_attribute(name, default) for name, default in op.attrs.items())}."


def _attribute(name: str, default: object) -> str:
    return f"`{name}`" if default is inspect.Parameter.empty else f"`{name}={default!r}`"


def _pass(function: Callable[..., object]) -> str:
    first, *rest = (inspect.getdoc(function) or "").splitlines()
    text = "\n".join([first, *(f"   {line}".rstrip() for line in rest)])
    return f"**{function.__name__}** (`{_file(function)}`): {text}"


def _file(function: Callable[..., object]) -> str:
    return function.__module__.removeprefix("deepzig.").replace(".", "/") + ".py"


PAGES: dict[str, Callable[[], str]] = {"ops.md": ops_page, "passes.md": passes_page}


def main() -> None:
    """Write all pages."""
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
        print(f"wrote docs/{name}")


if __name__ == "__main__":
    main()
