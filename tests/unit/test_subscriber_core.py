"""The subscriber and its gate, one step at a time: who joins, what is read, what may be released.

On a ring of three slots and four tickets; nothing waits here (timeout 0), and nothing else runs,
but in the tests that say so.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from raw_ring import (
    ACTIVE,
    BROKER_STATE,
    CLOSED,
    EVENT,
    FREE,
    HEAD,
    JOINING,
    LAPS,
    LOOK_AROUND,
    NEWS,
    NEWS_SLEEPERS,
    READER_CURSOR,
    READER_NEXT,
    READER_ROW,
    READER_START,
    READER_STATE,
    REFUSED,
    RELEASED,
    ROW_EVENT,
    ROW_SLEEPING,
    SLEEPING,
    SLOWEST,
    SPACE_WAITERS,
    RawRing,
    accept,
    commit_batches,
    free_entry,
    free_slot,
    message,
    owned_slot,
    used_entry,
)

from embar_shm import _core
from embar_shm.errors import (
    BrokerGone,
    ClosedError,
    CorruptBatch,
    CorruptSegment,
    EndOfLog,
    MisuseError,
    PositionLost,
    WaitTimeout,
)
from embar_shm.readers import describe_slow, subscribers
from embar_shm.testing import wait_until
from embar_shm.testing.conditions import DEADLINE

Make = Callable[..., _core.SubscriberCore]


def publish(ring: RawRing, broker: _core.BrokerCore, publisher: Any, *numbers: int) -> None:
    """Batches of one message each, accepted; what everybody has passed is released."""
    for number in numbers:
        publisher.publish(message(number, 64))
        publisher.flush()
        accept(broker)
        broker.release_passed(False)


def numbers_read(core: _core.SubscriberCore) -> list[int]:
    """Reads and releases everything there is: which messages."""
    found = []
    while (batch := core.poll()) is not None:
        number = next(n for n in range(1000) if message(n, 64) == batch.copy())
        found.append(number)
        batch.release()
    return found


def slot_of(ring: RawRing, ticket: int) -> int:
    return ring.entry(ticket) >> 51 & 4095


# --- the row --------------------------------------------------------------------------------------


@pytest.fixture
def locks() -> Iterator[Callable[[], int]]:
    """Open file descriptions of one file, for liveness locks: ``locks()`` opens another one."""
    with tempfile.NamedTemporaryFile() as file:
        opened: list[int] = []

        def another() -> int:
            opened.append(os.open(file.name, os.O_RDWR))
            return opened[-1]

        yield another
        for fd in opened:
            os.close(fd)


@pytest.mark.parametrize(
    ("before", "alive", "after"),
    [
        (FREE, False, FREE),
        (JOINING, True, JOINING),
        (JOINING, False, FREE),
        (ACTIVE, True, ACTIVE),
        (ACTIVE, False, FREE),
        (REFUSED, True, REFUSED),
        (REFUSED, False, FREE),
        (CLOSED, True, FREE),  # its own word: it has not yet dropped its lock
        (CLOSED, False, FREE),
        (77, True, 77),  # no such state: some process wrote it
        (77, False, FREE),
    ],
)
def test_a_row_is_freed_when_its_owner_left_or_died_and_only_then(
    locks: Callable[[], int], before: int, alive: bool, after: int
) -> None:
    ring = RawRing()
    broker = ring.broker(lock_fd=locks())
    if alive:
        assert _core.try_lock(locks(), _core.subscriber_lock(1))
    if before == ACTIVE:
        ring.subscriber(broker, index=1)
    else:
        ring.set_u32(ring.reader_at(1) + READER_STATE, before)
    broker.reap()
    assert ring.u32(ring.reader_at(1) + READER_STATE) == after
    died = before not in (FREE, CLOSED) and after == FREE
    assert ring.monitor().control()["reaped_subscribers"] == died
    assert ring.monitor().control()["subscribers"] == (after == ACTIVE)


def test_a_row_that_was_freed_has_nothing_of_its_last_owner(locks: Callable[[], int]) -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    core = ring.subscriber(broker, index=2, mode="lossy", start=0)
    publish(ring, broker, publisher, *range(8))
    assert numbers_read(core)
    core.close()
    broker.reap()
    at = ring.reader_at(2)
    assert ring.memory[at : at + 256] == bytes(256)


def test_a_subscriber_tells_the_broker_when_it_comes_and_when_it_leaves() -> None:
    ring = RawRing()
    broker = ring.broker()
    ring.set_u32(SLEEPING, 1)
    core = ring.subscriber()
    assert (ring.u32(LOOK_AROUND), ring.u32(EVENT), ring.u32(SLEEPING)) == (1, 1, 0)
    assert ring.u32(ring.reader_at(0) + READER_STATE) == JOINING
    broker.admit()
    core.join(0.0)
    ring.set_u32(LOOK_AROUND, 0)
    core.close()
    assert ring.u32(LOOK_AROUND) == 1
    assert ring.u32(ring.reader_at(0) + READER_STATE) == CLOSED
    assert ring.left == [0]


def test_a_subscriber_that_is_not_admitted_says_who_should_have() -> None:
    ring = RawRing()
    ring.broker()
    with pytest.raises(WaitTimeout, match=r"the broker \(pid 0\) of unit/0 did not admit"):
        ring.subscriber().join(0.0)


def test_one_that_joins_a_broker_that_stops_learns_that() -> None:
    ring = RawRing()
    broker = ring.broker()
    core = ring.subscriber()
    broker.retire()
    with pytest.raises(BrokerGone, match="stopped before it admitted"):
        core.join(0.0)


def test_one_that_left_before_it_was_admitted_holds_nothing_back() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    ring.subscriber().close()
    broker.admit()
    assert ring.u32(ring.reader_at(0) + READER_STATE) == CLOSED
    publish(ring, broker, publisher, 0)
    assert ring.u64(RELEASED) == 1


@pytest.mark.parametrize("mode", ["reliable", "lossy"])
@pytest.mark.parametrize(
    ("start", "at"), [("latest", 5), ("earliest", 3), (3, 3), (4, 4), (5, 5)], ids=str
)
def test_a_subscriber_begins_where_it_wants_to(start: str | int, at: int, mode: str) -> None:
    ring = RawRing()
    ring.start_at(3)
    broker, publisher = ring.broker(retain=3), ring.publisher()
    publish(ring, broker, publisher, 3, 4)
    core = ring.subscriber(broker, mode=mode, start=start)
    assert (core.position, core.held) == (at, 0)
    assert ring.u64(ring.reader_at(0) + READER_CURSOR) == at
    publish(ring, broker, publisher, 5)
    assert numbers_read(core) == [3, 4, 5][at - 3 :]
    assert core.position == 6


@pytest.mark.parametrize(
    ("ticket", "says"),
    [
        (0, "ticket 0 of unit/0 is overwritten: the log holds tickets 3 to 4"),
        (2, "ticket 2 of unit/0 is overwritten"),
        (6, "ticket 6 of unit/0 was never written"),
        (2**64 - 1, f"ticket {2**64 - 1} of unit/0 was never written"),
    ],
)
def test_a_place_that_is_not_in_the_log_is_refused(ticket: int, says: str) -> None:
    ring = RawRing()
    ring.start_at(3)
    broker, publisher = ring.broker(retain=2), ring.publisher()
    publish(ring, broker, publisher, 3, 4)
    with pytest.raises(PositionLost, match=says):
        ring.subscriber(broker, start=ticket)
    assert ring.u32(ring.reader_at(0) + READER_STATE) == REFUSED
    broker.release_passed(True)
    publish(ring, broker, publisher, 5, 6, 7, 8)  # the refused one holds nothing back
    assert ring.monitor().control()["head"] == 9


def test_a_start_that_does_not_exist_is_taken_for_a_ticket() -> None:
    ring = RawRing()
    broker = ring.broker()
    core = ring.subscriber()
    ring.set_u32(ring.reader_at(0) + READER_START, 99)
    broker.admit()
    core.join(0.0)
    assert core.position == 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"index": 4}, IndexError),
        ({"index": 2**32 - 1}, IndexError),
        ({"mode": 2}, ValueError),
        ({"start": 3}, ValueError),
        ({"wait_mode": 3}, ValueError),
        ({"slots": bytes(10)}, ValueError),
        ({"slots": 5}, TypeError),
        ({"buffer": bytearray(10)}, ValueError),
    ],
    ids=str,
)
def test_a_core_that_makes_no_sense_is_not_made(
    options: dict[str, Any], error: type[Exception]
) -> None:
    ring = RawRing()
    arguments = {
        "context": ring,
        "buffer": ring.memory,
        "slots": None,
        "index": 0,
        "lock_fd": -1,
        "name": "",
        "mode": 0,
        "start": 0,
        "ticket": 0,
        "sole": False,
        "wait_mode": 2,
        "spin_us": 0.0,
        "cpus": 1,
        "timeout": 0.0,
        "broker": None,
        "on_left": lambda: None,
    }
    with pytest.raises(error):
        _core.SubscriberCore(**(arguments | options))
    assert ring.u32(ring.reader_at(0) + READER_STATE) == FREE


# --- gates ----------------------------------------------------------------------------------------


def test_nothing_is_released_before_the_slowest_has_passed_it() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    fast, slow = ring.subscriber(broker, 0), ring.subscriber(broker, 1)
    publish(ring, broker, publisher, 0, 1, 2)
    assert numbers_read(fast) == [0, 1, 2]
    kept = [slow.poll() for _ in range(3)]
    broker.release_passed(True)
    assert (ring.u64(RELEASED), publisher.in_flight) == (0, 3)
    kept[0].release()
    broker.release_passed(True)
    assert (ring.u64(RELEASED), publisher.in_flight) == (1, 2)
    kept[2].release()  # out of order: the cursor waits for the one before
    broker.release_passed(True)
    assert ring.u64(RELEASED) == 1
    kept[1].release()
    broker.release_passed(True)
    assert (ring.u64(RELEASED), publisher.in_flight) == (3, 0)


def test_a_publisher_gets_no_slot_that_a_subscriber_holds() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    core = ring.subscriber(broker)
    publish(ring, broker, publisher, 0, 1, 2)
    batches = [core.poll() for _ in range(3)]
    with pytest.raises(WaitTimeout, match="no slot of unit/0 came free"):
        publisher.publish(message(3, 64))
    assert [b.copy() for b in batches] == [message(n, 64) for n in range(3)]
    batches[0].release()
    broker.release_passed(True)
    publish(ring, broker, publisher, 3)
    assert [b.copy() for b in batches[1:]] == [message(1, 64), message(2, 64)]
    assert core.poll().copy() == message(3, 64)


def test_a_cursor_counts_only_while_it_moves_forward_and_within_the_log() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    ring.subscriber(broker)
    publish(ring, broker, publisher, 0, 1, 2)
    released = []
    for cursor in (4, 2**63, 2**64 - 1, 0, 2, 1, 0, 4, 3):
        ring.set_u64(ring.reader_at(0) + READER_CURSOR, cursor)
        broker.release_passed(False)
        released.append(ring.u64(RELEASED))
    assert released == [0, 0, 0, 0, 2, 2, 2, 2, 3]


def test_a_gate_whose_row_was_overwritten_ends_with_its_owner(locks: Callable[[], int]) -> None:
    ring = RawRing()
    broker, publisher = ring.broker(lock_fd=locks()), ring.publisher()
    owner = locks()
    assert _core.try_lock(owner, _core.subscriber_lock(0))
    assert _core.try_lock(owner, _core.publisher_lock(0))
    ring.subscriber(broker)
    ring.set_u32(ring.reader_at(0) + READER_STATE, FREE)
    publish(ring, broker, publisher, 0)
    broker.reap()
    broker.release_passed(False)
    assert ring.u64(RELEASED) == 0  # it may still read
    _core.unlock(owner, _core.subscriber_lock(0))
    broker.reap()
    broker.release_passed(False)
    assert ring.u64(RELEASED) == 1


def test_a_dead_subscriber_holds_nothing_back(locks: Callable[[], int]) -> None:
    ring = RawRing()
    broker, publisher = ring.broker(lock_fd=locks()), ring.publisher()
    assert _core.try_lock(locks(), _core.publisher_lock(0))
    core = ring.subscriber(broker)
    publish(ring, broker, publisher, 0)
    kept = core.poll()
    assert broker.serve(0.001) == "timeout"
    assert (ring.u64(RELEASED), publisher.in_flight) == (1, 0)
    assert ring.monitor().control()["reaped_subscribers"] == 1
    assert kept is not None


def test_the_broker_asks_the_slowest_alone_to_wake_it() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    first, second = ring.subscriber(broker, 0), ring.subscriber(broker, 1)
    publish(ring, broker, publisher, 0, 1)
    first.poll().release()
    assert broker.serve(0.001) == "timeout"  # it has slept
    assert (ring.u32(SLOWEST), ring.u32(SLEEPING)) == (2, 1)
    first.poll().release()
    assert (ring.u32(EVENT), ring.u32(SLEEPING)) == (0, 1)
    second.poll().release()
    assert (ring.u32(EVENT), ring.u32(SLEEPING)) == (1, 0)
    assert numbers_read(second) == [1]
    ring.set_u32(SLEEPING, 0)
    assert broker.serve(0.001) == "timeout"
    assert (ring.u32(SLOWEST), ring.u64(RELEASED)) == (0, 2)


def test_the_broker_does_not_sleep_on_what_it_could_release() -> None:
    """A gate that ends after the broker's last look at it does not wake the broker any more."""
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    core = ring.subscriber(broker)
    publish(ring, broker, publisher, 0)
    kept = core.poll()
    core.close()  # the broker looks for that only after it has released what it can
    serving = threading.Thread(target=broker.serve, args=(None,))
    serving.start()
    try:
        wait_until(lambda: ring.u32(SLEEPING), "the broker sleeps")
        assert (ring.u64(RELEASED), publisher.in_flight) == (1, 0)
    finally:
        broker.stop()
        serving.join()
    assert kept is not None


