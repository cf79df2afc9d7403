"""An OpenAI-compatible server over loaded models: `deepzig serve`."""

from .access import Access
from .app import create_app
from .served import Catalogue

__all__ = ["Access", "Catalogue", "create_app"]
