"""What a model's tokens say beside text: reasoning, and calls of tools."""

from .formats import FORMATS, Format
from .parser import CallDelta, Delta, Parser, parser_for
from .tool_choice import tool_guide

__all__ = ["FORMATS", "CallDelta", "Delta", "Format", "Parser", "parser_for", "tool_guide"]
