"""What the processes of a chaos run tell, over a pipe: nothing is lost when one is killed.

A record that was written is in the kernel; a pipe takes up to 4096 bytes wholly or not at all, so a
SIGKILL leaves no half of one. What a process is about to do it tells before, what was done after.
"""

from __future__ import annotations

import enum
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Kind", "Reader", "Record", "Writer"]

_FORMAT = struct.Struct("<HHIQQQQ")  # the fields of a Record, but its text
_MOST_TEXT = 2048  # bytes: with it a record is still written as a whole
_CHUNK = 1 << 16


class Kind(enum.IntEnum):
    """What a record tells. Fields that are not named are 0."""

    READY = 1  # it does its work now; a broker: a = log, b = epoch, c = ns since its start, d = 1:
    # it has taken over what one that was killed has left
    INTENT = 2  # a = publisher, b = no message above this number was handed to publish() so far
    ACKED = (
        3  # a = publisher, b = batches, c = messages: so many, from the first on, are in the log
    )
    JOINED = 4  # a = log, b = ticket of the first batch that will come, c = 1: the place is lost
    DELIVERED = 5  # a = ticket, b = publisher, c = seq, d = number of the first message
    GAP = 6  # a = batches that were missed before the next one; told before it
    WRONG = 7  # text: what was found wrong within a batch; a = publisher, b = ticket
    ENDED = 8  # text: why; the process leaves


class Record(NamedTuple):
    kind: Kind
    size: int = 0  # messages of a batch; bytes of `text`
    crc: int = 0
    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0
    text: str = ""


class Writer:
    """Tells records; each is in the kernel when the call returns."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def tell(
        self,
        kind: Kind,
        a: int = 0,
        b: int = 0,
        c: int = 0,
        d: int = 0,
        *,
        size: int = 0,
        crc: int = 0,
        text: str = "",
    ) -> None:
        tail = text.encode(errors="replace")[:_MOST_TEXT]
        if tail:
            size = len(tail)
        os.write(self._fd, _FORMAT.pack(kind, size, crc, a, b, c, d) + tail)


class Reader:
    """Takes the bytes of one pipe apart."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._rest = b""
        self.ended = False

    def read(self) -> Iterator[Record]:
        """The records that are there; `ended` is set when no more can come."""
        try:
            some = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return
        self.ended = not some
        data, at = self._rest + some, 0
        while len(data) - at >= _FORMAT.size:
            kind, size, crc, a, b, c, d = _FORMAT.unpack_from(data, at)
            end = at + _FORMAT.size
            text = ""
            if kind in (Kind.WRONG, Kind.ENDED):
                if len(data) < end + size:
                    break
                text = data[end : end + size].decode(errors="replace")
                end += size
            at = end
            yield Record(Kind(kind), size, crc, a, b, c, d, text)
        self._rest = data[at:]
        if self.ended and self._rest:
            raise AssertionError("a pipe has ended in the middle of a record")
