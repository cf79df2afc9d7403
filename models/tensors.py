"""Names and shapes of a model's tensors, as DeepSeek's checkpoints have them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .config import DeepseekV3Config

Named = tuple[str, tuple[int, ...]]


def tensors(c: DeepseekV3Config) -> Iterator[Named]:
    """Every tensor of the model and of its multi-token prediction, the experts of a layer stacked."""
    yield "model.embed_tokens.weight", (c.vocab_size, c.hidden_size)
    for layer in range(c.num_hidden_layers):
        yield from layer_tensors(c, layer)
    yield "model.norm.weight", (c.hidden_size,)
    if not c.tie_word_embeddings:
        yield "lm_head.weight", (c.vocab_size, c.hidden_size)
    yield from mtp_tensors(c)


def mtp_tensors(c: DeepseekV3Config) -> Iterator[Named]:
    """The tensors of multi-token prediction: modules that stand behind the last layer (arXiv:2412.19437, section 2.2).

    `eh_proj` takes [norm of the next token's embedding | norm of the hidden state]. Embedding and output head are the
    main model's; the checkpoint holds copies of both.
    """
    hidden, head = (c.hidden_size,), (c.vocab_size, c.hidden_size)
    for layer in range(c.num_hidden_layers, c.num_hidden_layers + c.num_nextn_predict_layers):
        p = f"model.layers.{layer}."
        yield p + "embed_tokens.weight", head
        yield p + "enorm.weight", hidden
        yield p + "hnorm.weight", hidden
        yield p + "eh_proj.weight", (c.hidden_size, 2 * c.hidden_size)
        yield from layer_tensors(c, layer)
        yield p + "shared_head.norm.weight", hidden
        yield p + "shared_head.head.weight", head


def layer_tensors(c: DeepseekV3Config, layer: int) -> Iterator[Named]:
    """The tensors of one layer, its experts stacked."""
    hidden, heads, experts = c.hidden_size, c.num_attention_heads, c.n_routed_experts
    queries = heads * c.qk_head_dim
    p = f"model.layers.{layer}."
    yield p + "input_layernorm.weight", (hidden,)
    linears: dict[str, tuple[int, ...]] = {
        "kv_a_proj_with_mqa": (c.kv_lora_rank + c.qk_rope_head_dim, hidden),
        "o_proj": (hidden, heads * c.v_head_dim),
    }
    if c.q_lora_rank is None:
        linears["q_proj"] = (queries, hidden)
    else:
        linears["q_a_proj"] = (c.q_lora_rank, hidden)
        yield p + "self_attn.q_a_layernorm.weight", (c.q_lora_rank,)
        yield p + "self_attn.q_b_proj.weight", (queries, c.q_lora_rank)
    for name, shape in linears.items():
        yield f"{p}self_attn.{name}.weight", shape
        if c.attention_bias and name != "q_proj":
            yield f"{p}self_attn.{name}.bias", shape[:1]
    yield p + "self_attn.kv_a_layernorm.weight", (c.kv_lora_rank,)
    yield p + "self_attn.kv_b_proj.weight", (heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank)
    yield p + "post_attention_layernorm.weight", (hidden,)
    if not c.is_moe(layer):
        yield from _swiglu(p + "mlp.", hidden, c.intermediate_size)
        return
    yield p + "mlp.gate.weight", (experts, hidden)
    yield p + "mlp.gate.e_score_correction_bias", (experts,)
    for name, shape in _swiglu(p + "mlp.experts.", hidden, c.moe_intermediate_size):
        yield name, (experts, *shape)
    if c.n_shared_experts:
        yield from _swiglu(p + "mlp.shared_experts.", hidden, c.n_shared_experts * c.moe_intermediate_size)


def _swiglu(prefix: str, hidden: int, width: int) -> Iterator[Named]:
    yield prefix + "gate_proj.weight", (width, hidden)
    yield prefix + "up_proj.weight", (width, hidden)
    yield prefix + "down_proj.weight", (hidden, width)


def one_by_one(named: Iterable[Named]) -> Iterator[Named]:
    """The same with each expert by itself, as DeepSeek stores them; the tensors of an expert are neighbours."""
    stacks: dict[str, list[Named]] = {}
    for name, shape in named:
        prefix, _, kind = name.rpartition(".experts.")
        if not prefix:
            yield name, shape
            continue
        stack = stacks.setdefault(prefix, [])
        stack.append((kind, shape))
        if len(stack) == 3:
            for expert in range(shape[0]):
                yield from ((f"{prefix}.experts.{expert}.{kind}", part[1:]) for kind, part in stack)
