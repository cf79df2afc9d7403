"""WebGPU's limits: those that every adapter has, or what the file of an adapter says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from deepzig.errors import DeepZigError

from .device import WEBGPU, Gpu

LIMITS = {
    "maxComputeInvocationsPerWorkgroup": "max_threads",
    "maxComputeWorkgroupSizeX": "max_threads",
    "maxComputeWorkgroupStorageSize": "shared_bytes",
    "maxStorageBuffersPerShaderStage": "bindings",
    "maxStorageBufferBindingSize": "binding_bytes",
    "maxBufferSize": "binding_bytes",
    "maxComputeWorkgroupsPerDimension": "grid",
}
"""Name in `GPUSupportedLimits` -> the field of `Gpu` that it bounds."""

MOST = {"max_threads": 256, "binding_bytes": (1 << 31) - 4}
"""Field -> what kernels make use of at most: device functions exchange among so many threads, indices have 32 bits."""

WHERE = "--target"
HINT = 'write there what a page finds in `adapter.limits`, such as {"maxStorageBufferBindingSize": 1073741824}'


def read_limits(path: Path) -> Gpu:
    """WebGPU on an adapter.

    Args:
        path: a JSON object of its `limits`; of those that are missing every adapter has the default.

    Raises:
        DeepZigError: the file can't be read, or is no such object.
    """
    try:
        limits = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeepZigError(f"the limits can't be read: {error.strerror}", WHERE, "name a JSON file") from None
    except ValueError:
        raise DeepZigError(f"{path} is no JSON", WHERE, HINT) from None
    if not isinstance(limits, dict) or not all(type(value) is int and value > 0 for value in limits.values()):
        raise DeepZigError(f"{path} is no object of positive integers", WHERE, HINT)
    return with_limits(limits)


def with_limits(limits: dict[str, int]) -> Gpu:
    """WebGPU with limits by their names in `GPUSupportedLimits`; other names are let be."""
    found: dict[str, int] = {}
    for name, field in LIMITS.items():
        if name in limits:
            found[field] = min(limits[name], found.get(field, limits[name]), MOST.get(field, limits[name]))
    fields: dict[str, Any] = {field: value for field, value in found.items() if field != "grid"}
    if "grid" in found:
        fields["grid"] = (WEBGPU.grid[0], found["grid"], 1)
    return replace(WEBGPU, **fields)
