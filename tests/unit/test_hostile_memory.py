"""Words of a ring that no honest process has written: found, named, and no reason to hang.

Here each word is damaged on purpose; ``tests/native/ring_fuzz.cpp`` damages all of them at random.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from raw_ring import (
    BROKER_STATE,
    HEAD,
    LINE,
    RELEASED,
    TAIL,
    RawRing,
    accept,
    commit_batches,
    free_entry,
)

import embar_shm as es
from embar_shm import _core
from embar_shm.address import RingName
from embar_shm.segment import Segment
from embar_shm.shared_memory import unlink_segment
from embar_shm.testing import Child

QUARANTINED = 4
ACCEPTED_SEQ, RELEASED_BATCHES = LINE, LINE + 8  # in a row of the publishers table


def ring_in_use() -> tuple[RawRing, _core.BrokerCore, _core.PublisherCore]:
    """Two batches that have come and gone; the broker serves."""
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    commit_batches(publisher, 2)
    for _ in range(2):
        accept(broker)
        assert broker.release()
    return ring, broker, publisher


DAMAGE = {
    "control.head": lambda _: HEAD,
    "control.released": lambda _: RELEASED,
    "control.tail": lambda _: TAIL,
    "publishers[0].accepted_seq": lambda ring: ring.row_at(0) + ACCEPTED_SEQ,
    "publishers[0].released_batches": lambda ring: ring.row_at(0) + RELEASED_BATCHES,
    "tickets[1]": lambda ring: ring.entry_at(1),
}


@pytest.mark.parametrize("field", DAMAGE)
def test_a_broker_that_serves_names_the_word_that_somebody_else_has_written(field: str) -> None:
    ring, broker, _ = ring_in_use()
    at = DAMAGE[field](ring)
    ring.set_u64(at, ring.u64(at) + 7)
    assert broker.serve(0.0) == "corrupt"
    assert str(broker.corruption).startswith(f"{field}: ")
    assert ring.monitor().damage == broker.corruption
    assert ring.monitor().control()["state"] == QUARANTINED


@pytest.mark.parametrize("state", [0, 2, 3, 77])
def test_a_broker_that_serves_notices_when_it_is_said_to_have_stopped(state: int) -> None:
    ring, broker, _ = ring_in_use()
    ring.set_u32(BROKER_STATE, state)
    assert broker.serve(0.0) == "corrupt"
    assert str(broker.corruption).startswith(f"control.state: {state}")


def test_a_ring_in_which_nothing_was_changed_is_served_on() -> None:
    ring, broker, publisher = ring_in_use()
    for _ in range(20):
        commit_batches(publisher)
        assert broker.serve(0.0) == "timeout"
    assert broker.corruption is None
    assert _core.check_ring(ring.memory) == []


def test_a_batch_that_vanished_behind_others_is_no_reason_to_wait_for_ever() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    commit_batches(publisher, 2)
    ring.set_u64(ring.entry_at(0), free_entry(0))
    assert broker.serve(0.0) == "corrupt"
    assert str(broker.corruption).startswith("tickets[1]: ")


def test_a_publisher_that_finds_no_place_for_its_batch_calls_the_broker_to_look() -> None:
    ring, broker, publisher = ring_in_use()
    assert broker.serve(0.0) == "timeout"  # it has looked at everything just now
    ring.set_u64(TAIL, 1000)
    with pytest.raises(es.CorruptSegment):
        commit_batches(publisher)
    assert broker.serve(0.0) == "corrupt"
    assert str(broker.corruption).startswith("control.tail: 1000")


@pytest.mark.parametrize("word", [ACCEPTED_SEQ, RELEASED_BATCHES])
def test_a_new_broker_does_not_stand_by_more_than_was_committed(word: int) -> None:
    ring, _, _ = ring_in_use()
    ring.set_u64(ring.row_at(0) + word, 4)
    broker = ring.broker()
    assert str(broker.corruption).startswith("publishers[0].")
    assert ring.monitor().control()["state"] == QUARANTINED


def test_everybody_on_a_quarantined_ring_is_told_what_was_wrong() -> None:
    ring, broker, publisher = ring_in_use()
    reader = ring.subscriber(admitted_by=broker)
    ring.set_u64(HEAD, 3)
    assert broker.serve(0.0) == "corrupt"
    with pytest.raises(es.CorruptSegment, match=r"control\.head: 3"):
        commit_batches(publisher)
    with pytest.raises(es.CorruptSegment):
        reader.next(0.0)
    assert str(ring.broker().corruption).startswith("control.state: 4")


# --- attaching to a file that is damaged ----------------------------------------------------------

HEADER_FIELDS_END = _core.structs()["SegmentHeader"][1][-1][1]  # where `reserved` begins
FREE_TO_CHANGE = ("created_unix_ns", "damage")  # nothing depends on them


def field_of(byte: int) -> str:
    return next(
        name
        for name, offset, size, _ in _core.structs()["SegmentHeader"][1]
        if offset <= byte < offset + size
    )


def test_a_header_with_any_byte_changed_is_refused_or_does_not_matter(
    make_broker: Callable[..., es.Broker],
) -> None:
    broker = make_broker()
    memory, accepted = broker.segment.memory, set()
    for byte in range(HEADER_FIELDS_END):
        before = memory[byte]
        memory[byte] = before ^ 0x5A
        try:
            Segment.attach(broker.segment.name, prefault=False).close()
            accepted.add(field_of(byte))
        except es.IncompatibleSegment as error:
            assert "cannot be used" in error.message
        finally:
            memory[byte] = before
    # What is behind the end of a name or boot id is not read.
    assert accepted == {*FREE_TO_CHANGE, "boot_id", "name"}


def copies(broker: es.Broker, name: RingName) -> Iterator[tuple[str, bytes]]:
    whole = bytes(broker.segment.memory)
    page = _core.SEGMENT_HEADER_BYTES
    for size in (1, 8, page - 1, page, page + 1, len(whole) // 2, len(whole) - 1):
        yield f"cut to {size} bytes", whole[:size]
    yield "grown", whole + bytes(page)
    yield "garbage", os.urandom(len(whole))
    yield "another ring's name", whole
    yield "a magic of 0, and batches", bytes(8) + whole[8:]


def test_a_left_over_that_is_damaged_is_refused_and_stays(
    make_broker: Callable[..., es.Broker], cluster: str
) -> None:
    broker = make_broker()
    with es.Publisher.connect(broker.address, message_size=8) as publisher:
        publisher.publish(bytes(8))
        publisher.flush()
    name = RingName(cluster, "damaged")
    for what, content in copies(broker, name):
        name.path.write_bytes(content)
        name.path.chmod(0o600)
        try:
            for open_it in (
                lambda: Segment.attach(name),
                lambda: es.Publisher.connect(f"shm://{name}", timeout=0),
                lambda: es.Subscriber.connect(f"shm://{name}", timeout=0),
            ):
                with pytest.raises(es.IncompatibleSegment):
                    open_it()
                assert name.path.read_bytes() == content, what
            if len(content) < _core.SEGMENT_HEADER_BYTES:
                continue  # less than a header: its creator died, and it is made anew
            with pytest.raises(es.IncompatibleSegment):
                es.Broker.open_or_recover(str(name))
            assert name.path.read_bytes() == content, what
        finally:
            with suppress(FileNotFoundError):
                name.path.unlink()


# --- a broker in a process of its own -------------------------------------------------------------

BROKER = """
import sys
import embar_shm as es

