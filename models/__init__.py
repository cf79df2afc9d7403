"""What DeepSeek-class models are: configs, definitions, checkpoints."""

from .config import ModelConfig
from .families import FAMILIES, UNSUPPORTED, read_config

__all__ = ["FAMILIES", "UNSUPPORTED", "ModelConfig", "read_config"]
