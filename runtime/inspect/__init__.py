"""`deepzig inspect`: what an artifact is, what it takes, and how fast it can be, without loading its code."""

from .facts import Facts, inspect_artifact

__all__ = ["Facts", "inspect_artifact"]
