"""Many requests at once on one model: `Model.submit` asks, `Settings` says how the model is shared."""

from .engine import Admit, Engine
from .generation import Generation
from .settings import EngineBusyError, Settings, Stats

__all__ = ["Admit", "Engine", "EngineBusyError", "Generation", "Settings", "Stats"]
