"""Quantised checkpoints, all the way to text, against transformers on the same weights de-quantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options
from deepzig.compiler.trace import Bounds
from deepzig.runtime import load

from . import quantised
from .folders import DATA, config, random_weights, write

TOLERANCE = 2e-5
"""f32, norm-relative."""

BOUNDS = Bounds(chunk=64, decode_rows=8, rows=64, batch=4, page_size=16)
SIZES = {"hidden_size": 165, "intermediate_size": 261, "kv_lora_rank": 130, "q_lora_rank": 33}
WEIGHTS = random_weights(config(**SIZES), 81)


@pytest.mark.parametrize(
    ("settings", "stored", "floats", "quant"),
    [
        (quantised.fp8_config(), *quantised.fp8(WEIGHTS), None),
        (quantised.fp8_config(), *quantised.fp8(WEIGHTS), "fp8,lm_head=float"),
        (quantised.compressed_config(), *quantised.packed(WEIGHTS, scales="f32"), None),
    ],
    ids=["fp8", "fp8-kept", "int4"],
)
def test_logits_and_greedy_tokens(settings: Any, stored: Any, floats: Any, quant: str | None, tmp_path: Path) -> None:
    data = {**DATA, **SIZES, "rope_theta": 10000.0, "rope_scaling": None}
    write(tmp_path / "stored", stored, {**data, **settings})
    write(tmp_path / "floats", floats, data)
    kinds = {"attn_implementation": "eager", "experts_implementation": "eager"}
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "floats", dtype=torch.float32, **kinds)
    prompt = np.random.default_rng(82).integers(2, DATA["vocab_size"], 70)
    ids = torch.tensor(prompt[None])
    with torch.no_grad():
        want = reference(ids).logits[0].numpy()
        settings_of_generate = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False, "eos_token_id": None}
        tokens = reference.generate(ids, attention_mask=torch.ones_like(ids), **settings_of_generate)[0, 70:]
    compile_model(tmp_path / "stored", tmp_path / "out", Options(dtype="f32", quant=quant, bounds=BOUNDS))
    with load(tmp_path / "out") as model:
        got = model.logits(prompt.tolist())
        assert np.linalg.norm(got - want) <= TOLERANCE * np.linalg.norm(want)
        assert model.generate(prompt.tolist(), max_tokens=64, ignore_eos=True).token_ids == tuple(tokens.tolist())
