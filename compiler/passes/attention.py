"""Multi-head latent attention: from the paper's naive form to few kernels."""

from __future__ import annotations

from deepzig.ir import Builder, Graph, Match, Value, rewrite

ABSORBED_ROWS = 64
"""Up to this many rows a sequence the absorbed form is cheaper.

Absorbed attention costs 2 * kv_lora + rope multiplications a row, head and position; the un-absorbed form only
nope + rope + v, but it expands keys and values anew, (nope + v) * kv_lora a head and position, for all rows together.
"""


def fuse_latent_write(graph: Graph) -> Graph:
    """rms_norm(kv[latent]), rope(kv[key]) and the write of both into the cache -> latent_write."""

    def build(b: Builder, m: Match) -> Value | None:
        if m["split"] != m["begin"] or m["start"] != 0:
            return None
        return b.latent_write(
            m["kv"], m["norm"], m["angles"], m["cache"], m["seq"], m["pos"], m["table"],
            begin=0, eps=m["eps"], interleaved=m["interleaved"],
        )  # fmt: skip

    return rewrite(
        graph,
        """
        %c = slice(%kv) {axis=1, begin=?start, end=?split}
        %n = rms_norm(%c, %norm) {eps=?eps}
        %k = slice(%kv) {axis=1, begin=?begin}
        %r = rope(%k, %angles) {interleaved=?interleaved}
        %row = concat(%n, %r) {axis=1}
        %y = cache_write(%cache, %row, %seq, %pos, %table)
        """,
        build,
    )


def fuse_mla(graph: Graph) -> Graph:
    """Naive attention over the expanded cache -> mla_decode (absorbed) or mla_prefill (not), by rows a sequence."""
    absorbed = int(str(graph.attrs.get("rows_per_seq", 1))) <= ABSORBED_ROWS

    def build(b: Builder, m: Match) -> Value | None:
        heads, _ = m["heads_shape"][1:]
        latent, width = m["w"].shape[1], m["v_end"]
        if (m["latent_end"], m["nope"], m["v_begin"]) != (latent, m["q_split"], m["nope"]) or m["w"].shape[
            0
        ] != heads * width:
            return None
        per_head = b.reshape(m["w"], shape=(heads, width, latent))
        # as matrices of products lie, the inner dimension last: those of integers are cut into groups along it
        w_uk = b.transpose(b.slice(per_head, axis=1, begin=0, end=m["nope"]), axes=(0, 2, 1))
        w_uv = b.slice(per_head, axis=1, begin=m["nope"], end=width)
        form = b.mla_decode if absorbed else b.mla_prefill
        y: Value = form(
            m["q"], m["angles"], m["cache"], w_uk, w_uv, m["seq"], m["pos"], m["table"],
            scale=m["scale"], interleaved=m["interleaved"],
        )  # fmt: skip
        return y

    return rewrite(
        graph,
        """
        %q3 = reshape(%q) {shape=?heads_shape}
        %q_nope = slice(%q3) {axis=2, begin=0, end=?q_split}
        %q_part = slice(%q3) {axis=2, begin=?q_split}
        %q_rope = rope(%q_part, %angles) {interleaved=?interleaved}
        %query = concat(%q_nope, %q_rope) {axis=2}
        %past = cache_read(%cache, %table)
        %c = slice(%past) {axis=2, begin=0, end=?latent_end}
        %kv = linear(%c, %w)
        %kv4 = reshape(%kv) {shape=?kv_shape}
        %k_nope = slice(%kv4) {axis=3, begin=0, end=?nope}
        %k_part = slice(%past) {axis=2, begin=?latent_end}
        %k_rope = expand(%k_part) {axis=2, size=?heads}
        %k = concat(%k_nope, %k_rope) {axis=3}
        %v = slice(%kv4) {axis=3, begin=?v_begin, end=?v_end}
        %o = attend(%query, %k, %v, %seq, %pos) {scale=?scale}
        %y = reshape(%o) {shape=?out_shape}
        """,
        build,
    )


def merge_latent_projections(graph: Graph) -> Graph:
    """q_a_proj and kv_a_proj_with_mqa of the same rows -> one product with [q_a; kv_a], read by columns."""

    def build(b: Builder, m: Match) -> tuple[Value, Value] | None:
        q_a, kv_a = m["q_a"], m["kv_a"]
        if (m["q_bias"] is None) != (m["kv_bias"] is None) or q_a.type.dtype != kv_a.type.dtype:
            return None
        bias = None if m["q_bias"] is None else b.concat(m["q_bias"], m["kv_bias"], axis=0)
        both = b.linear(m["x"], b.concat(q_a, kv_a, axis=0), bias)
        q = b.proj(both, m["q_b"], m["q_norm"], begin=0, eps=m["q_eps"])
        cache = b.latent_write(
            both, m["norm"], m["angles"], m["cache"], m["seq"], m["pos"], m["table"],
            begin=q_a.shape[0], eps=m["eps"], interleaved=m["interleaved"],
        )  # fmt: skip
        return q, cache

    return rewrite(
        graph,
        """
        %a = linear(%x, %q_a, %q_bias?)
        %kv = linear(%x, %kv_a, %kv_bias?)
        %c = latent_write(%kv, %norm, %angles, %cache, %seq, %pos, %table) {begin=0, eps=?eps, interleaved=?interleaved}
        %q = proj(%a, %q_b, %q_norm, _, _) {begin=0, eps=?q_eps}
        return %q, %c
        """,
        build,
    )
