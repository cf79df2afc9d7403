"""What `--target` says of GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepzig.artifacts.machines import Machine
from deepzig.compiler.platforms import PLATFORMS
from deepzig.errors import DeepZigError
from deepzig.targets.gpu.lowering import LOWERINGS
from deepzig.targets.gpu.names import GPUS
from deepzig.targets.registry import find_targets

HERE = Machine("x86_64-linux", frozenset({"avx2"}))
ALL = ", ".join(GPUS["cuda"].archs)


@pytest.mark.parametrize(
    ("spec", "features", "platform"),
    [
        ("cuda", {"sm_80", "sm_89", "sm_90a", "ptx_80"}, "x86_64-linux"),
        ("cuda:arch=sm_90a", {"sm_90a", "ptx_90"}, "x86_64-linux"),
        ("cuda:arch=sm_120a+sm_89,host=aarch64-linux", {"sm_120a", "sm_89", "ptx_89"}, "aarch64-linux"),
        ("cuda:host=x86_64-windows", {"sm_80", "sm_89", "sm_90a", "ptx_80"}, "x86_64-windows"),
        ("metal", set(), "aarch64-macos"),
        ("metal:host=aarch64-macos", set(), "aarch64-macos"),
        ("webgpu", set(), "web"),
    ],
)
def test_targets(spec: str, features: set[str], platform: str) -> None:
    (target,), table = find_targets(spec, HERE)
    assert (target.features, target.platform) == (features, platform)
    assert target.name == target.device == spec.partition(":")[0] and table is LOWERINGS


def test_limits_of_an_adapter(tmp_path: Path) -> None:
    path = tmp_path / "limits.json"
    path.write_text('{"maxStorageBufferBindingSize": 1048576}')
    (target,), _ = find_targets(f"webgpu:limits={path}", HERE)
    assert target.binding_bytes == 1 << 20 and not target.virtual_machine
    (target,), _ = find_targets("webgpu", HERE)
    assert target.binding_bytes == 128 << 20
    with pytest.raises(DeepZigError) as caught:
        find_targets("webgpu:limits=nowhere.json", HERE)
    assert caught.value.what == "the limits can't be read: No such file or directory"


def test_a_machine_that_can_be_no_host() -> None:
    """It compiles for one that can."""
    (target,), _ = find_targets("cuda", Machine("aarch64-macos", frozenset()))
    assert target.platform == "x86_64-linux"


@pytest.mark.parametrize(
    ("spec", "what", "hint"),
    [
        ("cuda:arch=sm_70", "the target cuda has no arch 'sm_70'", f"choose from {ALL}"),
        ("cuda:arch=sm_80+90a", "the target cuda has no arch '90a'", f"choose from {ALL}"),
        ("cuda:arch=", "the target cuda has no arch ''", f"choose from {ALL}"),
        ("cuda:arch=sm_80+sm_80", "the arch sm_80 is named twice", "name it once"),
        (
            "cuda:host=x86_64-macos",
            "the target cuda has no host 'x86_64-macos'",
            "choose from x86_64-linux, aarch64-linux, x86_64-windows",
        ),
        ("cuda:sm_80", "the target cuda has no option 'sm_80'", "it has arch= and host="),
        ("metal:arch=m1", "the target metal has no option 'arch'", "it has host="),
        ("webgpu:arch=x", "the target webgpu has no option 'arch'", "it has host= and limits="),
        ("webgpu+wasm", "webgpu lays out weights in its own way and shares no artifact", "make an artifact for each"),
        ("cuda+metal", "cuda lays out weights in its own way and shares no artifact", "make an artifact for each"),
        ("native+cuda", "cuda lays out weights in its own way and shares no artifact", "make an artifact for each"),
    ],
)
def test_refusals(spec: str, what: str, hint: str) -> None:
    with pytest.raises(DeepZigError) as caught:
        find_targets(spec, HERE)
    assert str(caught.value) == f"{what}\n  at: --target\n  fix: {hint}"


def test_hosts_have_a_runtime_for_the_device() -> None:
    for device, kind in GPUS.items() - {("webgpu", GPUS["webgpu"])}:  # whose host is a page
        having = {name for name, platform in PLATFORMS.items() if platform.device_library(device)}
        assert having == set(kind.hosts)
