"""What carries out the entry points of an artifact: TVM's virtual machine in this process, or JavaScript in another."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from deepzig.artifacts.machines import WEB
from deepzig.artifacts.reader import Artifact

from .backend import Backend
from .tensors import Tensor

Observer = Callable[[str, list[Tensor], bool], None]
"""Called with a kernel's symbol, its tensors (inputs, then outputs), and whether it is yet to run."""

LESS_CACHE = "load the model with fewer cache_tokens"


@runtime_checkable
class Executor(Backend, Protocol):
    """Runs the code of one artifact; safe to use from several threads."""

    artifact: Artifact

    def wait(self) -> None:
        """Return when all kernels that were started are done."""

    def watch(self, observer: Observer, tensors: bool = True) -> AbstractContextManager[None]:
        """Tell `observer` of every kernel call within, right before and right after it.

        It may write to the tensors it is shown; without `tensors` it is shown none, which saves time.
        """
        ...


def open_executor(artifact: Artifact, pages: int, threads: int | None = None) -> Executor:
    """What runs the chosen build of a checked artifact, with `pages` pages of cache.

    Raises:
        DeepZigError: the code can't be loaded, or there is no node or Chromium that could.
    """
    if artifact.build.platform == WEB:
        from .chromium import ChromiumMachine

        return ChromiumMachine(artifact, pages)
    if artifact.build.plan is not None:
        from .node import NodeMachine

        return NodeMachine(artifact, pages, threads)
    from .vm import VirtualMachine

    return VirtualMachine(artifact, pages, threads)
