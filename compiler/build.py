"""From a TVM module to a file of code, and TVM's runtime library beside it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi

from deepzig.artifacts.cpu_features import this_machine
from deepzig.artifacts.devices import CPU
from deepzig.errors import DeepZigError
from deepzig.targets.base import Target

from .link import link, linker
from .platforms import PLATFORMS, TVM, WheelFile
from .wheels import wheel_file

# Ctrl-C while TVM has called Python comes back through TVM, which else makes a RuntimeError of it.
tvm_ffi.register_error("KeyboardInterrupt", KeyboardInterrupt)


def build(module: tvm.IRModule, target: Target, out: Path) -> None:
    """Compile the module, and link it where it is machine code, to `out`, beside which objects are put.

    Raises:
        DeepZigError: no linker; TVM refused the module.
    """
    native = target.platform == this_machine().platform
    if PLATFORMS[target.platform].zig:
        linker(target.platform, native)  # first, since it may be missing

    def link_objects(output: str, objects: Any, options: Any = None, **_: Any) -> None:
        link([objects] if isinstance(objects, str) else list(objects), output, target.platform, native)

    link_objects.object_format = "o"  # type: ignore[attr-defined]
    try:
        target.compile(module).export_library(str(out), fcompile=link_objects, workspace_dir=str(out.parent))
    except DeepZigError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        line = (str(error).strip().splitlines() or ["no message"])[-1]
        raise DeepZigError(f"TVM could not build the model: {line}", "lowering", "rerun with --traceback") from error


def code_part(target: Target) -> str:
    """The name of the part that is a target's code."""
    return f"code/{target.name}{PLATFORMS[target.platform].suffix}"


def plan_part(target: Target) -> str | None:
    """The name of the part that tells which kernels to call, for a target without a virtual machine."""
    return None if target.virtual_machine else f"code/{target.name}.plan.json"


def libraries(target: Target) -> dict[str, Path]:
    """TVM's runtime library for a target, then that for its device: names of parts -> files.

    There are none where code needs none.

    Raises:
        DeepZigError: TVM has none; or it comes from a wheel for another platform, and that can't be fetched or is not
            known for the installed version of TVM.
    """
    platform = PLATFORMS[target.platform]
    if not platform.libraries:
        return {}
    wanted = [platform.runtime]
    if target.device != CPU:
        device = platform.device_library(target.device)
        if device is None:
            what = f"TVM has no runtime library for {target.device} on {target.platform}"
            raise DeepZigError(what, f"target {target.name}", "choose another host")
        wanted.append(device)
    return {f"lib/{target.platform}/{Path(file.member).name}": _library(target, file) for file in wanted}


def _library(target: Target, wanted: WheelFile) -> Path:
    """The file, of the installed package or of the wheel for another platform."""
    if target.platform == this_machine().platform:
        return Path(tvm.__file__).parent / "lib" / Path(wanted.member).name
    if versions()["tvm"] != TVM:
        raise DeepZigError(
            f"TVM {versions()['tvm']} is installed, and only the libraries of {TVM} are known for other platforms",
            f"target {target.name}",
            "pip install 'deepzig[compile]'",
        )
    return wheel_file(wanted)


def versions() -> dict[str, str]:
    """The versions that an artifact is bound to."""
    return {"tvm_ffi": version("apache-tvm-ffi"), "tvm": version("apache-tvm")}
