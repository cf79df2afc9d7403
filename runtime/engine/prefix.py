"""Prompts that begin alike read their common pages once: a radix tree over whole pages, the least used given up first.

A page is shared where its tokens, and all tokens before them, are the same, and where prompts compute it in the same
way (`Sequence.shareable`), so that what is found has the bits that reading would have given.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from deepzig.runtime.pages import PagePool


@dataclass(eq=False)
class Node:
    """A page of the tree.

    Attributes:
        page: its id.
        tokens: what it holds.
        parent: the page before it, if there is one.
        drafted: whether the layer for multi-token prediction has read it too.
        children: tokens -> the page after it.
    """

    page: int
    tokens: tuple[int, ...]
    parent: Node | None
    drafted: bool
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)

    def path(self) -> list[Node]:
        """From the first page of the prompt to this one."""
        nodes: list[Node] = []
        node: Node | None = self
        while node:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


class PrefixTree:
    """Whole pages of prompts that were read. It gives pages up when the pool runs short.

    Prompts with different salts share nothing: who must not learn from the time to the first token what others have
    asked gets a salt of its own.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._roots: dict[Hashable, dict[tuple[int, ...], Node]] = {}
        self._used: OrderedDict[Node, Hashable] = OrderedDict()  # node -> salt; a node comes after its children
        pool.lend(self._spare, self._evict)

    def __len__(self) -> int:
        """How many pages it holds."""
        return len(self._used)

    def match(self, tokens: Sequence[int], begin: int, end: int, drafted: bool, salt: Hashable = None) -> list[int]:
        """The pages of `tokens[begin:end]` as far as they are known, with one more holder.

        Args:
            tokens: the prompt.
            begin: where to begin to look, a multiple of the page size; pages before it are the caller's own.
            end: where to end; no page goes beyond it.
            drafted: only pages that the layer for multi-token prediction has read.
            salt: of the prompt.
        """
        with self._pool.lock:
            found = self._walk(tokens, end, salt)
            found = found[: next((i for i, node in enumerate(found) if drafted and not node.drafted), len(found))]
            self._touch(found)
            pages = [node.page for node in found[begin // self._pool.page_size :]]
            self._pool.share(pages)
            return pages

    def insert(self, tokens: Sequence[int], pages: list[int], drafted: bool, salt: Hashable = None) -> None:
        """Keep the pages of `tokens`, whole pages all. Where the tree has one, it replaces the one in `pages`.

        Args:
            tokens: as many as the pages hold.
            pages: of which the tree becomes a holder; the caller holds them.
            drafted: whether the layer for multi-token prediction has read them.
            salt: of the prompt.
        """
        with self._pool.lock:
            parent: Node | None = None
            children = self._roots.setdefault(salt, {})
            for i, key in enumerate(self._keys(tokens)):
                node = children.get(key)
                if node is None:
                    node = children[key] = Node(pages[i], key, parent, drafted)
                    self._used[node] = salt
                    self._pool.share([node.page])
                elif drafted and not node.drafted:  # the caller's page has more in it
                    self._replace(node, pages[i])
                elif node.page != pages[i]:
                    self._pool.share([node.page])
                    self._pool.give_back([pages[i]])
                    pages[i] = node.page
                parent, children = node, node.children
            self._touch(parent.path() if parent else [])

    def kept(self, salt: Hashable = None) -> list[Node]:
        """All pages of a salt, each after the one before it in its prompt; they have one more holder."""
        with self._pool.lock:
            nodes: list[Node] = []
            ahead = list(self._roots.get(salt, {}).values())
            while ahead:
                nodes.append(ahead.pop())
                ahead += nodes[-1].children.values()
            self._pool.share([node.page for node in nodes])
            return nodes

    def clear(self) -> None:
        """Give all pages back; sequences keep theirs."""
        with self._pool.lock:
            self._pool.give_back([node.page for node in self._used])
            self._used.clear()
            self._roots.clear()

    def _keys(self, tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
        size = self._pool.page_size
        return (tuple(tokens[at : at + size]) for at in range(0, len(tokens) - size + 1, size))

    def _walk(self, tokens: Sequence[int], end: int, salt: Hashable) -> list[Node]:
        nodes: list[Node] = []
        children = self._roots.get(salt, {})
        for key in self._keys(tokens[:end]):
            if key not in children:
                break
            nodes.append(children[key])
            children = nodes[-1].children
        return nodes

    def _touch(self, path: list[Node]) -> None:
        """Used now; a page counts as used after the pages behind it, so that the least used one has none behind it."""
        for node in reversed(path):
            self._used.move_to_end(node)

    def _replace(self, node: Node, page: int) -> None:
        self._pool.share([page])
        self._pool.give_back([node.page])
        node.page, node.drafted = page, True

    def _idle(self) -> Iterator[Node]:
        """Pages that nobody else holds, and none of those behind them; the least used first."""
        held: set[Node | None] = set()
        for node in self._used:
            if node in held or self._pool.holders(node.page) > 1:
                held.add(node.parent)
            else:
                yield node

    def _spare(self) -> int:
        return sum(1 for _ in self._idle())

    def _evict(self, count: int) -> None:
        idle = self._idle()
        for node in [node for node, _ in zip(idle, range(count), strict=False)]:
            salt = self._used.pop(node)
            siblings = node.parent.children if node.parent else self._roots[salt]
            del siblings[node.tokens]
            if not self._roots[salt]:
                del self._roots[salt]
            self._pool.give_back([node.page])
