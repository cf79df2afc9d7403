"""The facts as text for people: aligned, without colours, and nothing that an artifact says can move the cursor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from deepzig.artifacts.devices import HOST

from .facts import Facts
from .kernels import OUTSIDE, ranges
from .memory import Memory, Reading
from .units import count, size

WIDTH = 100
"""Columns that lists are broken at."""

KIND_WORDS = {"shared_experts": "shared experts", "dense": "dense MLP", "head": "output head"}
"""Kinds of weights that read better in other words."""


def report(facts: Facts) -> str:
    """The text that `deepzig inspect` prints."""
    parts = [_head(facts), _builds(facts), _memory(facts.memory)]
    if facts.reading is not None:
        parts.append(_speeds(facts.reading, facts.here.gpu))
    parts += [_layers(facts), _entry_points(facts), _kernels(facts), _passes(facts), _files(facts)]
    return printable("\n\n".join("\n".join(part) for part in parts))


def printable(text: str) -> str:
    """The text with every character that a terminal would act on, or that can't be encoded, as an escape."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _one_line(value: Any) -> str:
    return str(value).replace("\n", "\\n")


def _head(facts: Facts) -> Iterator[str]:
    m = facts.model
    yield _one_line(m.get("name", "a model without a name"))
    told = [_one_line(value) for key, value in m.items() if key != "name" and isinstance(value, str)]
    told += [f"{m['num_hidden_layers']} layers", f"vocabulary {m['vocab_size']:,}"]
    if isinstance(m.get("hidden_size"), int):
        told.append(f"hidden size {m['hidden_size']:,}")
    yield f"  {', '.join(told)}; artifact format {facts.format} by {_one_line(facts.created_by)}"
    if facts.verdict.runs:
        yield f"  runs here: yes, {_one_line(facts.verdict.what)}"
    else:
        yield f"  runs here: no, {_one_line(facts.verdict.what)}"
        yield f"  fix: {_one_line(facts.verdict.mend)}"


def _builds(facts: Facts) -> Iterator[str]:
    kind = f", of the kind {facts.here.kind}" if facts.here.kind else ""
    gpu = f", with {_one_line(facts.here.gpu)}" if facts.here.gpu else ""
    yield f"Builds (this machine: {facts.here.platform}{kind}{gpu})"
    rows = []
    for b in facts.builds:
        needs = f"needs {', '.join(b.features) or 'nothing special'}"
        here = f"chosen; {needs}" if b.chosen else f"{'can run' if b.runs else 'no'}: {b.why}"
        code = "not listed" if b.code_bytes is None else size(b.code_bytes)
        rows.append((b.name, b.platform, code, here))
    yield from table(rows, right={2})


def _memory(m: Memory) -> Iterator[str]:
    yield "Memory"
    rows: list[tuple[str, ...]] = []
    for kind, amount in sorted(m.weights_by_kind.items(), key=lambda item: -item[1]):
        rows.append(
            (f"  {KIND_WORDS.get(kind, kind)}", size(amount), f"{amount / max(m.weights, 1):6.1%} of the weights")
        )
    on_cpu = m.device == str(HOST)
    how = "mapped from the artifact, not copied" if m.mapped else f"copied to {'node' if on_cpu else m.device}"
    rows.insert(0, ("weights", size(m.weights), how))
    rows.append(("cache", size(m.cache_per_token), f"a token; {size(m.cache_full_context)} for {m.full_context:,}"))
    threads = f", with {m.threads} threads" if on_cpu else ""
    rows.append(("workspace", size(m.workspace), f"a call at its bounds{threads}"))
    if m.process:
        rows.append(("process", size(m.process), "Python and its libraries, about"))
    yield from table(rows, right={1})
    if m.ram is None:
        yield "  the memory of this machine is not known: give --ram"
    elif m.largest_context == m.full_context:
        tokens = f"{m.full_context:,} tokens, {m.cache_tokens:,} of all sequences together"
        yield f"  fits in {size(m.ram)}: the whole context of {tokens}"
    elif m.largest_context:
        yield f"  fits in {size(m.ram)}: {m.largest_context:,} tokens of context, of {m.full_context:,}"
    else:
        need = m.weights + m.workspace + m.process
        yield f"  does not fit in {size(m.ram)}: {size(need)} are needed before the first token"


