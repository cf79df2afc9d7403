"""tiktoken files, as Kimi-K2 and Moonlight ship them, made a tokenizer.json.

`tiktoken.model` has a token's bytes in base64 and its rank on each line. Encoding splits a text by a pattern and
merges, in each part, the neighbours whose union has the lowest rank (openai/tiktoken, src/lib.rs). The names of the
special tokens, which follow the ranks, stand in `added_tokens_decoder` of tokenizer_config.json; those without a name
are reserved (moonshotai/Kimi-K2-Instruct, tokenization_kimi.py).
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from deepzig.errors import DeepZigError

from .fields import read_json

TIKTOKEN = "tiktoken.model"
SPECIAL_TOKENS = 256
"""How many ids after the ranks are special tokens."""

_WORD = (
    r"[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]%s[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]%s"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
)
PATTERN = "|".join((
    r"[\p{Han}]+",
    _WORD % ("*", "+"),
    _WORD % ("+", "*"),
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
))  # fmt: skip
"""Where a text is split: runs of Han characters, words, up to three digits, punctuation, space."""

MEND = "download the checkpoint again"


def tokenizer_json(folder: Path) -> str:
    """The tokenizer.json that encodes and decodes as the folder's tiktoken.model.

    Raises:
        DeepZigError: a line that is no token with its rank, or a vocabulary that does not hold all bytes.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    ranks, letter = read_ranks(folder / TIKTOKEN), _letters()
    text = {token: "".join(map(letter.__getitem__, token)) for token in ranks}
    model = models.BPE(
        vocab={text[token]: rank for token, rank in ranks.items()},
        merges=[(text[left], text[right]) for left, right in merges(ranks)],
        ignore_merges=True,  # a part that is a token needs no merging
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([
        AddedToken(content, special=special, normalized=False)
        for content, special in _special_tokens(folder, len(ranks))
    ])  # fmt: skip
    result: str = tokenizer.to_str()
    return result


def read_ranks(path: Path) -> dict[bytes, int]:
    """Bytes -> rank of every token, in order of rank.

    Raises:
        DeepZigError: as `tokenizer_json`.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (binascii.Error, ValueError):
            if line.strip():
                raise DeepZigError("the line is no token and rank", f"{path}, line {number}", MEND) from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise DeepZigError("the ranks have gaps or repetitions", str(path), MEND)
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise DeepZigError(f"there is no token for the byte {missing[0]}", str(path), MEND)
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every way to make a token of two, by the token's rank."""
    pairs = ((token[:cut], token[cut:]) for token in ranks for cut in range(1, len(token)))
    return [(left, right) for left, right in pairs if left in ranks and right in ranks]


def _special_tokens(folder: Path, first: int) -> list[tuple[str, bool]]:
    """Text of the special tokens from id `first`, and whether they are left out of decoded text."""
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    named: dict[str, Any] = config.get("added_tokens_decoder") or {}
    entries = [named.get(str(i)) or {} for i in range(first, first + SPECIAL_TOKENS)]
    return [
        (str(entry.get("content", f"<|reserved_token_{i}|>")), bool(entry.get("special", True)))
        for i, entry in enumerate(entries, first)
    ]


def _letters() -> dict[int, str]:
    """Byte -> the character that stands for it in byte-level BPE: itself if printable (openai/gpt-2, encoder.py)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {**{byte: chr(byte) for byte in kept}, **{byte: chr(256 + i) for i, byte in enumerate(moved)}}
