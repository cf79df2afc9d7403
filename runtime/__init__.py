"""Load an artifact and run it: `deepzig.runtime.load(path).generate("...")`."""

from deepzig.artifacts.manifest import Manifest

from .model import Choice, Model, Piece, Result, load
from .sampling import SamplingOptions, TokenLogprob

__all__ = ["Choice", "Manifest", "Model", "Piece", "Result", "SamplingOptions", "TokenLogprob", "load"]
