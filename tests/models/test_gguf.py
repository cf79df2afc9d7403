"""GGUF files hold what the de-quantised checkpoint holds; the oracle is the gguf package."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from deepzig.compiler.driver import compile_model, fuse
from deepzig.compiler.options import Options
from deepzig.errors import DeepZigError
from deepzig.models.gguf_files import read_gguf
from deepzig.models.gguf_tokenizer import SPLITS
from deepzig.models.random_checkpoint import ASSISTANT, BOS, CHAT_TEMPLATE, EOS, USER
from deepzig.models.random_checkpoint import write as write_random
from deepzig.models.source import open_source
from deepzig.models.tensors import tensors
from deepzig.runtime import load
from deepzig.runtime.tokenizer import Tokenizer

from .folders import Array, config, random_weights, write
from .gguf_writer import MODEL, SIZES, back, convert, rounded, write_gguf

WEIGHTS = random_weights(config(**SIZES), 81)
ALL_KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
AGAIN = "download or write the file again"


def floats(x: Array, dtype: str) -> Array:
    return (x.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else x.astype(np.float32)


def plain(kind: str, split: bool) -> dict[str, Array]:
    """The checkpoint that a file stands for."""
    return back(rounded(convert(WEIGHTS, split), kind), WEIGHTS)


@pytest.mark.parametrize("split", [True, False], ids=["k and v", "kv"])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_values_and_config(kind: str, split: bool, tmp_path: Path) -> None:
    """Bit for bit, and every field."""
    path = write_gguf(tmp_path / "small.gguf", convert(WEIGHTS, split), kind, split)
    source, _ = fuse(path, Options())
    assert source.name == "small"
    assert source.config == config(**{**SIZES, "num_nextn_predict_layers": 0})
    opened = source.checkpoint
    want = open_source(write(tmp_path / "hf", plain(kind, split), MODEL)).checkpoint
    for name, shape in tensors(source.config):
        if len(shape) == 3:
            for a, b in zip(opened.pieces(name), want.pieces(name), strict=True):
                assert np.array_equal(floats(a, opened.dtype(name)), b)
        else:
            assert np.array_equal(floats(opened.read(name), opened.dtype(name)), want.read(name)), name
        last = shape[0] - 1
        assert np.array_equal(floats(opened.piece(name, last), opened.dtype(name)), want.piece(name, last)), name
    assert opened.dtype("model.layers.1.mlp.experts.up_proj.weight") == (kind.lower() if kind[0] != "Q" else "f32")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_logits_are_equal(kind: str, tmp_path: Path) -> None:
    write(tmp_path / "hf", plain(kind, True), MODEL)
    write_gguf(tmp_path / "model.gguf", convert(WEIGHTS, True), kind)
    tokens = np.random.default_rng(82).integers(0, MODEL["vocab_size"], 23).tolist()
    results = []
    for name in ("hf", "model.gguf"):
        compile_model(tmp_path / name, tmp_path / f"{name}.out", Options(dtype="f32"))
        with load(tmp_path / f"{name}.out") as model:
            results.append(model.logits(tokens))
    assert np.array_equal(*results)


def test_tied_embeddings_and_absent_keys(tmp_path: Path) -> None:
    """As llama.cpp reads files that lack a key: no groups, no YaRN."""
    own = convert({name: x for name, x in WEIGHTS.items() if name != "lm_head.weight"}, True)
    absent: dict[str, Any] = dict.fromkeys(
        f"deepseek2__{key}" for key in ("expert_group_count", "expert_group_used_count", "rope__scaling__type")
    )
    source = open_source(write_gguf(tmp_path / "m.gguf", own, "F16", **absent))
    assert source.config.tie_word_embeddings and source.config.n_group == source.config.topk_group == 1
    assert source.config.rope.kind == "default"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Keys of a tokenizer."""
    folder = tmp_path_factory.mktemp("vocabulary")
    write_random(folder, {**MODEL, "vocab_size": 600, "num_hidden_layers": 1})
    data = json.loads((folder / "tokenizer.json").read_text())
    tokens = sorted(data["model"]["vocab"], key=data["model"]["vocab"].__getitem__)
    special = {token["content"] for token in data["added_tokens"]}
    return {
        "tokenizer__ggml__model": "gpt2",
        "tokenizer__ggml__pre": "deepseek-v3",
        "tokenizer__ggml__tokens": tokens,
        "tokenizer__ggml__token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer__ggml__merges": [" ".join(pair) for pair in data["model"]["merges"]],
        "tokenizer__ggml__add_bos_token": True,
        "tokenizer__chat_template": CHAT_TEMPLATE,
    }


def side_files(path: Path, out: Path) -> Path:
    for name, content in open_source(path).files.items():
        assert isinstance(content, bytes)
        (out / name).write_bytes(content)
    return out


