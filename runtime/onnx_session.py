"""An ONNX export in onnxruntime, whose errors are mapped here."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.artifacts.onnx_file import ELEMENTS, EXPORT_AGAIN, EXTRA, OnnxFile
from deepzig.errors import DeepZigError

from .library import default_threads

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(np.uint16), "i64": np.dtype(np.int64)
}  # fmt: skip
"""Element types of inputs and outputs in numpy, which has no bf16: that is its bits here."""

NUMBERS = {name: number for number, name in ELEMENTS.items()}


class OnnxSession:
    """A loaded graph, on the CPU. Safe to use from several threads.

    Args:
        file: the export.
        threads: those of onnxruntime; by default all processors.

    Attributes:
        inputs: their names.
        outputs: their names.

    Raises:
        DeepZigError: onnxruntime is not installed, or does not load the model.
    """

    def __init__(self, file: OnnxFile, threads: int | None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise DeepZigError(f"{error.name} is not installed", str(file.path), EXTRA) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or default_threads()
        options.log_severity_level = 3  # errors, which are raised too
        self._where, self._value = str(file.path), onnxruntime.OrtValue
        self._cached = {spec.name: spec.dtype for spec in file.caches}
        try:
            self._session = onnxruntime.InferenceSession(self._where, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own kinds have no common base
            raise self._failed("load", error) from None
        self.inputs = tuple(spec.name for spec in self._session.get_inputs())
        self.outputs = tuple(spec.name for spec in self._session.get_outputs())

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        """Outputs of a call by their names; those of f32 and f16 lie where onnxruntime wrote them.

        Raises:
            DeepZigError: onnxruntime refuses the inputs, or fails.
        """
        try:
            given = {name: self._given(name, array) for name, array in inputs.items()}
            return list(map(_array, self._session.run_with_ort_values(list(outputs), given)))
        except Exception as error:
            raise self._failed("run", error) from None

    def _given(self, name: str, array: Array) -> Any:
        """An input without a copy."""
        number = NUMBERS[self._cached.get(name, "i64")]
        return self._value.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), number)

    def _failed(self, action: str, error: Exception) -> DeepZigError:
        log.debug("onnxruntime: %s", error)
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        hint = f"install the newest onnxruntime, or {EXPORT_AGAIN}"
        return DeepZigError(f"onnxruntime does not {action} the model: {line}", self._where, hint)


def _array(value: Any) -> Array:
    """An output as numpy has it; onnxruntime gives no array of bf16, so its bits are copied."""
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    shape = value.shape()
    size = int(np.prod(shape)) * DTYPES["bf16"].itemsize
    return np.frombuffer(ctypes.string_at(value.data_ptr(), size), DTYPES["bf16"]).reshape(shape)


def as_floats(array: Array, dtype: str) -> Array:
    """An array of `dtype` in f32 or a wider type."""
    floats: Array = (array.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else array.astype(np.float64)
    return floats