# --- retaining ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("retain", "released"), [(0, 3), (1, 2), (2, 1), (3, 0)])
def test_what_is_retained_is_no_longer_in_flight(retain: int, released: int) -> None:
    ring = RawRing()
    broker, publisher = ring.broker(retain=retain), ring.publisher(quota=3)
    publish(ring, broker, publisher, 0, 1, 2)
    assert (ring.u64(RELEASED), publisher.in_flight) == (released, 0)
    assert numbers_read(ring.subscriber(broker, start="earliest")) == [0, 1, 2][released:]


def test_more_than_the_ring_has_cannot_be_retained() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(retain=1000), ring.publisher(quota=3)
    publish(ring, broker, publisher, 0, 1, 2)
    broker.release_passed(True)
    publish(ring, broker, publisher, 3)
    assert numbers_read(ring.subscriber(broker, start="earliest")) == [1, 2, 3]


def test_what_is_retained_is_given_up_one_by_one_for_publishers_that_wait() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(retain=3), ring.publisher(quota=3)
    publish(ring, broker, publisher, 0, 1, 2)
    broker.release_passed(True)
    assert ring.u64(RELEASED) == 1
    broker.release_passed(True)  # there is a free slot: nothing is given up for nothing
    assert ring.u64(RELEASED) == 1


