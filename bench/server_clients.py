"""Clients of a server, in a process of their own: many streams at once.

They read bytes, since client libraries cost more than the server. What to send is a JSON object a line, what came of it
likewise.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from typing import Any, NamedTuple

EVENT = b"\n\n"
PROMPT_TOKENS = 32
FIRST_TOKEN = 2
"""Smaller ids may be special."""


class Load(NamedTuple):
    """What to send.

    Attributes:
        host: where to.
        port: where to.
        model: that is asked.
        vocabulary: tokens of prompts are below it.
        streams: at once.
        tokens: the most of an answer; where clients leave, any number up to it.
        rounds: requests of each stream, one after another; 0 for as many as there is time for.
        seconds: how long to go on.
        leaving: the share of requests whose client leaves, at any time.
        seed: of all that is drawn.
    """

    host: str
    port: int
    model: str
    vocabulary: int
    streams: int
    tokens: int
    rounds: int = 0
    seconds: float = 3600.0
    leaving: float = 0.0
    seed: int = 1


class Answer(NamedTuple):
    """What came of a request: its status (0 if the client left first), tokens that were told, seconds to wait."""

    status: int
    tokens: int
    wait: float


async def ask(load: Load, tokens: int, prompt: list[int], patience: float) -> Answer:
    """Send a request and read its stream; leave after `patience` seconds."""
    body = {
        "model": load.model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0.8,
        "top_p": 0.95, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    content = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(load.host, load.port)
    try:
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
        )
        answer = await asyncio.wait_for(_read(reader), patience)
    except asyncio.TimeoutError:
        return Answer(0, 0, 0.0)
    finally:
        writer.close()
    head, _, rest = answer.partition(b"\r\n\r\n")
    status = int(head[9:12])
    waits = [line.partition(b":")[2] for line in head.lower().splitlines() if line.startswith(b"retry-after:")]
    wait = float(waits[0]) if waits else -1.0
    if status != 200:
        return Answer(status, 0, wait)
    events = [json.loads(part[part.index(b"{") :]) for part in rest.split(EVENT) if b'"usage":{' in part]
    if not events or b"data: [DONE]" not in rest:
        return Answer(-1, 0, 0.0)  # a stream that was cut off, or has an error
    return Answer(200, int(events[-1]["usage"]["completion_tokens"]), 0.0)


async def _read(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while part := await reader.read(1 << 16):
        parts.append(part)
    return b"".join(parts)


async def run(load: Load) -> dict[str, Any]:
    """Send it all; gives the statuses, tokens that were told, and seconds."""
    draw, statuses, told, hasty = random.Random(load.seed), Counter[str](), 0, 0
    begin = time.perf_counter()
    end = begin + load.seconds

    async def stream() -> None:
        nonlocal told, hasty
        done = 0
        while (not load.rounds or done < load.rounds) and time.perf_counter() < end:
            leaves = draw.random() < load.leaving
            tokens = draw.randint(1, load.tokens) if load.leaving else load.tokens
            prompt = [draw.randrange(FIRST_TOKEN, load.vocabulary) for _ in range(PROMPT_TOKENS)]
            answer = await ask(load, tokens, prompt, draw.uniform(0, 3) if leaves else 600)
            done += 1
            told += answer.tokens
            statuses[str(answer.status)] += 1
            if answer.status in (429, 503):
                hasty += answer.wait < 0  # it does not say when to come again
                await asyncio.sleep(max(answer.wait, 1.0) * draw.uniform(0.5, 1))

    await asyncio.gather(*(stream() for _ in range(load.streams)))
    return {
        "statuses": statuses, "tokens": told, "without Retry-After": hasty, "seconds": time.perf_counter() - begin
    }  # fmt: skip


def main() -> None:
    """Answer what is asked."""
    for line in sys.stdin:
        print(json.dumps(asyncio.run(run(Load(**json.loads(line))))), flush=True)


if __name__ == "__main__":
    main()
