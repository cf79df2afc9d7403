"""The part plan.json of an artifact: the kernel calls of every entry point, for executors that have no virtual machine.

artifacts/FORMAT.md has the fields. It tells the same launches as those that become Relax.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .arena import Arena, Sizes
from .plan import Plan, Tensor

PAGES = "pages"
"""The dimension that is chosen when an artifact is loaded."""


def plan_json(plans: Sequence[Plan], arena: Arena, sizes: Sizes) -> bytes:
    """The content of plan.json.

    Args:
        plans: one for each entry point.
        arena: where their values lie.
        sizes: the greatest dimensions of a call, which the arena has room for.
    """
    data = {
        "sizes": {name: most for name, most in sizes.items() if name != PAGES},
        "blocks": arena.blocks,
        "entry_points": {plan.name: _EntryPoint(plan, arena).to_json() for plan in plans},
    }
    return (json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


class _EntryPoint:
    """The tensors of one plan, numbered as they are met."""

    def __init__(self, plan: Plan, arena: Arena) -> None:
        self._plan, self._arena = plan, arena
        self._stored = {t: {"state": t.name} for t in plan.states}
        self._stored |= {t: {"weight": t.name} for t in plan.weights.values()}
        self._numbers: dict[Tensor, int] = {}
        self._tensors: list[dict[str, Any]] = []

    def to_json(self) -> dict[str, Any]:
        inputs = [self._number(t) for t in self._plan.inputs]
        calls = []
        for launch in self._plan.launches:
            arguments = list(map(self._number, launch.args))
            if launch.in_place:
                self._numbers[launch.outputs[0]] = arguments[-1]
            else:
                arguments += map(self._number, launch.outputs)
            calls.append({"kernel": launch.kernel_name, "arguments": arguments})
        outputs = [self._number(t) for t in self._plan.outputs]
        return {"tensors": self._tensors, "inputs": inputs, "outputs": outputs, "calls": calls}

    def _number(self, tensor: Tensor) -> int:
        if tensor not in self._numbers:
            self._numbers[tensor] = len(self._tensors)
            place: dict[str, Any] = self._stored.get(tensor) or {"at": self._arena.places[tensor]}
            self._tensors.append({"dtype": tensor.type.dtype, "shape": list(tensor.type.shape), **place})
        return self._numbers[tensor]
