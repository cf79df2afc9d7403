"""The manifest of an artifact: typed, and read with suspicion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepzig.errors import DeepZigError

FORMAT = 2
ITEM_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "i32": 4, "u32": 4}
"""Bytes of an element, by the names of the IR."""

ENTRY_POINTS = ("prefill", "decode", "sample")
"""What every artifact has; there may be more."""

MEND = "compile the model again"


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape; a dimension is a number or the name of a size known at the call."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class EntryPoint:
    """A function of the code. Its arguments are the inputs, the states, then the weights."""

    inputs: tuple[TensorSpec, ...]
    states: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Call:
    """A kernel call of an entry point.

    Attributes:
        kernel: its symbol in the code.
        op: what it computes, or is a part of.
        layer: the layer of the model, if it is in one.
        where: the line of the model definition.
        values: of each of its outputs the name in the fused graph; empty where it has none there.
    """

    kernel: str
    op: str
    layer: int | None
    where: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Build:
    """The code for one kind of machine.

    Attributes:
        name: what it is called on the command line.
        platform: architecture and system, such as x86_64-linux.
        triple: LLVM's name of them.
        features: the instruction sets that a machine must have, as LLVM spells them.
        code: the part that is the code.
        runtime: the part that is TVM's runtime library.
        calls: entry point -> its kernel calls, in order.
    """

    name: str
    platform: str
    triple: str
    features: frozenset[str]
    code: str
    runtime: str
    calls: Mapping[str, tuple[Call, ...]]

    def to_json(self) -> dict[str, Any]:
        """The entry of manifest.json."""
        calls = {entry: [{**vars(c), "values": list(c.values)} for c in calls] for entry, calls in self.calls.items()}
        return {**vars(self), "features": sorted(self.features), "calls": calls}


@dataclass(frozen=True)
class Bounds:
    """Sizes fixed at compile time, in tokens or rows; see FORMAT.md."""

    rows: int
    batch: int
    chunk: int
    decode_rows: int
    page_size: int
    positions: int


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 of a part."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything that the loader has to know; FORMAT.md says what each field means."""

    created_by: str
    model: Mapping[str, Any]
    abi: Mapping[str, Any]
    builds: tuple[Build, ...]
    entry_points: Mapping[str, EntryPoint]
    bounds: Bounds
    cache: tuple[TensorSpec, ...]
    weights: tuple[TensorSpec, ...]
    memory: Mapping[str, int]
    passes: tuple[str, ...]
    files: Mapping[str, FileEntry]

    def to_json(self) -> str:
        """The text of manifest.json."""
        spec = lambda t: {"name": t.name, "dtype": t.dtype, "shape": list(t.shape)}  # noqa: E731
        data = {
            "format": FORMAT,
            **{k: getattr(self, k) for k in ("created_by", "model", "abi", "memory")},
            "builds": [build.to_json() for build in self.builds],
            "entry_points": {
                name: {
                    "inputs": list(map(spec, e.inputs)),
                    "states": list(e.states),
                    "weights": list(e.weights),
                    "outputs": list(map(spec, e.outputs)),
                }
                for name, e in self.entry_points.items()
            },
            "bounds": vars(self.bounds),
            "cache": list(map(spec, self.cache)),
            "weights": list(map(spec, self.weights)),
            "passes": list(self.passes),
            "files": {name: vars(f) for name, f in self.files.items()},
        }
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_text(cls, text: str, where: str) -> Manifest:
        """Parse manifest.json.

        Raises:
            DeepZigError: not JSON, another format version, or a field missing or ill-typed.
        """

        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            if len({k for k, _ in pairs}) < len(pairs):
                raise DeepZigError("the manifest names a key twice", where, MEND)
            return dict(pairs)

        try:
            data = json.loads(text, object_pairs_hook=unique)
        except (ValueError, RecursionError):
            raise DeepZigError("the manifest is not JSON", where, MEND) from None
        return cls.from_json(data, where)

    @classmethod
    def from_json(cls, data: Any, where: str) -> Manifest:
        """Build from a JSON value; raises as `from_text`."""
        r = _Reader(where)
        top = r.object(data, "manifest")
        version = top.get("format")
        if version != FORMAT:
            raise DeepZigError(
                f"the artifact has format {version!r}, this DeepZig reads {FORMAT}", where, f"{MEND} with this DeepZig"
            )
        bounds = r.object(top.get("bounds"), "bounds")
        names = Bounds.__dataclass_fields__
        manifest = cls(
            created_by=r.text(top.get("created_by"), "created_by"),
            model=r.object(top.get("model"), "model"),
            abi=r.object(top.get("abi"), "abi"),
            builds=tuple(r.build(b, f"builds[{i}]") for i, b in enumerate(r.list(top.get("builds"), "builds"))),
            entry_points={
                name: r.entry_point(e, f"entry_points.{name}")
                for name, e in r.object(top.get("entry_points"), "entry_points").items()
            },
            bounds=Bounds(**{n: r.count(bounds.get(n), f"bounds.{n}", least=1) for n in names}),
            cache=r.specs(top.get("cache"), "cache"),
            weights=r.specs(top.get("weights"), "weights"),
            memory={k: r.count(v, f"memory.{k}") for k, v in r.object(top.get("memory"), "memory").items()},
            passes=r.texts(top.get("passes"), "passes"),
            files={k: r.file(v, f"files.{k}") for k, v in r.object(top.get("files"), "files").items()},
        )
        for key in ("tvm_ffi", "tvm"):
            r.text(manifest.abi.get(key), f"abi.{key}")
        for key in ("vocab_size", "num_hidden_layers"):
            r.count(manifest.model.get(key), f"model.{key}", least=1)
        for token in r.list(manifest.model.get("eos_token_ids"), "model.eos_token_ids"):
            r.count(token, "model.eos_token_ids entry")
        _check_references(manifest, r)
        return manifest


