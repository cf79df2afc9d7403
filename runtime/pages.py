"""Pages of the latent cache: who has which. What lies in a page is the target's business."""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Sequence as Pages

from deepzig.errors import DeepZigError


class PagePool:
    """`count` pages of `page_size` tokens, each handed out to one or several holders. Safe to use from several threads.

    Attributes:
        count: how many pages there are.
        page_size: tokens of a page.
        lock: held while pages change hands; reentrant.
    """

    def __init__(self, count: int, page_size: int) -> None:
        self.count = count
        self.page_size = page_size
        self.lock = threading.RLock()
        self._holders: list[int] = []  # of the pages that were ever taken, so a huge pool costs nothing
        self._returned: list[int] = []
        self._spare: Callable[[], int] = lambda: 0
        self._reclaim: Callable[[int], object] = lambda _: None

    def lend(self, spare: Callable[[], int], reclaim: Callable[[int], object]) -> None:
        """Someone keeps pages only as long as nobody needs them.

        Args:
            spare: how many he would give back.
            reclaim: makes him give back so many, if he can.
        """
        self._spare, self._reclaim = spare, reclaim

    @property
    def tokens(self) -> int:
        """How many tokens all pages hold."""
        return self.count * self.page_size

    @property
    def free(self) -> int:
        """How many pages can be taken."""
        with self.lock:
            return self._unused + self._spare()

    @property
    def _unused(self) -> int:
        return self.count - len(self._holders) + len(self._returned)

    def take(self, count: int) -> list[int]:
        """Take pages, all or none.

        Raises:
            DeepZigError: there are not as many.
        """
        with self.lock:
            if count > self._unused:
                if count <= self.free:
                    self._reclaim(count - self._unused)
                if count > self._unused:
                    raise DeepZigError(
                        f"the cache is full: {count} more pages are needed, {self._unused} are free",
                        f"cache of {self.tokens} tokens",
                        "load the model with a larger cache_tokens, or ask for fewer max_tokens",
                    )
            again = [self._returned.pop() for _ in range(min(count, len(self._returned)))]
            for page in again:
                self._holders[page] = 1
            fresh = range(len(self._holders), len(self._holders) + count - len(again))
            self._holders += [1] * len(fresh)
            return [*again, *fresh]

    def share(self, pages: Pages[int]) -> None:
        """One more holder of each of these pages, which somebody holds."""
        with self.lock:
            for page in pages:
                self._holders[page] += 1

    def holders(self, page: int) -> int:
        """How many hold a page."""
        return self._holders[page] if page < len(self._holders) else 0

    def give_back(self, pages: Pages[int]) -> None:
        """One holder less of each of these pages."""
        with self.lock:
            for page in reversed(pages):
                self._holders[page] -= 1
                if not self._holders[page]:
                    self._returned.append(page)


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
