"""Many requests at once on one model: `Model.submit` asks, `Settings` says how the model is shared."""

from .engine import Engine
from .generation import Generation
from .settings import EngineBusyError, Settings, Stats

__all__ = ["Engine", "EngineBusyError", "Generation", "Settings", "Stats"]
