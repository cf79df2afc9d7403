"""The manifest of an artifact: typed, and read with suspicion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepzig.errors import DeepZigError

from .checks import MEND, Fields, FileEntry, parse
from .consistency import ITEM_BYTES, check
from .devices import CPU, KINDS

FORMAT = 4

MAX_DIMENSIONS = 16
LIMITS = {"page_size": 1 << 16, "positions": (1 << 31) - 1}
"""The largest sane values of bounds; positions and tokens are i32."""

MAX_ROWS = 1 << 20
"""Of the other bounds."""


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
        partial: whether it writes a part of its output, of which calls before it have written the rest.
    """

    kernel: str
    op: str
    layer: int | None
    where: str
    values: tuple[str, ...]
    partial: bool = False

    def to_json(self) -> dict[str, Any]:
        """The entry of manifest.json."""
        fields = {**vars(self), "values": list(self.values)}
        return fields if self.partial else {name: value for name, value in fields.items() if name != "partial"}


@dataclass(frozen=True)
class Build:
    """The code for one kind of machine.

    Attributes:
        name: what it is called on the command line.
        platform: architecture and system, such as x86_64-linux.
        triple: LLVM's name of them.
        features: for the CPU the instruction sets that a machine must have, as LLVM spells them; for another device the
            kinds of it that there is code for.
        code: the part that is the code.
        runtime: the part that is TVM's runtime library; None where there is a plan.
        calls: entry point -> its kernel calls, in order.
        device: what kernels run on.
        libraries: further parts that are libraries, to be loaded after the runtime and before the code, in this order.
        plan: the part that tells which kernels to call, for code that is kernels and nothing else.
    """

    name: str
    platform: str
    triple: str
    features: frozenset[str]
    code: str
    runtime: str | None
    calls: Mapping[str, tuple[Call, ...]]
    device: str = CPU
    libraries: tuple[str, ...] = ()
    plan: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """All of its parts."""
        return tuple(filter(None, (self.code, self.runtime, *self.libraries, self.plan)))

    def to_json(self) -> dict[str, Any]:
        """The entry of manifest.json."""
        calls = {entry: [c.to_json() for c in calls] for entry, calls in self.calls.items()}
        lists = {"features": sorted(self.features), "libraries": list(self.libraries)}
        return {**vars(self), **lists, "calls": calls}


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
        return cls.from_json(parse(text, where), where)

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
            bounds=Bounds(**{n: r.count(bounds.get(n), f"bounds.{n}", 1, LIMITS.get(n, MAX_ROWS)) for n in names}),
            cache=r.specs(top.get("cache"), "cache"),
            weights=r.specs(top.get("weights"), "weights"),
            memory={k: r.count(v, f"memory.{k}") for k, v in r.object(top.get("memory"), "memory").items()},
            passes=r.texts(top.get("passes"), "passes"),
            files={k: r.file(v, f"files.{k}") for k, v in r.object(top.get("files"), "files").items()},
        )
        for key in ("tvm_ffi", "tvm"):
            r.text(manifest.abi.get(key), f"abi.{key}")
        for key in ("vocab_size", "num_hidden_layers"):
            r.count(manifest.model.get(key), f"model.{key}", 1, (1 << 31) - 1)
        for token in r.list(manifest.model.get("eos_token_ids"), "model.eos_token_ids"):
            r.count(token, "model.eos_token_ids entry")
        check(manifest, r)
        return manifest


@dataclass(frozen=True)
class _Reader(Fields):
    """Reads the records that a manifest is made of."""

    def spec(self, value: Any, field: str) -> TensorSpec:
        data = self.object(value, field)
        name, dtype = self.name(data.get("name"), f"{field} name"), data.get("dtype")
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            raise self.fail(f"{field} {name}", f"has an unknown type {dtype!r}")
        dims = self.list(data.get("shape"), f"{field} {name} shape")
        if len(dims) > MAX_DIMENSIONS:
            raise self.fail(f"{field} {name} shape", f"has more than {MAX_DIMENSIONS} dimensions")
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
        name, platform, triple, code = (
            self.name(data.get(key), f"{field}.{key}") for key in ("name", "platform", "triple", "code")
        )
        plan = None if data.get("plan") is None else self.name(data["plan"], f"{field}.plan")
        runtime = None if plan is not None else self.name(data.get("runtime"), f"{field}.runtime")
        calls = {
            entry: tuple(self.call(c, f"{field}.calls.{entry}") for c in self.list(listed, f"{field}.calls.{entry}"))
            for entry, listed in self.object(data.get("calls"), f"{field}.calls").items()
        }
        features = frozenset(self.texts(data.get("features"), f"{field}.features"))
        device = self.name(data.get("device", CPU), f"{field}.device")
        if device not in KINDS:
            raise self.fail(f"{field}.device", f"is {device!r}, which this DeepZig does not know")
        libraries = self.texts(data.get("libraries", []), f"{field}.libraries")
        return Build(name, platform, triple, features, code, runtime, calls, device, libraries, plan)

    def call(self, value: Any, field: str) -> Call:
        data = self.object(value, field)
        kernel, op, where = (self.text(data.get(key), f"{field} {key}") for key in ("kernel", "op", "where"))
        layer = data.get("layer")
        number = None if layer is None else self.count(layer, f"{field} layer")
        values, partial = self.texts(data.get("values"), f"{field} values"), data.get("partial", False)
        if not isinstance(partial, bool):
            raise self.fail(f"{field} partial", "is neither true nor false")
        return Call(kernel, op, number, where, values, partial)