def _speeds(r: Reading, gpu: str | None) -> Iterator[str]:
    yield "Speed, one sequence"
    yield (
        f"  a token reads {size(r.active_bytes)} of weights ({count(r.active_params)} parameters,"
        f" {count(2 * r.active_params)} operations) and {size(r.cache_per_token)} of cache for each token before it"
    )
    if not r.speeds:
        yield "  not measured"
        return
    assert r.bandwidth is not None
    if gpu:
        yield f"  the memory of {_one_line(gpu)} gives {r.bandwidth / 1e9:.1f} GB/s, so at most:"
    else:
        caches = "more only where weights stay in the CPU's caches"
        yield f"  this machine reads {r.bandwidth / 1e9:.1f} GB/s, so at most ({caches}):"
    yield from table(
        [
            ("after tokens", *(f"{speed.depth:,}" for speed in r.speeds)),
            ("tokens/s", *(_rate(speed.tokens_per_second) for speed in r.speeds)),
        ],
        right=set(range(1, len(r.speeds) + 1)),
    )


def _rate(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.1f}" if speed >= 1 else f"{speed:.3f}"


def _layers(facts: Facts) -> Iterator[str]:
    yield "Layers"
    yield from table([(kind.name, f"{len(kind.layers)} alike", ranges(kind.layers)) for kind in facts.layers])


def _entry_points(facts: Facts) -> Iterator[str]:
    yield "Entry points"
    rows: list[tuple[str, ...]] = []
    for name, point in facts.entry_points.items():
        for number, line in enumerate(_wrapped(point.inputs, WIDTH - 14)):
            rows.append((name if not number else "", line))
        uses = (f"kernel calls {point.kernel_calls}", f"weights {point.weights}", f"caches {point.states}")
        rows.append(("", f"-> {', '.join(point.outputs)}; {', '.join(uses)}"))
    yield from table(rows)
    yield f"  bounds: {', '.join(f'{name} {value:,}' for name, value in facts.bounds.items())}"


def _kernels(facts: Facts) -> Iterator[str]:
    entries = list(facts.entry_points)
    yield f"Kernels of {_one_line(facts.kernels_of)}, and how often each entry point calls them"
    rows: list[tuple[str, ...]] = [("kernel", "op", *entries, "in layers")]
    for k in facts.kernels:
        calls = (str(k.calls.get(entry, "")) for entry in entries)
        rows.append((k.symbol, k.op, *calls, ", ".join(kind for kind in k.kinds if kind != OUTSIDE)))
    yield from table(rows, right=set(range(2, 2 + len(entries))))


def _passes(facts: Facts) -> Iterator[str]:
    yield "Passes"
    yield from (f"  {line}" for line in _wrapped(facts.passes, WIDTH))
    yield "Versions"
    told = {k: v for k, v in facts.abi.items() if isinstance(v, str)}
    yield f"  {', '.join(f'{name} {version}' for name, version in told.items())}"


def _files(facts: Facts) -> Iterator[str]:
    yield "Parts"
    shards = [entry for name, entry in facts.files.items() if name.endswith(".safetensors")]
    rows = [
        (name, size(entry.size), entry.sha256[:16])
        for name, entry in facts.files.items()
        if len(shards) <= SHARDS_SHOWN or not name.endswith(".safetensors")
    ]
    if len(shards) > SHARDS_SHOWN:
        rows.append((f"{len(shards)} weight files", size(sum(entry.size for entry in shards)), "--json lists them"))
    yield from table(rows, right={1})


SHARDS_SHOWN = 8
"""With more weight files than that only their number is told."""


def table(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> Iterator[str]:
    """Rows of texts as aligned lines, two spaces in; the columns `right` end together."""
    cells = [[printable(_one_line(cell)) for cell in row] for row in rows]
    widths = [max(len(row[i]) if i < len(row) else 0 for row in cells) for i in range(max(map(len, cells), default=0))]
    aligned = set(right)
    for row in cells:
        padded = (cell.rjust(widths[i]) if i in aligned else cell.ljust(widths[i]) for i, cell in enumerate(row))
        yield ("  " + "  ".join(padded)).rstrip()


def _wrapped(words: Sequence[str], width: int) -> Iterator[str]:
    """The words, with commas, on lines of at most `width` columns, or one word."""
    line = ""
    for number, word in enumerate(words):
        piece = _one_line(word) + ("," if number < len(words) - 1 else "")
        if line and len(line) + 1 + len(piece) > width:
            yield line
            line = piece
        else:
            line = f"{line} {piece}".strip()
    if line:
        yield line