def _check_references(manifest: Manifest, r: _Reader) -> None:
    """What the fields say of each other."""
    for name in ENTRY_POINTS:
        if name not in manifest.entry_points:
            raise r.fail("entry_points", f"lack {name}")
    caches, weights = ({t.name for t in group} for group in (manifest.cache, manifest.weights))
    for name, point in manifest.entry_points.items():
        for field, used, known in (("states", point.states, caches), ("weights", point.weights, weights)):
            if unknown := sorted(set(used) - known):
                raise r.fail(f"entry_points.{name}.{field}", f"name {unknown[0]}, which is not listed")
    for tensor in manifest.weights:
        if not all(isinstance(d, int) for d in tensor.shape):
            raise r.fail(f"weights {tensor.name} shape", "is not fixed")
    if not manifest.builds:
        raise r.fail("builds", "are none")
    bounds = manifest.bounds
    if bounds.rows < max(bounds.chunk, bounds.decode_rows):
        raise r.fail("bounds.rows", "is less than a chunk")


@dataclass(frozen=True)
class _Reader:
    """Checks of JSON values that name the field."""

    where: str

    def fail(self, field: str, what: str) -> DeepZigError:
        return DeepZigError(f"the manifest's {field} {what}", self.where, MEND)

    def object(self, value: Any, field: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.fail(field, "is not an object")
        return value

    def list(self, value: Any, field: str) -> list[Any]:
        if not isinstance(value, list):
            raise self.fail(field, "is not a list")
        return value

    def text(self, value: Any, field: str) -> str:
        if not isinstance(value, str):
            raise self.fail(field, "is not a text")
        return value

    def texts(self, value: Any, field: str) -> tuple[str, ...]:
        return tuple(self.text(v, field) for v in self.list(value, field))

    def count(self, value: Any, field: str, least: int = 0) -> int:
        if type(value) is not int or value < least:
            raise self.fail(field, f"is not a whole number from {least}")
        return value

    def spec(self, value: Any, field: str) -> TensorSpec:
        data = self.object(value, field)
        name, dtype = self.text(data.get("name"), f"{field} name"), data.get("dtype")
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            raise self.fail(f"{field} {name}", f"has an unknown type {dtype!r}")
        dims = self.list(data.get("shape"), f"{field} {name} shape")
        return TensorSpec(
            name, dtype, tuple(d if isinstance(d, str) else self.count(d, f"{field} {name} shape", 1) for d in dims)
        )

    def specs(self, value: Any, field: str) -> tuple[TensorSpec, ...]:
        return tuple(self.spec(v, field) for v in self.list(value, field))

    def entry_point(self, value: Any, field: str) -> EntryPoint:
        data = self.object(value, field)
        return EntryPoint(
            self.specs(data.get("inputs"), f"{field}.inputs"),
            self.texts(data.get("states"), f"{field}.states"),
            self.texts(data.get("weights"), f"{field}.weights"),
            self.specs(data.get("outputs"), f"{field}.outputs"),
        )

    def build(self, value: Any, field: str) -> Build:
        data = self.object(value, field)
        name, platform, triple, code, runtime = (
            self.text(data.get(key), f"{field}.{key}") for key in ("name", "platform", "triple", "code", "runtime")
        )
        calls = {
            entry: tuple(self.call(c, f"{field}.calls.{entry}") for c in self.list(listed, f"{field}.calls.{entry}"))
            for entry, listed in self.object(data.get("calls"), f"{field}.calls").items()
        }
        features = frozenset(self.texts(data.get("features"), f"{field}.features"))
        return Build(name, platform, triple, features, code, runtime, calls)

    def call(self, value: Any, field: str) -> Call:
        data = self.object(value, field)
        kernel, op, where = (self.text(data.get(key), f"{field} {key}") for key in ("kernel", "op", "where"))
        layer = data.get("layer")
        number = None if layer is None else self.count(layer, f"{field} layer")
        return Call(kernel, op, number, where, self.texts(data.get("values"), f"{field} values"))

    def file(self, value: Any, field: str) -> FileEntry:
        data = self.object(value, field)
        digest = self.text(data.get("sha256"), f"{field} sha256")
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise self.fail(field, "has no SHA-256")
        return FileEntry(self.count(data.get("size"), f"{field} size"), digest)
