"""Log lines, as text or as JSON: of messages, and one for each request. Prompts and answers are not in them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from deepzig.log import VARIABLE, Stderr

from .access import Access
from .exchange import Exchange

log = logging.getLogger(__name__)

PLAIN, JSON = "plain", "json"
FIELDS = "fields"
"""The attribute of a record with what else there is to tell."""


class Lines(logging.Formatter):
    """A record as one line; in JSON with the traceback of an exception, else with lines behind it."""

    def __init__(self, style: str) -> None:
        super().__init__("%(levelname)-7s %(message)s")
        self._json = style == JSON

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields: dict[str, Any] = getattr(record, FIELDS, {})
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        if not self._json:
            told = [super().format(record), *(f"{name}={_plain(value)}" for name, value in fields.items())]
            return f"{time} {' '.join(told)}"
        content = {
            "time": time, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage(),
            **fields,
        }  # fmt: skip
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=False)


def _plain(value: Any) -> str:
    """A value that can't be taken for another field or another line, whatever a client has sent."""
    text = str(value)
    return text if text.isprintable() and text and not set(text) & set(' "=') else json.dumps(text)


def configure(style: str) -> None:
    """Have our messages and those of uvicorn written to the standard error: of DEEPZIG_LOG's level, or from `info` on.

    Args:
        style: `plain` or `json`.
    """
    handler = Stderr()
    handler.setFormatter(Lines(style))
    for name in ("deepzig", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
    level = logging.getLogger("deepzig").level if os.environ.get(VARIABLE) else logging.INFO
    for name in ("uvicorn", __package__):
        logging.getLogger(name).setLevel(level)


def observer(access: Access, prompts: bool = False) -> Callable[[Exchange], None]:
    """Writes a line for each request that is over.

    Args:
        access: its public paths are told only at the level `debug`: they are asked all the time.
        prompts: tell what was sent, too.
    """

    def observe(exchange: Exchange) -> None:
        level = logging.DEBUG if exchange.path in access.public else logging.INFO
        if log.isEnabledFor(level):
            log.log(level, "request", extra={FIELDS: _told(exchange, prompts)})

    return observe


def _told(exchange: Exchange, prompts: bool) -> dict[str, Any]:
    fields = {
        "id": exchange.id, "method": exchange.method, "path": exchange.path, "status": exchange.status,
        "seconds": round(exchange.seconds, 4), "address": exchange.address, "key": exchange.key,
        "model": exchange.model, "prompt_tokens": exchange.prompt_tokens or None,
        "answer_tokens": exchange.answer_tokens or None,
        "first_token": None if exchange.first_token is None else round(exchange.first_token, 4),
        "body": exchange.body.decode(errors="replace") if prompts else None,
    }  # fmt: skip
    return {name: value for name, value in fields.items() if value is not None}
