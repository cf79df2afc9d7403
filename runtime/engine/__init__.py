"""Many requests at once on one model: `Model.submit` asks, `Settings` says how the model is shared."""

from .engine import Engine, EngineBusyError, Settings, Stats
from .generation import Generation

__all__ = ["Engine", "EngineBusyError", "Generation", "Settings", "Stats"]
