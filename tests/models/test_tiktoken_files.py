"""tiktoken files made a tokenizer.json: the ids that merging by rank gives."""

from __future__ import annotations

import base64
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options
from deepzig.errors import DeepZigError
from deepzig.models import random_checkpoint
from deepzig.models.presets import PRESETS
from deepzig.models.side_files import side_files
from deepzig.models.tiktoken_files import PATTERN, merges, read_ranks, tokenizer_json
from deepzig.runtime.tokenizer import Tokenizer

CORPUS = [
    "中文English混合，世界您好！今天是2026年11月24日。汉字abc 漢字かな交じり文ＡＢＣ　全角",
    "Hello, world! The Quick BROWN fOx's jumped; they'll we'VE don't 'S 'tis x'd ÉCOLE's école\u0301s",
    "1234567890 3.14159 ½ ² ٣٤٥ １２３４ v1.2.3-rc4 0x1F",
    "  leading   inner\t\ttabs \n\n\n new\r\nlines  \r\n   trailing   ",
    "def f(x: int) -> str:\n    return f\"{x!r}\" if x else '' # ok\n\n\nclass A:\n\tpass\n",
    "👩‍👩‍👧‍👦👍🏽🏳️‍🌈 שלום العربية हिन्दी ไทย 한국어 ελληνικά РУССКИЙ русский ǅ ʰ",
    "\ufeff\u200b\u0000\x7f\ufffd \U0010ffff 𠮷野家 〇〆ヶ ﷽ {}[]()<>|\\/^~`@#$%&*_+=-\"'",
    "aaaaaaaaaaaaaaaaaaaa abababababab ababa babab aabbaabb",
]
SPECIAL = {0: ("[BOS]", True), 1: ("[EOS]", True), 2: ("<|im_end|>", True), 5: ("<think>", False)}
"""Offset after the ranks -> text, and whether it is left out of decoded text."""


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    """A vocabulary trained on the corpus and on what makes ties: few letters, many repetitions."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    rng = random.Random(5)
    noise = ["".join(rng.choices("aab ", k=60)) for _ in range(30)]
    tokenizer.train_from_iterator([*CORPUS, *noise], trainer)
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(b): b for b in kept}
    letters |= {chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in kept)}
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: (len(item[0]) > 1, item[1]))
    return {bytes(map(letters.__getitem__, token)): rank for rank, (token, _) in enumerate(vocab)}


@pytest.fixture(scope="module")
def folder(ranks: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("kimi"), ranks)


def write(folder: Path, ranks: dict[bytes, int], **config: Any) -> Path:
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    random.Random(1).shuffle(lines)
    (folder / "tiktoken.model").write_text("".join(lines) + "\n")
    decoder = {str(len(ranks) + i): {"content": text, "special": special} for i, (text, special) in SPECIAL.items()}
    data = {"added_tokens_decoder": decoder, "bos_token": "[BOS]", "eos_token": "[EOS]", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(data))
    return folder


def reference(text: str, ranks: dict[bytes, int]) -> list[int]:
    """Ids by the definition: special tokens first, then split, then merge the lowest rank, leftmost first."""
    names = {token: len(ranks) + i for i, (token, _) in SPECIAL.items()}
    names |= {f"<|reserved_token_{len(ranks) + i}|>": len(ranks) + i for i in range(256) if i not in SPECIAL}
    ids = []
    for part in regex.split("(" + "|".join(map(regex.escape, names)) + ")", text):
        if part in names:
            ids.append(names[part])
            continue
        for word in regex.findall(PATTERN, part, regex.VERSION1):
            ids += merged([bytes([b]) for b in word.encode()], ranks)
    return ids


def merged(parts: list[bytes], ranks: dict[bytes, int]) -> list[int]:
    while True:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not pairs:
            return [ranks[part] for part in parts]
        _, i = min(pairs)
        parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]


@pytest.fixture(scope="module")
def converted(folder: Path) -> Tokenizer:
    (folder / "tokenizer.json").write_text(tokenizer_json(folder))
    return Tokenizer(folder)


@pytest.mark.parametrize("text", CORPUS)
def test_ids_of_the_corpus(text: str, converted: Tokenizer, ranks: dict[bytes, int]) -> None:
    ids = converted.encode(text)
    assert ids == reference(text, ranks)
    assert converted.decode(ids, skip_special=False) == text
    assert any(i > 255 for i in ids)


@pytest.mark.parametrize("alphabet", ["ab", "aab ", "".join(CORPUS), "".join(map(chr, range(1, 0x3000)))])
def test_ids_of_random_texts(alphabet: str, converted: Tokenizer, ranks: dict[bytes, int]) -> None:
    rng = random.Random(len(alphabet))
    for _ in range(150):
        text = "".join(rng.choices(alphabet, k=rng.randint(1, 60)))
        assert converted.encode(text) == reference(text, ranks), text


def test_special_tokens(converted: Tokenizer, ranks: dict[bytes, int]) -> None:
    first = len(ranks)
    text = f"[BOS]hi<think>x<|im_end|>[EOS]<|reserved_token_{first + 255}|> <|reserved_token_{first}|>"
    ids = converted.encode(text)
    assert ids == reference(text, ranks)
    assert {first, first + 1, first + 2, first + 5, first + 255} <= set(ids)
    assert converted.decode(ids) == f"hi<think>x <|reserved_token_{first}|>"


def test_a_trained_vocabulary_has_ways_to_make_every_token(ranks: dict[bytes, int]) -> None:
    made = {left + right for left, right in merges(ranks)}
    assert made == {token for token in ranks if len(token) > 1}
    order = [ranks[left + right] for left, right in merges(ranks)]
    assert order == sorted(order)


def test_side_files(folder: Path, tmp_path: Path, ranks: dict[bytes, int]) -> None:
    """Converted only if there is no tokenizer.json; templates come along."""
    write(tmp_path, ranks)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("x")
    (tmp_path / "chat_template.jinja").write_text("y")
    files = dict(side_files(tmp_path))
    assert set(files) == {
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja"
    }  # fmt: skip
    assert json.loads(files["tokenizer.json"])["model"]["type"] == "BPE"  # type: ignore[arg-type]
    (tmp_path / "tokenizer.json").write_text("{}")
    assert dict(side_files(tmp_path))["tokenizer.json"] == tmp_path / "tokenizer.json"


def refusal(folder: Path, text: str) -> str:
    (folder / "tiktoken.model").write_text(text)
    with pytest.raises(DeepZigError) as caught:
        read_ranks(folder / "tiktoken.model")
    return str(caught.value)


def test_damaged_files(tmp_path: Path) -> None:
    path, mend = tmp_path / "tiktoken.model", "download the checkpoint again"
    lines = [f"{base64.b64encode(bytes([b])).decode()} {b}" for b in range(256)]
    for bad in ("IQ==", "IQ== 33 5", "IQ== x", "I* 256", "=== 256"):
        told = refusal(tmp_path, "\n".join([*lines, "", bad]))
        assert told == f"the line is no token and rank\n  at: {path}, line 258\n  fix: {mend}"
    for bad in ("YWI= 257", "YWI= 5", "YWI= -1"):
        told = refusal(tmp_path, "\n".join([*lines, bad]))
        assert told == f"the ranks have gaps or repetitions\n  at: {path}\n  fix: {mend}"
    assert (
        refusal(tmp_path, "\n".join(lines[:255])) == f"there is no token for the byte 255\n  at: {path}\n  fix: {mend}"
    )
    assert refusal(tmp_path, "") == f"there is no token for the byte 0\n  at: {path}\n  fix: {mend}"


@pytest.mark.slow
def test_a_checkpoint_with_a_tiktoken_file(ranks: dict[bytes, int], tmp_path: Path) -> None:
    """From the checkpoint through the compiler to the artifact's tokenizer."""
    from deepzig.runtime import load

    random_checkpoint.write(tmp_path / "checkpoint", PRESETS["tiny"])
    (tmp_path / "checkpoint" / "tokenizer.json").unlink()
    write(tmp_path / "checkpoint", ranks)
    compile_model(tmp_path / "checkpoint", tmp_path / "artifact", Options())
    with load(tmp_path / "artifact") as model:
        assert model.encode(CORPUS[0]) == reference(CORPUS[0], ranks)
