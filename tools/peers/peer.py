"""What a peer has to provide. Each file `over_*.py` is one peer, written as its users would."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, TypeAlias

from peers.workloads import Workload, source

__all__ = ["Consume", "End", "Peer", "Produce"]

Produce: TypeAlias = Callable[[int], None]  # sends so many messages, the last one included
Consume: TypeAlias = Callable[[int], int]  # takes so many messages; returns their bytes
End: TypeAlias = tuple[Callable[[], object], Callable[[], int]]  # send one; take one: its bytes


class Peer(ABC):
    """One measurement over one peer. Its methods run in different processes, forked in between.

    Whatever is to be inherited is made by `prepare`. The package of the peer is imported in the
    workers: few libraries survive a fork.
    """

    name: ClassVar[str]
    distribution: ClassVar[str | None] = None  # that has to be installed; None: Python's library
    module: ClassVar[str] = ""  # that has to be importable, of the distribution
    wheels: ClassVar[str] = ""  # what to know where it cannot be installed
    documentation: ClassVar[str]

    def __init__(self, work: Workload, directory: Path, tag: str) -> None:
        """`directory` and names that begin with `tag` are for this measurement alone."""
        self.work = work
        self.directory = directory
        self.tag = tag
        self.message = source(work.size)

    @classmethod
    def cannot(cls, work: Workload) -> str | None:
        """Why this peer does not take part in a workload; None: it does."""
        del work
        return None

    @classmethod
    @abstractmethod
    def settings(cls, work: Workload) -> str:
        """How it is used, in a line."""

    def prepare(self) -> None:  # noqa: B027 - most need nothing
        """In the process that forks: before the workers are there."""

    def clean(self) -> None:  # noqa: B027 - most need nothing
        """In the process that forks: when the workers are gone."""

    @abstractmethod
    def consumer(self, index: int) -> AbstractContextManager[Consume]:
        """In the process of a consumer. All of them are ready before a producer begins."""

    @abstractmethod
    def producer(self, index: int) -> AbstractContextManager[Produce]:
        """In the process of a producer."""

    @abstractmethod
    def end(self, index: int) -> AbstractContextManager[End]:
        """In the process of one end of the round trips. Both begin at the same time."""
