"""Linear layers and what stands right before and after them."""

from __future__ import annotations

from deepzig.ir import Builder, Graph, Match, Value, rewrite


def split_concat_linear(graph: Graph) -> Graph:
    """linear([a, b]) -> linear(a) + linear(b), each with its columns of the weight: nothing is put side by side."""

    def build(b: Builder, m: Match) -> Value | None:
        left, right, w = m["a"], m["b"], m["w"]
        if len(left.shape) != 2 or not w.is_global:
            return None
        cut = left.shape[1]
        y: Value = b.add(
            b.linear(left, b.slice(w, axis=1, begin=0, end=cut)),
            b.linear(right, b.slice(w, axis=1, begin=cut, end=w.shape[1])),
        )
        return y

    return rewrite(
        graph,
        """
        %c = concat(%a, %b) {axis=1}
        %y = linear(%c, %w)
        """,
        build,
    )


def fuse_swiglu(graph: Graph) -> Graph:
    """silu(x gate^T) * (x up^T) -> gated_proj."""

    def build(b: Builder, m: Match) -> Value | None:
        gate, up = m["gate"], m["up"]
        if gate.type != up.type or not gate.is_global or len(m["x"].shape) != 2:
            return None
        y: Value = b.gated_proj(m["x"], gate, up)
        return y

    return rewrite(
        graph,
        """
        %g = linear(%x, %gate)
        %s = silu(%g)
        %u = linear(%x, %up)
        %y = mul(%s, %u)
        """,
        build,
    )


def fuse_norm_into_linear(graph: Graph) -> Graph:
    """linear(rms_norm(x)) -> proj with the norm inside."""

    def build(b: Builder, m: Match) -> Value | None:
        if len(m["x"].shape) != 2:
            return None
        y: Value = b.proj(m["x"], m["w"], m["norm"], m["bias"], eps=m["eps"])
        return y

    return rewrite(
        graph,
        """
        %n = rms_norm(%x, %norm) {eps=?eps}
        %y = linear(%n, %w, %bias?)
        """,
        build,
    )


def fuse_norm_into_swiglu(graph: Graph) -> Graph:
    """gated_proj(rms_norm(x)) -> gated_proj with the norm inside."""
    return rewrite(
        graph,
        """
        %n = rms_norm(%x, %norm) {eps=?eps}
        %y = gated_proj(%n, %gate, %up, _)
        """,
        lambda b, m: b.gated_proj(m["x"], m["gate"], m["up"], m["norm"], eps=m["eps"]),
    )


def fuse_residual_into_linear(graph: Graph) -> Graph:
    """residual + linear(x) -> proj with the addition inside."""

    def build(b: Builder, m: Match) -> Value | None:
        if len(m["x"].shape) != 2:
            return None
        y: Value = b.proj(m["x"], m["w"], None, m["bias"], m["residual"])
        return y

    return rewrite(
        graph,
        """
        %p = linear(%x, %w, %bias?)
        %y = add(%residual, %p)
        """,
        build,
    )
