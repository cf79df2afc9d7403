"""From a checkpoint to an artifact folder."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepzig import __version__
from deepzig.artifacts.cpu_features import detect
from deepzig.artifacts.manifest import FORMAT, ITEM_BYTES, Manifest
from deepzig.artifacts.writer import ArtifactWriter
from deepzig.errors import DeepZigError
from deepzig.ir import Module, Value, show
from deepzig.models.config import DeepseekV3Config
from deepzig.models.source import Source, open_source
from deepzig.models.tensors import mtp_tensors
from deepzig.targets.registry import DEFAULT, find_target

from .pipeline import pass_names, run_pipeline
from .plan import Plan, Tensor, plan_graph
from .trace import Bounds, trace
from .weights import Packed, WeightSource

DTYPES = ("f32", "bf16", "f16")
CODE = "model.so"

Progress = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done, and how much there is."""


DEFAULT_BOUNDS = Bounds()


@dataclass(frozen=True)
class Options:
    """What `deepzig-compile` can be asked for.

    Attributes:
        target: the text of `--target`.
        dtype: how matrices and the cache are stored: f32, bf16 or f16.
        bounds: the sizes that the artifact fixes.
        debug_route: adds an input that forces the expert choice.
        dump_ir: a folder for the module's text before and after each pass.
        stop_after: a pass after which to stop; nothing is written.
        fuse_limit: the most rewrites to make, to bisect a wrong one.
        force: replace `out` if it is an artifact.
    """

    target: str = DEFAULT
    dtype: str = "bf16"
    bounds: Bounds = DEFAULT_BOUNDS
    debug_route: bool = False
    dump_ir: Path | None = None
    stop_after: str | None = None
    fuse_limit: int | None = None
    force: bool = False


@dataclass(frozen=True)
class Report:
    """What a compilation did."""

    out: Path
    seconds: float
    kernels: int
    weights_bytes: int


def fuse(path: Path, options: Options) -> tuple[Source, Module]:
    """Read the config, check the checkpoint against it, trace the model and run the passes.

    Raises:
        DeepZigError: a config, checkpoint or option that does not fit.
    """
    if options.dtype not in DTYPES:
        raise DeepZigError(f"no dtype is called {options.dtype!r}", "--dtype", f"choose from {', '.join(DTYPES)}")
    source = open_source(path)
    module = trace(source.config, options.dtype, options.bounds, options.debug_route)
    expected = {v.name: tuple(map(int, v.shape)) for v in module.params if v.name not in module.constants}
    source.checkpoint.check(expected, source.config.num_hidden_layers, dict(mtp_tensors(source.config)))
    fused = run_pipeline(module, dump=options.dump_ir, stop_after=options.stop_after, limit=options.fuse_limit)
    return source, fused


def ir_text(path: Path, options: Options) -> str:
    """The module's text after the pipeline, or after `options.stop_after`."""
    return show(fuse(path, options)[1])


def compile_model(path: Path, out: Path, options: Options, progress: Progress = lambda *_: None) -> Report:
    """Compile the model at `path` to the artifact `out`.

    Args:
        path: a checkpoint folder, a GGUF file, or the name of a model in Hugging Face's cache.
        out: the artifact's folder; appears whole or not at all.
        options: what to make.
        progress: told of every stage.

    Raises:
        DeepZigError: something does not fit; nothing was written.
    """
    from .build import RUNTIME_LIBRARY, build, runtime_library, versions
    from .lower import lower

    start = time.perf_counter()
    progress("fuse", 0, 1)
    source, module = fuse(path, options)
    target, table = find_target(options.target, detect())
    plans = [plan_graph(graph, module, target, table) for graph in module.graphs]
    progress("fuse", 1, 1)
    with ArtifactWriter(out, force=options.force) as writer, tempfile.TemporaryDirectory() as scratch:
        progress("kernels", 0, 1)
        code = Path(scratch) / CODE
        build(lower(plans), target, code)
        progress("kernels", 1, 1)
        writer.add_file(CODE, code)
        writer.add_file(f"lib/{RUNTIME_LIBRARY}", runtime_library())
        for name, content in source.files.items():
            writer.add_file(name, content)
        size = _write_weights(writer, plans, WeightSource(module, source.checkpoint), progress)
        manifest = {
            "format": FORMAT,
            "created_by": f"deepzig {__version__}",
            "model": {"name": source.name, "dtype": options.dtype, **source.config.summary()},
            "target": target.manifest(),
            "abi": {**versions(), "runtime": f"lib/{RUNTIME_LIBRARY}", "symbols": ["vm_load_executable"]},
            "code": CODE,
            "entry_points": {plan.name: _entry_point(plan) for plan in plans},
            "bounds": _bounds(options.bounds, source.config),
            "cache": [_tensor(t) for t in plans[0].states],
            "memory": {"weights_bytes": size, "cache_bytes_per_token": _cache_bytes(plans[0].states)},
            "passes": pass_names(),
            "kernels": _kernels(plans),
            "files": {},
        }
        writer.finish(Manifest.from_json(manifest, str(out)))
    kernels = len({launch.kernel_name for plan in plans for launch in plan.launches})
    return Report(out, time.perf_counter() - start, kernels, size)


def _write_weights(
    writer: ArtifactWriter, plans: Sequence[Plan], source: WeightSource, progress: Progress
) -> int:  # fmt: skip
    weights: list[Packed] = list(dict.fromkeys(w for plan in plans for w in plan.weights))
    total = sum(_bytes(w.type.dtype, tuple(map(int, w.type.shape))) for w in weights)
    done = 0
    with writer.weights() as file:
        for weight in weights:
            file.declare(weight.name, weight.type.dtype, tuple(map(int, weight.type.shape)))
        for weight in weights:
            file.write(weight.name, source.packed(weight))
            done += _bytes(weight.type.dtype, tuple(map(int, weight.type.shape)))
            progress("weights", done, total)
    return total


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    size = ITEM_BYTES[dtype]
    for dim in shape:
        size *= dim
    return size


def _cache_bytes(states: Sequence[Tensor]) -> int:
    return sum(_bytes(t.type.dtype, (int(t.type.shape[-1]),)) for t in states)


def _tensor(tensor: Tensor | Value) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.type.dtype, "shape": list(tensor.type.shape)}


def _entry_point(plan: Plan) -> dict[str, Any]:
    names = {"sample": ["tokens"]}.get(plan.name, ["logits"])
    return {
        "inputs": [_tensor(t) for t in plan.inputs],
        "states": [t.name for t in plan.states],
        "weights": [w.name for w in plan.weights],
        "outputs": [{**_tensor(t), "name": n} for n, t in zip(names, plan.outputs, strict=True)],
    }


def _kernels(plans: Sequence[Plan]) -> dict[str, str]:
    return {launch.kernel_name: launch.where.split(" ")[0] for plan in plans for launch in plan.launches}


def _bounds(bounds: Bounds, config: DeepseekV3Config) -> dict[str, int]:
    return {
        "rows": bounds.rows,
        "batch": bounds.batch,
        "chunk": bounds.chunk,
        "decode_rows": bounds.decode_rows,
        "page_size": bounds.page_size,
        "positions": config.max_position_embeddings,
    }
