"""Pages of the latent cache: who has which. What lies in a page is the target's business."""

from __future__ import annotations

import threading

from deepzig.errors import DeepZigError


class PagePool:
    """`count` pages of `page_size` tokens, handed out to sequences. Safe to use from several threads."""

    def __init__(self, count: int, page_size: int) -> None:
        self.count = count
        self.page_size = page_size
        self._free = list(range(count - 1, -1, -1))
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        """How many pages nobody has."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Take pages, all or none.

        Raises:
            DeepZigError: there are not as many.
        """
        with self._lock:
            if count > len(self._free):
                tokens = self.count * self.page_size
                raise DeepZigError(
                    f"the cache is full: {count} more pages are needed, {len(self._free)} are free",
                    f"cache of {tokens} tokens",
                    "load the model with a larger cache_tokens, or ask for fewer max_tokens",
                )
            return [self._free.pop() for _ in range(count)]

    def give_back(self, pages: list[int]) -> None:
        """Return pages."""
        with self._lock:
            self._free.extend(reversed(pages))


class Sequence:
    """The pages of one sequence, grown as it gets longer; a context manager that gives them back."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self.pages: list[int] = []

    def reserve(self, tokens: int) -> None:
        """Have room for `tokens` tokens in all."""
        needed = -(-tokens // self._pool.page_size) - len(self.pages)
        if needed > 0:
            self.pages += self._pool.take(needed)

    def __enter__(self) -> Sequence:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.give_back(self.pages)
        self.pages = []
