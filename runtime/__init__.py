"""Load an artifact and run it: `deepzig.runtime.load(path).generate("...")`."""

from deepzig.artifacts.manifest import Manifest

from .model import Model, load
from .result import Choice, Piece, Result
from .sampling import SamplingOptions, TokenLogprob

__all__ = ["Choice", "Manifest", "Model", "Piece", "Result", "SamplingOptions", "TokenLogprob", "load"]
