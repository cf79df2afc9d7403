"""An ONNX export: a graph and the files beside it, checked before anything of them is used.

The graph's metadata says what the runtime has to know. Weights are external data, which onnxruntime maps itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepzig.errors import DeepZigError

from .checks import Fields, FileEntry
from .manifest import TensorSpec
from .parts import Part

VERSION, CONFIG, QUANT, VECTORS, FILES = (
    f"deepzig.{key}" for key in ("version", "config", "quant", "vectors", "files")
)  # fmt: skip
"""Keys of the metadata: the version that exported it, the model's config as a manifest has it (JSON), how matrices are
quantised, the file of self-check vectors, and size and SHA-256 of the files beside it by their names (JSON)."""

INPUT_IDS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
PAST_LATENT, PRESENT_LATENT = "past_key_values.%d.latent", "present.%d.latent"
"""Names of the cache of a layer, before and after a call."""

ELEMENTS = {1: "f32", 10: "f16"}
"""Element types of a cache: ONNX's numbers (onnx.proto, TensorProto.DataType) -> ours."""

MICROSOFT = "com.microsoft"
"""The domain of onnxruntime's own ops; quantised matrices are multiplied by them where it is used."""

EXPORT = "make one with deepzig-compile --onnx"
EXPORT_AGAIN = "export the model again"
COPY_AGAIN = "copy the model again, with all files beside it, or export it again"
EXTRA = "pip install 'deepzig[onnx]'"


@dataclass(frozen=True)
class OnnxFile:
    """A checked export.

    Attributes:
        path: the graph.
        version: of the DeepZig that exported it.
        model: the model's config, as an artifact's manifest has it.
        quant: how matrices are quantised; None where they are not.
        microsoft: whether it has ops of onnxruntime's own.
        caches: of each layer the cache that the graph takes: [batch, past, width].
        vectors: the file of self-check vectors; None where there are none.
        files: size and hash of the files beside it, by name.
    """

    path: Path
    version: str
    model: Mapping[str, Any]
    quant: str | None
    microsoft: bool
    caches: tuple[TensorSpec, ...]
    vectors: Path | None
    files: Mapping[str, FileEntry]


def open_onnx(path: Path, full: bool = False) -> OnnxFile:
    """Check an export and the files beside it.

    Args:
        path: the graph.
        full: hash the files too.

    Raises:
        DeepZigError: there is none, it is of somebody else, a file beside it is missing or changed, or the extra is not
            installed.
    """
    proto = _read(path)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    if VERSION not in metadata:
        raise DeepZigError("the model was not exported by DeepZig", str(path), EXPORT)
    fields = _Metadata(str(path))
    model = fields.object(fields.json(metadata, CONFIG), CONFIG)
    for key in ("vocab_size", "num_hidden_layers", "max_position_embeddings"):
        fields.count(model.get(key), f"{CONFIG} {key}", 1, (1 << 31) - 1)
    for token in fields.list(model.get("eos_token_ids"), f"{CONFIG} eos_token_ids"):
        fields.count(token, f"{CONFIG} eos_token_ids")
    listed = fields.object(fields.json(metadata, FILES), FILES)
    files = {fields.plain(name): fields.file(entry, f"{FILES} {name}") for name, entry in listed.items()}
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value not in files:
                raise fields.fail(FILES, f"does not list {entry.value!r}")
    vectors = metadata.get(VECTORS)
    if vectors is not None and vectors not in files:
        raise fields.fail(FILES, f"does not list {vectors!r}")
    for name, file in files.items():
        _check(path.with_name(name), file, full)
    caches = _caches(proto, int(model["num_hidden_layers"]), fields)
    beside = None if vectors is None else path.with_name(vectors)
    microsoft = any(opset.domain == MICROSOFT for opset in proto.opset_import)
    return OnnxFile(path, metadata[VERSION], model, metadata.get(QUANT) or None, microsoft, caches, beside, files)


def _read(path: Path) -> Any:
    """The graph, without its external data."""
    try:
        import onnx
    except ImportError as error:
        raise DeepZigError(f"{error.name} is not installed", str(path), EXTRA) from None
    if not path.is_file():
        raise DeepZigError("there is no such file", str(path), EXPORT)
    try:
        return onnx.load_model(path, load_external_data=False)
    except OSError as error:
        raise DeepZigError(f"the file can't be read: {error.strerror}", str(path), "check its permissions") from None
    except Exception:  # protobuf's own
        raise DeepZigError("the file is no ONNX model, or is cut off", str(path), EXPORT_AGAIN) from None


def file_entry(path: Path) -> FileEntry:
    """Size and hash of a file."""
    part = Part(path, 0, path.stat().st_size, str(path))
    return FileEntry(part.size, part.sha256())


def _check(path: Path, entry: FileEntry, full: bool) -> None:
    """Raises DeepZigError if a file beside the graph is missing or changed."""
    if not path.is_file():
        raise DeepZigError("a file of the model is missing", str(path), COPY_AGAIN)
    part = Part(path, 0, path.stat().st_size, str(path))
    if part.size != entry.size:
        raise DeepZigError(f"the file has {part.size} bytes, not {entry.size}", part.where, COPY_AGAIN)
    if full and part.sha256() != entry.sha256:
        raise DeepZigError("the file was changed: its SHA-256 differs from the model's", part.where, COPY_AGAIN)


def _caches(proto: Any, layers: int, fields: _Metadata) -> tuple[TensorSpec, ...]:
    """The caches that the graph takes, once its inputs and outputs have been found to be those of a model."""
    inputs = {value.name: value.type.tensor_type for value in proto.graph.input}
    outputs = {value.name for value in proto.graph.output}
    past, present = ([name % layer for layer in range(layers)] for name in (PAST_LATENT, PRESENT_LATENT))
    if inputs.keys() != {INPUT_IDS, MASK, POSITIONS, *past} or outputs != {LOGITS, *present}:
        what = f"the graph's inputs and outputs are not those of a model of {layers} layers"
        raise DeepZigError(what, fields.where, EXPORT_AGAIN)
    found = []
    for name in past:
        dims = [dim.dim_param or dim.dim_value for dim in inputs[name].shape.dim]
        dtype = ELEMENTS.get(inputs[name].elem_type)
        if dtype is None or len(dims) != 3 or not isinstance(dims[2], int):
            what = "the cache is no tensor of [batch, past, width]"
            raise DeepZigError(what, f"{fields.where}, {name}", EXPORT_AGAIN)
        found.append(TensorSpec(name, dtype, tuple(dims)))
    return tuple(found)


@dataclass(frozen=True)
class _Metadata(Fields):
    """Checks of the metadata; `where` is the graph."""

    def fail(self, field: str, what: str) -> DeepZigError:
        return DeepZigError(f"the metadata's {field} {what}", self.where, EXPORT_AGAIN)

    def json(self, metadata: Mapping[str, str], key: str) -> Any:
        if key not in metadata:
            raise self.fail(key, "is missing")
        try:
            return json.loads(metadata[key])
        except (ValueError, RecursionError):
            raise self.fail(key, "is not JSON") from None

    def plain(self, name: str) -> str:
        """The name of a file beside the graph."""
        if name in ("", ".", "..") or set("/\\:\0") & set(name):
            raise self.fail(FILES, f"has {name!r}, which is no plain name")
        return name
