"""Chats as tensors: several short chats packed into each row, blind to one another."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .corpus import Question, training
from .tokenizer import ASSISTANT, BOS, EOS, PAD, USER

LENGTH = 128
"""Tokens a row."""

TURNS = (1, 1, 1, 2)
"""Turns of a chat, drawn evenly: most have one."""


@dataclass(frozen=True)
class Batch:
    """Packed chats.

    Attributes:
        tokens: [B, T].
        real: [B, T], whether it is a token of a chat, not padding.
        answered: [B, T], whether the token belongs to an answer (its closing token included).
        mask: [B, 1, T, T], whether a position may look at another: causal, within its own chat.
    """

    tokens: Tensor
    real: Tensor
    answered: Tensor
    mask: Tensor


class Encoder:
    """Chats to token ids, in the form of the chat template."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        ids = tokenizer.get_vocab()
        self.bos, self.eos, self.pad, self.user, self.assistant = (ids[t] for t in (BOS, EOS, PAD, USER, ASSISTANT))

    def chat(self, turns: Iterable[Question]) -> tuple[list[int], list[bool]]:
        """Token ids of a chat, and which of them the model has to say."""
        ids, answered = [self.bos], [False]
        for turn in turns:
            asked, answer = (self.tokenizer.encode(text).ids for text in (turn.question, turn.answer))
            ids += [self.user, *asked, self.assistant, *answer, self.eos]
            answered += [False] * (len(asked) + 2) + [True] * (len(answer) + 1)
        return ids, answered

    def pack(self, chats: Iterable[tuple[list[int], list[bool]]], rows: int | None = None) -> Batch:
        """Fill rows with whole chats in the order given, as many rows as asked (all chats when None)."""
        packed: list[list[tuple[int, bool, int]]] = [[]]
        for number, (ids, answered) in enumerate(chats):
            if len(packed[-1]) + len(ids) > LENGTH:
                if len(packed) == rows:
                    break
                packed.append([])
            packed[-1] += [(i, a, number) for i, a in zip(ids, answered, strict=True)]
        full = torch.tensor([row + [(self.pad, False, -1)] * (LENGTH - len(row)) for row in packed])
        tokens, said, chat = full.unbind(-1)
        same = chat.unsqueeze(1) == chat.unsqueeze(2)
        return Batch(tokens, chat >= 0, said.bool(), (same & torch.ones(LENGTH, LENGTH).tril().bool()).unsqueeze(1))

    def training_batch(self, step: int, rows: int) -> Batch:
        """The batch of that step, whoever asks for it and when."""
        rng = random.Random(step)
        return self.pack(self.chats(training(step), rng), rows)

    def chats(self, questions: Iterator[Question], rng: random.Random) -> Iterator[tuple[list[int], list[bool]]]:
        """An endless stream of chats of one turn or two."""
        while True:
            yield self.chat(next(questions) for _ in range(rng.choice(TURNS)))
