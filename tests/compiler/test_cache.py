"""`--cache`: the element type of the cache, chosen apart from that of the weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from deepzig.artifacts.reader import open_artifact
from deepzig.compiler.against import recompute
from deepzig.compiler.driver import compile_model, ir_text
from deepzig.compiler.options import Options
from deepzig.errors import DeepZigError
from deepzig.models import random_checkpoint
from deepzig.runtime import load
from deepzig.runtime.inspect.memory import memory_of
from deepzig.runtime.verify import check, read_vectors, replay

from ..runtime.conftest import BOUNDS, CONFIG

WIDTH = {"kv_lora_rank": 130, "num_hidden_layers": 2}
"""Several groups of 64, the last one partial."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "checkpoint"
    random_checkpoint.write(folder, {**CONFIG, **WIDTH})
    return folder


@pytest.mark.parametrize(("dtype", "fuse"), [("f32", None), ("bf16", None), ("f32", 0)])
def test_a_cache_of_8_bits(dtype: str, fuse: int | None, checkpoint: Path, tmp_path: Path) -> None:
    """Fused or not, kernels agree with the ops' meaning; a row's bits depend neither on threads nor on cuts."""
    options = Options(bounds=BOUNDS, dtype=dtype, cache="q8", fuse_limit=fuse)
    compile_model(checkpoint, tmp_path / "out", options)
    artifact = open_artifact(tmp_path / "out")
    check(artifact, replay(artifact, read_vectors(artifact)))
    assert artifact.manifest.model["cache"] == "q8" and {t.dtype for t in artifact.manifest.cache} == {"i8"}
    per_token = memory_of(artifact.manifest, None, 1).cache_per_token
    assert per_token == len(artifact.manifest.cache) * 256  # 138 columns: 192 codes, 3 scales
    tokens = np.random.default_rng(2).integers(0, 611, 90).tolist()
    digests = set()
    for threads in (1, 2):
        with load(tmp_path / "out", threads=threads) as model:
            logits = model.logits(tokens)
            digests.add(hashlib.sha256(logits.tobytes()).hexdigest())
            assert np.array_equal(model.logits(tokens[:33]), logits[:33])
    assert len(digests) == 1 and np.isfinite(logits).all()


def test_it_is_near_and_known_to_verify(checkpoint: Path, tmp_path: Path) -> None:
    logits = {}
    for cache in ("f32", "q8", "bf16"):
        compile_model(checkpoint, tmp_path / cache, Options(bounds=BOUNDS, dtype="f32", cache=cache))
        with load(tmp_path / cache) as model:
            logits[cache] = model.logits(list(range(2, 80)))
    size = np.linalg.norm(logits["f32"])
    assert 1e-5 < np.linalg.norm(logits["bf16"] - logits["f32"]) / size < 0.02
    assert 1e-5 < np.linalg.norm(logits["q8"] - logits["f32"]) / size < 0.05
    artifact = open_artifact(tmp_path / "q8")
    recorded = read_vectors(artifact)
    assert recompute(artifact.manifest, recorded, checkpoint).layers == recorded.layers


def test_the_graph_says_so(checkpoint: Path) -> None:
    text = ir_text(checkpoint, Options(bounds=BOUNDS, cache="q8"))
    assert "state @cache.0: q8[pages, 16, " in text and "param @lm_head.weight: bf16" in text


def test_what_is_refused(checkpoint: Path) -> None:
    with pytest.raises(DeepZigError) as caught:
        ir_text(checkpoint, Options(cache="q4"))
    assert str(caught.value) == "no cache is called 'q4'\n  at: --cache\n  fix: choose from f32, bf16, f16, q8"
