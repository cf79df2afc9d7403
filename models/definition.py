"""The model, written as the papers write it: naive attention, one formula per expert.

DeepSeek-V2 (arXiv:2405.04434) and V3 (arXiv:2412.19437); the families differ in their configs only.

Shapes in comments: n rows, b sequences, t positions of a sequence, H heads, E experts. Nothing here is fused or
absorbed; that is the compiler's work. The traps (which epsilon, which scale, which bias) follow
transformers/models/deepseek_v3/modeling_deepseek_v3.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepzig.ir import Builder, ModuleBuilder, Value

from .config import ModelConfig

LATENT_NORM_EPS = 1e-6
"""q_a_layernorm and kv_a_layernorm ignore the config's rms_norm_eps."""


@dataclass(frozen=True)
class Rows:
    """The inputs of a graph: flat ragged rows."""

    tokens: Value  # [n]
    seq: Value  # [n], row of `table`
    pos: Value  # [n], absolute position
    table: Value  # [b, p], page ids
    out_rows: Value  # [r], rows whose logits are wanted
    route: Value | None = None  # [n, MoE layers, k], forced expert choice

    @classmethod
    def inputs(cls, b: Builder, config: ModelConfig, route: bool = False) -> Rows:
        """New inputs of a graph; with `route`, the one that forces the expert choice too, if there is any."""
        moe_layers = sum(map(config.is_moe, range(config.num_hidden_layers)))
        forced = route and moe_layers > 0
        return cls(
            tokens=b.input("tokens", "i32", ("n",)),
            seq=b.input("seq", "i32", ("n",)),
            pos=b.input("pos", "i32", ("n",)),
            table=b.input("block_table", "i32", ("b", "p")),
            out_rows=b.input("out_rows", "i32", ("r",)),
            route=b.input("route", "i32", ("n", moe_layers, config.num_experts_per_tok)) if forced else None,
        )


@dataclass(frozen=True)
class Scope:
    """Parameters under a dotted prefix of the checkpoint."""

    module: ModuleBuilder
    prefix: str

    def __truediv__(self, name: str) -> Scope:
        return Scope(self.module, f"{self.prefix}{name}.")

    def matrix(self, name: str, *shape: int) -> Value:
        """A weight matrix, [out, in]."""
        return self.module.matrix(f"{self.prefix}{name}.weight", *shape)

    def norm(self, name: str, size: int) -> Value:
        """A norm's weight."""
        return self.module.vector(f"{self.prefix}{name}.weight", size)

    def bias(self, name: str, size: int, present: bool = True) -> Value | None:
        """A bias, if the config has it."""
        return self.module.vector(f"{self.prefix}{name}.bias", size) if present else None


def define(
    b: Builder, m: ModuleBuilder, config: ModelConfig, rows: Rows, page_size: int, hidden_too: bool = False
) -> tuple[Value, ...]:
    """The whole model.

    Returns:
        logits [r, vocab_size]; with `hidden_too`, what the output head reads of every row, [n, hidden]; then the new
        cache of each layer.
    """
    model = Scope(m, "model.")
    embeddings = model.matrix("embed_tokens", config.vocab_size, config.hidden_size)
    h = b.embed(rows.tokens, embeddings)  # [n, hidden]
    angles = rotations(b, m, config, rows)
    caches = []
    for i in range(config.num_hidden_layers):
        moe = sum(map(config.is_moe, range(i)))
        with b.in_layer(i):
            forced = b.forced_route(rows.route, layer=moe) if rows.route and config.is_moe(i) else None
            h, cache = layer(b, model / f"layers.{i}", config, i, h, angles, rows, page_size, forced)
        caches.append(cache)
    if not hidden_too:
        h = b.take_rows(h, rows.out_rows)  # [r, hidden]
    h = b.rms_norm(h, model.norm("norm", config.hidden_size), eps=config.rms_norm_eps)
    x = b.take_rows(h, rows.out_rows) if hidden_too else h
    if not config.tie_word_embeddings:
        embeddings = Scope(m, "").matrix("lm_head", config.vocab_size, config.hidden_size)
    return b.linear(x, embeddings), *([h] if hidden_too else []), *caches


