"""How messages become batches: the bytes in the slots, the quota, and what is refused.

On a ring of three slots of 256 bytes; nothing waits here (timeout 0) and nothing else runs, but for
the linger thread in its own test.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest
from raw_ring import (
    MESSAGE,
    VARIABLE,
    RawRing,
    accept,
    framed,
    free_slot,
    make_slots_dirty,
    message,
    owned_slot,
)

from embar_shm import _core
from embar_shm.errors import (
    BufferTypeError,
    ClosedError,
    CorruptSegment,
    MessageSizeError,
    WaitTimeout,
)

# --- the bytes of a batch -----------------------------------------------------------------------


@pytest.mark.parametrize("copy", [1, 2], ids=["plain", "nontemporal"])
@pytest.mark.parametrize("size", [1, 3, 16, 63, 64, 65, 100, 127, 128, 129, 200, 256])
def test_messages_of_one_size_lie_back_to_back(size: int, copy: int) -> None:
    ring = RawRing()
    make_slots_dirty(ring)
    publisher = ring.publisher(message_size=size, copy=copy)
    messages = [message(n, size) for n in range(256 // size)]
    for n, m in enumerate(messages):
        assert publisher.committed_seq == 0, n  # committed with the last that fits, not before
        publisher.publish(m)
    assert publisher.committed_seq == 1
    body = b"".join(messages)
    assert ring.payload(0, 4096) == body + b"\xee" * (4096 - len(body))
    header = ring.header(0)
    assert (header["format"], header["messages"], header["message_size"]) == (0, 256 // size, size)
    assert header["body_bytes"] == header["payload_bytes"] == len(body)
    assert (header["publisher_id"], header["incarnation"], header["seq"]) == (1000, 1, 1)
    assert header["opened_ns"] <= header["committed_ns"] <= time.monotonic_ns()
    counted = ring.monitor().publisher(0)["nontemporal_batches"]
    assert counted == (copy == 2 and _core.HAS_NONTEMPORAL)


@pytest.mark.parametrize("copy", [1, 2], ids=["plain", "nontemporal"])
@pytest.mark.parametrize(
    "sizes",
    [[1], [7], [8], [9], [248], [1, 8, 15, 16, 17], [200], [64, 65, 66]],
    ids=str,
)
def test_messages_of_any_size_are_framed_as_documented(sizes: list[int], copy: int) -> None:
    ring = RawRing()
    make_slots_dirty(ring)
    publisher = ring.publisher(**VARIABLE, copy=copy)
    messages = [message(n, size) for n, size in enumerate(sizes)]
    for m in messages:
        publisher.publish(m)
    publisher.flush()
    body = framed(*messages)
    assert ring.payload(0, 4096) == body + b"\xee" * (4096 - len(body))
    header = ring.header(0)
    assert (header["format"], header["messages"], header["message_size"]) == (1, len(sizes), 0)
    assert (header["body_bytes"], header["payload_bytes"]) == (len(body), sum(sizes))


@pytest.mark.parametrize(
    ("batch_bytes", "sizes", "committed"),
    [
        (256, [8] * 15, 0),  # 16 bytes of room: one more byte would fit
        (256, [8] * 16, 1),
        (256, [8] * 15 + [1], 1),
        (256, [8] * 15 + [9], 1),  # does not fit: the first 15 go, the last stays open
        (256, [232], 0),
        (256, [233], 1),  # 8 bytes of room: not even a length and one byte
        (100, [8] * 6, 1),  # 96: a batch ends at a multiple of 8
        (100, [8] * 5, 0),
    ],
)
def test_a_batch_of_any_size_is_committed_when_no_further_message_fits(
    batch_bytes: int, sizes: list[int], committed: int
) -> None:
    ring = RawRing()
    publisher = ring.publisher(**VARIABLE, batch_bytes=batch_bytes)
    for n, size in enumerate(sizes):
        publisher.publish(message(n, size))
    assert publisher.committed_seq == committed


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, np.frombuffer])
def test_any_contiguous_buffer_is_a_message(kind: Any) -> None:
    ring = RawRing()
    publisher = ring.publisher()
    source = kind(MESSAGE) if kind is not np.frombuffer else np.frombuffer(MESSAGE, np.float64)
    publisher.publish(source)
    publisher.flush()
    assert ring.payload(0, 64) == MESSAGE


@pytest.mark.parametrize("rows", [1, 4, 5, 8, 12])
@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "variable"])
def test_many_messages_fill_one_batch_after_the_other(rows: int, fixed: bool) -> None:
    ring = RawRing()
    publisher = ring.publisher(message_size=64 if fixed else 0, quota=3)
    array = np.frombuffer(b"".join(message(n, 64) for n in range(rows)), np.uint8).reshape(rows, 64)
    publisher.publish_many(array)
    assert publisher.committed_seq == rows // 4
    publisher.flush()
    batches = -(-rows // 4)
    body = b"".join(ring.payload(s, 256) for s in range(batches))
    assert body[: array.size] == array.tobytes()
    headers = [ring.header(s) for s in range(batches)]
    assert [h["seq"] for h in headers] == list(range(1, batches + 1))
    assert sum(h["messages"] for h in headers) == rows
    assert {(h["format"], h["message_size"]) for h in headers} == {(0, 64)}


def test_a_change_of_format_begins_a_new_batch_and_keeps_the_order() -> None:
    ring = RawRing(slots=4)
    publisher = ring.publisher(**VARIABLE, quota=4)
    publisher.publish(message(0, 5))
    publisher.publish_many(message(1, 32), 16)
    publisher.publish_many(message(2, 24), 8)
    publisher.publish(message(3, 5))
    publisher.flush()
    headers = [ring.header(s) for s in range(4)]
    assert [(h["seq"], h["messages"], h["message_size"]) for h in headers] == [
        (1, 1, 0),
        (2, 2, 16),
        (3, 3, 8),
        (4, 1, 0),
    ]
    bodies = [ring.payload(s, headers[s]["body_bytes"]) for s in range(4)]
    assert bodies == [framed(message(0, 5)), message(1, 32), message(2, 24), framed(message(3, 5))]


# --- quota and space ----------------------------------------------------------------------------


@pytest.mark.parametrize("quota", [1, 2, 3])
def test_a_publisher_holds_no_more_slots_than_its_quota(quota: int) -> None:
    ring = RawRing(slots=4)
    broker, publisher = ring.broker(), ring.publisher(quota=quota)
    for _ in range(quota):
        publisher.publish(MESSAGE)
        publisher.flush()
    assert publisher.in_flight == quota
    with pytest.raises(WaitTimeout, match=f"{quota} of {quota} allowed in flight"):
        publisher.publish(MESSAGE)
    accept(broker)
    with pytest.raises(WaitTimeout):  # accepted is not enough: the slot is still held
        publisher.publish(MESSAGE)
    broker.release()
    publisher.publish(MESSAGE)
    held = [owner for _, owner, _, _ in ring.monitor().slots()]
    assert held.count(0) == quota


def test_the_open_batch_counts_towards_the_quota() -> None:
    ring = RawRing()
    publisher = ring.publisher(quota=2)
    publisher.publish(MESSAGE)
    publisher.flush()
    for _ in range(4):
        publisher.publish(MESSAGE)  # fills the second slot, and commits it
    with pytest.raises(WaitTimeout):
        publisher.publish(MESSAGE)
    assert publisher.in_flight == 2


def test_a_full_pool_stops_a_publisher_whose_quota_is_not_used_up() -> None:
    ring = RawRing()
    broker, a, b = ring.broker(), ring.publisher(0, quota=3), ring.publisher(1, quota=3)
    for _ in range(3):
        a.publish(MESSAGE)
        a.flush()
    with pytest.raises(WaitTimeout, match=r"3 of 3 slots are held: slot 0: publisher 0 \(pid"):
        b.publish(MESSAGE)
    assert ring.monitor().publisher(1)["space_waits"] == 1
    accept(broker)
    broker.release()
    b.publish(MESSAGE)
    assert ring.slot(0) == owned_slot(1, 1)


def test_a_message_that_found_no_slot_is_in_no_batch() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(quota=1)
    publisher.publish(message(1, 64))
    publisher.flush()
    with pytest.raises(WaitTimeout):
        publisher.publish(message(2, 64))
    assert publisher.flush() == 1
    accept(broker)
    broker.release()
    publisher.publish(message(3, 64))
    publisher.flush()
    assert accept(broker)["messages"] == 1
    assert ring.payload(0, 64) == message(3, 64)


def test_a_damaged_ticket_ring_is_an_error_of_the_next_commit_and_of_all_after_it() -> None:
    ring = RawRing()
    publisher = ring.publisher()
    publisher.publish(MESSAGE)
    ring.set_u64(ring.entry_at(0), 2**32 - 1)
    for _ in range(2):
        with pytest.raises(CorruptSegment, match="the tickets of the ring unit/0 make no sense"):
            publisher.flush()
    assert publisher.state == "corrupt"


# --- flush, linger, close -----------------------------------------------------------------------


def test_flushing_nothing_commits_nothing() -> None:
    ring = RawRing()
    publisher = ring.publisher()
    assert publisher.flush() == 0
    publisher.publish(MESSAGE)
    assert [publisher.flush(), publisher.flush()] == [1, 1]
    assert ring.monitor().control()["tail"] == 1


def test_a_batch_that_stays_open_is_committed_by_lingering() -> None:
    ring = RawRing()
    publisher = ring.publisher(linger_ms=0.01)
    publisher.publish(MESSAGE)
    deadline = time.monotonic() + 30
    while publisher.committed_seq == 0:
        assert time.monotonic() < deadline, "the linger thread did not commit"
        time.sleep(0.0005)
    publisher.close()
    assert ring.header(0)["messages"] == 1


def test_a_closed_publisher_refuses_everything_and_its_open_batch_is_dropped() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(2)
    publisher.publish(MESSAGE)
    publisher.close()
    publisher.close()
    for call in (
        lambda: publisher.publish(MESSAGE),
        publisher.flush,
        publisher.wait_acked,
        lambda: publisher.publish_many(MESSAGE, 64),
        lambda: _core.Reservation(publisher, 64),
    ):
        with pytest.raises(ClosedError, match="is closed"):
            call()
    assert broker.accept() is None
    assert broker.reap_row(2)
    assert ring.slot(0) == free_slot(1)


def test_the_copy_of_a_forked_child_refuses_everything() -> None:
    ring = RawRing()
    publisher = ring.publisher()
    publisher.publish(MESSAGE)
    publisher.after_fork_in_child()
    for call in (lambda: publisher.publish(MESSAGE), publisher.flush, publisher.wait_acked):
        with pytest.raises(ClosedError, match="belongs to the parent"):
            call()
    publisher.close()
    assert ring.monitor().publisher(0)["state"] == "active"  # the parent's
    assert ring.monitor().control()["tail"] == 0


# --- what is refused ----------------------------------------------------------------------------

REFUSED_MESSAGES: list[tuple[dict[str, Any], bytes, str]] = [
    ({}, b"", "at least one byte"),
    (VARIABLE, b"", "at least one byte"),
    ({}, bytes(63), "message_size=64, and got 63 bytes"),
    ({}, bytes(128), "message_size=64, and got 128 bytes"),
    (VARIABLE, bytes(249), "249 bytes .* does not fit into a batch of 256 bytes"),
    ({**VARIABLE, "batch_bytes": 100}, bytes(93), "does not fit into a batch of 100 bytes"),
]


@pytest.mark.parametrize("open_batch", [False, True], ids=["at first", "in an open batch"])
@pytest.mark.parametrize(("options", "refused", "reason"), REFUSED_MESSAGES)
def test_a_message_of_a_wrong_size_is_refused_and_changes_nothing(
    options: dict[str, Any], refused: bytes, reason: str, open_batch: bool
) -> None:
    ring = RawRing()
    publisher = ring.publisher(**options)
    if open_batch:
        publisher.publish(MESSAGE)
    with pytest.raises(MessageSizeError, match=reason):
        publisher.publish(refused)
    assert publisher.flush() == open_batch
    assert ring.monitor().publisher(0)["messages"] == open_batch


@pytest.mark.parametrize(
    ("messages", "size", "error"),
    [
        (bytes(65), 64, BufferTypeError),
        (bytes(64), 0, MessageSizeError),
        (bytes(128), 128, MessageSizeError),  # the publisher's size is 64
        (np.zeros((4, 128), np.uint8)[:, ::2], None, BufferTypeError),
        ("text", None, BufferTypeError),
        (np.array([object()]), None, BufferTypeError),
    ],
    ids=["no multiple", "no size", "another size", "strided", "text", "objects"],
)
def test_many_messages_of_a_wrong_kind_are_refused(messages: Any, size: Any, error: type) -> None:
    ring = RawRing()
    publisher = ring.publisher()
    with pytest.raises(error):
        publisher.publish_many(messages, size)
    assert publisher.flush() == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch_bytes": 257}, "batch_bytes"),
        ({"batch_bytes": 15, "message_size": 8}, "batch_bytes"),
        ({"batch_bytes": 100, "message_size": 101}, "message_size is larger than batch_bytes"),
        ({"quota": 0}, "quota"),
        ({"copy": 3}, "copy"),
        ({"wait_mode": 3}, "wait mode"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_the_row_is_taken(
    options: dict[str, Any], reason: str
) -> None:
    ring = RawRing()
    with pytest.raises(ValueError, match=reason):
        ring.publisher(**options)
    assert ring.monitor().publisher(0)["state"] == "free"


# --- stage times --------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "samples"), [(0, 0), (1, 8), (3, 2), (8, 1), (9, 0)])
def test_one_in_so_many_messages_is_timed(every: int, samples: int) -> None:
    ring = RawRing()
    publisher = ring.publisher(sample_every=every)
    for _ in range(8):
        publisher.publish(MESSAGE)
    stages = ring.monitor().publisher_stages(0)
    assert stages["buffer_write"]["count"] == samples
    batches = 2 if every else 0
    counts = [stages[s]["count"] for s in ("get_buffer", "send_payload", "wait_space")]
    assert counts == [batches] * 3


def test_the_buckets_of_a_stage_hold_all_its_samples_below_their_bounds() -> None:
    ring = RawRing()
    publisher = ring.publisher(sample_every=1, quota=3)
    for _ in range(12):
        publisher.publish(MESSAGE)
    stage = ring.monitor().publisher_stages(0)["send_payload"]
    bounds = [bound for bound, _ in stage["buckets"]]
    assert all(a < b for a, b in itertools.pairwise(bounds))
    assert sum(n for _, n in stage["buckets"]) == stage["count"] == 3
    assert sum(bound * n for bound, n in stage["buckets"]) >= stage["sum"]
    assert bounds[-1] >= stage["max"]
