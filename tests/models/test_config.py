"""config.json: its fields, their defaults, their two spellings, and every error word for word."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import transformers

from deepzig.errors import DeepZigError
from deepzig.models import read_config
from deepzig.models.config import ModelConfig
from deepzig.models.deepseek_v3 import DEFAULTS
from deepzig.models.families import parse_config
from deepzig.models.fields import MEND, Fields, read_json
from deepzig.models.rope import RopeConfig

from .folders import DATA, config

WHOLE = "is not a whole number from"
YARN = {"factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.5}
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers",
    "num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_routed_experts",
    "num_experts_per_tok",
)  # fmt: skip
WITH_DEFAULT = (
    "first_k_dense_replace", "q_lora_rank", "n_group", "topk_group", "n_shared_experts",
    "max_position_embeddings", "num_nextn_predict_layers",
)  # fmt: skip
FROM_ZERO = {"first_k_dense_replace", "n_shared_experts", "num_nextn_predict_layers"}


def failure(**changes: Any) -> tuple[str, str, str]:
    with pytest.raises(DeepZigError) as error:
        config(**changes)
    return error.value.what, error.value.where, error.value.hint


def at(field: str) -> str:
    return f"config.json, field {field}"


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_required(name: str) -> None:
    assert failure(**{name: None}) == ("the field is missing", at(name), "correct config.json")


@pytest.mark.parametrize("value", [-1, 2.0, "8", True, [8], float("nan")])
@pytest.mark.parametrize("name", [*SIZES, *WITH_DEFAULT])
def test_sizes_are_whole_numbers(name: str, value: Any) -> None:
    least = int(name not in FROM_ZERO)
    assert failure(**{name: value}) == (f"{value!r} {WHOLE} {least}", at(name), "correct config.json")


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_positive_and_fit_int32(name: str) -> None:
    assert failure(**{name: 0})[0] == f"0 {WHOLE} 1"
    assert failure(**{name: 2**31}) == ("2147483648 is above 2147483647", at(name), "correct config.json")


@pytest.mark.parametrize("value", [0, -1.5, True, "1", [], float("nan"), float("inf"), 10**400])
@pytest.mark.parametrize("name", ["rms_norm_eps", "routed_scaling_factor", "rope_theta"])
def test_numbers_are_finite_and_positive(name: str, value: Any) -> None:
    assert failure(**{name: value}) == (f"{value!r} is not a number above 0", at(name), "correct config.json")


@pytest.mark.parametrize("name", ["norm_topk_prob", "attention_bias", "tie_word_embeddings", "rope_interleave"])
def test_flags(name: str) -> None:
    for value in (0, 1, "true", []):
        assert failure(**{name: value}) == (f"{value!r} is neither true nor false", at(name), "correct config.json")


@pytest.mark.parametrize(
    ("name", "value", "allowed", "why"),
    [
        ("hidden_act", "gelu", "silu", "feed-forward networks are SwiGLU"),
        ("scoring_func", "softmax", "sigmoid", "this family routes by sigmoid"),
        ("topk_method", "greedy", "noaux_tc", "this family routes by biased scores"),
    ],
)
def test_switches_with_one_position(name: str, value: str, allowed: str, why: str) -> None:
    what, hint = f"{value!r} is not supported: {why}", f"use a model with {name} {allowed!r}"
    assert failure(**{name: value}) == (what, at(name), hint)
    assert config(**{name: allowed}) == config()


@pytest.mark.parametrize("value", [-1, 1.0, "2", [3, None], True])
@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id"])
def test_token_ids(name: str, value: Any) -> None:
    what = f"{value!r} is neither a token id nor a list of them"
    assert failure(**{name: value}) == (what, at(name), "correct config.json")


@pytest.mark.parametrize(
    ("changes", "field", "what"),
    [
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim", "7 is odd, but RoPE turns pairs"),
        ({"n_group": 4}, "n_group", "6 experts do not divide into 4 groups"),
        ({"topk_group": 3}, "topk_group", "3 groups can't be kept of 2"),
        ({"n_group": 6}, "n_group", "a group of one expert has no two best scores"),
        ({"num_experts_per_tok": 4}, "num_experts_per_tok", "4 experts can't be chosen of 3"),
        ({"bos_token_id": 67}, "bos_token_id", "a token id is beyond the vocabulary of 67"),
        ({"eos_token_id": [3, 70]}, "eos_token_id", "a token id is beyond the vocabulary of 67"),
        ({"num_key_value_heads": 1}, "num_key_value_heads", "1 differs from num_attention_heads, 3"),
        ({"rope_theta": 1.0}, "rope_theta", "1 is not above 1"),
    ],
)
def test_fields_that_must_fit_each_other(changes: dict[str, Any], field: str, what: str) -> None:
    assert failure(**changes)[:2] == (what, failure(**changes)[1])
    assert failure(**changes)[1].endswith(f"field {field}")


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("rope", "what", "field", "hint"),
    [
        ([], "[] is not an object", "{0}", MEND),
        ("yarn", "'yarn' is not an object", "{0}", MEND),
        ({"type": "ntk"}, "RoPE of type 'ntk' is not supported", "{0}", "use one of default, yarn"),
        ({"type": ["yarn"]}, "RoPE of type ['yarn'] is not supported", "{0}", "use one of default, yarn"),
        ({"type": "yarn", "factor": 0}, "0 is not a number above 0", "factor", MEND),
        ({"type": "yarn", "beta_fast": "x"}, "'x' is not a number above 0", "beta_fast", MEND),
        ({"type": "yarn", "beta_slow": -1}, "-1 is not a number above 0", "beta_slow", MEND),
        ({"type": "yarn", "mscale": -1}, "-1 is not a number above 0", "mscale", MEND),
        ({"type": "yarn", "mscale_all_dim": "x"}, "'x' is not a number above 0", "mscale_all_dim", MEND),
        ({"type": "yarn", "attention_factor": 0}, "0 is not a number above 0", "attention_factor", MEND),
        ({"type": "yarn", "truncate": 1}, "1 is neither true nor false", "truncate", MEND),
        (
            {"type": "yarn", "original_max_position_embeddings": 0.5},
            f"0.5 {WHOLE} 1", "original_max_position_embeddings", MEND,
        ),
    ],
)  # fmt: skip
def test_rope_errors(spelling: str, rope: Any, what: str, field: str, hint: str) -> None:
    source = "config.json" if field == "{0}" else f"config.json, {spelling}"
    assert failure(**{spelling: rope}) == (what, f"{source}, field {field.format(spelling)}", hint)


@pytest.mark.parametrize(
    ("deepseek", "transformers_"),
    [
        ({"rope_theta": 5e4, "rope_scaling": None}, {"rope_type": "default", "rope_theta": 5e4}),
        (
            {"rope_theta": 5e4, "rope_scaling": {"type": "yarn", **YARN}},
            {"rope_type": "yarn", "rope_theta": 5e4, **YARN},
        ),
        ({"rope_scaling": {"type": "yarn", **YARN}}, {"rope_type": "yarn", **YARN}),
    ],
)
def test_both_spellings_of_rope_are_the_same(deepseek: dict[str, Any], transformers_: dict[str, Any]) -> None:
    ours = config(**deepseek)
    assert ours == config(rope_parameters=transformers_)
    assert ours == config(rope_scaling=None, rope_parameters=transformers_)


def test_yarn_takes_what_is_absent_from_the_context() -> None:
    rope = config(rope_scaling={"type": "yarn", "original_max_position_embeddings": 128}).rope
    assert rope == RopeConfig(kind="yarn", factor=4.0, original_max_position_embeddings=128)
    assert config(rope_scaling={"type": "yarn", "factor": 3}).rope.original_max_position_embeddings == 512


def test_defaults_are_those_of_transformers() -> None:
    """Absent fields, not null ones; MTP layers are those that are named."""
    theirs = transformers.DeepseekV3Config()
    required = {name: getattr(theirs, name) for name in SIZES}
    ours = parse_config(Fields({**required, "model_type": "deepseek_v3"}, "config.json"))
    shared = [f.name for f in fields(ModelConfig) if hasattr(theirs, f.name) and f.name != "num_nextn_predict_layers"]
    assert {*SIZES, "q_lora_rank", "n_group", "rms_norm_eps", "rope_interleave"} <= {*shared}
    assert {name: getattr(ours, name) for name in shared} == {name: getattr(theirs, name) for name in shared}
    assert ours.eos_token_ids == (theirs.eos_token_id,)
    assert ours.rope == RopeConfig(theta=theirs.rope_parameters["rope_theta"])
    assert ours.mlp_layer_types.count("dense") == theirs.first_k_dense_replace
    for name, value in DEFAULTS.items():
        assert getattr(theirs, name) == value


def test_null_means_that_the_model_has_none() -> None:
    bare = config(**dict.fromkeys(DEFAULTS.keys() - {"first_k_dense_replace", "routed_scaling_factor"}))
    assert (bare.q_lora_rank, bare.n_shared_experts) == (None, 0)
    assert (bare.n_group, bare.topk_group) == (1, 1)
    assert (bare.bos_token_id, bare.eos_token_ids) == (None, ())


def test_a_config_saved_by_transformers(tmp_path: Path) -> None:
    sizes = {k: v for k, v in DATA.items() if k != "model_type"}
    rope = {"rope_type": "yarn", "rope_theta": 9e3, "original_max_position_embeddings": 128, **YARN}
    transformers.DeepseekV3Config(**sizes, rope_parameters=rope, num_mtp_layers=0).save_pretrained(tmp_path)
    assert read_config(tmp_path) == config(rope_parameters=rope)


def folder(path: Path, data: Any, generation: Any = None) -> Path:
    (path / "config.json").write_text(json.dumps(data))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


@pytest.mark.parametrize(("eos", "ids"), [(5, (5,)), ([6, 7], (6, 7)), (None, (1,)), ([], (1,))])
def test_generation_config_may_name_other_end_tokens(tmp_path: Path, eos: Any, ids: tuple[int, ...]) -> None:
    assert read_config(folder(tmp_path, DATA, {"eos_token_id": eos})).eos_token_ids == ids


def test_generation_config_is_checked(tmp_path: Path) -> None:
    with pytest.raises(DeepZigError) as error:
        read_config(folder(tmp_path, DATA, {"eos_token_id": "</s>"}))
    assert error.value.what == "'</s>' is neither a token id nor a list of them"
    assert error.value.where == f"{tmp_path / 'generation_config.json'}, field eos_token_id"
    with pytest.raises(DeepZigError) as error:
        read_config(folder(tmp_path, DATA, {"eos_token_id": 67}))
    assert error.value.what == "a token id is beyond the vocabulary of 67"
    assert error.value.where == f"{tmp_path / 'generation_config.json'}, field eos_token_id"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"{", "the file is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"\xff{}", "the file is not JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"[" * 200_000, "the file is not JSON: it is nested too deeply"),
        (b"[]", "the file is not a JSON object"),
        (b"null", "the file is not a JSON object"),
    ],
)
def test_what_is_not_json(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(DeepZigError) as error:
        read_json(path)
    assert (error.value.what, error.value.where) == (what, str(path))
    assert error.value.hint == "download or write the file again"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DeepZigError) as error:
        read_json(tmp_path / "config.json")
    assert str(error.value) == (
        "the file can't be read: No such file or directory\n"
        f"  at: {tmp_path / 'config.json'}\n  fix: name a Hugging Face checkpoint folder"
    )


def test_the_summary_is_json() -> None:
    summary = config(eos_token_id=[3, 4]).summary()
    assert json.loads(json.dumps(summary)) == {
        "model_type": "deepseek_v3", "vocab_size": 67, "hidden_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 3, "qk_head_dim": 16, "v_head_dim": 14,
        "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_ids": [3, 4],
    }  # fmt: skip
