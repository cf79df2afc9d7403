"""Pages of the latent cache: who has which. What lies in a page is the target's business."""

from __future__ import annotations

import threading

from deepzig.errors import DeepZigError


class PagePool:
    """`count` pages of `page_size` tokens, handed out to sequences. Safe to use from several threads."""

    def __init__(self, count: int, page_size: int) -> None:
        self.count = count
        self.page_size = page_size
        self._returned: list[int] = []
        self._used = 0  # pages from here on were never taken, so a huge pool costs nothing
        self._lock = threading.Lock()

    @property
    def tokens(self) -> int:
        """How many tokens all pages hold."""
        return self.count * self.page_size

    @property
    def free(self) -> int:
        """How many pages nobody has."""
        return self.count - self._used + len(self._returned)

    def take(self, count: int) -> list[int]:
        """Take pages, all or none.

        Raises:
            DeepZigError: there are not as many.
        """
        with self._lock:
            if count > self.free:
                raise DeepZigError(
                    f"the cache is full: {count} more pages are needed, {self.free} are free",
                    f"cache of {self.tokens} tokens",
                    "load the model with a larger cache_tokens, or ask for fewer max_tokens",
                )
            again = [self._returned.pop() for _ in range(min(count, len(self._returned)))]
            fresh = range(self._used, self._used + count - len(again))
            self._used = fresh.stop
            return [*again, *fresh]

    def give_back(self, pages: list[int]) -> None:
        """Return pages."""
        with self._lock:
            self._returned.extend(reversed(pages))


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
        pages, self.pages = self.pages, []
        self._pool.give_back(pages)
