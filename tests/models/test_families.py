"""Which models are read, how their families differ, and how relatives are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deepzig.errors import DeepZigError
from deepzig.models import FAMILIES, UNSUPPORTED, ModelConfig, read_config
from deepzig.models.families import parse_config
from deepzig.models.fields import Fields
from deepzig.models.presets import PRESETS

SUPPORTED = "  fix: use a model of deepseek_v2, deepseek_v3, glm4_moe_lite, kimi_k2"


def parse(**changes: Any) -> ModelConfig:
    """The tiny model with some fields changed, and those of `absent` left out."""
    absent = changes.pop("absent", ())
    data = {**PRESETS["tiny"], "scoring_func": None, "topk_method": None, **changes}
    return parse_config(Fields({k: v for k, v in data.items() if k not in absent}, "config.json"))


def refusal(**changes: Any) -> list[str]:
    with pytest.raises(DeepZigError) as error:
        parse(**changes)
    return str(error.value).splitlines()


RELATIVES = {
    "deepseek_v32": "DeepSeek-V3.2 chooses the positions it attends to by an indexer",
    "glm_moe_dsa": "GLM-5 chooses the positions it attends to by an indexer",
    "longcat_flash": "LongCat-Flash has two attentions a layer and experts that do nothing",
    "mistral4": "Mistral-4 scales queries by their position",
    "kimi_linear": "Kimi-Linear has layers of linear attention",
    "kimi_k25": "Kimi-K2.5 reads images; its text model is one part of the checkpoint",
}


@pytest.mark.parametrize(("name", "reason"), RELATIVES.items())
def test_relatives_are_refused_by_name_before_weights_are_read(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
    with pytest.raises(DeepZigError) as error:
        read_config(tmp_path)
    assert str(error.value).splitlines() == [
        f"{name} is not supported: {reason}",
        f"  at: {tmp_path / 'config.json'}, field model_type",
        SUPPORTED,
    ]


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_every_known_relative_has_a_reason(name: str) -> None:
    assert name not in FAMILIES
    assert refusal(model_type=name)[0] == f"{name} is not supported: {UNSUPPORTED[name]}"


@pytest.mark.parametrize("name", ["llama", None, 3, ["deepseek_v3"]])
def test_strangers_are_refused(name: Any) -> None:
    assert refusal(model_type=name) == [
        f"the model type {name!r} is unknown",
        "  at: config.json, field model_type",
        SUPPORTED,
    ]


def test_deepseek_v2_without_a_latent_cache_is_refused() -> None:
    assert refusal(model_type="deepseek_v2", kv_lora_rank=None) == [
        "null means attention without a latent cache, which DeepZig does not compile",
        "  at: config.json, field kv_lora_rank",
        "  fix: use a model with multi-head latent attention",
    ]


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"model_type": "deepseek_v3", "scoring_func": "softmax"},
         "'softmax' is not supported: this family routes by sigmoid"),
        ({"model_type": "deepseek_v3", "topk_method": "greedy"},
         "'greedy' is not supported: this family routes by biased scores"),
        ({"model_type": "deepseek_v2", "scoring_func": "sigmoid"},
         "'sigmoid' is not supported: this family routes by softmax"),
        ({"model_type": "deepseek_v2", "topk_method": "noaux_tc"}, "'noaux_tc' is not supported"),
        ({"model_type": "deepseek_v2", "topk_method": 4}, "4 is not supported"),
        ({"model_type": "glm4_moe_lite", "mlp_layer_types": ["dense"]}, "not a list of 4 times 'dense' or 'sparse'"),
        ({"model_type": "glm4_moe_lite", "mlp_layer_types": ["dense"] * 3 + ["moe"]},
         "not a list of 4 times 'dense' or 'sparse'"),
        ({"model_type": "glm4_moe_lite", "partial_rotary_factor": 0.5},
         "0.5 is not supported: qk_rope_head_dim says how much of a head is rotated"),
        ({"model_type": "deepseek_v3", "moe_layer_freq": 2},
         "2 is not supported: all layers after the dense ones are mixtures of experts"),
        ({"model_type": "deepseek_v2", "mlp_bias": True},
         "True is not supported: feed-forward networks have no biases"),
    ],
)  # fmt: skip
def test_fields_that_a_family_does_not_have_are_refused(changes: dict[str, Any], first: str) -> None:
    lines = refusal(**changes)
    assert lines[0] == first and len(lines) == 3


def test_deepseek_v3() -> None:
    config = parse(absent=("first_k_dense_replace", "routed_scaling_factor"))
    assert config.mlp_layer_types == ("dense", "dense", "dense", "sparse")
    assert (config.scoring_func, config.router_bias, config.group_best) == ("sigmoid", True, 2)
    assert config.routed_scaling_factor == 2.5


def test_kimi_k2_is_deepseek_v3() -> None:
    assert vars(parse(model_type="kimi_k2")) == {**vars(parse()), "model_type": "kimi_k2"}


@pytest.mark.parametrize(("method", "groups"), [("greedy", (1, 1)), ("group_limited_greedy", (2, 1)), (None, (1, 1))])
def test_deepseek_v2(method: str | None, groups: tuple[int, int]) -> None:
    config = parse(
        model_type="deepseek_v2", topk_method=method, norm_topk_prob=True, rope_interleave=False,
        absent=("first_k_dense_replace", "routed_scaling_factor"),
    )  # fmt: skip
    assert config.mlp_layer_types == ("sparse",) * 4
    assert (config.scoring_func, config.router_bias, config.group_best) == ("softmax", False, 1)
    assert (config.n_group, config.topk_group) == groups
    assert (config.norm_topk_prob, config.routed_scaling_factor, config.rope_interleave) == (False, 1.0, True)


def test_glm() -> None:
    config = parse(
        model_type="glm4_moe_lite", first_k_dense_replace=3, absent=("rms_norm_eps", "routed_scaling_factor")
    )
    assert config.mlp_layer_types == ("dense", "sparse", "sparse", "sparse")
    assert (config.rms_norm_eps, config.routed_scaling_factor) == (1e-5, 1.8)
    kinds = ["sparse", "dense", "dense", "sparse"]
    assert [parse(model_type="glm4_moe_lite", mlp_layer_types=kinds).is_moe(i) for i in range(4)] == [
        True, False, False, True,
    ]  # fmt: skip


def test_more_dense_layers_than_layers_make_a_dense_model() -> None:
    assert parse(first_k_dense_replace=9).mlp_layer_types == ("dense",) * 4
