"""The tokenizer in a GGUF file as tokenizer.json and tokenizer_config.json.

llama.cpp stores a byte-level BPE as tokens, their types, and merges, and the way text is split before it as a name,
which its src/llama-vocab.cpp (class llm_tokenizer_bpe) spells out; the expressions are those of the models' own files.
"""

from __future__ import annotations

import json
from typing import Any

from deepzig.errors import DeepZigError

from .gguf_files import GgufFile

CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102"
    "\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
"""Letters of both cases, as the model's own file lists them."""
IDEOGRAPHS = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
SPLITS: dict[str, tuple[str, ...]] = {
    "deepseek-v3": (
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
        "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    ),
    "deepseek-llm": (
        "[\r\n]",
        f"\\s?[{CASED}]+",
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        "\\s+$",
        IDEOGRAPHS,
        r"\p{N}+",
    ),
    "deepseek-coder": ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", IDEOGRAPHS, r"\p{N}"),
}
"""tokenizer.ggml.pre -> expressions that cut the text, one after the other, before bytes are merged."""

CONTROL, USER_DEFINED = 3, 4
"""Types of tokens that are found in the text as they are; the former are special."""


def tokenizer_files(file: GgufFile) -> dict[str, bytes]:
    """The files of the tokenizer; none if there is none.

    Raises:
        DeepZigError: a kind of tokenizer that is not supported, or one that contradicts itself.
    """
    m = file.metadata
    model: Any = m.get("tokenizer.ggml.model")
    if model in (None, "none", "no_vocab"):
        return {}
    supported = f"use a file with one of {', '.join(SPLITS)}"
    if model != "gpt2":
        what = f"the tokenizer {model!r} is not supported"
        raise DeepZigError(what, f"{file.path}, key tokenizer.ggml.model", supported)
    pre = m.get("tokenizer.ggml.pre")
    if pre not in SPLITS:
        raise DeepZigError(
            f"the splitting of text {pre!r} is not supported", f"{file.path}, key tokenizer.ggml.pre", supported
        )
    tokens: Any = m.get("tokenizer.ggml.tokens")
    merges: Any = m.get("tokenizer.ggml.merges")
    types: Any = m.get("tokenizer.ggml.token_type")
    if not (_texts(tokens) and _texts(merges) and isinstance(types, list) and len(types) == len(tokens)):
        raise DeepZigError(
            "the tokenizer's tokens, types and merges don't fit", str(file.path), "convert the model again"
        )
    added = [
        {
            "id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": kind == CONTROL,
        }
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]  # fmt: skip
    splits = [{"type": "Split", "pattern": {"Regex": r}, "behavior": "Isolated", "invert": False} for r in SPLITS[pre]]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges},
    }
    config: dict[str, Any] = {"add_bos_token": m.get("tokenizer.ggml.add_bos_token", True)}
    for role in ("bos", "eos"):
        index = m.get(f"tokenizer.ggml.{role}_token_id")
        if type(index) is int and index < len(tokens):
            config[f"{role}_token"] = tokens[index]
    if isinstance(template := m.get("tokenizer.chat_template"), str):
        config["chat_template"] = template
    whole = {"tokenizer.json": tokenizer, "tokenizer_config.json": config}
    return {name: json.dumps(data, ensure_ascii=False).encode() for name, data in whole.items()}


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)