def define_draft(
    b: Builder, m: ModuleBuilder, config: ModelConfig, rows: Rows, hidden: Value, page_size: int, depth: int = 0
) -> tuple[Value, ...]:
    """A layer for multi-token prediction (V3 report, section 2.2): a guess at the token after the next.

    Row i brings the token at position pos[i] + 1, and of the row at pos[i] what the output head reads, in `hidden`
    [n, hidden]: that of the model, or that of this layer, for guesses further ahead.

    Returns:
        logits [r, vocab_size] of position pos + 2, what the output head reads [r, hidden], the new cache of the layer.
    """
    size, eps, number = config.hidden_size, config.rms_norm_eps, config.num_hidden_layers + depth
    p = Scope(m, f"model.layers.{number}.")
    token = b.embed(rows.tokens, p.matrix("embed_tokens", config.vocab_size, size))
    token = b.rms_norm(token, p.norm("enorm", size), eps=eps)  # [n, hidden]
    state = b.rms_norm(hidden, p.norm("hnorm", size), eps=eps)  # [n, hidden]
    h = b.linear(b.concat(token, state, axis=1), p.matrix("eh_proj", size, 2 * size))
    angles = rotations(b, m, config, rows)
    with b.in_layer(number):
        h, cache = layer(b, p, config, number, h, angles, rows, page_size)
    x = b.rms_norm(b.take_rows(h, rows.out_rows), p.norm("shared_head.norm", size), eps=eps)
    return b.linear(x, p.matrix("shared_head.head", config.vocab_size, size)), x, cache


def rotations(b: Builder, m: ModuleBuilder, config: ModelConfig, rows: Rows) -> Value:
    """cos and sin of every row: [n, rope]."""
    inv_freq = m.constant("rope.inv_freq", config.rope.inv_freq(config.qk_rope_head_dim))
    return b.rope_angles(rows.pos, inv_freq, scale=config.rope.cos_sin_scale)


def layer(
    b: Builder, p: Scope, config: ModelConfig, number: int, h: Value, angles: Value, rows: Rows, page_size: int,
    forced: Value | None = None,
) -> tuple[Value, Value]:  # fmt: skip
    """Attention, then a feed-forward network, each around a residual: h [n, hidden] -> [n, hidden], cache."""
    size = config.hidden_size
    cache = p.module.state(f"cache.{number}", "pages", page_size, config.kv_lora_rank + config.qk_rope_head_dim)
    x = b.rms_norm(h, p.norm("input_layernorm", size), eps=config.rms_norm_eps)
    y, cache = attention(b, p / "self_attn", config, x, angles, cache, rows)
    h = b.add(h, y)
    x = b.rms_norm(h, p.norm("post_attention_layernorm", size), eps=config.rms_norm_eps)
    if config.is_moe(number):
        return b.add(h, mixture(b, p / "mlp", config, x, forced)), cache
    return b.add(h, swiglu(b, p / "mlp", x, size, config.intermediate_size)), cache