with es.Broker.create(sys.argv[1], slots=4, slot_size=4096, max_publishers=4) as broker:
    print("ready", flush=True)
    try:
        broker.serve()
    except es.CorruptSegment as error:
        print(error.message, flush=True)
"""


@pytest.mark.parametrize(
    ("field", "offset"), [("control.head", HEAD), ("control.tail", TAIL), ("control.state", None)]
)
def test_a_damaged_ring_ends_its_broker_and_everybody_else_and_is_kept(
    cluster: str, field: str, offset: int | None
) -> None:
    name = RingName(cluster, "0")
    with Child(BROKER, str(name)) as child:
        child.expect("ready")
        with (
            es.Publisher.connect(f"shm://{name}", message_size=8, timeout=20) as publisher,
            es.Subscriber.connect(f"shm://{name}", timeout=20) as subscriber,
        ):
            publisher.publish(bytes(8))
            publisher.wait_acked()
            subscriber.next().release()
            with name.path.open("r+b") as file:
                file.seek(BROKER_STATE if offset is None else offset)
                file.write(struct.pack("<I", 2) if offset is None else struct.pack("<Q", 3))
            assert f"is damaged and quarantined: {field}: " in child.read()
            with pytest.raises(es.CorruptSegment):  # by its own look at that word, or told
                publisher.publish(bytes(8))
                publisher.wait_acked()
            with pytest.raises(es.CorruptSegment):
                subscriber.next()
        assert child.wait() == 0
    content = name.path.read_bytes()
    try:
        with pytest.raises(es.CorruptSegment, match=field):
            es.Broker.open_or_recover(str(name))
        assert name.path.read_bytes() == content
    finally:
        unlink_segment(name, Path(name.path).stat().st_ino)