def test_what_a_subscriber_holds_is_not_given_up() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(retain=3), ring.publisher(quota=3)
    publish(ring, broker, publisher, 0)
    core = ring.subscriber(broker, start="latest")
    publish(ring, broker, publisher, 1, 2)
    for _ in range(5):
        broker.release_passed(True)
    assert ring.u64(RELEASED) == 1
    ring.set_u32(SPACE_WAITERS, 1)
    assert broker.serve(0.0) == "timeout"
    assert ring.u64(RELEASED) == 1
    assert numbers_read(core) == [1, 2]


def test_a_reliable_subscriber_can_begin_at_what_is_retained_and_then_holds_it() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(retain=2), ring.publisher(quota=3)
    publish(ring, broker, publisher, 0, 1, 2)
    core = ring.subscriber(broker, start=1)
    broker.release_passed(True)
    assert ring.u64(RELEASED) == 1
    publish(ring, broker, publisher, 3)
    broker.release_passed(True)
    assert (ring.u64(RELEASED), publisher.in_flight) == (1, 1)  # 1 and 2 were passed before
    assert numbers_read(core) == [1, 2, 3]
    broker.release_passed(True)
    assert publisher.in_flight == 0


@pytest.mark.parametrize(("slots", "kept"), [(1, 0), (2, 1), (3, 1), (4, 2), (7, 3)])
def test_half_of_the_slots_are_retained_while_a_lossy_subscriber_is_there(
    slots: int, kept: int
) -> None:
    ring = RawRing(slots=slots)
    broker, publisher = ring.broker(), ring.publisher(quota=slots)
    core = ring.subscriber(broker, mode="lossy")
    publish(ring, broker, publisher, *range(slots))
    assert slots - ring.u64(RELEASED) == kept
    core.close()
    broker.reap()
    broker.release_passed(False)
    assert ring.u64(RELEASED) == slots


