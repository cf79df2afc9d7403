"""An app with a language model inside: it answers the lines of its standard input.

Run it as `python app.py model.deepzig < questions.txt`.
"""

from __future__ import annotations

import sys

import deepzig.runtime
from deepzig.errors import DeepZigError


def main(artifact: str) -> int:
    """Answer each line; 0, or 2 after an error."""
    try:
        with deepzig.runtime.load(artifact, cache_tokens=2048) as model:
            for line in sys.stdin:
                question = line.strip()
                if not question:
                    continue
                messages = [{"role": "user", "content": question}]
                print(f"> {question}")
                for piece in model.stream(messages, max_tokens=64):
                    print(piece.text, end="", flush=True)
                print()
    except DeepZigError as error:  # three lines: what, where, and how to mend it
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
