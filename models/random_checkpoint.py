"""Checkpoints with random weights: true shapes and files, no training.

    python -m deepzig.models.random_checkpoint OUT --preset tiny

Linears are N(0, 1 / fan_in), norms N(1, 0.1), router biases N(0, 0.15), embeddings N(0, 1), so that every part of the
model shows in the logits. The tokenizer is a real byte-level BPE with DeepSeek's special tokens, trained on the
standard library's sources.
"""

from __future__ import annotations

import argparse
import json
import math
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .families import parse_config
from .fields import Fields
from .presets import PRESETS
from .tensors import one_by_one, tensors

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
SPECIAL = (BOS, EOS, PAD, USER, ASSISTANT)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    f"{{% elif m.role == 'user' %}}{USER}{{{{ m.content }}}}"
    f"{{% else %}}{ASSISTANT}{{{{ m.content }}}}{{{{ eos_token }}}}{{% endif %}}{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)

ITEM = {"bf16": ("BF16", 2), "f32": ("F32", 4), "f16": ("F16", 2)}
SHARD_BYTES = 2 << 30
CORPUS_CHARACTERS = 2_000_000


def write(
    folder: Path, preset: str | Mapping[str, Any], seed: int = 0, dtype: str = "bf16", shard: int = SHARD_BYTES
) -> None:
    """Write a checkpoint folder, one tensor at a time.

    Args:
        folder: made if need be; files of the same names are replaced.
        preset: a name in PRESETS, or the object of a config.json.
        seed: the same seed gives the same files.
        dtype: bf16, f16 or f32; router biases are always f32.
        shard: the most bytes of a weight file.
    """
    data = dict(PRESETS[preset] if isinstance(preset, str) else preset)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer(int(data["vocab_size"]))
    ids = {name: tokenizer.token_to_id(token) for name, token in (("bos", BOS), ("eos", EOS))}
    data |= {
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "torch_dtype": {"bf16": "bfloat16", "f16": "float16"}.get(dtype, "float32"),
    }
    config = parse_config(Fields(data, "preset"))
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "config.json", data)
    _write_json(folder / "generation_config.json", {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"]})
    _write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "pad_token": PAD,
        "add_bos_token": True, "clean_up_tokenization_spaces": False, "chat_template": CHAT_TEMPLATE,
    })  # fmt: skip
    _write_weights(folder, list(one_by_one(tensors(config))), np.random.default_rng(seed), dtype, shard)


def _write_weights(
    folder: Path, names: list[tuple[str, tuple[int, ...]]], rng: np.random.Generator, dtype: str, shard: int
) -> None:
    shards: list[dict[str, Any]] = [{}]
    at = 0
    for name, shape in names:
        kind, item = ITEM["f32" if name.endswith("e_score_correction_bias") else dtype]
        size = math.prod(shape) * item
        if at and at + size > shard:
            shards.append({})
            at = 0
        shards[-1][name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        weight_map = {name: file for file, entries in zip(files, shards, strict=True) for name in entries}
        _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    for file, entries in zip(files, shards, strict=True):
        header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
        header += b" " * (-len(header) % 8)
        with (folder / file).open("wb") as out:
            out.write(len(header).to_bytes(8, "little") + header)
            for name, entry in entries.items():
                out.write(_random(name, entry["shape"], rng, entry["dtype"]).tobytes())


def _random(name: str, shape: tuple[int, ...], rng: np.random.Generator, kind: str) -> npt.NDArray[Any]:
    mean, std = 0.0, 1 / math.sqrt(shape[-1])
    if name.endswith("e_score_correction_bias"):
        std = 0.15
    elif name.endswith("bias"):
        std = 0.3
    elif len(shape) == 1:
        mean, std = 1.0, 0.1
    elif "embed_tokens" in name:
        std = 1.0
    x = rng.standard_normal(shape, np.float32)
    x *= np.float32(std)
    x += np.float32(mean)
    if kind == "BF16":
        bits = x.view(np.uint32)
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return x.astype(np.float16) if kind == "F16" else x


def _train_tokenizer(vocab_size: int) -> Any:
    """Byte-level BPE with the pre-tokenizer of DeepSeek-V3's tokenizer.json, simplified to its first and last rule."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


def _corpus() -> Iterator[str]:
    seen = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        yield text
        seen += len(text)
        if seen > CORPUS_CHARACTERS:
            return


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write a checkpoint with random weights.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny")
    parser.add_argument("--dtype", choices=sorted(ITEM), default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write(arguments.out, arguments.preset, arguments.seed, arguments.dtype)
    print(f"wrote {arguments.out}: {arguments.preset}, random weights")


if __name__ == "__main__":
    main()
