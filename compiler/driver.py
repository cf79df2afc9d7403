"""From a checkpoint to an artifact folder."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deepzig import __version__
from deepzig.artifacts.consistency import ITEM_BYTES
from deepzig.artifacts.cpu_features import this_machine
from deepzig.artifacts.graphs import GRAPHS
from deepzig.artifacts.manifest import FORMAT, Build, Call, Manifest
from deepzig.artifacts.selfcheck import PART as SELF_CHECK
from deepzig.artifacts.writer import PIECE_BYTES, SHARD_BYTES, ArtifactWriter
from deepzig.errors import DeepZigError
from deepzig.ir import Module, Value, show
from deepzig.models.config import ModelConfig
from deepzig.models.mtp import draft_parameters, shared_with_model
from deepzig.models.source import Source, open_source
from deepzig.models.tensors import mtp_tensors
from deepzig.targets.base import Target
from deepzig.targets.registry import find_targets, headwise

from .graphs import graphs_json
from .options import CACHES, DTYPES, Options
from .passes.weights import share_parameters
from .pipeline import pass_names, run_pipeline
from .plan import Plan, Tensor, partials, plan_graph
from .precision import headwise_formats, parse_quant
from .selfcheck import BUDGET, record, sampled_layers
from .stages import Progress, logged
from .trace import Bounds, trace
from .weights import Packed, WeightSource

CODE_BYTES = 8 << 20
"""More than objects and code of a target take. LLVM ends the process when it can't write a file: so we look before."""


@dataclass(frozen=True)
class Report:
    """What a compilation did."""

    out: Path
    seconds: float
    kernels: int
    weights_bytes: int


def read_model(path: Path, options: Options, formats: Collection[str] | None = None) -> tuple[Source, Module]:
    """Read the config, check the checkpoint against it, and trace the model.

    Args:
        path: as for `compile_model`.
        options: what to make.
        formats: in which attention can multiply head by head; None: those of the target.

    Raises:
        DeepZigError: a config, checkpoint or option that does not fit.
    """
    if options.dtype not in DTYPES:
        raise DeepZigError(f"no dtype is called {options.dtype!r}", "--dtype", f"choose from {', '.join(DTYPES)}")
    if options.cache not in (None, *CACHES):
        raise DeepZigError(f"no cache is called {options.cache!r}", "--cache", f"choose from {', '.join(CACHES)}")
    source = open_source(path)
    config, checkpoint = source.config, source.checkpoint
    draft = draft_parameters(config, checkpoint)
    formats = headwise(options.target) if formats is None else formats
    rule = parse_quant(options.quant, headwise_formats(config, formats))
    module = trace(
        config, options.dtype, options.bounds, options.debug_route, bool(draft), rule, options.cache, options.embeddings
    )  # fmt: skip
    predicting = dict(mtp_tensors(config))
    expected = {
        v.name: tuple(map(int, v.shape))
        for v in module.params
        if v.name not in module.constants and v.name not in predicting
    }
    checkpoint.check(expected, config.num_hidden_layers, draft)
    return source, share_parameters(module, shared_with_model(config, checkpoint) if draft else {})


def fuse(path: Path, options: Options) -> tuple[Source, Module]:
    """Read the model, and run the passes; raises as `read_model`."""
    source, module = read_model(path, options)
    return source, _fused(module, options)


def _fused(module: Module, options: Options) -> Module:
    return run_pipeline(module, dump=options.dump_ir, stop_after=options.stop_after, limit=options.fuse_limit)


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
    from .arena import arena, check_fits, with_logits
    from .build import build, code_part, libraries, plan_part, versions
    from .lower import kernel_module, lower
    from .memory import greatest, memory_plan, pooled, stored_bytes
    from .plan_json import plan_json

    start, progress = time.perf_counter(), logged(progress)
    progress("fuse", 0, 1)
    source, traced = read_model(path, options)
    module = _fused(traced, options)
    if path.exists() and out.resolve() in (path.resolve(), *path.resolve().parents):
        raise DeepZigError("the output would replace the checkpoint", str(out), "choose another folder")
    targets, table = find_targets(options.target, this_machine())
    plans_of = {target: [plan_graph(graph, module, target, table) for graph in module.graphs] for target in targets}
    plans, states = _shared(plans_of, module)
    progress("fuse", 1, 1)
    positions = source.config.max_position_embeddings
    sizes = greatest(options.bounds, positions)
    cut = not all(target.virtual_machine for target in targets)
    with ArtifactWriter(out, options.force, PIECE_BYTES if cut else SHARD_BYTES, cut) as writer:
        builds, values = [], {}
        for number, target in enumerate(targets):
            progress("kernels", number, len(targets))
            code = code_part(target)
            writer.check_room(CODE_BYTES)
            file = writer.scratch / Path(code).name
            runtime = libraries(target)  # first, since they may be out of reach
            for part, library in runtime.items():
                writer.add_file(part, library)
            mine = plans_of[target]
            plan = plan_part(target)
            if plan is None:
                lowered = lower(mine, target.replay)
                values[target] = pooled(lowered, mine, sizes)
            else:
                lowered = kernel_module(mine)
                most = with_logits(sizes, int(source.config.vocab_size))
                room = arena(mine, most, target.binding_bytes)
                values[target] = room.bytes
                writer.add_file(plan, plan_json(mine, room, most))
            build(lowered, target, file)
            writer.add_file(code, file)
            builds.append(_build(target, code, list(runtime), plan, mine))
        progress("kernels", len(targets), len(targets))
        for name, content in source.files.items():
            writer.add_file(name, content)
        if cut and all(target.binding_bytes is None for target in targets):
            check_fits(sum(map(stored_bytes, _weights(plans))) + max(values.values()))
        writer.add_file(GRAPHS, graphs_json(traced, module))
        weights = WeightSource(module, source.checkpoint)
        if options.self_check != "none":
            layers = sampled_layers(module, None if options.self_check == "full" else BUDGET)
            told = partial(progress, "check")
            vectors = record(module, weights, positions, options.bounds, layers, told)
            writer.add_file(SELF_CHECK, vectors.to_json().encode())
        size = _write_weights(writer, plans, weights, progress)
        manifest = {
            "format": FORMAT,
            "created_by": f"deepzig {__version__}",
            "model": {"name": source.name, **_stored(options), **source.config.summary()},
            "abi": {**versions(), "symbols": _symbols(targets[0])},
            "builds": [b.to_json() for b in builds],
            "entry_points": {plan.name: _entry_point(plan) for plan in plans},
            "bounds": _bounds(options.bounds, source.config),
            "cache": [_tensor(t) for t in states],
            "weights": [_tensor(w) for w in _weights(plans)],
            "memory": {
                "weights_bytes": size,
                "cache_bytes_per_token": _cache_bytes(states),
                **memory_plan(values, plans_of, module, sizes),
            },
            "passes": pass_names(),
            "files": {},
        }
        writer.finish(Manifest.from_json(manifest, str(out)))
    kernels = len({(b.name, call.kernel) for b in builds for calls in b.calls.values() for call in calls})
    return Report(out, time.perf_counter() - start, kernels, size)


