"""Private copies of a segment's words, to look at in peace.

Copied with pread(2), not mapped: a mapped file that somebody truncates meanwhile kills whoever
looks (SIGBUS), and looking at a page that was never written would take memory for it. A copy can do
neither, cannot write into the segment by mistake, and costs those who use the ring nothing but the
cache lines that it reads. It takes no lock.

A copy is no instant: the words of a ring at work may be from some microseconds apart. What moves
only forward is read in the order in which it is behind: a subscriber's cursor before `head`, `head`
before the tickets. What needs words of one moment compares several copies (fsck.py).
"""

from __future__ import annotations

import mmap
import os
from typing import Final

from embar_shm import _core
from embar_shm.errors import IncompatibleSegment
from embar_shm.layout import Geometry

__all__ = ["Cut", "Words", "header_page"]

# Address space only, no promise of memory: of a copy only some pages are ever touched. (The mmap
# module has no name for it before Python 3.13.)
_FLAGS: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000

_STRUCTS: Final = _core.structs()
_CONTROL_BYTES: Final = _STRUCTS["Control"][0]
_PUBLISHER_BYTES, _PUBLISHER_FIELDS = _STRUCTS["PublisherEntry"]
_SUBSCRIBER_BYTES: Final = _STRUCTS["SubscriberEntry"][0]
# The histograms are most of a row, and nothing here looks at them.
_PUBLISHER_WORDS: Final = min(
    offset for _, offset, _, kind in _PUBLISHER_FIELDS if kind == "Histogram"
)


class Cut(IncompatibleSegment):
    """The file ends before its segment does: somebody truncates it."""

    def __init__(self) -> None:
        super().__init__(
            "the segment was truncated while it was looked at", "look who else writes to /dev/shm"
        )


class Words:
    """A copy: the header, the broker's words, the rows, tickets and slot words."""

    def __init__(
        self, fd: int, header: mmap.mmap, geometry: Geometry, *, headers: bool = False
    ) -> None:
        """Copies from an open segment, whose `header_page` was checked. Raises `Cut`.

        `headers`: those of the batches, too, where they are in the segment; payloads never. Without
        them nobody's slot is touched.
        """
        self._fd = fd
        self.geometry = g = geometry
        size = g.total_bytes if headers else g.slots_offset
        self.memory = mmap.mmap(-1, size, flags=_FLAGS)
        self.memory[: len(header)] = header[:]  # what was checked: it may be another one by now
        for row in range(g.max_publishers):
            self._copy(g.publishers_offset + row * _PUBLISHER_BYTES, _PUBLISHER_WORDS)
        self._copy(g.subscribers_offset, g.max_subscribers * _SUBSCRIBER_BYTES)
        self._copy(_core.SEGMENT_HEADER_BYTES, _CONTROL_BYTES)
        self._copy(g.tickets_offset, g.slots_offset - g.tickets_offset)
        if headers:
            for slot in range(g.slots):
                offset = g.slots_offset + slot * g.slot_stride
                self._copy(offset, _core.BATCH_HEADER_BYTES)

    def monitor(self) -> _core.Monitor:
        """A look at the copy."""
        return _core.Monitor(self.memory)

    def _copy(self, offset: int, size: int) -> None:
        with memoryview(self.memory) as whole, whole[offset : offset + size] as part:
            if os.preadv(self._fd, [part], offset) != size:
                raise Cut


def header_page(fd: int) -> mmap.mmap:
    """A copy of the first page alone; what is beyond the end of the file is zero."""
    page = mmap.mmap(-1, _core.SEGMENT_HEADER_BYTES, flags=_FLAGS)
    os.preadv(fd, [page], 0)
    return page
