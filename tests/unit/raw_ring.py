"""A ring in anonymous memory, with a look at every word and a way to change it.

What is known here about the layout repeats the documentation of ``_native/layout.hpp``: the header
page, the control words behind it, and the bits of ticket entries, slot words and batch headers.
Everything else comes from `_core.plan`.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any

from wire import HEADER_FIELDS

from embar_shm import _core
from embar_shm.address import RingName
from embar_shm.errors import EmbarError
from embar_shm.layout import Geometry
from embar_shm.options import START_PLACES, SUBSCRIBE_MODES

LINE = 128
CONTROL = 4096  # behind the header page
TAIL, HEAD, RELEASED = CONTROL, CONTROL + LINE, CONTROL + LINE + 8
EVENT, SLEEPING = CONTROL + 2 * LINE, CONTROL + 2 * LINE + 4
SPACE_WAITERS, LOOK_AROUND = CONTROL + 3 * LINE, CONTROL + 3 * LINE + 4
BROKER_STATE = CONTROL + 4 * LINE
NEWS, NEWS_SLEEPERS, SLOWEST = CONTROL + 5 * LINE, CONTROL + 5 * LINE + 4, CONTROL + 5 * LINE + 8

# In a row of the publishers table.
ROW_EVENT, ROW_SLEEPING, ROW_WANTS_ANY_SLOT = 3 * LINE, 3 * LINE + 4, 3 * LINE + 8

# In a row of the subscribers table.
READER_STATE, READER_START, READER_CURSOR, READER_NEXT = 0, 12, LINE, LINE + 8
READER_ROW = 2 * LINE
FREE, JOINING, ACTIVE, REFUSED, CLOSED = range(5)  # its states

GENERATIONS = 2**48
LAPS = 2**32
PAGE = 4096

HEADER = struct.Struct("<IHHQQQIIQQQQQQ32sQ")


def free_entry(lap: int) -> int:
    return lap


def used_entry(lap: int, slot: int, generation: int) -> int:
    return 1 << 63 | slot << 51 | (generation % 2**18) << 32 | lap


def free_slot(generation: int) -> int:
    return generation << 16


def owned_slot(generation: int, owner: int) -> int:
    return generation << 16 | owner << 1 | 1


def header_check(header: bytes) -> int:
    """The check word of a batch header."""
    total = 0x9E3779B97F4A7C15
    for (word,) in struct.iter_unpack("<Q", header[: HEADER.size - 8]):
        total = ((total ^ word) * 0xBF58476D1CE4E5B9) % 2**64
        total ^= total >> 31
    return total


class RawRing:
    """Three slots of 256 bytes and four tickets, unless told otherwise."""

    def __init__(
        self,
        slots: int = 3,
        slot_bytes: int = 256,
        max_publishers: int = 4,
        max_subscribers: int = 4,
    ) -> None:
        self.name = RingName("unit", "0")
        self.geometry = Geometry.plan(slots, slot_bytes, max_publishers, max_subscribers)
        self.memory = mmap.mmap(-1, self.geometry.total_bytes)
        _core.format_segment(
            self.memory, slots, slot_bytes, max_publishers, max_subscribers, str(self.name), "", 0
        )
        _core.publish_segment(self.memory)
        self.steps = _core.Ring(self.memory)
        self.left: list[int] = []  # rows of subscribers that are done with them, in this order

    # What errors are explained with (diagnose.RingContext), besides name and geometry.
    advice = "look at the test"

    def describe_broker(self) -> str:
        return "the broker (pid 0)"

    def explain_end(self) -> EmbarError | None:
        return None

    def monitor(self) -> _core.Monitor:
        return _core.Monitor(self.memory)

    def broker(
        self, *, stage_times: bool = True, retain: int = 0, lock_fd: int = -1
    ) -> _core.BrokerCore:
        return _core.BrokerCore(
            self.memory,
            lock_fd=lock_fd,
            wait_mode=2,
            spin_us=0,
            cpus=1,
            stage_times=stage_times,
            retain=retain,
        )

    def publisher(self, index: int = 0, **options: Any) -> _core.PublisherCore:
        """Messages of 64 bytes, four in a batch; never waits; no linger thread."""
        defaults = {
            "publisher_id": 1000 + index,
            "incarnation": 1,
            "message_size": 64,
            "batch_bytes": self.geometry.slot_bytes,
            "quota": 2,
            "ack": 1,
            "linger_ms": 0.0,
            "copy": 1,
            "sample_every": 0,
            "wait_mode": 2,
            "spin_us": 0.0,
            "cpus": 1,
            "timeout": 0.0,
        }
        return _core.PublisherCore(
            context=self, buffer=self.memory, index=index, lock_fd=-1, **(defaults | options)
        )

    def subscriber(
        self,
        admitted_by: _core.BrokerCore | None = None,
        index: int = 0,
        mode: str = "reliable",
        start: str | int = "latest",
        **options: Any,
    ) -> _core.SubscriberCore:
        """Never waits. Without `admitted_by` it is joining."""
        defaults = {
            "slots": None,
            "lock_fd": -1,
            "name": f"reader {index}",
            "mode": SUBSCRIBE_MODES[mode],
            "start": START_PLACES[start] if isinstance(start, str) else 2,
            "ticket": 0 if isinstance(start, str) else start,
            "sole": False,
            "wait_mode": 2,
            "spin_us": 0.0,
            "cpus": 1,
            "timeout": 0.0,
            "broker": None,
            "on_left": lambda: self.left.append(index),
        }
        core = _core.SubscriberCore(
            context=self, buffer=self.memory, index=index, **(defaults | options)
        )
        if admitted_by is not None:
            admitted_by.admit()
            core.join(0.0)
        return core

    # --- words ---

    def u64(self, offset: int) -> int:
        return int(struct.unpack_from("<Q", self.memory, offset)[0])

    def set_u64(self, offset: int, value: int) -> None:
        struct.pack_into("<Q", self.memory, offset, value)

    def u32(self, offset: int) -> int:
        return int(struct.unpack_from("<I", self.memory, offset)[0])

    def set_u32(self, offset: int, value: int) -> None:
        struct.pack_into("<I", self.memory, offset, value)

    def entry_at(self, ticket: int) -> int:
        """Offset of the entry that serves this ticket."""
        return self.geometry.tickets_offset + 8 * (ticket % self.geometry.tickets)

    def entry(self, ticket: int) -> int:
        return self.u64(self.entry_at(ticket))

    def slot_at(self, slot: int) -> int:
        return self.geometry.slot_words_offset + LINE * slot

    def slot(self, slot: int) -> int:
        return self.u64(self.slot_at(slot))

    def row_at(self, index: int) -> int:
        """Offset of a row; its size is what a table of 1000 rows shows."""
        many = Geometry.plan(1, 64, 1000)
        size = (many.tickets_offset - many.publishers_offset) // 1000 // LINE * LINE
        return self.geometry.publishers_offset + size * index

    def reader_at(self, index: int) -> int:
        """Offset of a row of the subscribers table."""
        return self.geometry.subscribers_offset + READER_ROW * index

    def start_at(self, ticket: int) -> None:
        """Makes an empty ring look as if all tickets below this one had come and gone."""
        for offset in (TAIL, HEAD, RELEASED):
            self.set_u64(offset, ticket)
        for t in range(ticket, ticket + self.geometry.tickets):
            self.set_u64(self.entry_at(t), free_entry(t // self.geometry.tickets % LAPS))

    # --- batches ---

    def header_at(self, slot: int) -> int:
        return self.geometry.slots_offset + slot * self.geometry.slot_stride

    def payload(self, slot: int, size: int) -> bytes:
        begin = self.header_at(slot) + PAGE
        return self.memory[begin : begin + size]

    def header(self, slot: int) -> dict[str, Any]:
        values = HEADER.unpack_from(self.memory, self.header_at(slot))
        return dict(zip(HEADER_FIELDS, values, strict=True))

    def forge_header(self, slot: int, *, fix_check: bool = True, **fields: Any) -> None:
        """Changes fields of a batch that is written already."""
        values = self.header(slot) | fields
        header = HEADER.pack(*(values[field] for field in HEADER_FIELDS))
        if fix_check:
            header = header[:-8] + struct.pack("<Q", header_check(header))
        begin = self.header_at(slot)
        self.memory[begin : begin + HEADER.size] = header


MESSAGE = bytes(range(64))
VARIABLE = {"message_size": 0}  # options of a publisher


def commit_batches(publisher: _core.PublisherCore, count: int = 1) -> None:
    """Batches of one message."""
    for _ in range(count):
        publisher.publish(MESSAGE)
        publisher.flush()


def accept(broker: _core.BrokerCore) -> dict[str, Any]:
    batch = broker.accept()
    assert batch is not None
    return batch


def message(number: int, size: int) -> bytes:
    """Has no zero in it, so that padding shows."""
    return bytes((number * 31 + i) % 251 + 1 for i in range(size))


def framed(*messages: bytes) -> bytes:
    """The body of a Variable batch as layout.hpp documents it."""
    return b"".join(struct.pack("<II", len(m), 0) + m + bytes(-len(m) % 8) for m in messages)


def make_slots_dirty(ring: RawRing) -> None:
    """As a former user of the slots leaves them."""
    end = ring.geometry.total_bytes
    begin = ring.geometry.slots_offset
    ring.memory[begin:end] = b"\xee" * (end - begin)
