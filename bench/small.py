"""DeepZig against transformers and against the machine, on one random-weight DeepSeek-V3 model in bf16.

    python bench/small.py                  # 1.7 billion parameters: minutes, 8 GB of disk
    python bench/small.py --preset tiny    # a quick look that it runs; the ratios mean nothing

Contenders and the bandwidth probe take turns in one run: read the ratios where a machine is shared.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from contenders import CONTENDERS, Worker

from deepzig.runtime.child import measure
from deepzig.runtime.machine import Stream, cores
from deepzig.tensorfile import read_header

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
COMPILE_SECONDS = 120
FIRST_TOKEN_SECONDS = 2
CONTEXT, DECODED, PREFILL = 32, 64, 512


@dataclass(frozen=True)
class Row:
    """A line of the report: DeepZig's figure, the peer's, the limit, and how DeepZig stands to both."""

    figure: str
    unit: str
    deepzig: float
    transformers: float | None = None
    limit: float | None = None

    def __str__(self) -> str:
        peer = _number(self.transformers), _ratio(self.deepzig, self.transformers)
        limit = _number(self.limit), _ratio(self.deepzig, self.limit)
        return " ".join(
            [f"{self.figure:<24} {self.unit:<6}"] + [f"{cell:>13}" for cell in (_number(self.deepzig), *peer, *limit)]
        )


HEADER = f"{'':<31} " + " ".join(f"{title:>13}" for title in ("DeepZig", "transformers", "ratio", "limit", "of limit"))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _ratio(value: float, other: float | None) -> str:
    return "" if not other else f"{value / other:.2f}"


def make_checkpoint(folder: Path, preset: str) -> None:
    """Write the checkpoint unless it is there."""
    if not (folder / "config.json").exists():
        click.echo(f"making {folder}")
        maker = [sys.executable, "-m", "deepzig.models.random_checkpoint", str(folder), "--preset", preset]
        subprocess.run(maker, check=True)


def weight_bytes(checkpoint: Path) -> tuple[int, int]:
    """Bytes of weights that one token reads, and of the largest tensor."""
    config = json.loads((checkpoint / "config.json").read_text())
    chosen: float = config["num_experts_per_tok"] / config["n_routed_experts"]
    headers = [read_header(path) for path in sorted(checkpoint.glob("*.safetensors"))]
    sizes = {name: e.end - e.begin for header in headers for name, e in header.items()}

    def read(name: str) -> float:
        if ".mlp.experts." in name:
            return chosen
        return 0.0 if "embed_tokens" in name and not config["tie_word_embeddings"] else 1.0

    return round(sum(size * read(name) for name, size in sizes.items())), max(sizes.values())


def compile_rows(checkpoint: Path, artifact: Path, largest: int) -> list[Row]:
    """Compile, with the time and memory it takes."""
    shutil.rmtree(artifact, ignore_errors=True)
    options = ["--target", "llvm", "--dtype", "bf16", "-o", str(artifact)]
    usage = measure([str(BIN / "deepzig-compile"), str(checkpoint), *options])
    memory = (2 * largest + (1 << 30)) / 1e9
    return [
        Row("compile", "s", usage.seconds, limit=COMPILE_SECONDS),
        Row("compile, private memory", "GB", (usage.peak_private_bytes or 0) / 1e9, limit=memory),
    ]


def first_token_row(folders: dict[str, Path], threads: int, rounds: int) -> Row:
    """Seconds from process start to the first token, files in the page cache."""
    ask = ["run", str(folders["deepzig"]), "The quick brown fox", "--max-tokens", "1", "--threads", str(threads)]
    programs = [
        [str(BIN / "deepzig"), *ask],
        [sys.executable, str(HERE / "contenders.py"), "transformers", str(folders["transformers"]), str(threads)],
    ]
    for program in programs:
        measure(program)
    times = [[measure(program).first_output_seconds or math.nan for program in programs] for _ in range(rounds)]
    ours, theirs = map(statistics.median, zip(*times, strict=True))
    return Row("first token from start", "s", ours, theirs, FIRST_TOKEN_SECONDS)


def medians(figures: dict[str, list[float]]) -> tuple[float, float]:
    """DeepZig's and the peer's."""
    return statistics.median(figures["deepzig"]), statistics.median(figures["transformers"])


def speed_rows(folders: dict[str, Path], active: int, vocab: int, threads: int, rounds: int) -> list[Row]:
    """Decode and prefill, the contenders and the stream in turns."""
    rng = np.random.default_rng(0)
    workers = {name: Worker(name, folders[name], threads) for name in CONTENDERS}
    stream = Stream(threads)
    decode: dict[str, list[float]] = {name: [] for name in workers}
    prefill: dict[str, list[float]] = {name: [] for name in workers}
    bandwidth: list[float] = []
    for turn in range(rounds + 1):  # the first warms up
        context = rng.integers(100, vocab, CONTEXT).tolist()
        long = rng.integers(100, vocab, PREFILL).tolist()
        for name, worker in workers.items():
            times = worker.generate(context, DECODED)
            first = worker.generate(long, 1)[0]
            if turn:
                decode[name].append((DECODED - 1) / (times[-1] - times[0]))
                prefill[name].append(PREFILL / first)
        bandwidth.append(stream.bandwidth())
    for worker in workers.values():
        worker.close()
    bytes_per_second = statistics.median(bandwidth[1:])
    limit = bytes_per_second / active
    return [
        Row("decode", "tok/s", *medians(decode), limit),
        Row(f"prefill of {PREFILL}", "tok/s", *medians(prefill)),
        Row("stream read, this run", "GB/s", bytes_per_second / 1e9),
        Row("weights read a token", "GB", active / 1e9),
    ]


@click.command()
@click.option("--preset", default="small", show_default=True, help="Which random model.")
@click.option("--rounds", default=3, show_default=True, help="Turns of each contender; medians are shown.")
@click.option("--threads", default=cores(), show_default=True, help="Threads of each contender.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write the rows there, too.")
def main(preset: str, rounds: int, threads: int, report: Path | None) -> None:
    """Compare an artifact with transformers and with the memory bandwidth."""
    base = HERE.parent / "build" / "bench" / preset
    checkpoint, artifact = base / "checkpoint", base / "artifact"
    make_checkpoint(checkpoint, preset)
    active, largest = weight_bytes(checkpoint)
    vocab = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    folders = {"deepzig": artifact, "transformers": checkpoint}

    rows = compile_rows(checkpoint, artifact, largest)
    rows.append(first_token_row(folders, threads, rounds))
    rows += speed_rows(folders, active, vocab, threads, rounds)

    click.echo(f"\n{preset}, bf16, {threads} threads, medians of {rounds} turns\n\n{HEADER}")
    for row in rows:
        click.echo(row)
    if report is not None:
        facts = {
            "preset": preset,
            "threads": threads,
            "rounds": rounds,
            "rows": [asdict(row) for row in rows],
        }
        report.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
