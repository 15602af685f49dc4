"""What publishers write, and whether that is what subscribers get: once, in order, bit for bit."""

from __future__ import annotations

import struct
from collections.abc import Callable

import embar_shm as es

__all__ = ["MESSAGE", "Broken", "Content", "Readings", "tiny"]

MESSAGE = 16  # bytes
_MESSAGE = struct.Struct("<IIHHI")  # publisher, batch, message, messages, a mix of them

Content = Callable[[int, int], list[bytes]]
"""The messages of a batch by its publisher's id and its sequence number."""


class Broken(AssertionError):
    """Something did not hold that is promised."""


def tiny(publisher: int, seq: int, count: int = 2) -> list[bytes]:
    """A batch of `count` messages that are like no others."""
    return [
        _MESSAGE.pack(publisher, seq, at, count, (publisher * 0x9E3779B1 ^ seq * 31 ^ at) % 2**32)
        for at in range(count)
    ]


class Readings:
    """All batches that one reliable subscriber got."""

    def __init__(self, reader: str, content: dict[int, Content]) -> None:
        self._reader = reader
        self._content = content
        self._next: int | None = None  # ticket after the last one
        self.seqs: dict[int, list[int]] = {publisher: [] for publisher in content}

    def take(self, subscriber: es.Subscriber) -> None:
        """Reads and releases everything that is there. Raises `Broken`."""
        while (batch := subscriber.poll()) is not None:
            with batch:
                self._check(batch)

    def _check(self, batch: es.Batch) -> None:
        what = f"{self._reader} got batch {batch.seq} of publisher {batch.publisher_id}"
        if batch.publisher_id not in self._content:
            raise Broken(f"{what}, who does not exist")
        expected = self._content[batch.publisher_id](batch.publisher_id, batch.seq)
        found = [bytes(message) for message in batch.messages()]
        if found != expected:
            raise Broken(f"{what} with {found} instead of {expected}")
        if batch.gap or (self._next is not None and batch.ticket < self._next):
            raise Broken(f"{what} in ticket {batch.ticket} after ticket {self._next}")
        self._next = batch.ticket + 1
        seqs = self.seqs[batch.publisher_id]
        if seqs and batch.seq != seqs[-1] + 1:
            raise Broken(f"{what} after batch {seqs[-1]}")
        seqs.append(batch.seq)

    def check_from_the_first(self, publisher: int, least: int, most: int) -> None:
        """It got batches 1 to n of this publisher, least <= n <= most. Raises `Broken`."""
        seqs = self.seqs[publisher]
        if seqs != list(range(1, len(seqs) + 1)) or not least <= len(seqs) <= most:
            raise Broken(
                f"{self._reader} got the batches {seqs} of publisher {publisher}: "
                f"{least} were acknowledged or committed, {most} begun"
            )
