"""A model without an artifact: a backend in numpy that keeps its past in the pages it is given, and a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from deepzig.artifacts.manifest import Manifest
from deepzig.runtime.engine import Settings
from deepzig.runtime.model import Model
from deepzig.runtime.pages import PagePool
from deepzig.runtime.tokenizer import Tokenizer
from deepzig.sampling import sample_tokens

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CORPUS = [
    "Grüße aus München, naïve façade, Ελληνικά, русский текст, עברית, العربية, हिन्दी नमस्ते",
    "你好，世界！今天天气很好。日本語のテキスト、한국어 텍스트",
    "emoji 👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪 and e\u0301 combining, Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢",
    "The quick brown fox jumps over the lazy dog. 1234567890 3.14 don't I'll WE'VE\r\n\ttabs  and   spaces \n\n",
    "def f(x):\n    return x ** 2 - {'a': [1, 2]}['a'][0]  # comment\n" * 2,
    "\u0000\u0001\u200b\ufeff\ufffd \U0010ffff ﷽ ﬁ ligature ½ ² 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ｆｕｌｌ　ｗｉｄｔｈ",
]
"""Texts in which tokenizers and decoders go wrong."""

TEXTS = [*CORPUS, "", " ", "\n", f"{EOS}inside{BOS}out", f"a{BOS}", "<|user|>", "x" * 300]
"""Texts to encode."""


def write_tokenizer(folder: Path, vocab_size: int = 300, **config: Any) -> Path:
    """A byte-level BPE that seldom has a whole character, with its config."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS[3:5], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    eos = {"__type": "AddedToken", "content": EOS, "lstrip": False, "normalized": False, "rstrip": False}
    base = {"bos_token": BOS, "eos_token": eos, "add_bos_token": True, "chat_template": TEMPLATE}
    kept = {k: v for k, v in {**base, **config}.items() if v is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept), encoding="utf-8")
    return folder


def manifest(vocab: int, **bounds: int) -> Manifest:
    spec = lambda name, *shape: {"name": name, "dtype": "i32", "shape": list(shape)}  # noqa: E731
    inputs = [
        *(spec(n, "n") for n in ("tokens", "seq", "pos")), spec("block_table", "b", "p"), spec("out_rows", "r")
    ]  # fmt: skip
    point = {"inputs": inputs, "states": [], "weights": [], "outputs": []}
    build = {**dict.fromkeys(("name", "platform", "triple", "code", "runtime"), "none"), "features": [], "calls": {}}
    sizes = {"rows": 24, "batch": 3, "chunk": 8, "decode_rows": 3, "page_size": 4, "positions": 60}
    return Manifest.from_json(
        {
            "format": 4, "created_by": "a test", "cache": [], "weights": [], "memory": {}, "passes": [], "files": {},
            "builds": [build],
            "model": {"vocab_size": vocab, "num_hidden_layers": 1, "eos_token_ids": [1]},
            "abi": {"tvm_ffi": "", "tvm": ""},
            "entry_points": {n: point for n in ("prefill", "decode", "sample")}, "bounds": {**sizes, **bounds},
        },
        "test",
    )  # fmt: skip


Past = Sequence[int]
Logits = Callable[[Past], np.ndarray]


def babble(vocab: int) -> Logits:
    """Random logits that depend on the whole past."""
    return lambda past: np.random.default_rng([*past, 7]).normal(0, 3, vocab).astype(np.float32)


def script(vocab: int, prompt: int, tokens: Sequence[int]) -> Logits:
    """Logits that make greedy generation say `tokens` after a prompt of that length, then end."""

    def logits(past: Past) -> np.ndarray:
        at = len(past) - prompt
        row = np.zeros(vocab, np.float32)
        row[tokens[at] if at < len(tokens) else 1] = 9
        return row

    return logits


class Backend:
    """Reads the past through the block table, as kernels do; counts what it is asked."""

    def __init__(self, pages: int, page_size: int, logits: Logits) -> None:
        self.cache = np.full((pages, page_size), -1)
        self.logits = logits
        self.calls: list[tuple[str, list[int]]] = []
        self.closed = False

    def call(self, entry: str, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        if entry == "sample":
            return (sample_tokens(**inputs),)
        size = self.cache.shape[1]
        self.calls.append((entry, inputs["pos"].tolist()))
        rows = list(zip(inputs["seq"], inputs["pos"], strict=True))
        for (seq, pos), token in zip(rows, inputs["tokens"], strict=True):
            self.cache[inputs["block_table"][seq, pos // size], pos % size] = token
        wanted = []
        for row in inputs["out_rows"]:
            seq, pos = rows[row]
            past = [int(self.cache[inputs["block_table"][seq, t // size], t % size]) for t in range(pos + 1)]
            assert min(past) >= 0
            wanted.append(self.logits(past))
        return (np.array(wanted, np.float32) if wanted else np.empty((0, 1), np.float32),)

    def run(self, work: Callable[[], Any]) -> Any:
        return work()

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        for source, target in pairs:
            self.cache[target] = self.cache[source]

    def read_page(self, page: int) -> dict[str, np.ndarray]:
        return {"cache": self.cache[page].view(np.uint8).copy()}

    def write_page(self, page: int, data: Mapping[str, np.ndarray]) -> None:
        self.cache[page] = data["cache"].view(self.cache.dtype)

    def close(self) -> None:
        self.closed = True


def model(
    folder: Path | None, logits: Logits, vocab: int = 300, pages: int = 15, settings: Settings | None = None,
    **bounds: int,
) -> Model:  # fmt: skip
    """A model over the fake backend; without a folder it has no tokenizer."""
    made = manifest(vocab, **bounds)
    size = made.bounds.page_size
    backend, tokenizer = Backend(pages, size, logits), Tokenizer(folder or Path("nowhere"))
    return Model(made, tokenizer, backend, PagePool(pages, size), Path("fake"), settings or Settings())
