"""Text from tokens: whole characters only, stop texts across pieces, nothing lost."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from deepzig.runtime.text import Detokenizer, StopFinder
from deepzig.runtime.tokenizer import Tokenizer

from . import fake


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(fake.write_tokenizer(tmp_path_factory.mktemp("tokenizer"), add_bos_token=False))


def pieces_of(tokens: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    texts = Detokenizer(tokenizer.decode)
    return [*(texts.push(token) for token in tokens), texts.flush()]


@pytest.mark.parametrize("text", fake.CORPUS)
def test_pieces_join_to_the_text(text: str, tokenizer: Tokenizer) -> None:
    """And each piece consists of characters of the text: emoji sequences may be cut between, never inside, them."""
    tokens = tokenizer.encode(text)
    pieces = pieces_of(tokens, tokenizer)
    assert "".join(pieces) == text
    shown = "".join(pieces[:-1])
    assert text.startswith(shown) and ("\ufffd" in text or "\ufffd" not in shown)


@pytest.mark.parametrize("seed", range(20))
def test_any_tokens_join_to_what_decoding_them_at_once_gives(seed: int, tokenizer: Tokenizer) -> None:
    """Broken UTF-8 and special tokens among them."""
    tokens = random.Random(seed).choices(range(300), k=200)
    assert "".join(pieces_of(tokens, tokenizer)) == tokenizer.decode(tokens)


def test_a_character_comes_with_its_last_byte(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("é漢👍")
    assert len(tokens) == 2 + 3 + 4
    assert pieces_of(tokens, tokenizer) == ["", "é", "", "", "漢", "", "", "", "👍", ""]


def test_bytes_that_never_become_a_character_come_at_the_end(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("a漢")[:-1]
    assert pieces_of(tokens, tokenizer) == ["a", "", "", "\ufffd"]


@pytest.fixture(scope="module")
def fallback() -> Any:
    """As SentencePiece's: words begin with a space, what is no word falls back to bytes."""
    words = ["▁", *"abhi", "▁a", "▁hi", "hi", "<s>"]
    vocab = {t: i for i, t in enumerate([*(f"<0x{b:02X}>" for b in range(256)), *words])}
    merges = [("▁", "a"), ("h", "i"), ("▁", "hi")]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    ])  # fmt: skip
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


@pytest.mark.parametrize("text", [*fake.CORPUS, "hi a<s> hi<s><s> a", "漢字漢字", "a👩‍👩‍👧‍👦漢 hi"])
def test_bytes_that_fall_back(text: str, fallback: Any) -> None:
    """Their decoder decides on a whole run of bytes, and takes the first space away."""
    tokens = fallback.encode(text).ids
    texts = Detokenizer(fallback.decode)
    pieces = [texts.push(token) for token in tokens]
    assert "".join([*pieces, texts.flush()]) == fallback.decode(tokens)
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces) and all(len(p) <= 2 for p in pieces if not p.isascii())


def shown(pieces: Sequence[str], stops: Sequence[str]) -> tuple[str, bool]:
    finder = StopFinder(stops)
    text = ""
    for i, piece in enumerate(pieces):
        more, found = finder.push(piece) if i < len(pieces) - 1 else finder.last(piece)
        text += more
        if found:
            return text, True
    return text, False


@pytest.mark.parametrize("seed", range(200))
def test_stops_wherever_the_pieces_are_cut(seed: int) -> None:
    """What is shown ends before the stop text that a search of the whole would find first to be complete."""
    rng = random.Random(seed)
    text = "".join(rng.choices("ab漢", k=rng.randint(0, 30)))
    stops = ["".join(rng.choices("ab漢", k=rng.randint(1, 5))) for _ in range(rng.randint(0, 3))]
    pieces, at = [], 0
    while at < len(text):
        size = rng.randint(0, 4)
        pieces.append(text[at : at + size])
        at += size
    got, found = shown([*pieces, ""], stops)
    places = [(text.index(s), s) for s in stops if s in text]
    assert found == bool(places)
    if not places:
        assert got == text
        return
    first_whole = min(at + len(s) for at, s in places)
    assert text.startswith(got) and any(text.startswith(s, len(got)) for s in stops)
    assert len(got) <= first_whole and min(at for at, _ in places) <= len(got)


def test_what_may_become_a_stop_is_held_back() -> None:
    finder = StopFinder(["</end>", "dx"])
    assert finder.push("hello <") == ("hello ", False)
    assert finder.push("/en") == ("", False)
    assert finder.push("d") == ("", False)
    assert finder.push("y") == ("</endy", False)
    assert finder.push("a</end> and more") == ("a", True)
    assert StopFinder(["</end>"]).last("a</en") == ("a</en", False)
    assert StopFinder(["b"]).last("abc") == ("a", True)


def test_without_stops_nothing_is_held(tmp_path: Path) -> None:
    assert StopFinder(()).push("abc") == ("abc", False)