# --- reading --------------------------------------------------------------------------------------


def test_a_batch_tells_what_its_header_says() -> None:
    ring = RawRing()
    ring.start_at(7)
    broker = ring.broker()
    core = ring.subscriber(broker)
    publisher = ring.publisher(2, publisher_id=55, incarnation=66, message_size=0)
    publisher.publish(bytes(3))
    publisher.publish(bytes(10))
    publisher.flush()
    accept(broker)
    batch = core.poll()
    header = ring.header(slot_of(ring, 7))
    assert (batch.ticket, batch.publisher_id, batch.incarnation, batch.seq) == (7, 55, 66, 1)
    assert (batch.count, batch.message_size, batch.nbytes, batch.payload_bytes) == (2, 0, 40, 13)
    assert (batch.opened_ns, batch.committed_ns) == (header["opened_ns"], header["committed_ns"])
    assert (batch.gap, batch.released) == (0, False)
    row = ring.monitor().subscriber(0)
    assert (row["batches"], row["messages"], row["payload_bytes"]) == (1, 2, 13)
    assert (row["cursor"], row["next"], core.held) == (7, 8, 1)


def test_reading_waits_for_acceptance_not_for_the_commit() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    core = ring.subscriber(broker)
    commit_batches(publisher)
    assert core.poll() is None
    accept(broker)
    assert core.poll() is not None


def test_a_wait_that_finds_nothing_says_who_was_waited_for() -> None:
    ring = RawRing()
    broker = ring.broker()
    core = ring.subscriber(broker)
    ring.publisher()
    with pytest.raises(WaitTimeout, match=r"no batch came on unit/0 .* accepted 0 batches"):
        core.next(timeout=0)
    assert ring.monitor().subscriber(0)["waits"] == 1


def test_one_that_holds_all_slots_is_told_that_it_waits_for_itself() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    core = ring.subscriber(broker)
    publish(ring, broker, publisher, 0, 1, 2)
    kept = [core.poll() for _ in range(3)]
    with pytest.raises(WaitTimeout, match="this subscriber holds 3 batches, all 3 slots"):
        core.next(timeout=0)
    assert all(kept)


def test_acceptance_wakes_the_subscribers_that_sleep_and_only_then() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    ring.subscriber(broker)
    commit_batches(publisher)
    before = ring.u32(NEWS)
    assert broker.serve(0.0) == "timeout"
    assert ring.u32(NEWS) == before
    ring.set_u32(NEWS_SLEEPERS, 1)
    commit_batches(publisher)
    assert broker.serve(0.0) == "timeout"
    assert (ring.u32(NEWS), ring.u32(NEWS_SLEEPERS)) == (before + 1, 0)


@pytest.mark.parametrize("mode", ["reliable", "lossy"])
@pytest.mark.parametrize(
    ("forged", "verdict"),
    [({"messages": 0}, "bad_header"), ({"seq": 1}, "duplicate"), ({"seq": 3}, "out_of_order")],
    ids=str,
)
def test_a_batch_that_the_broker_refused_is_not_read(
    forged: dict[str, int], verdict: str, mode: str
) -> None:
    ring = RawRing()
    broker, publisher, other = ring.broker(), ring.publisher(quota=3), ring.publisher(1)
    core = ring.subscriber(broker, mode=mode)
    publish(ring, broker, publisher, 0)
    assert numbers_read(core) == [0]
    commit_batches(publisher)
    ring.forge_header(slot_of(ring, 1), **forged)
    assert accept(broker)["verdict"] == verdict
    assert core.poll() is None
    publish(ring, broker, other, 7)
    assert numbers_read(core) == [7]
    assert (core.position, core.held) == (3, 0)
    broker.release_passed(True)
    broker.release_passed(True)
    row = ring.monitor().subscriber(0)
    assert (row["batches"], row["lost"], row["corrupt"], row["cursor"]) == (2, 0, 0, 3)
    if mode == "reliable":
        assert ring.u64(RELEASED) == 3


@pytest.mark.parametrize("mode", ["reliable", "lossy"])
@pytest.mark.parametrize(
    ("forged", "fix_check"),
    [
        ({"publisher_id": 1}, False),
        ({"magic": 0}, True),
        ({"version": 9}, True),
        ({"format": 2}, True),
        ({"messages": 0}, True),
        ({"messages": 2**32 - 1}, True),
        ({"message_size": 0}, True),
        ({"message_size": 2**32 - 1}, True),
        ({"body_bytes": 2**64 - 1}, True),
        ({"body_bytes": 257, "payload_bytes": 257, "message_size": 257}, True),
        ({"payload_bytes": 63}, True),
        ({"format": 1}, True),
    ],
    ids=str,
)
def test_a_batch_damaged_after_its_acceptance_is_told_and_left_out(
    forged: dict[str, int], fix_check: bool, mode: str
) -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    core = ring.subscriber(broker, mode=mode)
    publisher.publish(message(0, 64))
    publisher.flush()
    publisher.publish(message(1, 64))
    publisher.flush()
    accept(broker)
    accept(broker)
    ring.forge_header(slot_of(ring, 0), fix_check=fix_check, **forged)
    with pytest.raises(CorruptBatch, match="batch 0 of unit/0 was changed") as caught:
        core.next()
    assert caught.value.exit_code == 3
    assert numbers_read(core) == [1]
    row = ring.monitor().subscriber(0)
    assert (row["corrupt"], row["batches"], row["cursor"], core.held) == (1, 1, 2, 0)
    broker.release_passed(False)
    assert publisher.in_flight == 0


