"""Which words of a ring are others than before, by the names of their fields."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from embar_shm import _core

__all__ = ["changes"]

_MOST = 60  # words that are told


def changes(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> list[str]:
    """The 8-byte words that differ: "publishers[1].committed_seq 0x1 -> 0x2"."""
    if before.size != after.size:
        return [f"the ring had {before.size} bytes, and now has {after.size}"]
    if not after.size:
        return []
    old, new = before.view(np.uint64), after.view(np.uint64)
    differ = np.flatnonzero(old != new)
    tables = sorted(_tables(after), key=lambda table: table[0])
    begins = [begin for begin, *_ in tables]
    found = []
    for word in differ[:_MOST]:
        at = int(word) * 8
        begin, size, name, fields = tables[bisect_right(begins, at) - 1]
        row, offset = divmod(at - begin, size)
        field = max((f for f in fields if f[1] <= offset), key=lambda f: f[1], default=None)
        where = f"{name}[{row}]" if field is None else f"{name}[{row}].{field[0]}"
        inside = offset - (0 if field is None else field[1])
        place = f"{where}+{inside}" if inside else where
        found.append(f"{place} {int(old[word]):#x} -> {int(new[word]):#x}")
    if len(differ) > _MOST:
        found.append(f"and {len(differ) - _MOST} others")
    return found


_Fields = list[tuple[str, int, int, str]]


def _tables(ring: NDArray[np.uint8]) -> Iterator[tuple[int, int, str, _Fields]]:
    """(offset, bytes of a row, name, fields) of everything in a ring."""
    header = _core.read_header(ring.data)
    structs = _core.structs()
    yield 0, *_struct(structs, "SegmentHeader", "header")
    yield structs["SegmentHeader"][0], *_struct(structs, "Control", "control")
    yield header["publishers_offset"], *_struct(structs, "PublisherEntry", "publishers")
    yield header["subscribers_offset"], *_struct(structs, "SubscriberEntry", "subscribers")
    yield header["tickets_offset"], 8, "tickets", []
    yield header["slot_words_offset"], *_struct(structs, "SlotWord", "slot_words")
    _, fields = structs["BatchHeader"]
    body: _Fields = [("body", 4096, 8, "bytes")]
    yield header["slots_offset"], header["slot_stride"], "slots", [*fields, *body]


def _struct(
    structs: dict[str, tuple[int, _Fields]], kind: str, name: str
) -> tuple[int, str, _Fields]:
    size, fields = structs[kind]
    return size, name, fields