def attention(
    b: Builder, p: Scope, config: ModelConfig, x: Value, angles: Value, cache: Value, rows: Rows
) -> tuple[Value, Value]:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): x [n, hidden] -> [n, hidden], cache."""
    hidden, heads, latent = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    nope, rope, v_dim = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    biased = config.attention_bias

    if config.q_lora_rank is None:
        q = b.linear(x, p.matrix("q_proj", heads * (nope + rope), hidden))
    else:
        q = b.linear(
            x, p.matrix("q_a_proj", config.q_lora_rank, hidden), p.bias("q_a_proj", config.q_lora_rank, biased)
        )
        q = b.rms_norm(q, p.norm("q_a_layernorm", config.q_lora_rank), eps=LATENT_NORM_EPS)
        q = b.linear(q, p.matrix("q_b_proj", heads * (nope + rope), config.q_lora_rank))
    q = b.reshape(q, shape=("n", heads, nope + rope))  # each head: [nope | rope]
    q_nope = b.slice(q, axis=2, begin=0, end=nope)
    q_rope = b.slice(q, axis=2, begin=nope, end=nope + rope)
    q_rope = b.rope(q_rope, angles, interleaved=config.rope_interleave)
    q = b.concat(q_nope, q_rope, axis=2)  # [n, H, nope + rope]

    kv = b.linear(
        x,
        p.matrix("kv_a_proj_with_mqa", latent + rope, hidden),
        p.bias("kv_a_proj_with_mqa", latent + rope, biased),
    )
    c = b.slice(kv, axis=1, begin=0, end=latent)
    c = b.rms_norm(c, p.norm("kv_a_layernorm", latent), eps=LATENT_NORM_EPS)  # [n, latent]
    k_rope = b.slice(kv, axis=1, begin=latent, end=latent + rope)
    k_rope = b.rope(k_rope, angles, interleaved=config.rope_interleave)  # one for all heads
    cache = b.cache_write(cache, b.concat(c, k_rope, axis=1), rows.seq, rows.pos, rows.table)

    past = b.cache_read(cache, rows.table)  # [b, t, latent + rope]
    c = b.slice(past, axis=2, begin=0, end=latent)
    k_rope = b.slice(past, axis=2, begin=latent, end=latent + rope)
    kv = b.linear(c, p.matrix("kv_b_proj", heads * (nope + v_dim), latent))
    kv = b.reshape(kv, shape=(*kv.shape[:2], heads, nope + v_dim))  # each head: [k_nope | v]
    k_nope = b.slice(kv, axis=3, begin=0, end=nope)
    v = b.slice(kv, axis=3, begin=nope, end=nope + v_dim)  # [b, t, H, v]
    k = b.concat(k_nope, b.expand(k_rope, axis=2, size=heads), axis=3)  # [b, t, H, nope + rope]

    o = b.attend(q, k, v, rows.seq, rows.pos, scale=config.rope.softmax_scale(config.qk_head_dim))  # [n, H, v]
    o = b.reshape(o, shape=("n", heads * v_dim))
    return b.linear(o, p.matrix("o_proj", hidden, heads * v_dim), p.bias("o_proj", hidden, biased)), cache


def swiglu(b: Builder, p: Scope, x: Value, hidden: int, width: int) -> Value:
    """A dense feed-forward network: x [n, hidden] -> [n, hidden]."""
    gate = b.linear(x, p.matrix("gate_proj", width, hidden))
    up = b.linear(x, p.matrix("up_proj", width, hidden))
    return b.linear(b.mul(b.silu(gate), up), p.matrix("down_proj", hidden, width))


def mixture(b: Builder, p: Scope, config: ModelConfig, x: Value, forced: Value | None) -> Value:
    """Mixture of experts (V3 report, section 2.1.2; V2 paper, section 2.2): x [n, hidden] -> [n, hidden]."""
    hidden, experts, width = config.hidden_size, config.n_routed_experts, config.moe_intermediate_size
    k = config.num_experts_per_tok
    logits = b.linear(x, p.module.vector(f"{p.prefix}gate.weight", experts, hidden))  # [n, E]
    choice = scores = b.softmax(logits) if config.scoring_func == "softmax" else b.sigmoid(logits)
    if config.router_bias:
        choice = b.bias_add(scores, p.module.vector(f"{p.prefix}gate.e_score_correction_bias", experts))
    if config.n_group > 1:
        choice = b.mask_groups(choice, groups=config.n_group, keep=config.topk_group, best=config.group_best)
    ids = b.topk(choice, k=k) if forced is None else forced  # [n, k]
    weights = b.gather(scores, ids)  # the bias chooses, it does not weigh
    if config.norm_topk_prob:
        weights = b.normalize(weights)
    weights = b.scale(weights, by=config.routed_scaling_factor)

    slots = b.expand(x, axis=1, size=k)  # [n, k, hidden]
    gate = b.expert_linear(slots, p.matrix("experts.gate_proj", experts, width, hidden), ids)
    up = b.expert_linear(slots, p.matrix("experts.up_proj", experts, width, hidden), ids)
    down = b.expert_linear(b.mul(b.silu(gate), up), p.matrix("experts.down_proj", experts, hidden, width), ids)
    y = b.combine(down, weights)
    if config.n_shared_experts:
        y = b.add(y, swiglu(b, p / "shared_experts", x, hidden, config.n_shared_experts * width))
    return y