@pytest.mark.parametrize("pre", SPLITS)
def test_tokenizer(pre: str, vocabulary: dict[str, Any], tmp_path: Path) -> None:
    tensors_ = convert(WEIGHTS, True)
    path = write_gguf(tmp_path / "m.gguf", tensors_, "F16", **{**vocabulary, "tokenizer__ggml__pre": pre})
    side_files(path, tmp_path)
    ours = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "Straße 12345 Übung\r\n\tdef f(x):  return 'x'  # 汉字 ひらがな don't!"
    ids = ours.encode(text).ids
    assert ours.decode(ids) == text
    bos, user = (vocabulary["tokenizer__ggml__tokens"].index(token) for token in (BOS, USER))
    assert ours.encode(f"{USER}{text}").ids == [user, *ids]
    runtime = Tokenizer(tmp_path)
    assert runtime.encode(text) == [bos, *ids]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings == {"add_bos_token": True, "bos_token": BOS, "eos_token": EOS, "chat_template": CHAT_TEMPLATE}
    assert ASSISTANT in settings["chat_template"]


@pytest.mark.parametrize(
    ("pre", "text", "parts"),
    [
        ("deepseek-v3", "a12345 (foo)", ["a", "123", "45", "Ġ(", "foo", ")"]),
        ("deepseek-v3", "x  .if\n\n y", ["x", "Ġ", "Ġ.", "if", "ĊĊ", "Ġy"]),
        ("deepseek-llm", "a 12345 (foo)\n", ["a", "Ġ", "12345", "Ġ(", "foo", ")", "Ċ"]),
        ("deepseek-coder", "a12 (foo)", ["a", "1", "2", "Ġ(", "foo", ")"]),
    ],
)
def test_text_is_split_as_the_models_do(
    pre: str, text: str, parts: list[str], vocabulary: dict[str, Any], tmp_path: Path
) -> None:
    keys = {**vocabulary, "tokenizer__ggml__pre": pre}
    side_files(write_gguf(tmp_path / "m.gguf", {}, "F16", **keys), tmp_path)
    ours = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [piece for piece, _ in ours.pre_tokenizer.pre_tokenize_str(text)] == parts


@pytest.mark.parametrize(
    ("key", "value", "what", "hint"),
    [
        (
            "model",
            "llama",
            "the tokenizer 'llama' is not supported",
            "use a file with one of deepseek-v3, deepseek-llm, deepseek-coder",
        ),
        (
            "pre",
            "qwen2",
            "the splitting of text 'qwen2' is not supported",
            "use a file with one of deepseek-v3, deepseek-llm, deepseek-coder",
        ),
        ("token_type", [1, 2], "the tokenizer's tokens, types and merges don't fit", "convert the model again"),
        ("merges", None, "the tokenizer's tokens, types and merges don't fit", "convert the model again"),
    ],
)
def test_tokenizers_that_are_refused(
    key: str, value: Any, what: str, hint: str, vocabulary: dict[str, Any], tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, "F16", **{**vocabulary, f"tokenizer__ggml__{key}": value})
    with pytest.raises(DeepZigError) as error:
        open_source(path)
    where = f"{path}, key tokenizer.ggml.{key}" if key in ("model", "pre") else str(path)
    assert (error.value.what, error.value.where, error.value.hint) == (what, where, hint)


def refused(path: Path) -> tuple[str, str, str]:
    with pytest.raises(DeepZigError) as error:
        fuse(path, Options())
    assert len(str(error.value).splitlines()) == 3
    return error.value.what, error.value.where, error.value.hint


