"""All kernels of DeepSeek-V2-Lite and V3 as nvcc makes them: nothing spills, tensor cores multiply, and all
that a process loads is small."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tvm_ffi

from deepzig.artifacts.cpu_features import this_machine
from deepzig.compiler.build import libraries
from deepzig.compiler.lower import lower
from deepzig.compiler.pipeline import run_pipeline
from deepzig.compiler.plan import plan_graph
from deepzig.compiler.precision import parse_quant
from deepzig.compiler.trace import Bounds, trace
from deepzig.models.families import parse_config
from deepzig.models.fields import Fields
from deepzig.models.presets import V2_LITE, V3
from deepzig.targets.base import Target
from deepzig.targets.gpu import nvcc
from deepzig.targets.gpu.toolkit import find_tool
from deepzig.targets.registry import find_targets

from .sass import disassembled, matrix_instructions

MATRICES = re.compile(r"(tiled|mla_attend|mla_flash)_(?!.*_f32_kernel)")
"""Kernels that multiply matrices, but those of f32, the router's: no rounding may change its choice. The last launch of
`mla_attend` joins sections."""


def code_of(preset: Mapping[str, Any], quant: str | None, patched: pytest.MonkeyPatch) -> tuple[nvcc.Fatbin, Target]:
    """The code for CUDA of a model's kernels, and the target. No weights are needed for it."""
    made: list[nvcc.Fatbin] = []
    compiler = nvcc.fatbin
    patched.setattr(nvcc, "fatbin", lambda *asked: made.append(compiler(*asked)) or made[-1])
    config = parse_config(Fields(dict(preset), "preset"))
    targets, table = find_targets("cuda", this_machine())
    module = run_pipeline(trace(config, "bf16", Bounds(), quant=parse_quant(quant, targets[0].headwise)))
    plans = [plan_graph(graph, module, targets[0], table) for graph in module.graphs]
    targets[0].compile(lower(plans, targets[0].replay))
    [code] = made
    return code, targets[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "quant"), [(V2_LITE, None), (V3, "q4"), (V3, "fp8")], ids=["V2-Lite bf16", "V3 q4", "V3 fp8"]
)
def test_nothing_spills_and_tensor_cores_multiply_in_little_code(
    preset: Mapping[str, Any], quant: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_tool("nvcc") is None:
        pytest.skip("nvcc is not installed")
    code, target = code_of(preset, quant, monkeypatch)
    assert {u.arch for u in code.usage} == {"sm_80", "sm_89", "sm_90a"}
    assert not [u for u in code.usage if u.spills]
    multiply = {u.kernel for u in code.usage if MATRICES.match(u.kernel) and not u.kernel.endswith("_kernel_1")}
    assert len(multiply) > 8
    for arch in ("sm_80", "sm_90a"):
        told = disassembled(code.data, arch)
        assert not [kernel for kernel in sorted(multiply) if not matrix_instructions(told[kernel])]
    loaded = [*libraries(target).values(), Path(tvm_ffi.libinfo.find_libtvm_ffi())]
    assert len(code.data) + sum(path.stat().st_size for path in loaded) < 64 << 20
