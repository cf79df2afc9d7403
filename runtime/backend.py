"""What the runtime asks of that which runs a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from .tensors import Tensor

Array = npt.NDArray[Any]


class Backend(Protocol):
    """What runs the entry points; the VM, or a stand-in for tests."""

    def call(self, entry: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Outputs of an entry point for these inputs, each of which may be an output itself."""
        ...

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy pages of the cache: from the first to the second of each pair."""
        ...

    def read_page(self, page: int) -> dict[str, Array]:
        """What a page of the cache holds: name of a state -> its bytes, u8 [n]."""
        ...

    def write_page(self, page: int, data: Mapping[str, Array]) -> None:
        """Put there what `read_page` gave."""
        ...

    def close(self) -> None:
        """Free what it holds."""