@pytest.mark.parametrize(
    ("changes", "what", "key", "hint"),
    [
        (
            {"arch": "llama"},
            "the architecture 'llama' is not supported",
            "general.architecture",
            "use a model of deepseek2",
        ),
        ({"deepseek2__block_count": None}, "the key is missing", "deepseek2.block_count", "convert the model again"),
        (
            {"deepseek2__expert_count": 0},
            "0 is not a whole number from 1",
            "deepseek2.expert_count",
            "convert the model again",
        ),
        (
            {"deepseek2__context_length": "x"},
            "'x' is not a whole number from 1",
            "deepseek2.context_length",
            "convert the model again",
        ),
    ],
)
def test_metadata_that_are_wrong(changes: dict[str, Any], what: str, key: str, hint: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", convert(WEIGHTS, True), "F16", **changes)
    assert refused(path) == (what, f"{path}, key {key}", hint)


def test_softmax_routing_is_another_family(tmp_path: Path) -> None:
    """What routes by softmax is DeepSeek-V2, also where the key is absent as in old files."""
    for number, value in enumerate((1, None)):
        path = write_gguf(tmp_path / f"{number}.gguf", {}, "F16", deepseek2__expert_gating_func=value)
        assert open_source(path).config.model_type == "deepseek_v2"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "m.gguf"
    return write_gguf(path, convert(WEIGHTS, True), "Q8_0").read_bytes()


NORM = "output_norm.weight"


def info(raw: bytes, name: str) -> int:
    """Where the sizes of a tensor begin: after its name."""
    text = name.encode()
    return raw.index(struct.pack("<Q", len(text)) + text) + 8 + len(text)


def patch(at: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:at] + new + raw[at + len(new) :]


def patch_info(offset: int, new: bytes, name: str = NORM) -> Callable[[bytes], bytes]:
    return lambda raw: patch(info(raw, name) + offset, new)(raw)


DAMAGED = "the file is truncated or no GGUF: "
KNOWN = "use a file in one of F32, F16, BF16, Q8_0, Q4_0"


@pytest.mark.parametrize(
    ("change", "what", "tensor", "hint"),
    [
        (lambda raw: b"", DAMAGED, "", AGAIN),
        (lambda raw: b"GGML" + raw[4:], f"{DAMAGED}GGUF magic invalid", "", AGAIN),
        (patch(4, struct.pack("<I", 1)), f"{DAMAGED}Sorry, file appears to be version 1", "", AGAIN),
        (patch(8, struct.pack("<Q", 1 << 60)), DAMAGED, "", AGAIN),
        (patch(16, struct.pack("<Q", 1 << 60)), DAMAGED, "", AGAIN),
        (patch(24, struct.pack("<Q", 1 << 40)), DAMAGED, "", AGAIN),
        (patch(32, b"\xff"), DAMAGED, "", AGAIN),
        (lambda raw: raw[:300], DAMAGED, "", AGAIN),
        (lambda raw: raw[:-1000], DAMAGED, "", AGAIN),
        (patch_info(0, struct.pack("<I", 9)), DAMAGED, "", AGAIN),
        (patch_info(12, struct.pack("<I", 26)), "tensors of type I32 can't be read", NORM, KNOWN),
        (patch_info(12, struct.pack("<I", 99)), DAMAGED, "", AGAIN),
        (patch_info(4, struct.pack("<Q", 63)), "the shape is [63], not [64]", NORM, "is config.json of another model?"),
        (patch_info(4, struct.pack("<Q", 1 << 62)), DAMAGED, "", AGAIN),
        (patch_info(4, struct.pack("<Q", 63), "token_embd.weight"), DAMAGED, "", AGAIN),
        (
            lambda raw: raw.replace(NORM.encode(), b"output_form.weight"),
            "a tensor is missing",
            "model.norm.weight",
            "download or write the checkpoint again",
        ),
    ],
)
def test_damaged(
    change: Callable[[bytes], bytes], what: str, tensor: str, hint: str, good: bytes, tmp_path: Path
) -> None:
    """What the package raises takes three lines as well; the rest of the first one is its own."""
    path = tmp_path / "m.gguf"
    path.write_bytes(change(good))
    told, where, fix = refused(path)
    assert told.startswith(what) and (what.startswith(DAMAGED) or told == what)
    assert (where, fix) == (f"{path}, tensor {tensor}" if tensor else str(path), hint)


def test_without_the_package(good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(good)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert refused(path) == ("gguf is not installed", str(path), "pip install 'deepzig[gguf]'")


def test_stacks_of_another_shape(tmp_path: Path) -> None:
    own = convert(WEIGHTS, True)
    own["blk.0.attn_v_b.weight"] = own["blk.0.attn_v_b.weight"][:2]
    path = write_gguf(tmp_path / "m.gguf", own, "F32")
    where = f"{path}, tensor blk.0.attn_v_b.weight"
    assert refused(path) == ("the shape is [2, 32, 64], not [3, 32, 64]", where, "convert the model again")


def test_a_missing_half_and_a_tensor_too_many(tmp_path: Path) -> None:
    own = convert(WEIGHTS, True)
    values = own.pop("blk.0.attn_v_b.weight")
    path = write_gguf(tmp_path / "a.gguf", own, "F32")
    assert refused(path)[:2] == ("a tensor is missing", f"{path}, tensor model.layers.0.self_attn.kv_b_proj.weight")
    path = write_gguf(
        tmp_path / "b.gguf", {**own, "blk.0.attn_v_b.weight": values, "blk.0.other.weight": values}, "F32"
    )
    assert refused(path)[:2] == ("the model has no such tensor", f"{path}, tensor blk.0.other.weight")


def test_every_scalar_and_array_is_read(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf",
        {},
        "F32",
        x__text="ü",
        x__flag=False,
        x__float=0.25,
        x__list=[3, 1, 2],
        x__texts=["a", "ß"],
    )
    found = read_gguf(path).metadata
    assert [found[f"x.{key}"] for key in ("text", "flag", "float", "list", "texts")] == [
        "ü",
        False,
        0.25,
        [3, 1, 2],
        ["a", "ß"],
    ]
