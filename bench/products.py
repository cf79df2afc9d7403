"""A matrix product of DeepZig, as a model has it, against PyTorch's F.linear and against numpy's product in f32."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from contest import Contender, ContenderError, Say, closing, take_turns
from limits import median_ratio
from linear_worker import SIZE
from peak import Peak
from protocol import Case

from deepzig.runtime.inspect.text import table

ROWS = (512,)
TORCH = ("bfloat16", "float32")
WORKER = Path(__file__).parent / "linear_worker.py"


@dataclass(frozen=True)
class ProductRow:
    """A product, by medians over turns.

    Attributes:
        label: its sizes and our kind of weights.
        flops: operations a second.
        share: of numpy's f32 product.
        peak: share of what the multiply-add units do with operands in registers; None where that is not known.
        family: the instruction set whose peak that is.
        ratios: how many times as fast we are as PyTorch, by its kinds of weights.
    """

    label: str
    flops: float
    share: float
    peak: float | None
    family: str | None
    ratios: dict[str, float]


def product_label(kind: str, rows: int) -> str:
    """The name of a row."""
    return f"product {rows}x{SIZE}x{SIZE} {kind}"


def product_rows(
    kinds: Sequence[str], wanted: Callable[[str], bool], work: Path, threads: int, rounds: int, limit: float,
    product: Callable[[], float], peers: bool, say: Say,
) -> list[ProductRow]:  # fmt: skip
    """The products of our kinds of weights that are wanted, all in the same turns; PyTorch, if it is installed."""
    kinds = [kind for kind in kinds if any(wanted(product_label(kind, rows)) for rows in ROWS)]
    if not kinds:
        return []
    asked = [("deepzig", kind) for kind in kinds]
    if peers and find_spec("torch") is not None:
        asked += [("torch", kind) for kind in TORCH]
    elif peers:
        say("PyTorch is not installed, left out")
    contenders = []
    for name, kind in asked:
        try:
            command = [sys.executable, str(WORKER), name, str(threads), kind]
            contenders.append(Contender(f"{name} {kind}", command, work / "products" / f"{name}-{kind}.log"))
        except ContenderError as error:
            say(f"{name} {kind}: {error}; left out")
    cases = [Case(prompt=rows) for rows in ROWS]
    peak = Peak(work / "products")
    families = {kind: peak.family(kind) for kind in kinds}

    def able() -> dict[str, float]:
        return {family: peak.flops(family, threads) for family in {*families.values()} if family}

    with closing(contenders):
        samples = take_turns(contenders, cases, rounds, limit, able, product, say)
    made = []
    for case in cases:
        for kind in kinds:
            ours = samples.seconds.get((f"deepzig {kind}", case))
            if ours is None:
                continue
            theirs = {f"torch {t}": samples.seconds.get((f"torch {t}", case)) for t in TORCH}
            flops = [2 * case.prompt * SIZE * SIZE / s for s in ours]
            family = families[kind]
            made.append(
                ProductRow(
                    product_label(kind, case.prompt), statistics.median(flops), median_ratio(flops, samples.product),
                    median_ratio(flops, [each[family] for each in samples.limits[case]]) if family else None, family,
                    {name: median_ratio(seconds, ours) for name, seconds in theirs.items() if seconds},
                )
            )  # fmt: skip
    return made


def product_report(rows: Sequence[ProductRow]) -> str:
    """The table."""
    names = [f"torch {kind}" for kind in TORCH]
    cells: list[Sequence[str]] = [("", "GFLOP/s", "of f32 product", "of peak", *(f"{name} x" for name in names))]
    cells += [
        (r.label, f"{r.flops / 1e9:.0f}", f"{100 * r.share:.0f} %",
         "" if r.peak is None else f"{100 * r.peak:.0f} % of {r.family}",
         *(f"{r.ratios[name]:.2f}" if name in r.ratios else "" for name in names))
        for r in rows
    ]  # fmt: skip
    return "\n".join(table(cells, range(1, 6)))
