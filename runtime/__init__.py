"""Load an artifact and run it: `deepzig.runtime.load(path).generate("...")`."""

from deepzig.artifacts.manifest import Manifest

from .chat import ChatResult, Message, ToolCall
from .engine import Engine, EngineBusyError, Generation, Settings
from .loading import load
from .model import Model
from .result import Choice, Piece, Result
from .sampling import SamplingOptions, TokenLogprob

__all__ = [
    "ChatResult", "Choice", "Engine", "EngineBusyError", "Generation", "Manifest", "Message", "Model", "Piece",
    "Result", "SamplingOptions", "Settings", "TokenLogprob", "ToolCall", "load",
]  # fmt: skip
