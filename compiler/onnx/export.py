"""From a traced module to an ONNX model: graph, weights and metadata, written together or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import helper

from deepzig import __version__
from deepzig.artifacts.workplace import NEW, Workplace, clear_leftovers
from deepzig.artifacts.writer import disk_errors
from deepzig.compiler.stages import Progress
from deepzig.compiler.weights import WeightSource
from deepzig.errors import DeepZigError
from deepzig.ir import Module
from deepzig.models.source import Source

from .emitter import MICROSOFT, OPSET
from .external import external_tensors, write_external
from .metadata import metadata, side_files
from .model import exported, onnx_graph
from .vectors import record, safetensors

DOMAINS = {"standard": "", "microsoft": MICROSOFT}
"""What `--onnx-domain` calls them -> domains whose ops multiply by quantised matrices."""

DATA, VECTORS = ".data", ".vectors"
"""What the files beside the model are called: as the model, and this behind it."""


def export_onnx(
    module: Module, path: Path, source: Source, *, domain: str = "standard", quant: str | None = None,
    vectors: bool = True, force: bool = False, progress: Progress = lambda *_: None,
) -> int:  # fmt: skip
    """Write a model as ONNX.

    Beside `model.onnx` come its weights, `model.onnx.data`, and what other programs need to run it. All of it appears
    when it is complete, the model last.

    Args:
        module: the traced module, before any pass; its element types say how weights are stored.
        path: the model's file.
        source: weights, config and tokenizer of the model.
        domain: one of DOMAINS.
        quant: the text of `--quant` that the module was traced with.
        vectors: write self-check vectors, `model.onnx.vectors`, for `deepzig verify`.
        force: replace files that are there.
        progress: told of every stage.

    Returns:
        Bytes of weights.

    Raises:
        DeepZigError: a file is in the way or can't be written, a weight is damaged, or an op has no form in ONNX.
    """
    module = exported(module)
    graph, tensors = onnx_graph(module, source.name, DOMAINS[domain])
    weights = WeightSource(module, source.checkpoint)
    data = path.name + DATA
    graph.initializer.extend(external_tensors(tensors, data))
    opsets = [helper.make_opsetid("", OPSET)]
    if any(node.domain == MICROSOFT for node in graph.node):
        opsets.append(helper.make_opsetid(MICROSOFT, 1))
    model = helper.make_model(graph, opset_imports=opsets, producer_name="deepzig", producer_version=__version__)
    total, done = sum(t.size for t in tensors), 0

    def written(size: int) -> None:
        nonlocal done
        done += size
        progress("weights", done, total)

    with _together(path, force) as folder:
        for name, content in side_files(module, path.name, source).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        if vectors:
            progress("check", 0, 1)
            (folder / (path.name + VECTORS)).write_bytes(
                safetensors(record(module, weights, rounded=DOMAINS[domain] == MICROSOFT))
            )
            progress("check", 1, 1)
        write_external(folder / data, tensors, weights, written)
        beside = [folder / (path.name + VECTORS)] if vectors else []
        helper.set_model_props(model, metadata(module, source, quant, [folder / data, *beside]))
        onnx.save(model, folder / path.name)
    return total


@contextmanager
def _together(path: Path, force: bool) -> Iterator[Path]:
    """A folder whose files move beside `path` when all of them are written, that of its name last.

    Raises:
        DeepZigError: one of them is there already, or the disk is full.
    """
    clear_leftovers(path)
    if os.path.lexists(path) and not force:
        raise DeepZigError("the output is there already", str(path), "choose another file, or replace it with --force")
    with disk_errors(path):
        work = Workplace(path)
        try:
            new = work.folder / NEW
            yield new
            files = sorted((f for f in new.rglob("*") if f.is_file()), key=lambda f: f.name == path.name)
            if os.path.lexists(path):
                path.unlink()  # a model beside the weights of another would be worse than none
            for file in files:
                place = path.parent / file.relative_to(new)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, place)
        finally:
            work.close()
