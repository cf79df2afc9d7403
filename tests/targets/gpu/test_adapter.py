"""WebGPU's limits as the file of an adapter says them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepzig.errors import DeepZigError
from deepzig.targets.gpu.adapter import read_limits, with_limits
from deepzig.targets.gpu.device import WEBGPU, GpuTarget
from deepzig.targets.gpu.few import few
from deepzig.targets.gpu.product import Product
from deepzig.targets.gpu.webgpu import compile_functions

from .conftest import KINDS


def test_limits_of_an_adapter(tmp_path: Path) -> None:
    path = tmp_path / "adapter.json"
    limits = {
        "maxComputeWorkgroupStorageSize": 32768,
        "maxStorageBufferBindingSize": 1 << 30,
        "maxBufferSize": 1 << 28,
        "maxComputeInvocationsPerWorkgroup": 1024,
        "maxStorageBuffersPerShaderStage": 10,
        "maxTextureDimension2D": 8192,
    }
    path.write_text(json.dumps(limits))
    gpu = read_limits(path)
    assert (gpu.shared_bytes, gpu.binding_bytes, gpu.max_threads, gpu.bindings) == (32768, 1 << 28, 256, 10)
    assert gpu.grid == WEBGPU.grid and gpu.compact
    assert with_limits({"maxComputeWorkgroupsPerDimension": 1000}).grid[1:] == (1000, 1)


def test_a_kernel_over_a_limit_is_refused_by_name() -> None:
    import tvm

    kernel = few(KINDS["webgpu"], Product(64, 9, "q8", bias=True, residual=True))
    target = GpuTarget(with_limits({"maxStorageBuffersPerShaderStage": 4}), frozenset(), "x86_64-linux", "webgpu")
    with pytest.raises(DeepZigError) as caught:
        compile_functions(tvm.IRModule({"f": kernel}), target)
    assert str(caught.value) == (
        "the kernel few_k64_n9_q8_bias_res_kernel needs 5 bindings, the device has 4\n"
        "  at: lowering for webgpu\n"
        "  fix: report it with the config of the model"
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "is no JSON"),
        ("[3]", "is no object of positive integers"),
        ('{"maxBufferSize": "large"}', "is no object of positive integers"),
        ('{"maxBufferSize": 0}', "is no object of positive integers"),
        (None, "the limits can't be read: No such file or directory"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str | None, what: str) -> None:
    path = tmp_path / "adapter.json"
    hint = "name a JSON file"
    if text is not None:
        path.write_text(text)
        what = f"{path} {what}"
        hint = 'write there what a page finds in `adapter.limits`, such as {"maxStorageBufferBindingSize": 1073741824}'
    with pytest.raises(DeepZigError) as caught:
        read_limits(path)
    assert str(caught.value) == f"{what}\n  at: --target\n  fix: {hint}"
