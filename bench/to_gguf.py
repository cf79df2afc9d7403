"""A checkpoint as a GGUF file of the same weights, so that llama.cpp computes the same model.

    python bench/to_gguf.py CHECKPOINT OUT.gguf --type Q8_0

The names and keys are those that llama.cpp's src/models/deepseek2.cpp reads; its converter, conversion/deepseek.py
(class DeepseekV2Model), says what they mean. Matrices have the wanted type, vectors and the router are f32; blocks are
those of the package gguf, which rounds as llama-quantize does without an importance matrix. All matrices get one type,
while the latter makes the output head of a Q4_0 model Q6_K: llama.cpp has a little less to read here. The file has no
tokenizer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import gguf
import numpy as np
import numpy.typing as npt

from deepzig.errors import DeepZigError
from deepzig.models.checkpoint import Checkpoint
from deepzig.models.config import DENSE, ModelConfig
from deepzig.models.gguf_model import ARCHITECTURE, LAYER_NAMES, NAMES
from deepzig.models.source import open_source
from deepzig.models.tensors import tensors

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
Named = tuple[str, tuple[int, ...]]

KINDS = ("F32", "BF16", "F16", "Q8_0", "Q4_0")
"""Types of matrices, as llama.cpp calls them."""

BLOCK = 32
"""Elements of a block of a quantised row."""

GATES = {"softmax": gguf.ExpertGatingFuncType.SOFTMAX, "sigmoid": gguf.ExpertGatingFuncType.SIGMOID}

GGUF_NAMES = {ours: theirs for theirs, ours in {**NAMES, **LAYER_NAMES}.items()}
BIAS = ".mlp.gate.e_score_correction_bias"
KV_B = ".self_attn.kv_b_proj.weight"


def check(config: ModelConfig, where: str) -> None:
    """Refuse a model that llama.cpp would compute otherwise, or not load.

    Raises:
        DeepZigError: says why.
    """
    dense = config.mlp_layer_types.count(DENSE)
    lite = config.num_hidden_layers in (26, 27)
    faults = {
        "llama.cpp has no biases in this attention": config.attention_bias,
        "llama.cpp rotates neighbours, this model halves of a head": not config.rope_interleave,
        "llama.cpp wants dense layers before all mixtures of experts": DENSE in config.mlp_layer_types[dense:],
        "llama.cpp scores groups by their best two experts, this model does not": (
            config.n_group > 1 and config.group_best != 2
        ),
        "llama.cpp takes mscale and mscale_all_dim for equal": config.rope.mscale != config.rope.mscale_all_dim,
        "llama.cpp loads 26 or 27 layers without q_lora_rank, and no other number": (
            config.q_lora_rank is None and not lite
        ),
        "llama.cpp loads 26 or 27 layers only without q_lora_rank": config.q_lora_rank is not None and lite,
    }
    for fault in (name for name, present in faults.items() if present):
        raise DeepZigError(fault, where, "compare this model with another program")


def write(checkpoint: Path, out: Path, kind: str) -> None:
    """Write the file, one tensor in memory at a time.

    Args:
        checkpoint: a folder, or what else `open_source` takes.
        out: replaced when the new file is complete.
        kind: of KINDS.

    Raises:
        DeepZigError: llama.cpp has no such model, or the checkpoint is damaged.
    """
    source = open_source(checkpoint)
    config = source.config
    check(config, str(checkpoint))
    temporary = out.with_name(f"{out.name}.part")
    writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
    _add_keys(writer, config)
    stored = [stored_as for named in _main(config) for stored_as in _stored(named, config)]
    for name, shape in stored:
        used = _type(name, shape, kind)
        size = gguf.quants.quant_shape_to_byte_shape(shape, used)
        writer.add_tensor_info(name, size, np.dtype(np.uint8), int(np.prod(size)), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for named in _main(config):
        parts = _values(named, config, source.checkpoint)
        for (name, shape), values in zip(_stored(named, config), parts, strict=True):
            writer.write_tensor_data(_rounded(values, shape, _type(name, shape, kind)))
    writer.close()
    os.replace(temporary, out)


def _main(config: ModelConfig) -> list[Named]:
    """Names and shapes of the checkpoint's tensors, experts stacked, without multi-token prediction."""
    beyond = tuple(
        f"model.layers.{config.num_hidden_layers + depth}." for depth in range(config.num_nextn_predict_layers)
    )
    return [named for named in tensors(config) if not named[0].startswith(beyond or "\0")]


