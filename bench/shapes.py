"""What is measured: models of random weights, in the forms that contenders need; made where they are missing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import to_gguf

from deepzig.models.presets import PRESETS, V2_LITE, V3
from deepzig.models.random_checkpoint import write
from deepzig.runtime.machine import Memory
from deepzig.targets.registry import NATIVE

ROOT = Path(__file__).parents[1]
SOURCES = ("artifacts", "compiler", "ir", "models", "targets")
"""Rooms on which an artifact depends."""

COMPILER = Path(sys.executable).parent / "deepzig-compile"
GIB = 1 << 30
MOST_EXPERTS = 256

Say = Callable[[str], None]


@dataclass(frozen=True)
class Shape:
    """A model.

    Attributes:
        name: on the command line.
        config: its config.json.
        note: what of the published model is left out.
        whole: the config of the published model, whose speed follows from that of a part.
    """

    name: str
    config: Mapping[str, Any]
    note: str = ""
    whole: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Format:
    """How weights are stored: the options of deepzig-compile, and the types that peers have for it."""

    name: str
    options: tuple[str, ...]
    gguf: str | None = None
    vllm: bool = False


FORMATS = (
    Format("bf16", (), "BF16", vllm=True),
    Format("q8", ("--quant", "q8"), "Q8_0"),
    Format("q4", ("--quant", "q4"), "Q4_0"),
    Format("fp8", ("--quant", "fp8")),
)


def shapes(memory: Memory) -> tuple[Shape, ...]:
    """The models, the last with as many experts as fit."""
    experts = experts_that_fit(memory)
    lite = {**V2_LITE, "num_hidden_layers": 5, "vocab_size": 8192}
    layer = {
        **V3, "num_hidden_layers": 1, "first_k_dense_replace": 0, "vocab_size": 2048, "n_routed_experts": experts,
    }  # fmt: skip
    return (
        Shape("small", PRESETS["small"]),
        Shape("v2-lite", lite, "5 of DeepSeek-V2-Lite's 27 layers, 8192 of its 102400 tokens"),
        Shape("v3-layer", layer, f"a MoE layer of DeepSeek-V3, {experts} of its 256 experts", V3),
    )


def experts_that_fit(memory: Memory) -> int:
    """Experts of a DeepSeek-V3 layer that three contenders can hold in bf16, a power of two from 16."""
    each = 3 * 2 * 3 * V3["hidden_size"] * V3["moe_intermediate_size"]
    room = (memory.available or 8 * GIB) - 4 * GIB
    fitting = (MOST_EXPERTS >> i for i in range(4) if (MOST_EXPERTS >> i) * each <= room)
    return next(fitting, MOST_EXPERTS >> 4)


def checkpoint(shape: Shape, work: Path, say: Say) -> Path:
    """The shape's checkpoint folder; made again if it is of other sizes."""
    folder = work / shape.name / "checkpoint"
    config = folder / "config.json"
    if not config.exists() or not shape.config.items() <= json.loads(config.read_text()).items():
        say(f"making {folder}")
        write(folder, shape.config)
    return folder


def artifact(shape: Shape, form: Format, work: Path, say: Say, levels: Sequence[str] = ()) -> Path | None:
    """The shape compiled by the sources as they are, for this machine and for `levels` beside it.

    None where this DeepZig does not know the format.
    """
    folder = work / shape.name / "+".join((form.name, *levels))
    source = checkpoint(shape, work, say)
    if _newer(folder / "manifest.json", source / "config.json", *_sources()):
        return folder
    say(f"compiling {folder}")
    target = "+".join((NATIVE, *levels))
    options = [*form.options, "--target", target, "--self-check", "none", "--force"]
    command: list[str | Path] = [COMPILER, source, *options, "-o", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return folder
    say(f"{shape.name} {form.name}: {' '.join(done.stderr.split())}; left out")
    return None


def onnx_model(shape: Shape, form: Format, domain: str, work: Path, say: Say) -> Path:
    """The shape exported by the sources as they are, with ops of a domain: `standard` or `microsoft`."""
    path = work / shape.name / f"{form.name}-{domain}" / "model.onnx"
    source = checkpoint(shape, work, say)
    if not _newer(path, source / "config.json", *_sources()):
        say(f"exporting {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        options = [*form.options, "--onnx-domain", domain, "--self-check", "none", "--force"]
        subprocess.run([COMPILER, source, *options, "--onnx", path], check=True)
    return path


def gguf(shape: Shape, kind: str, work: Path, say: Say) -> Path:
    """The shape as a GGUF file; raises as `to_gguf.write`."""
    path = work / shape.name / f"{kind}.gguf"
    source = checkpoint(shape, work, say)
    if not _newer(path, source / "config.json"):
        say(f"writing {path}")
        to_gguf.write(source, path, kind)
    return path


def _sources() -> Iterator[Path]:
    """All code that an artifact or an export is made by."""
    return (path for room in SOURCES for path in (ROOT / room).rglob("*.py"))


def _newer(made: Path, *parts: Path) -> bool:
    """Whether a file is there and was written after those that it is made of."""
    return made.exists() and made.stat().st_mtime >= max(part.stat().st_mtime for part in parts)