def _symbols(target: Target) -> list[str]:
    """What the code exports, beside kernels."""
    if target.virtual_machine:
        return ["vm_load_executable"]
    return ["workspace"] if target.binding_bytes is None else []


def _stored(options: Options) -> dict[str, str | None]:
    return {"dtype": options.dtype, "quant": options.quant, "cache": options.cache or options.dtype}


def _shared(plans_of: Mapping[Target, Sequence[Plan]], module: Module) -> tuple[Sequence[Plan], Sequence[Tensor]]:
    """The plans of the first target, and its states, when all targets agree on weights and states.

    Raises:
        DeepZigError: they do not.
    """
    first, *others = plans_of
    wanted = ([list(p.weights) for p in plans_of[first]], [first.state_type(s.type) for s in module.states])
    for other in others:
        if wanted != ([list(p.weights) for p in plans_of[other]], [other.state_type(s.type) for s in module.states]):
            raise DeepZigError(
                f"{first.name} and {other.name} lay out weights or caches differently", "--target",
                "make an artifact for each",
            )  # fmt: skip
    return plans_of[first], [Tensor(s.name, first.state_type(s.type)) for s in module.states]


def _build(
    target: Target, code: str, runtime: Sequence[str], plan: str | None, plans: Sequence[Plan]
) -> Build:  # fmt: skip
    calls = {
        plan.name: tuple(
            Call(c.kernel_name, c.op, c.layer, c.where, tuple(plan.names.get(t, "") for t in c.outputs), partial)
            for c, partial in zip(plan.launches, partials(plan), strict=True)
        )
        for plan in plans
    }
    return Build(
        target.name, target.platform, target.triple, target.features, code, next(iter(runtime), None), calls,
        target.device, tuple(runtime[1:]), plan,
    )  # fmt: skip


def _write_weights(
    writer: ArtifactWriter, plans: Sequence[Plan], source: WeightSource, progress: Progress
) -> int:  # fmt: skip
    weights = _weights(plans)
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


def _weights(plans: Sequence[Plan]) -> list[Packed]:
    return list(dict.fromkeys(w for plan in plans for w in plan.weights))


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    size = ITEM_BYTES[dtype]
    for dim in shape:
        size *= dim
    return size


def _cache_bytes(states: Sequence[Tensor]) -> int:
    return sum(_bytes(t.type.dtype, (int(t.type.shape[-1]),)) for t in states)


def _tensor(tensor: Tensor | Value | Packed) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.type.dtype, "shape": list(tensor.type.shape)}


OUTPUTS = {"sample": ("tokens",)}
"""Names of the outputs of an entry point, where they are not logits and perhaps hidden states."""


def _entry_point(plan: Plan) -> dict[str, Any]:
    names = OUTPUTS.get(plan.name, ("logits", "hidden"))
    return {
        "inputs": [_tensor(t) for t in plan.inputs],
        "states": [t.name for t in plan.states],
        "weights": [w.name for w in plan.weights],
        "outputs": [{**_tensor(t), "name": n} for n, t in zip(names, plan.outputs, strict=False)],
    }


def _bounds(bounds: Bounds, config: ModelConfig) -> dict[str, int]:
    return {
        "rows": bounds.rows,
        "batch": bounds.batch,
        "chunk": bounds.chunk,
        "decode_rows": bounds.decode_rows,
        "page_size": bounds.page_size,
        "positions": config.max_position_embeddings,
    }