def _stored(named: Named, config: ModelConfig) -> list[Named]:
    """What a tensor is in the file: `kv_b_proj` two stacks of heads, the keys' transposed, all else one tensor."""
    name, shape = named
    parts = name.split(".")
    stem = ".".join(parts[3:-1]) if parts[1] == "layers" else ".".join(parts[:-1])
    block = f"blk.{parts[2]}." if parts[1] == "layers" else ""
    if name.endswith(BIAS):
        return [(f"{block}exp_probs_b.bias", shape)]
    if not name.endswith(KV_B):
        return [(f"{block}{GGUF_NAMES[stem]}.{parts[-1]}", shape)]
    heads, latent = config.num_attention_heads, config.kv_lora_rank
    return [
        (f"{block}attn_k_b.weight", (heads, latent, config.qk_nope_head_dim)),
        (f"{block}attn_v_b.weight", (heads, config.v_head_dim, latent)),
    ]


def _values(named: Named, config: ModelConfig, checkpoint: Checkpoint) -> Iterator[Iterator[F32]]:
    """The values of the tensors of `_stored`, each in pieces along its first dimension where it has three."""
    name, shape = named
    dtype = checkpoint.dtype(name)
    if not name.endswith(KV_B):
        pieces = checkpoint.pieces(name) if len(shape) == 3 else [checkpoint.read(name)]
        yield (_wide(piece, dtype) for piece in pieces)
        return
    by_head = _wide(checkpoint.read(name), dtype).reshape(config.num_attention_heads, -1, config.kv_lora_rank)
    yield (head[: config.qk_nope_head_dim].T for head in by_head)
    yield (head[config.qk_nope_head_dim :] for head in by_head)


def _wide(x: Array, dtype: str) -> F32:
    return (x.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else x.astype(np.float32)


def _type(name: str, shape: tuple[int, ...], kind: str) -> gguf.GGMLQuantizationType:
    """How a tensor is stored; rows that blocks do not divide stay floats."""
    types = gguf.GGMLQuantizationType
    if len(shape) == 1 or ".ffn_gate_inp." in name:
        return types.F32
    return types.BF16 if kind[0] == "Q" and shape[-1] % BLOCK else types[kind]


def _rounded(pieces: Iterator[F32], shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> Array:
    """Pieces of a tensor as the bytes of its type."""
    size = gguf.quants.quant_shape_to_byte_shape(shape, kind)
    whole = np.empty((shape[0] if len(shape) == 3 else 1, int(np.prod(size[-2:]))), np.uint8)
    for row, piece in zip(whole, pieces, strict=True):
        row[:] = gguf.quants.quantize(np.ascontiguousarray(piece), kind).view(np.uint8).reshape(-1)
    return whole.reshape(size)


def _add_keys(writer: gguf.GGUFWriter, c: ModelConfig) -> None:
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(c.vocab_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_leading_dense_block_count(c.mlp_layer_types.count(DENSE))
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    # attention on the cache as it lies: one key and value head, as wide as the latent; `mla` sizes are un-absorbed
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(1)
    writer.add_key_length(c.kv_lora_rank + c.qk_rope_head_dim)
    writer.add_value_length(c.kv_lora_rank)
    writer.add_key_length_mla(c.qk_head_dim)
    writer.add_value_length_mla(c.v_head_dim)
    writer.add_kv_lora_rank(c.kv_lora_rank)
    if c.q_lora_rank is not None:
        writer.add_q_lora_rank(c.q_lora_rank)
    writer.add_expert_count(c.n_routed_experts)
    writer.add_expert_used_count(c.num_experts_per_tok)
    writer.add_expert_shared_count(c.n_shared_experts)
    writer.add_expert_feed_forward_length(c.moe_intermediate_size)
    writer.add_expert_gating_func(GATES[c.scoring_func])
    writer.add_expert_weights_norm(c.norm_topk_prob)
    writer.add_expert_weights_scale(c.routed_scaling_factor)
    if c.n_group > 1:
        writer.add_expert_group_count(c.n_group)
        writer.add_expert_group_used_count(c.topk_group)
    writer.add_rope_dimension_count(c.qk_rope_head_dim)
    writer.add_rope_freq_base(c.rope.theta)
    if c.rope.kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(c.rope.factor)
        writer.add_rope_scaling_orig_ctx_len(c.rope.original_max_position_embeddings)
        writer.add_rope_scaling_yarn_beta_fast(c.rope.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(c.rope.beta_slow)
        writer.add_rope_scaling_yarn_log_mul(0.1 * c.rope.mscale_all_dim)  # by a tenth, as llama.cpp's converter


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--type", "kind", type=click.Choice(KINDS), default="BF16", show_default=True, help="Of the matrices.")
def main(checkpoint: Path, out: Path, kind: str) -> None:
    """Write CHECKPOINT to OUT as GGUF."""
    write(checkpoint, out, kind)
    click.echo(f"wrote {out}: {out.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
