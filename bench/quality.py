"""How well artifacts of the reference model answer: held-out questions by task, perplexity, guesses accepted.

    python bench/quality.py                        # models/reference compiled to f32, bf16 and f16
    python bench/quality.py artifacts/built/mine   # these artifacts instead, the first as the reference

Answers are greedy and count only if they are exact. The questions are of the reference model: artifacts must be
of that model, whatever they are compiled to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

import deepzig.runtime
from deepzig.models.reference.corpus import ARITHMETIC, TASKS, Question, heldout

ROOT = Path(__file__).parents[1]
DTYPES = ("f32", "bf16", "f16")
LONGEST = 96
"""Tokens of an answer; the corpus has none as long."""


@dataclass(frozen=True)
class Score:
    """What an artifact did, question by question.

    Attributes:
        name: of the artifact.
        answers: its answers.
        surprise: mean over the tokens of the right answers of -log p, natural.
        accepted: share of the tokens guessed one ahead that were right; NaN without a draft.
    """

    name: str
    answers: tuple[str, ...]
    surprise: float
    accepted: float

    def exact(self, questions: Sequence[Question], *tasks: str) -> float:
        """Share of right answers, of all questions or of those of some tasks."""
        asked = [(q, a) for q, a in zip(questions, self.answers, strict=True) if not tasks or q.task in tasks]
        return sum(q.answer == a for q, a in asked) / len(asked)


def score(path: Path, questions: Sequence[Question], progress: str) -> Score:
    """Ask an artifact everything."""
    answers, surprise, tokens, guessed, accepted = [], 0.0, 0, 0, 0
    with deepzig.runtime.load(path) as model, click.progressbar(questions, label=progress) as bar:
        ahead = 1 if "draft" in model.manifest.entry_points else 0
        for question in bar:
            messages = [{"role": "user", "content": question.question}]
            result = model.generate(messages, max_tokens=LONGEST, speculate=ahead)
            answers.append(result.text)
            guessed += result.guessed_tokens
            accepted += result.accepted_tokens
            prompt = model.tokenizer.encode_chat(messages)
            wanted = model.tokenizer.encode(question.answer, special=False)
            logits = model.logits([*prompt, *wanted])[len(prompt) - 1 : -1].astype(np.float64)
            top = logits.max(-1, keepdims=True)
            mass = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
            surprise += float((mass - logits[np.arange(len(wanted)), wanted]).sum())
            tokens += len(wanted)
    return Score(path.name, tuple(answers), surprise / tokens, accepted / guessed if guessed else float("nan"))


def compiled(folder: Path) -> list[Path]:
    """The reference model in every dtype."""
    from deepzig.compiler.driver import compile_model
    from deepzig.compiler.options import Options

    made = []
    for dtype in DTYPES:
        compile_model(ROOT / "models" / "reference", folder / dtype, Options(dtype=dtype, force=True))
        made.append(folder / dtype)
    return made


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def table(scores: Sequence[Score], questions: Sequence[Question]) -> list[list[str]]:
    """Rows of the report, the first with the names."""
    rows = [["", *(s.name for s in scores)]]
    rows += [[task, *(_percent(s.exact(questions, task)) for s in scores)] for task in TASKS]
    rows.append(["arithmetic", *(_percent(s.exact(questions, *ARITHMETIC)) for s in scores)])
    rows.append(["all tasks", *(_percent(s.exact(questions)) for s in scores)])
    first = scores[0].answers
    same = [sum(a == b for a, b in zip(s.answers, first, strict=True)) / len(first) for s in scores]
    rows.append([f"as {scores[0].name}", *map(_percent, same)])
    rows.append(["perplexity of answers", *(f"{np.exp(s.surprise):.4f}" for s in scores)])
    rows.append(["guesses accepted", *(_percent(s.accepted) for s in scores)])
    return rows


@click.command()
@click.argument("artifacts", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--each", default=160, show_default=True, help="The most questions of a task.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write the rows there, too.")
def main(artifacts: tuple[Path, ...], each: int, report: Path | None) -> None:
    """Score artifacts of the reference model."""
    questions = heldout(None, each)
    paths = list(artifacts) or compiled(ROOT / "build" / "bench" / "reference")
    scores = [score(path, questions, path.name) for path in paths]
    rows = table(scores, questions)
    click.echo(f"\n{len(questions)} held-out questions, greedy, exact match\n")
    for row in rows:
        click.echo(f"{row[0]:<24}" + "".join(f"{cell:>12}" for cell in row[1:]))
    if report is not None:
        report.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
