"""The facts as one HTML page that needs nothing else: no network, no other file.

All data go in as one JSON text, which the page's script reads; it builds elements and texts, never markup.
"""

from __future__ import annotations

import html
import json
import re
from dataclasses import asdict
from importlib.resources import files

from .facts import Drawing, Facts

TEMPLATE = "page.html"


def page(facts: Facts, drawing: Drawing | None) -> str:
    """The page of an artifact."""
    data = {"facts": facts.to_json(), "drawing": None if drawing is None else asdict(drawing)}
    title = html.escape(str(facts.model.get("name", "")).encode("ascii", "xmlcharrefreplace").decode())
    template = files("deepzig.runtime.inspect").joinpath(TEMPLATE).read_text(encoding="utf-8")
    places = {"title": title, "data": script_json(data)}
    return re.sub(r"\{\{(\w+)\}\}", lambda place: places[place[1]], template)


def script_json(data: object) -> str:
    """JSON that may stand in a script element, whatever texts it has: pure ASCII, without `<`, `>` and `&`."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&"})
