"""The reference model's network for training: DeepSeek-V3 in its naive form, with few tensor operations.

The meaning is transformers' `models/deepseek_v3/modeling_deepseek_v3.py`; the MTP layer follows section 2.2 of the
DeepSeek-V3 report (https://arxiv.org/abs/2412.19437).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Config:
    """Sizes, named as in a checkpoint's config.json."""

    vocab_size: int = 512
    hidden_size: int = 128
    num_hidden_layers: int = 4
    first_k_dense_replace: int = 1
    intermediate_size: int = 384
    num_attention_heads: int = 6
    q_lora_rank: int = 96
    kv_lora_rank: int = 64
    qk_nope_head_dim: int = 16
    qk_rope_head_dim: int = 16
    v_head_dim: int = 32
    n_routed_experts: int = 48
    n_shared_experts: int = 1
    moe_intermediate_size: int = 64
    num_experts_per_tok: int = 4
    n_group: int = 4
    topk_group: int = 2
    routed_scaling_factor: float = 2.0
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    num_nextn_predict_layers: int = 1


class RMSNorm(nn.Module):
    """x / rms(x) * weight."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size]."""
        return functional.rms_norm(x, self.weight.shape, self.weight, 1e-6)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A projection without bias, N(0, 1/inputs)."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    return layer


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """RoPE on interleaved pairs: x [B, T, heads, rope], turn [T, rope/2, 2] (cosine, sine)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cosine, sine = turn[:, None, :, 0], turn[:, None, :, 1]
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1).flatten(-2)


class Attention(nn.Module):
    """Multi-head latent attention, keys and values expanded."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        heads = c.num_attention_heads
        self.q_a_proj = linear(c.hidden_size, c.q_lora_rank)
        self.q_a_layernorm = RMSNorm(c.q_lora_rank)
        self.q_b_proj = linear(c.q_lora_rank, heads * (c.qk_nope_head_dim + c.qk_rope_head_dim))
        self.kv_a_proj_with_mqa = linear(c.hidden_size, c.kv_lora_rank + c.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank)
        self.kv_b_proj = linear(c.kv_lora_rank, heads * (c.qk_nope_head_dim + c.v_head_dim))
        self.o_proj = linear(heads * c.v_head_dim, c.hidden_size)

    def forward(self, x: Tensor, mask: Tensor, turn: Tensor) -> Tensor:
        """x [B, T, H], mask [B, 1, T, T] (True: may look)."""
        c, (batch, length, _) = self.c, x.shape
        split = (batch, length, c.num_attention_heads, -1)
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(split)
        q_nope, q_rope = q.split((c.qk_nope_head_dim, c.qk_rope_head_dim), -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((c.kv_lora_rank, c.qk_rope_head_dim), -1)
        expanded = self.kv_b_proj(self.kv_a_layernorm(latent)).view(split)
        k_nope, v = expanded.split((c.qk_nope_head_dim, c.v_head_dim), -1)
        k_rope = rotate(k_rope.unsqueeze(2), turn).expand(-1, -1, c.num_attention_heads, -1)
        q = torch.cat((q_nope, rotate(q_rope, turn)), -1).transpose(1, 2)
        k = torch.cat((k_nope, k_rope), -1).transpose(1, 2)
        out = functional.scaled_dot_product_attention(q, k, v.transpose(1, 2), attn_mask=mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = linear(size, inner), linear(size, inner)
        self.down_proj = linear(inner, size)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size]."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(torch.autograd.Function):
    """All routed experts over rows sorted by expert: one product a weight and expert, no padding, no dropped token.

    Written out by hand because autograd over 48 slices costs more than the products.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor) -> Tensor:
        """x [N, H], gate_up [E, 2, I, H], down [E, H, I], ids [N, k] -> [N, k, H], unweighted."""
        order = ids.flatten().argsort()
        ends = torch.bincount(ids.flatten(), minlength=len(down)).cumsum(0).tolist()
        rows = x[order // ids.shape[1]]
        inner = down.shape[2]
        hidden = rows.new_empty(len(rows), 2 * inner)
        for e, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            torch.mm(rows[start:end], gate_up[e].view(2 * inner, -1).t(), out=hidden[start:end])
        active = functional.silu(hidden[:, :inner]) * hidden[:, inner:]
        out = torch.empty_like(rows)
        for e, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            torch.mm(active[start:end], down[e].t(), out=out[start:end])
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        ctx.ends = ends
        ctx.save_for_backward(rows, hidden, active, gate_up, down, order, back)
        return out[back].view(*ids.shape, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """The gradients of rows and weights."""
        rows, hidden, active, gate_up, down, order, back = ctx.saved_tensors
        n, k, size = grads[0].shape
        g_out = grads[0].reshape(n * k, size)[order]
        g_down, g_gate_up = torch.zeros_like(down), torch.zeros_like(gate_up)
        inner = down.shape[2]
        g_active, g_hidden, g_rows = torch.empty_like(active), torch.empty_like(hidden), torch.empty_like(rows)
        spans = list(enumerate(zip([0, *ctx.ends], ctx.ends, strict=False)))
        for e, (start, end) in spans:
            torch.mm(g_out[start:end], down[e], out=g_active[start:end])
            torch.mm(g_out[start:end].t(), active[start:end], out=g_down[e])
        gate, up = hidden[:, :inner], hidden[:, inner:]
        g_hidden[:, inner:] = g_active * functional.silu(gate)
        g_hidden[:, :inner] = torch.ops.aten.silu_backward(g_active * up, gate)
        for e, (start, end) in spans:
            torch.mm(g_hidden[start:end], gate_up[e].view(2 * inner, -1), out=g_rows[start:end])
            torch.mm(g_hidden[start:end].t(), rows[start:end], out=g_gate_up[e].view(2 * inner, -1))
        return g_rows[back].view(n, k, size).sum(1), g_gate_up, g_down, None


class MoE(nn.Module):
    """Sigmoid `noaux_tc` routing in groups, routed experts and one shared one.

    `load` counts how often each expert was chosen, over the tokens of the next calls that `counted` marks (all when
    None): padding says nothing about balance.
    """

    load: Tensor
    e_score_correction_bias: Tensor
    counted: Tensor | None = None

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        experts, inner, size = c.n_routed_experts, c.moe_intermediate_size, c.hidden_size
        self.gate = linear(size, experts)
        self.register_buffer("e_score_correction_bias", torch.zeros(experts))
        self.register_buffer("load", torch.zeros(experts), persistent=False)
        self.gate_up = nn.Parameter(torch.randn(experts, 2, inner, size) * size**-0.5)
        self.down = nn.Parameter(torch.randn(experts, size, inner) * inner**-0.5)
        self.shared_experts = MLP(size, inner * c.n_shared_experts)

    def choose(self, scores: Tensor) -> Tensor:
        """scores [N, E] -> ids [N, k]: biased scores, the best groups by the sum of their two best."""
        c = self.c
        biased = (scores + self.e_score_correction_bias).view(len(scores), c.n_group, -1)
        groups = biased.topk(2, -1).values.sum(-1).topk(c.topk_group, -1).indices
        kept = torch.zeros(len(scores), c.n_group, dtype=torch.bool).scatter_(1, groups, True)
        return biased.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(1).topk(c.num_experts_per_tok, -1).indices

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, H]."""
        flat = x.reshape(-1, x.shape[-1])
        scores = self.gate(flat).sigmoid()
        with torch.no_grad():
            ids = self.choose(scores)
            real = ids if self.counted is None else ids[self.counted.flatten()]
            self.load += torch.bincount(real.flatten(), minlength=len(self.load))
        weights = scores.gather(1, ids)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * self.c.routed_scaling_factor
        routed: Tensor = Experts.apply(flat, self.gate_up, self.down, ids)  # type: ignore[no-untyped-call]
        routed = torch.bmm(weights.unsqueeze(1), routed).squeeze(1)
        return (routed + self.shared_experts(flat)).view_as(x)


class Layer(nn.Module):
    """Attention and a dense or expert MLP, each normed before and added after."""

    def __init__(self, c: Config, dense: bool) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size)
        self.mlp = MLP(c.hidden_size, c.intermediate_size) if dense else MoE(c)

    def forward(self, x: Tensor, mask: Tensor, turn: Tensor) -> Tensor:
        """As `Attention.forward`."""
        x = x + self.self_attn(self.input_layernorm(x), mask, turn)
        return x + self.mlp(self.post_attention_layernorm(x))


