"""Self-check vectors: what an artifact's kernels should compute, as recorded when it was compiled.

The vectors are a list of calls of entry points. Each has its inputs, and of the values that its kernels compute
`sketches`: a norm and a few projections, enough to tell a wrong value from a right one. What another kernel reads is
`forced`: once compared it is replaced, caches too, by noise or by a drawn choice. So every op starts from known values,
whatever those before it did: errors don't add up, one fault does not hide the next, and no choice hangs on a rounding.
`choices` are the outputs of ops that choose, such as the router, kept whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.errors import DeepZigError

from .checks import MEND

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

PART = "selfcheck.json"
PROJECTIONS = 4
MAX_NOISE = 1 << 28
"""Elements of the largest noise that is made."""


@dataclass(frozen=True)
class Noise:
    """Values that are made of a seed: multiples of 2^(2 - bits) from -2 to 2, times `scale`, all exact.

    Attributes:
        seed: which.
        shape: their shape.
        bits: 24 fill an f32; 6 are exact in every float type.
        scale: a power of two.
    """

    seed: int
    shape: tuple[int, ...]
    bits: int = 24
    scale: float = 1.0

    def make(self) -> F32:
        """The values."""
        whole = (_mix(self.seed, math.prod(self.shape)) >> np.uint64(64 - self.bits)).astype(np.int64)
        values = (whole - (1 << self.bits - 1)) * (self.scale * 2.0 ** (2 - self.bits))
        return values.astype(np.float32).reshape(self.shape)


@dataclass(frozen=True)
class Draw:
    """A choice that is made of a seed: in each row different ones of a few experts, the first and the last among them.

    Attributes:
        seed: which.
        shape: rows, and choices of a row.
        experts: how many there are to choose from.
    """

    seed: int
    shape: tuple[int, int]
    experts: int

    def make(self) -> I32:
        """The choice; of `experts` no more than the double of a row's are used, so that few have to be read."""
        rows, count = self.shape
        few = min(max(2 * count, 2), self.experts)
        order = np.argsort(_mix(self.seed, self.experts)[1:-1], kind="stable") + 1
        pool = np.array([0, self.experts - 1, *order])[:few]
        keys = _mix(self.seed + 1, rows * few).reshape(rows, few)
        chosen: I32 = pool[np.argsort(keys, -1, kind="stable")[:, :count]].astype(np.int32)
        return chosen


@dataclass(frozen=True)
class Sketch:
    """A value in a few numbers.

    Attributes:
        shape: what is compared of each dimension; the stored value may be padded beyond.
        norm: its Euclidean norm.
        projections: its products with vectors of random signs.
    """

    shape: tuple[int, ...]
    norm: float
    projections: tuple[float, ...]

    @classmethod
    def of(cls, value: Array) -> Sketch:
        """The sketch of a value."""
        flat = value.reshape(-1).astype(np.float64)
        signs = _mix(0, len(flat))
        picks = ((signs >> np.uint64(i) & np.uint64(1)).astype(np.bool_) for i in range(PROJECTIONS))
        projections = [float(np.where(pick, flat, -flat).sum()) for pick in picks]
        return cls(value.shape, float(np.linalg.norm(flat)), tuple(projections))

    def distance(self, value: Array) -> float:
        """How far a value is from the recorded one, relative to its norm; infinite for what is not a number."""
        cut = value[tuple(slice(size) for size in self.shape)]
        if cut.shape != self.shape:
            return math.inf
        with np.errstate(all="ignore"):
            other = Sketch.of(cut)
        pairs = zip((self.norm, *self.projections), (other.norm, *other.projections), strict=True)
        worst = max(abs(a - b) if math.isfinite(b) else math.inf for a, b in pairs)
        return worst / self.norm if self.norm else worst


@dataclass(frozen=True)
class Choice:
    """All outputs of an op that chooses.

    Attributes:
        values: name -> rows.
        unsure: rows whose choice hangs on a rounding.
    """

    values: Mapping[str, list[list[float]]]
    unsure: tuple[int, ...]


@dataclass(frozen=True)
class CheckedCall:
    """A call of an entry point: its inputs, and what its kernels compute; see the module."""

    entry: str
    inputs: Mapping[str, Any]
    sketches: Mapping[str, Sketch]
    forced: Mapping[str, Noise | Draw]
    choices: tuple[Choice, ...]

    def arrays(self) -> dict[str, Array]:
        """The inputs."""
        return {k: v.make() if isinstance(v, Noise) else np.array(v) for k, v in self.inputs.items()}


@dataclass(frozen=True)
class SelfCheck:
    """The vectors of an artifact.

    Attributes:
        layers: the layers that were recorded.
        pages: how many pages of cache the calls use.
        calls: in order.
    """

    layers: tuple[int, ...]
    pages: int
    calls: tuple[CheckedCall, ...]

    def to_json(self) -> str:
        """The text of the part."""
        return json.dumps(asdict(self), separators=(",", ":"), allow_nan=False) + "\n"

    @classmethod
    def from_text(cls, text: str, where: str) -> SelfCheck:
        """Parse the part.

        Raises:
            DeepZigError: it is damaged.
        """
        try:
            data = json.loads(text)
            calls = tuple(map(_call, data["calls"]))
            return cls(tuple(map(_count, data["layers"])), _count(data["pages"]), calls)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise DeepZigError("the self-check vectors can't be understood", where, MEND) from None


def _call(data: Any) -> CheckedCall:
    inputs = {str(k): _noise(v) if isinstance(v, dict) else v for k, v in data["inputs"].items()}
    for given in inputs.values():
        if not isinstance(given, Noise) and np.array(given).dtype.kind not in "iuf":
            raise ValueError
    sketches = {
        str(k): Sketch(tuple(map(_count, v["shape"])), float(v["norm"]), tuple(map(float, v["projections"])))
        for k, v in data["sketches"].items()
    }
    if any(len(s.projections) != PROJECTIONS for s in sketches.values()):
        raise ValueError
    choices = tuple(
        Choice(
            {str(k): np.array(rows, np.float64).tolist() for k, rows in c["values"].items()},
            tuple(map(_count, c["unsure"])),
        )
        for c in data["choices"]
    )
    forced = {str(k): _draw(v) if "experts" in v else _noise(v) for k, v in data["forced"].items()}
    return CheckedCall(str(data["entry"]), inputs, sketches, forced, choices)


def _noise(data: Any) -> Noise:
    bits, scale = _count(data["bits"]), float(data["scale"])
    if not (1 <= bits <= 24 and 2.0**-24 <= scale <= 2.0**24):
        raise ValueError
    return Noise(_count(data["seed"]), _shape(data), bits, scale)


def _draw(data: Any) -> Draw:
    (rows, count), experts = _shape(data), _count(data["experts"])
    if not 1 <= count <= experts <= MAX_NOISE:
        raise ValueError
    return Draw(_count(data["seed"]), (rows, count), experts)


def _shape(data: Any) -> tuple[int, ...]:
    shape = tuple(map(_count, data["shape"]))
    if math.prod(shape) > MAX_NOISE:
        raise ValueError
    return shape


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError
    return value


def _mix(seed: int, count: int) -> npt.NDArray[np.uint64]:
    """64 random bits for each of `count` counters: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed) * np.uint64(0x100000000)
    x *= np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed
