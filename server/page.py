"""The chat page at `/`: one file, which may load nothing and ask nobody but this server."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

PAGE = "page.html"


def routes() -> APIRouter:
    """The path."""
    router = APIRouter()
    text = resources.files("deepzig.server").joinpath(PAGE).read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": policy(text),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    @router.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        """A page to chat with the model; needs no key, but what it asks does."""
        return HTMLResponse(text, headers=headers)

    return router


def policy(page: str) -> str:
    """A content security policy (https://www.w3.org/TR/CSP3/) under which only the page's own code and style work.

    Args:
        page: HTML with inline `<script>` and `<style>`, whose hashes are what is allowed.
    """
    hashes = {
        tag: " ".join(f"'sha256-{_digest(found)}'" for found in re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL))
        for tag in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
