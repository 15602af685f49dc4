"""What every peer has to do, and how its receivers prove that they did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

__all__ = ["BATCH", "WORKLOADS", "Reader", "Workload", "WrongContent", "source", "workloads"]

BATCH = 2 * 2**20  # bytes of a large batch, unless told otherwise


@dataclass(frozen=True)
class Workload:
    """Producer p sends to consumer p % consumers. Of round trips there are two ends, 0 and 1."""

    name: str
    title: str
    short: str  # for the head of a column
    kind: Literal["batches", "messages", "trips"]
    size: int  # bytes of a message
    producers: int = 1
    consumers: int = 1
    spin: bool = False  # trips: ask again and again instead of sleeping

    @property
    def each(self) -> int:
        """Producers of one consumer."""
        return self.producers // self.consumers


def workloads(batch: int = BATCH) -> list[Workload]:
    """All of them, with large batches of `batch` bytes."""
    size = f"{batch / 2**20:g} MiB" if batch >= 2**20 else f"{batch / 2**10:g} KiB"
    large = f"Batches of {size}"
    large = f"Batches of {size}"
    return [
        Workload(
            "large-1-1", f"{large}, 1 producer to 1 consumer", f"{size}, 1:1", "batches", batch
        ),
        Workload(
            name="large-12-4",
            title=f"{large}, 12 producers to 4 consumers",
            short=f"{size}, 12:4",
            kind="batches",
            size=batch,
            producers=12,
            consumers=4,
        ),
        Workload("messages-1k", "Messages of 1 KiB, 1 to 1", "1 KiB", "messages", 1024),
        Workload("messages-64", "Messages of 64 B, 1 to 1", "64 B", "messages", 64),
        Workload("trips-block", "Round trips of 64 B, blocking", "trip, blocking", "trips", 64),
        Workload(
            *("trips-spin", "Round trips of 64 B, spinning", "trip, spinning"),
            kind="trips",
            size=64,
            spin=True,
        ),
    ]


WORKLOADS = [work.name for work in workloads()]


def source(size: int) -> bytes:
    """The message that everybody sends: the same in all processes, and in no pattern."""
    return np.random.default_rng(size).bytes(size)


class WrongContent(Exception):
    """A batch arrived that nobody sent."""


class Reader:
    """Reads every byte of a batch, and checks what it read: the sum of its 64-bit words."""

    def __init__(self, size: int) -> None:
        self._words = size // 8
        self._expected = self._sum(source(size))

    def __call__(self, batch: Any) -> int:
        """The bytes of the batch. Raises `WrongContent`."""
        found = self._sum(batch)
        if found != self._expected:
            raise WrongContent(f"the words of a batch add up to {found}, not {self._expected}")
        return self._words * 8

    def _sum(self, batch: Any) -> int:
        words = np.frombuffer(batch, np.uint64)
        if len(words) != self._words:
            raise WrongContent(f"a batch of {len(words) * 8} bytes, not {self._words * 8}")
        return int(words.sum())
