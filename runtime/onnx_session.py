"""An ONNX export in onnxruntime, whose errors are mapped here."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from deepzig.artifacts.onnx_file import EXPORT_AGAIN, EXTRA, OnnxFile
from deepzig.errors import DeepZigError

from .library import default_threads

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]


ROW_ACCURACY, F32 = "session.qdq_matmulnbits_accuracy_level", "1"
"""A setting of a session (onnxruntime_session_options_config_keys.h), and its value for rows that stay as they are."""


class OnnxSession:
    """A loaded graph, on the CPU. Safe to use from several threads.

    Args:
        file: the export.
        threads: those of onnxruntime; by default all processors.
        exact: standard ops alone say what quantised matrices multiply. Else rows are rounded to 8 bits, as onnxruntime
            does by default where it fuses DequantizeLinear with a product; the IR rounds them, too.

    Attributes:
        inputs: their names.
        outputs: their names.

    Raises:
        DeepZigError: onnxruntime is not installed, or does not load the model.
    """

    def __init__(self, file: OnnxFile, threads: int | None, exact: bool = False) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise DeepZigError(f"{error.name} is not installed", str(file.path), EXTRA) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or default_threads()
        options.log_severity_level = 3  # errors, which are raised too
        if exact:
            options.add_session_config_entry(ROW_ACCURACY, F32)
        self._where = str(file.path)
        try:
            self._session: Any = onnxruntime.InferenceSession(self._where, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own kinds have no common base
            raise self._failed("load", error) from None
        self.inputs = tuple(spec.name for spec in self._session.get_inputs())
        self.outputs = tuple(spec.name for spec in self._session.get_outputs())

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        """Outputs of a call, those that are named; nothing is copied.

        Raises:
            DeepZigError: onnxruntime refuses the inputs, or fails.
        """
        try:
            found: list[Array] = self._session.run(list(outputs), dict(inputs))
        except Exception as error:
            raise self._failed("run", error) from None
        return found

    def _failed(self, action: str, error: Exception) -> DeepZigError:
        log.debug("onnxruntime: %s", error)
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        hint = f"install the newest onnxruntime, or {EXPORT_AGAIN}"
        return DeepZigError(f"onnxruntime does not {action} the model: {line}", self._where, hint)
