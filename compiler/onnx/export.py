"""From a traced module to an ONNX model: graph, weights and metadata, written together or not at all."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, helper

from deepzig import __version__
from deepzig.artifacts.onnx_file import MICROSOFT
from deepzig.compiler.options import ONNX_DOMAINS
from deepzig.compiler.stages import Progress
from deepzig.compiler.weights import WeightSource
from deepzig.errors import DeepZigError
from deepzig.ir import Module
from deepzig.models.source import Source

from .emitter import OPSET
from .external import external_tensors, write_external
from .files import DATA, VECTORS, written_together
from .metadata import metadata, side_files
from .model import exported, onnx_graph
from .vectors import record, safetensors


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
        domain: one of ONNX_DOMAINS.
        quant: the text of `--quant` that the module was traced with.
        vectors: write self-check vectors, `model.onnx.vectors`, for `deepzig verify`.
        force: replace files that are there.
        progress: told of every stage.

    Returns:
        Bytes of weights.

    Raises:
        DeepZigError: no such domain; a file is in the way or can't be written; a weight is damaged; an op has no form
            in ONNX.
    """
    if domain not in ONNX_DOMAINS:
        raise DeepZigError(f"no domain is called {domain!r}", "domain", f"choose from {', '.join(ONNX_DOMAINS)}")
    module = exported(module)
    graph, tensors = onnx_graph(module, source.name, ONNX_DOMAINS[domain])
    graph.initializer.extend(external_tensors(tensors, path.name + DATA))
    model = _model(graph)
    weights = WeightSource(module, source.checkpoint)
    total, done = sum(t.size for t in tensors), 0

    def written(size: int) -> None:
        nonlocal done
        done += size
        progress("weights", done, total)

    with written_together(path, side_files(module, path.name, source), force) as folder:
        if vectors:
            progress("check", 0, 1)
            recorded = record(module, weights, rounded=ONNX_DOMAINS[domain] == MICROSOFT)
            (folder / (path.name + VECTORS)).write_bytes(safetensors(recorded))
            progress("check", 1, 1)
        write_external(folder / (path.name + DATA), tensors, weights, written)
        beside = [folder / (path.name + end) for end in (DATA, VECTORS)[: 1 + vectors]]
        helper.set_model_props(model, metadata(module, source, quant, beside))
        onnx.save(model, folder / path.name)
    return total


def _model(graph: GraphProto) -> ModelProto:
    opsets = [helper.make_opsetid("", OPSET)]
    if any(node.domain == MICROSOFT for node in graph.node):
        opsets.append(helper.make_opsetid(MICROSOFT, 1))
    return helper.make_model(graph, opset_imports=opsets, producer_name="deepzig", producer_version=__version__)
