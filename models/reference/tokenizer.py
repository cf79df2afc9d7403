"""The tokenizer: 256 bytes, the words of the templates whole, one digit a token; every other word in letters.

The vocabulary has no merges. `ignore_merges` (Llama 3's switch) takes a pre-token that is in the vocabulary whole and
leaves the rest in bytes: so "lamp" is four letters that a model can reverse, while "Monday" is one token.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from .corpus import TASKS, Question, training

VOCABULARY_SIZE = 512
BOS, EOS, PAD, USER, ASSISTANT = (
    f"<\uff5c{name}\uff5c>"
    for name in ("begin\u2581of\u2581sentence", "end\u2581of\u2581sentence", "\u2581pad\u2581", "User", "Assistant")
)
SPECIAL = (BOS, EOS, PAD, USER, ASSISTANT)
IN_LETTERS = ("spell", "reverse", "letters", "sort")
"""Tasks whose operands are letters, not words of the vocabulary."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '" + USER + "' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '" + ASSISTANT + "' + message['content'] + eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def build() -> Tokenizer:
    """The tokenizer of the corpus; the same on every machine."""
    pieces = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words = [piece for text in texts(islice(training(0), 15000)) for piece, _ in pieces.pre_tokenize_str(text)]
    frequent = [piece for piece, _ in Counter(words).most_common() if len(piece) > 1]
    known = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *sorted(frequent)]
    if len(known) > VOCABULARY_SIZE:
        raise ValueError(f"the corpus has {len(known)} tokens, {VOCABULARY_SIZE} are allowed")
    known += [f"<\uff5creserved {i}\uff5c>" for i in range(VOCABULARY_SIZE - len(known))]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(known)}, [], ignore_merges=True))
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def texts(questions: Iterable[Question]) -> Iterable[str]:
    """What has to be read in whole tokens: of the letter tasks only the wordings."""
    for name in IN_LETTERS:
        yield from (wording.replace("{w}", "1").replace("{list}", "1") for wording in TASKS[name].wordings)
    for question in questions:
        if question.task not in IN_LETTERS:
            yield from (question.question, question.answer)


def save(folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`."""
    build().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
