"""Where everything is in a segment, and what is checked before any of it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from raw_ring import HEAD, TAIL, RawRing

from embar_shm import _core


@pytest.mark.parametrize(
    ("slots", "slot_bytes", "publishers", "subscribers"),
    [
        (1, 64, 1, 1),
        (3, 256, 4, 4),
        (4, 4096, 4, 64),
        (5, 4097, 7, 9),
        (4096, 64, 1000, 1000),
        (1, 2**31, 1, 1),
    ],
)
def test_regions_are_aligned_and_do_not_overlap(
    slots: int, slot_bytes: int, publishers: int, subscribers: int
) -> None:
    g = _core.plan(slots, slot_bytes, publishers, subscribers)
    assert g["tickets"] >= slots
    assert g["tickets"] & (g["tickets"] - 1) == 0
    assert g["publishers_offset"] > _core.SEGMENT_HEADER_BYTES
    assert g["publishers_offset"] + 128 * publishers <= g["subscribers_offset"]
    assert g["subscribers_offset"] + 128 * subscribers <= g["tickets_offset"]
    assert g["tickets_offset"] + 8 * g["tickets"] <= g["slot_words_offset"]
    assert g["slot_words_offset"] + 128 * slots <= g["slots_offset"]
    assert g["slot_stride"] >= 4096 + slot_bytes
    assert g["total_bytes"] == g["slots_offset"] + slots * g["slot_stride"]
    assert all(value % 4096 == 0 for name, value in g.items() if name.endswith(("_offset", "ride")))


GEOMETRIES_BEYOND_THE_LIMITS = [
    ((0, 64, 1, 1), "slots must be 1 to 4096"),
    ((4097, 64, 1, 1), "slots must be 1 to 4096"),
    ((2**32 + 1, 64, 1, 1), "slots must be 1 to 4096"),
    ((1, 63, 1, 1), "slot_size must be 64 bytes to 2 GiB"),
    ((1, 2**31 + 1, 1, 1), "slot_size must be 64 bytes to 2 GiB"),
    ((1, 64, 0, 1), "max_publishers must be 1 to 1000"),
    ((1, 64, 1001, 1), "max_publishers must be 1 to 1000"),
    ((1, 64, 1, 0), "max_subscribers must be 1 to 1000"),
    ((1, 64, 1, 1001), "max_subscribers must be 1 to 1000"),
]


@pytest.mark.parametrize(("numbers", "reason"), GEOMETRIES_BEYOND_THE_LIMITS)
def test_a_geometry_beyond_the_limits_is_refused(
    numbers: tuple[int, int, int, int], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        _core.plan(*numbers)


def test_a_segment_has_no_magic_before_it_is_published() -> None:
    ring = RawRing()
    size = len(ring.memory)
    ring.memory[:] = bytes(size)
    _core.format_segment(ring.memory, 3, 256, 4, 4, "unit/0", "boot", 5)
    with pytest.raises(ValueError, match="magic"):
        _core.Ring(ring.memory)
    _core.publish_segment(ring.memory)
    header = _core.read_header(ring.memory)
    assert header["magic"].to_bytes(8, "little") == b"EMBRSHM1"
    assert (header["name"], header["boot_id"], header["created_unix_ns"]) == (b"unit/0", b"boot", 5)
    assert {name: header[name] for name in _core.plan(3, 256, 4, 4)} == _core.plan(3, 256, 4, 4)
    assert ring.steps.claim(0) == (0, 0)


def test_a_segment_larger_than_its_buffer_is_not_written() -> None:
    ring = RawRing()
    before = bytes(ring.memory)
    with pytest.raises(ValueError, match="smaller than the planned segment"):
        _core.format_segment(ring.memory, 4, 256, 4, 4, "unit/0", "", 0)
    assert bytes(ring.memory) == before


# Field of the segment header: offset, size in bytes, a value no ring has, why it is refused.
DAMAGED_HEADERS = {
    "magic": (0, 8, 0, "magic"),
    "layout_version": (8, 4, 1, "layout version"),
    "slot_bytes": (32, 8, 2**63, "slot_size"),
    "slots": (48, 4, 0, "slots"),
    "slots too many": (48, 4, 2**32 - 1, "slots"),
    "slots too many for the tables": (48, 4, 4000, "truncated"),
    "max_publishers": (56, 4, 2**32 - 1, "max_publishers"),
    "max_subscribers": (60, 4, 2**32 - 1, "max_subscribers"),
}
USERS: dict[str, Callable[[RawRing, Any], object]] = {
    "Ring": lambda _, buffer: _core.Ring(buffer),
    "Monitor": lambda _, buffer: _core.Monitor(buffer),
    "BrokerCore": lambda _, buffer: _core.BrokerCore(buffer, -1, 2, 0.0, 1),
    "PublisherCore": lambda ring, buffer: _core.PublisherCore(
        ring, buffer, 0, -1, 1, 1, 64, 256, 2, 1, 0.0, 1, 0, 2, 0.0, 1, None
    ),
    "SubscriberCore": lambda ring, buffer: _core.SubscriberCore(
        ring, buffer, None, 0, -1, "", 0, 0, 0, False, 2, 0.0, 1, None, None, lambda: None
    ),
}


@pytest.mark.parametrize("user", USERS.values(), ids=USERS)
@pytest.mark.parametrize(
    ("offset", "size", "value", "reason"), DAMAGED_HEADERS.values(), ids=DAMAGED_HEADERS
)
def test_a_segment_with_a_damaged_header_is_refused(
    user: Callable[[RawRing, Any], object], offset: int, size: int, value: int, reason: str
) -> None:
    ring = RawRing()
    ring.memory[offset : offset + size] = value.to_bytes(size, "little")
    with pytest.raises(ValueError, match=reason):
        user(ring, ring.memory)


@pytest.mark.parametrize("user", USERS.values(), ids=USERS)
@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (slice(0, -3 * 8192 - 1), "truncated"),
        (slice(0, 4095), "smaller than a segment header"),
        (slice(0, 0), "smaller than a segment header"),
        (slice(64, None), "not aligned to 128 bytes"),
    ],
    ids=["end of the tables", "no whole header", "empty", "misaligned"],
)
def test_a_buffer_that_cannot_hold_the_ring_is_refused(
    user: Callable[[RawRing, Any], object], cut: slice, reason: str
) -> None:
    ring = RawRing()
    with (
        memoryview(ring.memory) as whole,
        whole[cut] as part,
        pytest.raises(ValueError, match=reason),
    ):
        user(ring, part)


@pytest.mark.parametrize("name", USERS)
def test_only_a_monitor_needs_no_slots(name: str) -> None:
    ring = RawRing()
    with memoryview(ring.memory) as whole, whole[:-1] as part:
        if name == "Monitor":
            assert _core.Monitor(part).control()["tail"] == 0
        else:
            with pytest.raises(ValueError, match="truncated"):
                USERS[name](ring, part)


def test_only_a_monitor_takes_memory_that_cannot_be_written() -> None:
    ring = RawRing()
    with memoryview(ring.memory) as whole, whole.toreadonly() as view:
        assert _core.Monitor(view).control()["tail"] == 0
        for user in USERS.keys() - {"Monitor"}:
            with pytest.raises(BufferError):
                USERS[user](ring, view)


def test_an_index_beyond_a_table_is_refused() -> None:
    ring = RawRing(slots=3, max_publishers=4)
    monitor, broker = ring.monitor(), ring.broker()
    for call in (
        lambda: ring.steps.claim(4),
        lambda: monitor.publisher(4),
        lambda: monitor.publisher_stages(4),
        lambda: broker.reap_row(4),
        lambda: ring.publisher(4),
    ):
        with pytest.raises(IndexError, match="no such row in the publishers table"):
            call()
    for call in (lambda: ring.steps.commit(3, 0), lambda: ring.steps.release(0, 3, 0, 0)):
        with pytest.raises(IndexError, match="no such slot"):
            call()
    assert ring.u64(HEAD) == ring.u64(TAIL) == 0