def damage(name: str, ring: RawRing, ticket: int) -> None:
    """Changes a word that the batch of this ticket is found with."""
    lap, slot = ticket // 4, slot_of(ring, ticket)
    match name:
        case "entry free":
            ring.set_u64(ring.entry_at(ticket), free_entry(lap))
        case "entry zero":
            ring.set_u64(ring.entry_at(ticket), 0)
        case "earlier lap":
            ring.set_u64(ring.entry_at(ticket), used_entry((lap - 1) % LAPS, slot, 0))
        case "later lap":
            ring.set_u64(ring.entry_at(ticket), used_entry(lap + 1, slot, 0))
        case "no such slot":
            ring.set_u64(ring.entry_at(ticket), used_entry(lap, 4095, 0))
        case "one slot too many":
            ring.set_u64(ring.entry_at(ticket), used_entry(lap, 3, 0))
        case "another generation":
            ring.set_u64(ring.entry_at(ticket), used_entry(lap, slot, 2**18 - 1))
        case "all ones":
            ring.set_u64(ring.entry_at(ticket), 2**64 - 1 - (1 << 50))
        case "slot free":
            ring.set_u64(ring.slot_at(slot), free_slot(0))
        case "slot of another generation":
            ring.set_u64(ring.slot_at(slot), owned_slot(1, 0))


DAMAGES = [
    "entry free",
    "entry zero",
    "earlier lap",
    "later lap",
    "no such slot",
    "one slot too many",
    "another generation",
    "all ones",
    "slot free",
    "slot of another generation",
]


@pytest.mark.parametrize("name", DAMAGES)
def test_words_that_do_not_belong_together_are_corruption_to_a_reliable_subscriber(
    name: str,
) -> None:
    ring = RawRing()
    ring.start_at(8)
    broker, publisher = ring.broker(), ring.publisher()
    core = ring.subscriber(broker)
    publish(ring, broker, publisher, 8)
    damage(name, ring, 8)
    for read in (core.poll, core.next, lambda: next(iter(core))):
        with pytest.raises(CorruptSegment, match="unit/0"):
            read()
    assert core.position == 8


@pytest.mark.parametrize("name", DAMAGES)
def test_words_that_do_not_belong_together_are_a_loss_to_a_lossy_subscriber(name: str) -> None:
    ring = RawRing(slots=3)
    ring.start_at(8)
    broker, publisher = ring.broker(retain=3), ring.publisher()
    core = ring.subscriber(broker, mode="lossy", start="earliest")
    publish(ring, broker, publisher, 8)
    damage(name, ring, 8)
    assert core.poll() is None
    assert ring.monitor().subscriber(0)["lost"] == 1
    assert core.position == 9


@pytest.mark.parametrize("mode", ["reliable", "lossy"])
@pytest.mark.parametrize("head", [2**32, 2**63, 2**64 - 1])
def test_a_head_that_cannot_be_is_corruption(mode: str, head: int) -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    core = ring.subscriber(broker, mode=mode)
    publish(ring, broker, publisher, 0)
    ring.set_u64(HEAD, head)
    if mode == "reliable":
        assert numbers_read_until_corrupt(core) == [0]
    else:
        with pytest.raises(CorruptSegment):
            for _ in range(10):
                core.poll()


def numbers_read_until_corrupt(core: _core.SubscriberCore) -> list[int]:
    first = core.poll()
    assert first is not None
    with pytest.raises(CorruptSegment):
        core.poll()
    return [n for n in range(4) if message(n, 64) == first.copy()]


def test_a_reliable_subscriber_does_not_read_a_lap_ahead_of_its_cursor() -> None:
    """Its cursor and its memory of what is passed are both by ticket, modulo the ring."""
    ring = RawRing(slots=4)
    broker, publisher = ring.broker(), ring.publisher(quota=4)
    core = ring.subscriber(broker)
    publish(ring, broker, publisher, 0, 1, 2, 3)
    kept = [core.poll() for _ in range(4)]
    slot = slot_of(ring, 0)
    ring.set_u64(ring.entry_at(4), used_entry(1, slot, 0))
    ring.set_u64(HEAD, 5)
    with pytest.raises(CorruptSegment):
        core.poll()
    assert [b.copy() for b in kept] == [message(n, 64) for n in range(4)]


@pytest.mark.parametrize("released", [2**32, 2**63, 2**64 - 1])
def test_an_oldest_ticket_that_cannot_be_costs_a_lossy_subscriber_batches_and_nothing_else(
    released: int,
) -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    core = ring.subscriber(broker, mode="lossy")
    publish(ring, broker, publisher, *range(5))
    ring.set_u64(RELEASED, released)
    assert core.poll() is None
    assert (core.position, ring.monitor().subscriber(0)["lost"]) == (5, 5)


def test_a_row_full_of_nonsense_can_be_looked_at() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    core = ring.subscriber(broker, 0)
    publish(ring, broker, publisher, 0)
    at = ring.reader_at(0)
    ring.memory[at + 4 : at + READER_ROW] = b"\xff" * (READER_ROW - 4)
    [status] = subscribers(ring.monitor())
    assert (status.holding, status.lag, status.stalled_seconds) == (0, 0, 0)
    assert status.name == "\ufffd" * 63
    assert describe_slow(ring.monitor()) == ""
    batch = core.poll()
    assert batch.copy() == message(0, 64)  # what it needs is not there


