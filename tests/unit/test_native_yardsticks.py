"""The yardsticks that need two processes: round trips, and copies that somebody reads."""

from __future__ import annotations

import mmap
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from embar_shm._core import CopyAndRead, ping_pong, read_words
from embar_shm.testing.conditions import DEADLINE

BATCH = 10_000


def together(*work: Callable[[], Any]) -> list[Any]:
    """What each of these, at the same time, gives."""
    found: list[Any] = [None] * len(work)

    def do(n: int) -> None:
        found[n] = work[n]()

    threads = [threading.Thread(target=do, args=[n], daemon=True) for n in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    return found


@pytest.mark.parametrize("blocks", [False, True])
def test_both_sides_of_a_ping_pong_play_all_rounds_and_can_go_on(blocks: bool) -> None:
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    for first in (1, 101):
        took = together(
            lambda first=first: ping_pong(memory, True, blocks, first, 100),
            lambda first=first: ping_pong(memory, False, blocks, first, 100),
        )
        assert all(ns > 0 for ns in took)
        assert struct.unpack_from("=I", memory, 0) == struct.unpack_from("=I", memory, 128)
        assert struct.unpack_from("=I", memory, 0) == (first + 99,)


def test_a_ping_pong_needs_room_and_rounds() -> None:
    with pytest.raises(ValueError, match="too small"):
        ping_pong(bytearray(8), True, False, 1, 1)
    with pytest.raises(ValueError, match="rounds"):
        ping_pong(mmap.mmap(-1, mmap.PAGESIZE), True, False, 1, 0)


@pytest.mark.parametrize("size", [0, 1, 8, 63, 64, 1000])
def test_every_byte_is_read(size: int) -> None:
    assert read_words(bytes(size)) == 0
    for place in range(size):
        data = bytearray(size)
        data[place] = 1
        assert read_words(data) == 256 ** (place % 8)


@pytest.mark.parametrize(("writers", "places", "readers"), [(1, 1, 1), (3, 2, 1), (2, 2, 3)])
def test_every_reader_reads_what_all_writers_copied(
    writers: int, places: int, readers: int
) -> None:
    batches = 25
    memory = mmap.mmap(-1, CopyAndRead.bytes(writers, places, readers, BATCH))

    def side() -> CopyAndRead:
        return CopyAndRead(memory, writers, places, readers, BATCH, 2, 0, 2)

    sources = [bytes([writer + 1]) * 16 for writer in range(writers)]
    reading = [side() for _ in range(readers)]
    for nontemporal in (False, True):  # the second time goes on where the first ended
        expected = sum(read_words(source * (BATCH // 16)) for source in sources) * batches
        found = together(
            *(
                lambda w=w, past=nontemporal: side().write(w, sources[w], batches, past)
                for w in range(writers)
            ),
            *(lambda r=r: reading[r].read(batches * writers) for r in range(readers)),
        )
        assert found[writers:] == [expected % 2**64] * readers


def test_a_shape_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="there must be"):
        CopyAndRead.bytes(0, 1, 1, BATCH)
    with pytest.raises(ValueError, match="too many places"):
        CopyAndRead.bytes(2**20, 1, 1, BATCH)
    with pytest.raises(ValueError, match="too small"):
        CopyAndRead(mmap.mmap(-1, mmap.PAGESIZE), 1, 1, 1, BATCH, 2, 0, 2)
    memory = mmap.mmap(-1, CopyAndRead.bytes(1, 1, 1, BATCH))
    with pytest.raises(IndexError):
        CopyAndRead(memory, 1, 1, 1, BATCH, 2, 0, 2).write(1, b"x", 1, False)
