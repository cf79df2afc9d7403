"""How stored tensors become floats: as they are, or as codes of few bits with a scale for each block of a matrix.

A quantised matrix `X` is stored as several tensors, whose names begin with `X`. Which, `config.json` says in
`quantization_config`; a format is a row of METHODS.

- `fp8`: DeepSeek's own (DeepSeek-V3 report, arXiv:2412.19437, section 3.3; inference/fp8_cast_bf16.py of the
  repository deepseek-ai/DeepSeek-V3): e4m3fn codes `X`, and `X_scale_inv` by blocks of 128 x 128, which is multiplied
  despite its name.
- `compressed-tensors` (vllm-project/compressed-tensors, compressors/pack_quantized): integers `X_packed`, the first in
  the lowest bits of an int32, `X_scale` by groups along a row, and `X_shape`; or e4m3fn or int8 codes `X` and
  `X_scale`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.errors import DeepZigError
from deepzig.ir.fp8 import E4M3, SIDE, records

from .fields import Fields
from .files import MEND, Stored

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

DTYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
"""Element types that are floats as they are -> their names here."""

NUMPY: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
}
"""How they are held; bf16 as its bits."""


@dataclass(frozen=True)
class Weight:
    """A tensor of floats, however it is stored.

    Attributes:
        where: file and name, for errors.
        shape: its shape.
        dtype: f32, f16 or bf16, or the stored type if it can't be read.
        read: the part at an index of the first dimensions: float32, float16, or the bits of bf16 as uint16.
        fp8: the matrix at an index of the dimensions before its own, as records of `deepzig.ir.fp8`, to the bit; None
            if it is not stored as such numbers.
    """

    where: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[tuple[int, ...]], Array]
    fp8: Callable[[tuple[int, ...]], Array] | None = None


def _e8m0() -> F32:
    """The value of each e8m0 code: a power of two, 0xFF is NaN (OCP microscaling formats, section 5.4.1)."""
    value = 2.0 ** (np.arange(256) - 127.0)
    value[255] = np.nan
    return value.astype(np.float32)


E8M0 = _e8m0()
NIBBLES = np.array([(byte & 15, byte >> 4) for byte in range(256)], np.float32) - np.float32(8)
"""The two 4-bit integers of a byte, the low one first, without their offset of 8."""

SCALES: Mapping[str, tuple[np.dtype[Any], Callable[[Array], F32]]] = {
    "F32": (np.dtype(np.float32), lambda x: x),
    "F16": (np.dtype(np.float16), lambda x: x.astype(np.float32)),
    "BF16": (np.dtype(np.uint16), lambda x: (x.astype(np.uint32) << 16).view(np.float32)),
    "F8_E8M0": (np.dtype(np.uint8), lambda x: E8M0[x]),
}
"""Stored type of a scale -> how it is held, and its values."""

CODES: Mapping[str, tuple[np.dtype[Any], Callable[[Array], F32]]] = {
    "F8_E4M3": (np.dtype(np.uint8), lambda x: E4M3[x]),
    "I8": (np.dtype(np.int8), lambda x: x.astype(np.float32)),
    "4 in I32": (np.dtype(np.int32), lambda x: NIBBLES[x.view(np.uint8)].reshape(*x.shape[:-1], -1)),
    "8 in I32": (np.dtype(np.int32), lambda x: x.view(np.uint8).astype(np.float32) - np.float32(128)),
}
"""Kind of code -> how it is held, and its values."""


@dataclass(frozen=True)
class Scheme:
    """How a checkpoint stores its quantised matrices.

    Attributes:
        code: a kind of CODES.
        scale: what the name of the scales adds to that of the matrix.
        block: rows and columns that share a scale; 0 for all of them.
    """

    code: str
    scale: str
    block: tuple[int, int]

    @property
    def per_word(self) -> int:
        """Codes in a stored element."""
        return 32 // int(self.code[0]) if self.code.endswith("in I32") else 1

    def holds(self, name: str, stored: Stored) -> bool:
        """Whether a tensor is the codes of a matrix."""
        if self.per_word > 1:
            return name.endswith("_packed")
        return stored.entry.dtype == self.code and len(stored.entry.shape) > 1

    def weight(self, name: str, files: Mapping[str, Stored]) -> tuple[str, Weight, set[str]]:
        """The matrix whose codes are the tensor `name`: its own name, itself, and the tensors that it took.

        Raises:
            DeepZigError: a tensor that belongs to it is missing, or of another shape or type.
        """
        codes, matrix = files[name], name.removesuffix("_packed")
        shape = codes.entry.shape
        took = {name, matrix + self.scale}
        if self.per_word > 1:
            took.add(f"{matrix}_shape")
            shape = _shape(_part(f"{matrix}_shape", codes, files))
            if codes.entry.dtype != "I32":
                raise DeepZigError(f"packed weights are of type I32, not {codes.entry.dtype}", codes.where, MEND)
            _same_shape("the packed weights are", codes, (shape[0], -(-shape[1] // self.per_word)))
        scale = _part(matrix + self.scale, codes, files)
        if scale.entry.dtype not in SCALES:
            hint = f"scales are of type {', '.join(SCALES)}"
            raise DeepZigError(f"scales of type {scale.entry.dtype} can't be read", scale.where, hint)
        rows, columns = (size or whole for size, whole in zip(self.block, shape[-2:], strict=True))
        wanted = (*shape[:-2], -(-shape[-2] // max(rows, 1)), -(-shape[-1] // max(columns, 1)))
        if math.prod(wanted) != 1 or math.prod(scale.entry.shape) != 1:  # one scale comes as [], [1] or [1, 1]
            _same_shape("the scales are", scale, wanted)
        held, decode = CODES[self.code]
        scale_held, scale_decode = SCALES[scale.entry.dtype]

        def read(index: tuple[int, ...]) -> Array:
            x = decode(codes.read(held, index))[..., : shape[-1]]
            row = len(index) == len(shape) - 1
            block = (*index[:-1], index[-1] // rows) if row else index
            s = scale_decode(scale.read(scale_held, block)).reshape(*wanted[len(block) :])
            return _scaled(x[None], s[None], rows, columns)[0] if row else _scaled(x, s, rows, columns)

        def fp8(index: tuple[int, ...]) -> Array:
            s = scale_decode(scale.read(scale_held, index)).reshape(*wanted[len(index) :])
            by_row = np.repeat(s, rows, -2)[..., : shape[-2], :]
            groups = -(-shape[-1] // SIDE)
            return records(codes.read(held, index), np.repeat(by_row, -(-columns // SIDE), -1)[..., :groups])

        exact = self.code == "F8_E4M3" and (columns % SIDE == 0 or columns >= shape[-1])
        return matrix, Weight(codes.where, shape, "f32", read, fp8 if exact else None), took


def _scaled(x: F32, scale: F32, rows: int, columns: int) -> F32:
    """Each block of `x` [..., R, C] times its scale [..., R / rows, C / columns], both rounded up; changes `x`."""
    x = np.ascontiguousarray(x)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused by the reader of the checkpoint
        for i in range(scale.shape[-2]):
            x[..., i * rows : (i + 1) * rows, :] *= np.repeat(scale[..., i : i + 1, :], columns, -1)[..., : x.shape[-1]]
    return x


def _part(name: str, codes: Stored, files: Mapping[str, Stored]) -> Stored:
    if name not in files:
        raise DeepZigError("a tensor is missing", f"{codes.path}, tensor {name}", MEND)
    return files[name]


def _shape(stored: Stored) -> tuple[int, int]:
    """The shape that a tensor holds as two integers."""
    held = {"I32": np.int32, "I64": np.int64}.get(stored.entry.dtype)
    if held is None or stored.entry.shape != (2,):
        what = f"a shape is I64[2], not {stored.entry.dtype}{list(stored.entry.shape)}"
        raise DeepZigError(what, stored.where, MEND)
    rows, columns = (int(n) for n in stored.read(np.dtype(held)))
    if min(rows, columns) < 1:
        raise DeepZigError(f"the shape is [{rows}, {columns}]", stored.where, MEND)
    return rows, columns


def _same_shape(what: str, stored: Stored, wanted: tuple[int, ...]) -> None:
    if stored.entry.shape != wanted:
        raise DeepZigError(f"{what} {list(stored.entry.shape)}, not {list(wanted)}", stored.where, MEND)


def plain(stored: Stored) -> Weight:
    """A tensor that is stored as floats."""
    dtype = DTYPES.get(stored.entry.dtype, stored.entry.dtype)
    return Weight(stored.where, stored.entry.shape, dtype, lambda index: stored.read(NUMPY[dtype], index))


def read_weights(files: Mapping[str, Stored], scheme: Scheme | None) -> dict[str, Weight]:
    """The weights that the tensors of a checkpoint make up, by name.

    Raises:
        DeepZigError: a part of a quantised weight is missing or damaged.
    """
    weights: dict[str, Weight] = {}
    taken: set[str] = set()
    if scheme is not None:
        for name, stored in files.items():
            if scheme.holds(name, stored):
                matrix, weight, took = scheme.weight(name, files)
                weights[matrix] = weight
                taken |= took
    weights |= {name: plain(stored) for name, stored in files.items() if name not in taken and name not in weights}
    return weights


def find_scheme(config: Mapping[str, Any], source: str) -> Scheme | None:
    """The scheme that a config.json names; None if weights are plain.

    Raises:
        DeepZigError: it can't be read.
    """
    data = config.get("quantization_config")
    if data is None:
        return None
    if not isinstance(data, Mapping):
        raise Fields(config, source).fail("quantization_config", f"{data!r} is not an object")
    f = Fields(data, f"{source}, quantization_config")
    method = data.get("quant_method")
    if not isinstance(method, str) or method not in METHODS:
        hint = f"use a checkpoint in bf16, or one of {', '.join(METHODS)}"
        raise f.fail("quant_method", f"weights quantised by {method!r} can't be read", hint)
    return METHODS[method](f)


def _fp8(f: Fields) -> Scheme:
    f.only("fmt", "e4m3", "DeepSeek's weights are e4m3")
    block = f.data.get("weight_block_size", [128, 128])
    if not isinstance(block, list) or len(block) != 2 or any(type(n) is not int or n < 1 for n in block):
        raise f.fail("weight_block_size", f"{block!r} is not a list of two whole numbers from 1")
    return Scheme("F8_E4M3", "_scale_inv", (block[0], block[1]))


def _compressed(f: Fields) -> Scheme:
    groups = f.data.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        raise f.fail("config_groups", "there is not just one group of weights", "use a checkpoint with one")
    ((name, group),) = groups.items()
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        raise f.fail("config_groups", f"{name} does not say how weights are stored")
    w = Fields(weights, f"{f.source}, config_groups, {name}")
    w.only("symmetric", True, "weights have no zero points")
    w.only("actorder", None, "columns are in their own order")
    layout = (f.data.get("format"), weights.get("type", "int"), weights.get("num_bits"))
    if layout not in COMPRESSED:
        what = "weights of format {!r}, type {!r} and {!r} bits can't be read".format(*layout)
        raise f.fail("format", what, f"use one of {', '.join(f'{a} {b}{n}' for a, b, n in COMPRESSED)}")
    strategies = {"channel": (1, 0), "tensor": (0, 0)}
    strategy = weights.get("strategy")
    if strategy == "group":
        return Scheme(COMPRESSED[layout], "_scale", (1, w.integer("group_size")))
    if strategy not in strategies:
        raise w.fail("strategy", f"{strategy!r} is not supported", f"use one of group, {', '.join(strategies)}")
    return Scheme(COMPRESSED[layout], "_scale", strategies[strategy])


METHODS: Mapping[str, Callable[[Fields], Scheme]] = {"fp8": _fp8, "compressed-tensors": _compressed}
"""quant_method -> reader of its fields."""

COMPRESSED: Mapping[tuple[Any, Any, Any], str] = {
    ("pack-quantized", "int", 4): "4 in I32",
    ("pack-quantized", "int", 8): "8 in I32",
    ("int-quantized", "int", 8): "I8",
    ("float-quantized", "float", 8): "F8_E4M3",
}
"""Format, type and bits of compressed-tensors -> kind of code."""
