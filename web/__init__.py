"""The executor for artifacts without a virtual machine, in JavaScript: for node, and for pages."""

from pathlib import Path

SERVE = Path(__file__).parent / "src" / "serve.js"
"""The program for node that runs an artifact for another process."""

PAGE = SERVE.with_name("page.js")
"""The module of a page that does."""
