"""How good the model is on held-out questions: exact answers, the MTP layer's drafts, the experts' loads.

An answer is exact under greedy decoding if and only if, given the answer so far, each of its tokens is the likeliest:
so one pass over question and answer says what token-by-token decoding would.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .batches import Encoder
from .corpus import ARITHMETIC, TASKS, Question, heldout
from .network import Model


@torch.no_grad()
def evaluate(model: Model, encoder: Encoder, count: int = 160) -> dict[str, Any]:
    """Scores on the held-out split.

    Args:
        model: In f32.
        encoder: Of the corpus' tokenizer.
        count: The most questions a task.

    Returns:
        `exact`, `arithmetic` (means over questions), `tasks` (share by task), `new_wording` (exact, of the questions in
        a wording that training never used), `accepted` (share of the MTP layer's second tokens that the model itself
        would say, over right answers), `load` (least and most loaded expert by layer, in parts of the mean).
    """
    reset(model)
    right: dict[str, list[bool]] = {}
    fresh: list[bool] = []
    drafts = torch.zeros(2)
    questions = heldout(None, count)
    for start in range(0, len(questions), 128):
        part = sorted(questions[start : start + 128], key=lambda q: len(q.question) + len(q.answer))
        for question, (exact, accepted, drafted) in zip(part, answers(model, encoder, part), strict=True):
            right.setdefault(question.task, []).append(exact)
            drafts += torch.tensor([accepted, drafted])
            if question.wording == len(TASKS[question.task].wordings) - 1:
                fresh.append(exact)
    loads = [moe.load / moe.load.mean() for moe in model.moes()]
    reset(model)
    everything = [exact for task in right.values() for exact in task]
    sums = [exact for task in ARITHMETIC for exact in right[task]]
    return {
        "exact": mean(everything),
        "arithmetic": mean(sums),
        "new_wording": mean(fresh),
        "accepted": round((drafts[0] / drafts[1]).item(), 4),
        "load": [[round(load.min().item(), 2), round(load.max().item(), 2)] for load in loads],
        "tasks": {task: mean(values) for task, values in right.items()},
    }


@torch.no_grad()
def expert_loads(model: Model, encoder: Encoder) -> list[Tensor]:
    """How often held-out chats choose each expert, in parts of the mean: [E] by expert layer, the MTP layer's last."""
    reset(model)
    answers(model, encoder, heldout())
    loads = [moe.load / moe.load.mean() for moe in model.moes()]
    reset(model)
    return loads


def reset(model: Model) -> None:
    """Forget the loads counted so far, and which tokens count."""
    for moe in model.moes():
        moe.load.zero_()
        moe.counted = None


def answers(model: Model, encoder: Encoder, questions: list[Question]) -> list[tuple[bool, int, int]]:
    """By question: whether the answer is exact, how many drafted tokens would be accepted, of how many."""
    batch = encoder.pack(encoder.chat([question]) for question in questions)
    model.count(batch.real, batch.real[:, :-1])
    hidden = model(batch.tokens, batch.mask)
    guess = model.lm_head(hidden).argmax(-1)
    following, mask = batch.tokens[:, 1:], batch.mask[:, :, :-1, :-1]
    drafted = model.mtp.predict(hidden[:, :-1], following, mask, model.turn[: following.shape[1]])
    second = model.mtp.shared_head.head(drafted).argmax(-1)
    found = []
    begins = torch.eq(batch.tokens, encoder.bos).nonzero().tolist()
    for row, begin in begins:
        length = int(batch.mask[row, 0, :, begin].sum())
        said = [i for i in range(begin, begin + length) if batch.answered[row, i]]
        exact = all(bool(guess[row, i - 1] == batch.tokens[row, i]) for i in said)
        # a draft stands for position i when the model has said i - 1 and is about to say i
        accepted = sum(bool(second[row, i - 2] == guess[row, i - 1]) for i in said[1:])
        found.append((exact, accepted, len(said) - 1))
    return found


def mean(values: list[bool]) -> float:
    """Share of the true ones, rounded."""
    return round(sum(values) / max(len(values), 1), 4)