@pytest.mark.parametrize("mode", ["reliable", "lossy"])
def test_a_head_that_goes_backwards_is_nothing_new(mode: str) -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    core = ring.subscriber(broker, mode=mode)
    publish(ring, broker, publisher, 0, 1)
    assert numbers_read(core) == ([0, 1] if mode == "reliable" else [1])
    ring.set_u64(HEAD, 0)
    assert core.poll() is None
    with pytest.raises(WaitTimeout):
        core.next()
    assert core.position == 2


# --- being overrun --------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 3, 4 * 2**31 - 2, 4 * LAPS - 6, 4 * LAPS - 1, 2**40], ids=hex)
def test_a_lossy_subscriber_counts_what_it_has_missed(first: int) -> None:
    ring = RawRing()
    ring.start_at(first)
    broker, publisher = ring.broker(retain=2), ring.publisher(quota=3)
    core = ring.subscriber(broker, mode="lossy")
    publish(ring, broker, publisher, *range(10))
    # The last two are there; it goes on in the middle of them.
    batch = core.poll()
    assert (batch.copy(), batch.ticket, batch.gap) == (message(9, 64), first + 9, 9)
    assert core.poll() is None
    publish(ring, broker, publisher, 10, 11)
    batches = [core.poll(), core.poll()]
    assert [(b.copy(), b.gap) for b in batches] == [(message(10, 64), 0), (message(11, 64), 0)]
    row = ring.monitor().subscriber(0)
    assert (row["lost"], row["batches"], row["next"], row["cursor"]) == (
        9,
        3,
        first + 12,
        first + 12,
    )
    assert core.position == first + 12


@pytest.mark.parametrize("generation", [2**18 - 2, 2**18 - 1, 2**48 - 2, 2**48 - 1], ids=hex)
def test_generations_wrap_around(generation: int) -> None:
    ring = RawRing()
    for slot in range(3):
        ring.set_u64(ring.slot_at(slot), free_slot(generation))
    broker, publisher = ring.broker(retain=1), ring.publisher(quota=3)
    reliable = ring.subscriber(broker, 0)
    lossy = ring.subscriber(broker, 1, "lossy")
    for number in range(12):
        publish(ring, broker, publisher, number)
        assert numbers_read(reliable) == [number]
        assert numbers_read(lossy) == [number]
    assert ring.monitor().subscriber(1)["lost"] == 0


def test_laps_wrap_around_for_a_reliable_subscriber() -> None:
    ring = RawRing()
    first = 4 * LAPS - 5
    ring.start_at(first)
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    core = ring.subscriber(broker)
    for number in range(12):
        publish(ring, broker, publisher, number)
        assert numbers_read(core) == [number]
    assert core.position == first + 12


def test_what_a_lossy_subscriber_has_read_does_not_change() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    core = ring.subscriber(broker, mode="lossy")
    publish(ring, broker, publisher, 0)
    batch = core.poll()
    view = memoryview(batch)
    publish(ring, broker, publisher, *range(1, 9))
    core.close()
    assert bytes(view) == batch.copy() == message(0, 64)
    assert not batch.released
    view.release()
    batch.release()
    with pytest.raises(ClosedError, match="released already"):
        batch.copy()


def test_a_lossy_subscriber_holds_nothing() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(retain=2), ring.publisher(quota=3)
    core = ring.subscriber(broker, mode="lossy")
    publish(ring, broker, publisher, 0, 1)
    kept = [core.poll(), core.poll()]
    publish(ring, broker, publisher, 3, 4, 5)
    assert publisher.in_flight == 0
    assert core.held == 0
    assert None not in kept


# --- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["reliable", "lossy"])
def test_everything_is_read_before_the_end_of_the_log_is_told(mode: str) -> None:
    ring = RawRing()
    broker, publisher = ring.broker(retain=3), ring.publisher(quota=3)
    core = ring.subscriber(broker, mode=mode)
    commit_batches(publisher, 3)
    broker.retire()
    assert ring.u32(BROKER_STATE) == 3
    batches = [core.poll(), core.next(), next(iter(core))]
    assert [b.ticket for b in batches] == [0, 1, 2]
    with pytest.raises(EndOfLog, match="unit/0 has stopped, and everything"):
        core.next()
    with pytest.raises(EndOfLog):
        core.poll()
    assert list(core) == []
    assert core.wait(0.0)  # poll() has something to tell


def test_a_closed_subscriber_reads_nothing() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    core = ring.subscriber(broker)
    publish(ring, broker, publisher, 0)
    core.close()
    core.close()
    assert core.is_closed
    for read in (core.poll, core.next, lambda: next(iter(core)), lambda: core.wait(0.0)):
        with pytest.raises(ClosedError, match="the subscriber on unit/0 is closed"):
            read()
    assert ring.left == [0]


def test_a_closed_subscriber_stays_a_gate_until_the_last_view_is_gone() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    core = ring.subscriber(broker)
    publish(ring, broker, publisher, 0, 1)
    seen, unseen = core.poll(), core.poll()
    views = [memoryview(seen), memoryview(seen)]
    assert core.pinned == 1
    core.close()
    for batch in (seen, unseen):
        assert batch.released
        with pytest.raises(ClosedError):
            batch.release()
        with pytest.raises(BufferError):
            memoryview(batch)
    broker.reap()
    broker.release_passed(True)
    assert (ring.u64(RELEASED), ring.left) == (0, [])
    views.pop().release()
    assert ring.left == []
    assert bytes(views[0]) == message(0, 64)
    views.pop().release()
    assert ring.left == [0]
    broker.reap()
    broker.release_passed(True)
    assert ring.u64(RELEASED) == 2


def test_what_fails_when_a_row_is_given_back_is_told_and_goes_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ring = RawRing()
    broker = ring.broker()
    told: list[str] = []

    def fail() -> None:
        raise RuntimeError("on_left")

    core = ring.subscriber(broker, on_left=fail)
    monkeypatch.setattr(sys, "unraisablehook", lambda one: told.append(str(one.exc_value)))
    core.close()
    assert told == ["on_left"]


