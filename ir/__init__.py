"""The intermediate representation: records, ops declared once, text, verifier, rewriter and numpy interpreter."""

from . import fused, ops
from .builder import Builder, ModuleBuilder
from .interpret import interpret
from .op import OPS, Op
from .records import Attr, Dim, Graph, Module, Node, TensorType, Value
from .rewrite import Match, eliminate_dead, fuse_limit, rewrite
from .text import parse, show, show_graph
from .verify import same, verify, verify_graph

__all__ = [
    "OPS",
    "Attr",
    "Builder",
    "Dim",
    "Graph",
    "Match",
    "Module",
    "ModuleBuilder",
    "Node",
    "Op",
    "TensorType",
    "Value",
    "eliminate_dead",
    "fuse_limit",
    "fused",
    "interpret",
    "ops",
    "parse",
    "rewrite",
    "same",
    "show",
    "show_graph",
    "verify",
    "verify_graph",
]