class SharedHead(nn.Module):
    """The MTP layer's own norm and output head."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.norm, self.head = RMSNorm(c.hidden_size), linear(c.hidden_size, c.vocab_size)


class MTP(Layer):
    """The layer that predicts the token after the next: a full MoE layer over [next token | hidden state]."""

    def __init__(self, c: Config) -> None:
        super().__init__(c, dense=False)
        self.enorm, self.hnorm = RMSNorm(c.hidden_size), RMSNorm(c.hidden_size)
        self.eh_proj = linear(2 * c.hidden_size, c.hidden_size)
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.shared_head = SharedHead(c)

    def predict(self, hidden: Tensor, following: Tensor, mask: Tensor, turn: Tensor) -> Tensor:
        """What the MTP layer's head reads to say token i + 2, [B, T, H].

        Args:
            hidden: [B, T, H], the model's, after its final norm (as vLLM and SGLang feed it).
            following: [B, T], the tokens at i + 1.
            mask: [B, 1, T, T], as the model's.
            turn: [T, rope / 2, 2], as the model's.
        """
        pair = torch.cat((self.enorm(self.embed_tokens(following)), self.hnorm(hidden)), -1)
        return self.shared_head.norm(self(self.eh_proj(pair), mask, turn))


class Model(nn.Module):
    """DeepSeek-V3 with one MTP layer."""

    turn: Tensor

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c, i < c.first_k_dense_replace) for i in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size)
        self.lm_head = linear(c.hidden_size, c.vocab_size)
        self.mtp = MTP(c)
        nn.init.zeros_(self.lm_head.weight)
        nn.init.zeros_(self.mtp.shared_head.head.weight)
        half = torch.arange(0, c.qk_rope_head_dim, 2).double() / c.qk_rope_head_dim
        angle = torch.arange(1024).double()[:, None] / c.rope_theta**half
        self.register_buffer("turn", torch.stack((angle.cos(), angle.sin()), -1).float(), persistent=False)
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "mlp.down")):  # the residual stream starts quiet
                nn.init.normal_(weight, std=0.2 * weight.shape[-1] ** -0.5)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens [B, T] -> hidden states after the final norm [B, T, H]."""
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, mask, self.turn[: tokens.shape[1]])
        out: Tensor = self.norm(x)
        return out

    def count(self, real: Tensor, drafted: Tensor) -> None:
        """Tell the routers which tokens [B, T] count, and which of those that the MTP layer will see."""
        for moe in self.moes():
            moe.counted = real
        self.moes()[-1].counted = drafted

    def moes(self) -> list[MoE]:
        """All expert layers, the MTP layer's last."""
        return [layer.mlp for layer in (*self.layers, self.mtp) if isinstance(layer.mlp, MoE)]
