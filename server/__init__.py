"""An OpenAI-compatible server over a loaded model: `deepzig serve`."""

from .app import create_app
from .limits import Access

__all__ = ["Access", "create_app"]
