"""The figures of a benchmark of whole models: medians, shares and ratios, as a table and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from contest import Samples
from kernel_times import KernelRow, kernel_report
from limits import median_ratio, projected_bytes, work
from products import ProductRow, product_report
from shapes import Format, Shape

from deepzig.artifacts.manifest import Manifest
from deepzig.runtime.bench.report import digits
from deepzig.runtime.inspect.text import table

OURS, LLAMA_CPP, VLLM = "DeepZig", "llama.cpp", "vLLM"
PEERS = (LLAMA_CPP, VLLM)


@dataclass(frozen=True)
class Row:
    """A case of a model in a format.

    Attributes:
        shape: the model.
        form: how its weights are stored.
        case: what was done.
        speeds: tokens a second of each contender, medians.
        ratios: of each other contender how many times as fast we are, medians over turns.
        share: what we reach of the limit: the bandwidth of a decode, an f32 product of a prefill; median over turns.
        bandwidth: bytes a second of the same turns.
        product: operations a second of an f32 matrix product.
        projected: tokens a second of the whole model that this is a part of.
        seconds: of each contender and turn.
    """

    shape: str
    form: str
    case: str
    speeds: dict[str, float]
    ratios: dict[str, float]
    share: float | None
    bandwidth: float
    product: float
    projected: float | None
    seconds: dict[str, list[float]]

    @property
    def label(self) -> str:
        """What --only looks at."""
        return label(self.shape, self.form, self.case)


def label(shape: str, form: str, case: object) -> str:
    """The name of a row."""
    return f"{shape} {form} {case}"


def rows(shape: Shape, form: Format, manifest: Manifest, samples: Samples) -> list[Row]:
    """What turns gave, for the cases that we took part in."""
    made = []
    for case in (case for name, case in samples.seconds if name == OURS):
        seconds = {name: each for (name, done), each in samples.seconds.items() if done == case}
        ours, bandwidth = seconds[OURS], samples.limits[case]
        amount = work(manifest, shape.config, case)
        rates = [amount / s for s in ours]
        share = median_ratio(rates, samples.product if case.prompt else bandwidth)
        projected = None
        if shape.whole and not case.prompt and case.batch == 1:
            projected = statistics.median(rates) / projected_bytes(manifest, shape.whole, case.depth)
        made.append(
            Row(
                shape.name, form.name, str(case),
                {name: case.tokens / statistics.median(each) for name, each in seconds.items()},
                {name: median_ratio(each, ours) for name, each in seconds.items() if name != OURS},
                share, statistics.median(bandwidth), statistics.median(samples.product), projected, seconds,
            )
        )  # fmt: skip
    return made


def report(all_rows: Sequence[Row], notes: Mapping[str, str]) -> str:
    """The table, and what has to be known of the models."""
    others = dict.fromkeys([*PEERS, *(name for row in all_rows for name in row.ratios)])
    heads = ("", "tok/s", "of limit", *(f"{name}{add}" for name in others for add in ("", " x")), "GB/s", "whole model")
    cells: list[Sequence[str]] = [heads]
    for row in all_rows:
        figures = [text for name in others for text in (_number(row.speeds.get(name)), _number(row.ratios.get(name)))]
        share = "" if row.share is None else f"{100 * row.share:.0f} %"
        speed, bandwidth = _number(row.speeds[OURS]), f"{row.bandwidth / 1e9:.1f}"
        cells.append((row.label, speed, share, *figures, bandwidth, _number(row.projected)))
    lines = list(table(cells, range(1, len(heads))))
    told = [f"{name}: {note}" for name, note in notes.items() if note and any(r.shape == name for r in all_rows)]
    return "\n".join([*lines, *([""] if told else []), *told])


def _number(value: float | None) -> str:
    return "" if value is None else digits(value)


@dataclass
class Results:
    """All that a run gave, and what is kept of an earlier one.

    Attributes:
        facts: the machine and the options.
        rows: of whole models.
        kernels: of their kernels.
        products: of single products.
    """

    facts: Mapping[str, Any]
    rows: list[Row] = field(default_factory=list)
    kernels: list[KernelRow] = field(default_factory=list)
    products: list[ProductRow] = field(default_factory=list)

    def labels(self) -> set[str]:
        """Names of what is there."""
        return {*(r.label for r in self.rows), *(r.label for r in self.kernels), *(r.label for r in self.products)}

    def read(self, path: Path) -> None:
        """Take what an earlier run wrote."""
        data = json.loads(path.read_text())
        self.rows += [Row(**row) for row in data["rows"]]
        self.kernels += [KernelRow(**row) for row in data["kernels"]]
        self.products += [ProductRow(**row) for row in data["products"]]

    def write(self, path: Path) -> None:
        """Write it as JSON: seconds, bytes, operations."""
        temporary = path.with_name(f"{path.name}.part")
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")
        temporary.replace(path)

    def text(self) -> str:
        """All tables."""
        parts = [report(self.rows, self.facts["notes"])] if self.rows else []
        parts += [kernel_report(self.kernels)] if self.kernels else []
        parts += [product_report(self.products)] if self.products else []
        return "\n\n".join(parts)