# --- several threads ------------------------------------------------------------------------------


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Starts it; what it returned or raised comes into the list."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # the test looks at it
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def waits(ring: RawRing, index: int = 0) -> int:
    return int(ring.monitor().subscriber(index)["waits"])


def test_a_close_ends_the_wait_of_another_thread_and_gives_the_row_back_after_it() -> None:
    ring = RawRing()
    broker = ring.broker()
    core = ring.subscriber(broker)
    thread, outcome = in_thread(lambda: core.next(timeout=None))
    wait_until(lambda: waits(ring) and ring.u32(NEWS_SLEEPERS), "it waits")
    core.close()
    thread.join(DEADLINE)
    assert isinstance(outcome[0], ClosedError)
    assert ring.left == [0]
    assert ring.u32(ring.reader_at(0) + READER_STATE) == CLOSED


def test_a_second_thread_waits_for_its_turn_as_long_as_its_timeout() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    core = ring.subscriber(broker)
    thread, outcome = in_thread(lambda: core.next(timeout=None))
    wait_until(lambda: waits(ring), "it waits")
    with pytest.raises(WaitTimeout, match="another thread has been reading"):
        core.next(timeout=0)
    with pytest.raises(WaitTimeout, match="another thread has been reading"):
        core.poll()
    commit_batches(publisher)
    assert broker.serve(0.0) == "timeout"
    thread.join(DEADLINE)
    assert isinstance(outcome[0], _core.Batch)


def test_one_thread_can_wait_while_another_reads() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    core = ring.subscriber(broker)
    thread, outcome = in_thread(lambda: core.wait(None))
    wait_until(lambda: waits(ring), "it waits")
    assert core.poll() is None
    commit_batches(publisher)
    broker.serve(0.0)
    thread.join(DEADLINE)
    assert outcome == [True]
    assert core.poll() is not None
    assert not core.wait(0.0)


def test_an_interrupt_ends_one_wait() -> None:
    ring = RawRing()
    broker = ring.broker()
    core = ring.subscriber(broker)
    thread, outcome = in_thread(lambda: core.wait(None))
    wait_until(lambda: waits(ring), "it waits")
    core.interrupt()
    thread.join(DEADLINE)
    assert outcome == [False]
    core.interrupt()
    assert not core.wait(None)  # the next one, at once
    core.interrupt()
    with pytest.raises(WaitTimeout, match=r"ended by interrupt\(\)"):
        core.next(timeout=None)
    with pytest.raises(WaitTimeout, match="no batch came"):
        core.next(timeout=0)


