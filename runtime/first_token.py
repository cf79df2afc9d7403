"""A process that loads an artifact and makes one token: what `deepzig bench` measures as a cold start."""

from __future__ import annotations

import sys
from pathlib import Path

PROMPT_TOKENS = 16
CACHE_TOKENS = 256


def command(artifact: Path, threads: int, device: str) -> list[str]:
    """What starts such a process, for an artifact on a device."""
    return [sys.executable, "-m", "deepzig.runtime.first_token", str(artifact.absolute()), str(threads), device]


def main() -> None:
    """Load, make one token, and write a byte."""
    # as the command does: tvm_ffi imports PyTorch wherever it is installed
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    from .loading import load

    path, threads, device = sys.argv[1:]
    with load(path, threads=int(threads), cache_tokens=CACHE_TOKENS, device=device) as model:
        vocab = int(model.manifest.model["vocab_size"])
        count = min(PROMPT_TOKENS, model.context - 1)
        prompt = [number * 7919 % vocab for number in range(1, count + 1)]  # any tokens, far apart
        model.generate(prompt, max_tokens=1, ignore_eos=True)
        sys.stdout.write(".")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
