"""Mixture of experts: one router, one op for all experts."""

from __future__ import annotations

from itertools import product

from deepzig.ir import Builder, Graph, Match, Value, rewrite


def _fuse_router(graph: Graph, scoring: str, biased: bool, grouped: bool, normalized: bool, forced: bool) -> Graph:
    def build(b: Builder, m: Match) -> tuple[Value, ...] | None:
        if len(m["x"].shape) != 2 or not m["gate"].is_global:
            return None
        ids, weights = b.router(
            m["x"], m["gate"], m.get("bias"), m["ids"] if forced else None,
            scoring=scoring, top_k=m["ids"].shape[1], groups=m.get("groups", 1), keep=m.get("keep", 1),
            best=m.get("best", 1), norm_topk_prob=normalized, scaling=m["scaling"],
        )  # fmt: skip
        return (weights,) if forced else (ids, weights)

    scores = "biased" if biased else "scores"
    choice = [
        *(["%biased = bias_add(%scores, %bias)"] if biased else []),
        *([f"%masked = mask_groups(%{scores}) {{groups=?groups, keep=?keep, best=?best}}"] if grouped else []),
        f"%ids = topk(%{'masked' if grouped else scores})",
    ]
    lines = [
        "%logits = linear(%x, %gate)",
        f"%scores = {scoring}(%logits)",
        *([] if forced else choice),
        "%picked = gather(%scores, %ids)",
        *(["%normal = normalize(%picked)"] if normalized else []),
        f"%weights = scale(%{'normal' if normalized else 'picked'}) {{by=?scaling}}",
        "return %weights" if forced else "return %ids, %weights",
    ]
    return rewrite(graph, "\n".join(lines), build)


def fuse_router(graph: Graph) -> Graph:
    """gate, sigmoid or softmax, bias, group and expert choice, normalisation and scaling -> router."""
    yes_no = (True, False)
    for scoring, normalized in product(("sigmoid", "softmax"), yes_no):
        for biased, grouped in product(yes_no, yes_no):
            graph = _fuse_router(graph, scoring, biased, grouped, normalized, forced=False)
        graph = _fuse_router(graph, scoring, False, False, normalized, forced=True)
    return graph


def fuse_experts(graph: Graph) -> Graph:
    """The SwiGLU of each chosen expert and their weighted sum -> moe."""
    return rewrite(
        graph,
        """
        %slots = expand(%x) {axis=1}
        %g = expert_linear(%slots, %gate, %ids)
        %u = expert_linear(%slots, %up, %ids)
        %s = silu(%g)
        %a = mul(%s, %u)
        %d = expert_linear(%a, %down, %ids)
        %y = combine(%d, %weights)
        """,
        lambda b, m: b.moe(m["x"], m["ids"], m["weights"], m["gate"], m["up"], m["down"]),
    )


def fold_shared_experts(graph: Graph) -> Graph:
    """moe(x) + SwiGLU(x) -> moe in which the shared experts are the last of the stack and serve every row."""

    def build(b: Builder, m: Match) -> Value | None:
        _, width, hidden = m["gate"].shape
        shared, rest = divmod(m["shared_gate"].shape[0], width)
        if rest or any(m[f"shared_{n}"].type.dtype != m[n].type.dtype for n in ("gate", "up", "down")):
            return None
        stack = {name: b.reshape(m[f"shared_{name}"], shape=(shared, width, hidden)) for name in ("gate", "up")}
        by_column = b.reshape(m["shared_down"], shape=(hidden, shared, width))
        stack["down"] = b.transpose(by_column, axes=(1, 0, 2))
        y: Value = b.moe(
            m["x"], m["ids"], m["weights"],
            *(b.concat(m[name], stack[name], axis=0) for name in ("gate", "up", "down")), shared=shared,
        )  # fmt: skip
        return y

    return rewrite(
        graph,
        """
        %r = moe(%x, %ids, %weights, %gate, %up, %down, _) {shared=0}
        %g = linear(%x, %shared_gate)
        %s = silu(%g)
        %u = linear(%x, %shared_up)
        %a = mul(%s, %u)
        %d = linear(%a, %shared_down)
        %y = add(%r, %d)
        """,
        build,
    )


def fuse_residual_into_moe(graph: Graph) -> Graph:
    """residual + moe(x) -> moe that starts from the residual."""
    return rewrite(
        graph,
        """
        %m = moe(%x, %ids, %weights, %gate, %up, %down, _) {shared=?shared}
        %y = add(%residual, %m)
        """,
        lambda b, m: b.moe(
            *(m[k] for k in ("x", "ids", "weights", "gate", "up", "down", "residual")), shared=m["shared"]
        ),
    )