def test_batches_are_released_by_any_thread() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    core = ring.subscriber(broker)
    publish(ring, broker, publisher, 0, 1, 2)
    batches = [core.poll() for _ in range(3)]
    threads = [threading.Thread(target=batch.release) for batch in reversed(batches)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    broker.release_passed(False)
    assert ring.u64(RELEASED) == 3


# --- a subscriber that serves its broker ----------------------------------------------------------


@pytest.mark.parametrize("mode", ["reliable", "lossy"])
def test_reading_serves_the_broker(mode: str) -> None:
    ring = RawRing()
    broker, publisher = ring.broker(retain=1), ring.publisher()
    core = ring.subscriber(broker, mode=mode, broker=broker)
    for read in (core.poll, core.next, lambda: next(iter(core))):
        commit_batches(publisher)
        read().release()
    assert ring.monitor().control()["batches"] == 3
    assert core.poll() is None
    assert publisher.in_flight == 0


def test_a_steady_flow_does_not_keep_others_from_joining_and_leaving() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    core = ring.subscriber(broker, broker=broker)
    other = ring.subscriber(index=1)
    commit_batches(publisher)
    core.next().release()
    assert ring.u32(ring.reader_at(1) + READER_STATE) == ACTIVE
    other.close()
    commit_batches(publisher)
    core.next().release()
    assert ring.u32(ring.reader_at(1) + READER_STATE) == FREE


@pytest.mark.parametrize("mode", ["reliable", "lossy"])
def test_publishers_hear_of_the_acceptance_before_the_batch_is_used(mode: str) -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    core = ring.subscriber(broker, mode=mode, broker=broker)
    commit_batches(publisher)
    ring.set_u32(ring.row_at(0) + ROW_SLEEPING, 1)
    batch = core.next()
    assert ring.u32(ring.row_at(0) + ROW_EVENT) == 1
    assert batch.ticket == 0


def test_waiting_serves_the_broker() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    core = ring.subscriber(broker, broker=broker)
    assert not core.wait(0.0)
    thread, outcome = in_thread(lambda: core.wait(None))
    wait_until(lambda: ring.u32(SLEEPING), "it serves, and sleeps")
    commit_batches(publisher)
    thread.join(DEADLINE)
    assert outcome == [True]
    assert core.poll() is not None


@pytest.mark.parametrize("read", ["poll", "next", "iteration"])
def test_a_stop_of_its_broker_ends_the_log_once_everything_is_read(read: str) -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    core = ring.subscriber(broker, broker=broker)
    commit_batches(publisher, 2)
    broker.stop()
    kept = [core.poll(), core.next()]
    assert [batch.ticket for batch in kept] == [0, 1]
    assert core.wait(None)
    if read == "iteration":
        assert list(core) == []
    else:
        with pytest.raises(EndOfLog):
            getattr(core, read)()
    del kept
    commit_batches(publisher)
    assert core.next(timeout=0).ticket == 2  # a later call is a new one


def test_corruption_that_its_broker_finds_is_told() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    core = ring.subscriber(broker, broker=broker)
    commit_batches(publisher)
    ring.set_u64(ring.entry_at(0), used_entry(0, 4095, 0))
    assert core.wait(0.0) or core.wait(0.01)
    for read in (core.poll, core.next):
        with pytest.raises(CorruptSegment):
            read()


def test_a_closed_one_does_not_serve_any_more() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    core = ring.subscriber(broker, broker=broker)
    core.close()
    commit_batches(publisher)
    for read in (core.poll, core.next, lambda: core.wait(0.0)):
        with pytest.raises(ClosedError):
            read()
    assert ring.monitor().control()["batches"] == 0


def test_it_settles_when_no_thread_is_in_a_call_any_more() -> None:
    ring = RawRing()
    broker = ring.broker()
    core = ring.subscriber(broker, broker=broker)
    thread, outcome = in_thread(lambda: core.next(timeout=None))
    wait_until(lambda: ring.u32(SLEEPING), "it serves, and sleeps")
    core.close()
    core.settle()
    assert broker.serve(0.0) == "timeout"  # by this thread alone
    thread.join(DEADLINE)
    assert isinstance(outcome[0], ClosedError)


# --- a private ring -------------------------------------------------------------------------------


def forge_place(ring: RawRing, slot: int, ticket: int, gap: int = 0) -> None:
    """What the sender of a batch puts into its header."""
    ring.forge_header(slot, ticket=ticket, gap=gap)


def test_a_sole_subscriber_reads_what_is_committed_and_releases_it_in_order() -> None:
    ring = RawRing()
    publisher = ring.publisher(quota=3)
    core = ring.subscriber(sole=True)
    commit_batches(publisher, 3)
    for slot in range(3):
        forge_place(ring, slot, 100 + slot)
    batches = [core.poll() for _ in range(3)]
    assert core.poll() is None
    assert [b.ticket for b in batches] == [100, 101, 102]
    assert (core.position, core.next_place, core.held) == (103, 3, 3)
    ring.set_u32(ring.row_at(0) + ROW_SLEEPING, 1)
    batches[2].release()
    batches[1].release()
    assert (ring.u64(RELEASED), publisher.in_flight) == (0, 3)
    assert ring.u32(ring.row_at(0) + ROW_EVENT) == 0
    batches[0].release()
    assert (ring.u64(RELEASED), publisher.in_flight, core.held) == (3, 0, 0)
    assert ring.u32(ring.row_at(0) + ROW_EVENT) == 1
    assert [ring.slot(s) for s in range(3)] == [free_slot(1)] * 3


def test_a_sole_subscriber_goes_round_the_ring() -> None:
    ring = RawRing()
    publisher = ring.publisher(quota=3)
    core = ring.subscriber(sole=True)
    for number in range(20):
        publisher.publish(message(number, 64))
        publisher.flush()
        forge_place(ring, slot_of(ring, number), number + 5)
        batch = core.poll()
        assert (batch.copy(), batch.ticket) == (message(number, 64), number + 5)
        batch.release()
    assert publisher.in_flight == 0


def test_a_sole_subscriber_tells_the_gaps_that_its_sender_tells() -> None:
    ring = RawRing()
    publisher = ring.publisher(quota=3)
    core = ring.subscriber(sole=True, mode="lossy")
    commit_batches(publisher, 2)
    forge_place(ring, 0, 10, 7)
    forge_place(ring, 1, 15, 4)
    batches = [core.poll(), core.poll()]
    assert [(b.ticket, b.gap) for b in batches] == [(10, 7), (15, 4)]
    assert ring.monitor().subscriber(0)["lost"] == 11
    assert (ring.u64(RELEASED), core.held) == (0, 2)  # lossy or not: in the ring it is read in


def test_a_sole_subscriber_leaves_out_what_is_damaged_and_frees_its_slot() -> None:
    ring = RawRing()
    publisher = ring.publisher(quota=3)
    core = ring.subscriber(sole=True)
    commit_batches(publisher, 2)
    ring.forge_header(0, fix_check=False, messages=5)
    with pytest.raises(CorruptBatch):
        core.poll()
    assert ring.u64(RELEASED) == 1
    core.poll().release()
    assert (ring.u64(RELEASED), publisher.in_flight) == (2, 0)


def test_a_sole_subscriber_reads_what_came_before_the_end() -> None:
    ring = RawRing()
    publisher = ring.publisher()
    core = ring.subscriber(sole=True)
    commit_batches(publisher)
    ring.set_u32(SLEEPING, 1)
    core.end()
    assert (ring.u32(EVENT), ring.u32(SLEEPING)) == (1, 0)
    assert core.next() is not None
    with pytest.raises(EndOfLog):
        core.next()


def test_a_signal_handler_cannot_read_in_the_middle_of_a_read() -> None:
    """As a handler that runs in the thread of the call: here, the text of an error asks again."""
    ring = RawRing()
    broker = ring.broker()
    core = ring.subscriber(broker)
    inner: list[BaseException] = []

    def asked_again() -> str:
        with pytest.raises(MisuseError, match="in the middle of another call") as caught:
            core.poll()
        inner.append(caught.value)
        return "the broker (pid 0)"

    ring.describe_broker = asked_again  # type: ignore[method-assign]
    with pytest.raises(WaitTimeout):
        core.next()
    assert len(inner) == 1
    del ring.describe_broker  # it refers to the core, which refers to the ring


def test_next_and_cursor_are_where_the_layout_says() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    core = ring.subscriber(broker, index=1)
    publish(ring, broker, publisher, 0)
    batch = core.poll()
    at = ring.reader_at(1)
    assert (ring.u64(at + READER_CURSOR), ring.u64(at + READER_NEXT)) == (0, 1)
    assert batch is not None
