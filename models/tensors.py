"""Names and shapes of a model's tensors, as DeepSeek's checkpoints have them; they follow from the definition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from deepzig.ir import Builder, ModuleBuilder

from .config import ModelConfig
from .definition import Rows, define, define_draft

Named = tuple[str, tuple[int, ...]]


def tensors(config: ModelConfig) -> Iterator[Named]:
    """Every tensor of the model and of its multi-token prediction, the experts of a layer stacked."""
    b, m = Builder(), ModuleBuilder("f32")
    define(b, m, config, Rows.inputs(b, config), page_size=1)
    yield from _parameters(m)
    yield from mtp_tensors(config)


def mtp_tensors(config: ModelConfig) -> Iterator[Named]:
    """The tensors of multi-token prediction: layers behind the last one (DeepSeek-V3 report, section 2.2)."""
    for depth in range(config.num_nextn_predict_layers):
        b, m = Builder(), ModuleBuilder("f32")
        hidden = b.input("hidden", "f32", ("n", config.hidden_size))
        define_draft(b, m, config, Rows.inputs(b, config), hidden, page_size=1, depth=depth)
        yield from _parameters(m)


def _parameters(m: ModuleBuilder) -> Iterator[Named]:
    module = m.module(())
    return ((p.name, tuple(map(int, p.shape))) for p in module.params if p.name not in module.constants)


def one_by_one(named: Iterable[Named]) -> Iterator[Named]:
    """The same with each expert by itself, as DeepSeek stores them; the tensors of an expert are neighbours."""
    stacks: dict[str, list[Named]] = {}
    for name, shape in named:
        prefix, _, kind = name.rpartition(".experts.")
        if not prefix:
            yield name, shape
            continue
        stack = stacks.setdefault(prefix, [])
        stack.append((kind, shape))
        if len(stack) == 3:
            for expert in range(shape[0]):
                yield from ((f"{prefix}.experts.{expert}.{kind}", part[1:]) for kind, part in stack)
