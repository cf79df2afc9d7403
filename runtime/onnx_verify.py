"""Replaying the self-check vectors of an ONNX export with onnxruntime.

The vectors are a safetensors file: calls of the graph, whose inputs and outputs are named as the graph's, each behind
the name of its call and a slash. The interpreter computed the outputs, from the weights as they are stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepzig.artifacts.onnx_file import COPY_AGAIN, INPUT_IDS, LOGITS, MASK, OnnxFile
from deepzig.errors import DeepZigError
from deepzig.tensorfile import read_header

from .onnx_session import Array, OnnxSession

STORED: dict[str, npt.DTypeLike] = {"F32": np.float32, "F16": np.float16, "I64": np.int64}
"""Element types that vectors have, as safetensors names them."""

ALLOWED = {"f32": 2e-5, "f16": 1e-3}
"""Type of the cache -> the largest distance of an output, relative to its norm. The graph computes in f32, in another
order than the interpreter; a value of a cache between two of 11 bits may become the other one of them."""

ROUNDED = 0.5
"""The same where onnxruntime's own ops round the rows that quantised matrices multiply, as the interpreter does: a code
may become its neighbour, and then another expert may be the next layer's choice. One product is 4e-7 off, 4 layers were
9e-3, and 16 of random weights 0.19; values that have nothing to do with each other are 1.4 off."""

Calls = Mapping[str, Mapping[str, Array]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class OutputFinding:
    """How far an output is from what was recorded.

    Attributes:
        call: which call of the graph, such as `prefill`.
        output: its name.
        distance: relative to the norm of the recorded one; infinite where it is no number or has another shape.
        allowed: the largest distance that is.
    """

    call: str
    output: str
    distance: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the distance is allowed."""
        return self.distance <= self.allowed


def replay_onnx(
    file: OnnxFile, calls: Calls, threads: int | None = None, progress: Progress = lambda *_: None
) -> list[OutputFinding]:  # fmt: skip
    """Run the recorded calls; one finding an output, in the order in which the model computes them.

    Raises:
        DeepZigError: the calls are of another model, or onnxruntime fails.
    """
    session = OnnxSession(file, threads, exact=True)
    allowed = ROUNDED if file.microsoft else ALLOWED[file.caches[0].dtype]
    outputs = sorted(session.outputs, key=_layer)
    findings = []
    for number, (name, tensors) in enumerate(calls.items()):
        progress(f"verify {name}", number, len(calls))
        if tensors.keys() != {*session.inputs, *outputs}:
            raise DeepZigError("the self-check vectors are of another model", f"{file.vectors}, {name}", COPY_AGAIN)
        found = session.run(outputs, {key: tensors[key] for key in session.inputs})
        mask = tensors[MASK] != 0
        new = mask[:, mask.shape[1] - tensors[INPUT_IDS].shape[1] :]
        for output, value in zip(outputs, found, strict=True):
            distance = _distance(value, tensors[output], new if output == LOGITS else mask)
            findings.append(OutputFinding(name, output, distance, allowed))
    progress("verify", len(calls), len(calls))
    return findings


def check_onnx(file: OnnxFile, findings: list[OutputFinding]) -> None:
    """Raise the first output that diverges as an error that names it."""
    wrong = [finding for finding in findings if not finding.ok]
    if not wrong:
        return
    first, *others = wrong
    more = f"; {len(others)} more outputs differ" if others else ""
    raise DeepZigError(
        f"{first.output} differs by {first.distance:.1e} in {first.call}, allowed is {first.allowed:.0e}{more}",
        str(file.path),
        "onnxruntime computes something else on this machine; try another version of it, and report it",
    )


def read_calls(file: OnnxFile) -> Calls:
    """The recorded calls: name -> inputs and outputs by their names.

    Raises:
        DeepZigError: there are none, or they are damaged.
    """
    if file.vectors is None:
        raise DeepZigError("the model has no self-check vectors", str(file.path), "export it again with a self-check")
    calls: dict[str, dict[str, Array]] = {}
    for call, name, tensor in _tensors(file):
        calls.setdefault(call, {})[name] = tensor
    return calls


def _tensors(file: OnnxFile) -> Iterator[tuple[str, str, Array]]:
    """Call, name and value of each recorded tensor."""
    assert file.vectors is not None
    content = file.vectors.read_bytes()
    for name, entry in read_header(file.vectors).items():
        call, _, tensor = name.partition("/")
        if entry.dtype not in STORED or not tensor:
            raise DeepZigError("the self-check vectors can't be understood", f"{file.vectors}, {name}", COPY_AGAIN)
        values = np.frombuffer(content[entry.begin : entry.end], STORED[entry.dtype])
        yield call, tensor, values.reshape(entry.shape)


def _layer(output: str) -> float:
    """Where an output stands in the model: caches by their layers, logits last."""
    return math.inf if output == LOGITS else int(output.split(".")[1])


def _distance(value: Array, wanted: Array, rows: Array) -> float:
    """Relative distance of the rows that a mask [batch, n] names; others are padding."""
    if value.shape != wanted.shape:
        return math.inf
    a, b = value[rows].astype(np.float64), wanted[rows].astype(np.float64)
    distance = float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-30))
    return distance if math.isfinite(distance) else math.inf


def worst(findings: list[OutputFinding]) -> OutputFinding:
    """The output that is farthest off, measured by what is allowed."""
    return max(findings, key=lambda finding: finding.distance / finding.allowed)
