"""The two native ends of a batch's way through a network, on rings in plain memory.

`ReceiverCore` brings batches into the broker's ring, `RelayCore` takes them out of a publisher's
own; nothing is sent here.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from raw_ring import (
    EVENT,
    HEAD,
    MESSAGE,
    RELEASED,
    ROW_EVENT,
    ROW_SLEEPING,
    ROW_WANTS_ANY_SLOT,
    SLEEPING,
    TAIL,
    RawRing,
    accept,
    commit_batches,
    free_slot,
    owned_slot,
)
from wire import HELLO, batch_header

from embar_shm import _core
from embar_shm.errors import BatchRefused, BrokerGone, ClosedError, MisuseError
from embar_shm.testing import wait_until


def receiver(ring: RawRing, index: int = 0, **options: Any) -> _core.ReceiverCore:
    defaults = {"quota": 2, "ack": 1, "timed": False}
    return _core.ReceiverCore(
        context=ring,
        buffer=ring.memory,
        index=index,
        lock_fd=-1,
        publisher_id=HELLO.publisher_id,
        incarnation=HELLO.incarnation,
        **(defaults | options),
    )


def relay(ring: RawRing) -> _core.RelayCore:
    return _core.RelayCore(ring.memory, wait_mode=2, spin_us=0, cpus=1, timed=True)


def receive(core: _core.ReceiverCore, ring: RawRing, seq: int, body: bytes = MESSAGE) -> int:
    """Claims, "receives" and commits batch `seq`. => the slot."""
    place = core.claim(0)
    assert place is not None
    ring.memory[place : place + len(body)] = body
    core.commit(batch_header(seq, len(body)), 0)
    return (place - ring.header_at(0)) // ring.geometry.slot_stride


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Starts a call in a thread. => the thread, and where its result or exception will be."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def wait_for_sleeper(ring: RawRing, index: int | None = 0) -> None:
    """Until somebody sleeps on row `index`; None: on the broker's event."""
    word = SLEEPING if index is None else ring.row_at(index) + ROW_SLEEPING
    wait_until(lambda: ring.u32(word) == 1, "the other thread sleeps")


# --- receiver: claim, commit, give back -----------------------------------------------------------


def test_a_received_batch_is_committed_under_its_own_header() -> None:
    ring = RawRing()
    broker, core = ring.broker(), receiver(ring, 2)
    assert receive(core, ring, 1) == 0
    assert ring.payload(0, 64) == MESSAGE
    assert core.committed_seq == 1
    found = accept(broker)
    assert (found["owner"], found["verdict"]) == (2, "accepted")
    assert (found["publisher_id"], found["seq"]) == (HELLO.publisher_id, 1)
    assert core.accepted_seq == 1


def test_the_time_of_the_commit_is_this_machines() -> None:
    ring = RawRing()
    core = receiver(ring)
    core.claim(0)
    core.commit(batch_header(1, 64, committed_ns=2**63, opened_ns=5), 0)
    header = ring.header(0)
    assert 0 < header["committed_ns"] < 2**62
    assert header["opened_ns"] == 5  # only ever compared with the publisher's other times
    assert accept(ring.broker())["verdict"] == "accepted"  # the check word was made anew


def test_a_slot_that_is_claimed_already_is_handed_out_again() -> None:
    ring = RawRing()
    core = receiver(ring)
    assert core.claim(0) == core.claim(None) == ring.header_at(0) + 4096
    assert [ring.slot(n) for n in range(3)] == [owned_slot(0, 0), free_slot(0), free_slot(0)]


def test_a_slot_that_is_given_back_is_free_and_leaves_no_batch() -> None:
    ring = RawRing()
    broker, core = ring.broker(), receiver(ring)
    for _ in range(5):
        core.claim(0)
        core.give_back()
        assert ring.monitor().slots()[0][1] == -1
    core.give_back()  # there is nothing to give back
    assert ring.u64(TAIL) == core.committed_seq == 0
    assert broker.accept() is None
    receive(core, ring, 1)
    assert accept(broker)["verdict"] == "accepted"


def test_giving_back_never_takes_a_committed_batch_with_it() -> None:
    ring = RawRing()
    broker, core = ring.broker(), receiver(ring)
    receive(core, ring, 1)
    core.give_back()
    assert ring.slot(0) == owned_slot(0, 0)
    assert accept(broker)["verdict"] == "accepted"


def test_nothing_is_committed_without_a_claim() -> None:
    ring = RawRing()
    core = receiver(ring)
    with pytest.raises(MisuseError):
        core.commit(batch_header(1, 64), 0)
    core.claim(0)
    core.give_back()
    with pytest.raises(MisuseError):
        core.commit(batch_header(1, 64), 0)
    assert ring.u64(TAIL) == 0


@pytest.mark.parametrize("size", [0, 127, 129])
def test_a_header_has_128_bytes(size: int) -> None:
    core = receiver(RawRing())
    core.claim(0)
    with pytest.raises(ValueError, match="128 bytes"):
        core.commit(bytes(size), 0)
    with pytest.raises(ValueError, match="128 bytes"):
        _core.header_check(bytes(size))


def test_the_quota_counts_batches_until_they_are_released() -> None:
    ring = RawRing()
    broker, core = ring.broker(), receiver(ring, quota=2)
    receive(core, ring, 1)
    receive(core, ring, 2)
    assert core.claim(0) is None
    accept(broker)
    assert core.claim(0) is None  # accepted, but still in its slot
    broker.release()
    assert core.claim(0) is not None


def test_a_ring_without_a_free_slot_is_waited_for() -> None:
    ring = RawRing(slots=2)
    broker, one, other = ring.broker(), receiver(ring, 0), receiver(ring, 1)
    receive(one, ring, 1)
    receive(one, ring, 2)
    assert other.claim(0) is None
    thread, results = in_thread(lambda: other.claim(None))
    wait_for_sleeper(ring, 1)
    accept(broker)
    broker.release()
    thread.join()
    assert results == [ring.header_at(0) + 4096]


def test_batches_go_round_many_laps() -> None:
    ring = RawRing()
    broker, core = ring.broker(), receiver(ring)
    for seq in range(1, 50):
        receive(core, ring, seq, bytes([seq]) * 64)
        found = accept(broker)
        assert (found["seq"], found["verdict"]) == (seq, "accepted")
        assert ring.memory[found["payload_offset"]] == seq
        broker.release()
    assert core.accepted_seq == core.committed_seq == 49


@pytest.mark.parametrize(
    ("changes", "verdict", "says"),
    [
        ({"seq": 3}, "out_of_order", "batch 3 .* a batch before it is missing"),
        ({"publisher_id": 9}, "bad_header", "batch 1 .* header is damaged"),
        ({"messages": 0}, "bad_header", "header is damaged"),
        ({"format": 7}, "bad_header", "header is damaged"),
        ({"body_bytes": 257}, "bad_header", "header is damaged"),
        ({"magic": 5}, "bad_header", "header is damaged"),
    ],
    ids=str,
)
def test_what_the_broker_refuses_is_told_to_every_wait(
    changes: dict[str, int], verdict: str, says: str
) -> None:
    ring = RawRing()
    broker, core = ring.broker(), receiver(ring)
    core.claim(0)
    core.commit(batch_header(**({"seq": 1, "body_bytes": 64} | changes)), 0)
    assert accept(broker)["verdict"] == verdict
    for call in (lambda: core.claim(None), lambda: core.wait_accepted(1, None)):
        with pytest.raises(BatchRefused, match=says):
            call()


def test_receiving_is_timed_when_it_was_asked_for() -> None:
    for timed in (True, False):
        ring = RawRing()
        core = receiver(ring, timed=timed)
        core.claim(0)
        core.commit(batch_header(1, 64), 12345)
        stages = ring.monitor().publisher_stages(0)
        assert stages["receive"]["count"] == stages["get_buffer"]["count"] == timed
        assert stages["receive"]["sum"] == 12345 * timed


# --- receiver: waiting ----------------------------------------------------------------------------


def test_an_acknowledgement_is_waited_for_or_not() -> None:
    ring = RawRing()
    broker, core = ring.broker(), receiver(ring)
    assert core.wait_accepted(0, None) == 0
    assert core.wait_accepted(1, 0) == 0
    receive(core, ring, 1)
    thread, results = in_thread(lambda: core.wait_accepted(1, None))
    wait_for_sleeper(ring)
    accept(broker)
    broker.release()
    thread.join()
    assert results == [1]
    receive(core, ring, 2)
    accept(broker)
    assert core.wait_accepted(1, 0) == 2  # more than was asked for


@pytest.mark.parametrize("what", ["claim", "wait_accepted"])
def test_an_interrupt_ends_the_present_and_every_later_wait_until_it_is_taken_back(
    what: str,
) -> None:
    ring = RawRing()
    broker, core = ring.broker(), receiver(ring, quota=1)
    receive(core, ring, 1)
    calls: dict[str, Callable[[], object]] = {
        "claim": lambda: core.claim(None),
        "wait_accepted": lambda: core.wait_accepted(1, None),
    }
    stopped = {"claim": None, "wait_accepted": 0}[what]
    thread, results = in_thread(calls[what])
    wait_for_sleeper(ring)
    core.interrupt()
    thread.join()
    assert results == [stopped]
    assert calls[what]() == stopped
    core.resume()
    thread, results = in_thread(calls[what])
    wait_for_sleeper(ring)
    accept(broker)
    broker.release()
    thread.join()
    assert len(results) == 1
    assert results != [stopped]


def test_an_interrupt_does_not_hide_what_need_not_be_waited_for() -> None:
    ring = RawRing()
    broker, core = ring.broker(), receiver(ring)
    receive(core, ring, 1)
    accept(broker)
    core.interrupt()
    assert core.wait_accepted(1, None) == 1
    assert core.claim(None) is not None


@pytest.mark.parametrize("wait", [True, False])
def test_a_broker_that_stops_ends_all_waits_with_its_end(wait: bool) -> None:
    ring = RawRing()
    broker, core = ring.broker(), receiver(ring, quota=1)
    receive(core, ring, 1)
    if wait:
        thread, results = in_thread(lambda: core.wait_accepted(2, None))
        wait_for_sleeper(ring)
    broker.retire()
    if wait:
        thread.join()
        assert isinstance(results[0], BrokerGone)
    assert core.wait_accepted(1, None) == 1  # accepted as its last act
    with pytest.raises(BrokerGone):
        core.wait_accepted(2, None)
    with pytest.raises(BrokerGone):
        core.claim(None)


def test_a_slot_can_be_given_back_after_the_broker_has_stopped() -> None:
    ring = RawRing()
    broker, core = ring.broker(), receiver(ring)
    core.claim(0)
    broker.retire()
    core.give_back()
    assert {owner for _, owner, *_ in ring.monitor().slots()} == {-1}


def test_a_closed_receiver_gives_its_row_back_and_does_nothing_more() -> None:
    ring = RawRing()
    core = receiver(ring)
    core.claim(0)
    core.close()
    assert ring.monitor().publisher(0)["state"] == "closed"
    for call in (lambda: core.claim(0), lambda: core.commit(batch_header(1, 64), 0)):
        with pytest.raises(ClosedError):
            call()
    core.give_back()  # the slot is the broker's to reap: the row may be somebody else's
    assert ring.slot(0) == owned_slot(0, 0)
    core.close()


def test_a_row_that_does_not_exist_and_a_quota_of_nothing_are_refused() -> None:
    ring = RawRing()
    with pytest.raises(IndexError):
        receiver(ring, 4)
    with pytest.raises(ValueError, match="quota"):
        receiver(ring, quota=0)
    assert {ring.monitor().publisher(row)["state"] for row in range(4)} == {"free"}


# --- receiver: the row of a broker that was killed ------------------------------------------------


def taken_over(ring: RawRing, broker: _core.BrokerCore, **options: Any) -> _core.ReceiverCore:
    """A receiver for the only publisher whose row this broker has found."""
    (found,) = broker.adopted_publishers
    assert broker.take_over_publisher(found["index"], -1)
    return receiver(ring, found["index"], committed=found["received_seq"], **options)


def test_a_row_that_was_taken_over_goes_on_after_the_last_batch_that_was_committed() -> None:
    ring = RawRing()
    broker, core = ring.broker(), receiver(ring, 2)
    receive(core, ring, 1)
    accept(broker)
    receive(core, ring, 2)  # and not accepted any more
    successor = ring.broker()
    again = taken_over(ring, successor)
    assert (again.committed_seq, again.accepted_seq) == (2, 1)
    assert accept(successor)["seq"] == 2
    successor.release()
    successor.release()
    receive(again, ring, 3)
    found = accept(successor)
    assert (found["seq"], found["owner"], found["verdict"]) == (3, 2, "accepted")
    assert again.wait_accepted(3, 0) == 3


def test_batches_of_the_time_before_count_for_the_quota_until_they_are_released() -> None:
    ring = RawRing()
    core = receiver(ring)
    for seq in (1, 2):
        receive(core, ring, seq)
    successor = ring.broker()
    again = taken_over(ring, successor, quota=2)
    assert again.claim(0) is None
    accept(successor)
    assert again.claim(0) is None
    successor.release()
    assert again.claim(0) is not None


def test_only_what_a_receiver_has_is_kept_for_a_publisher_that_connects_again() -> None:
    ring = RawRing()
    core, publisher = receiver(ring, 0), ring.publisher(1)
    left = receiver(ring, 2)
    left.close()
    assert publisher.accepted_seq == core.accepted_seq == 0
    successor = ring.broker()
    assert [found["index"] for found in successor.adopted_publishers] == [0]
    assert successor.take_over_publisher(0, -1)
    assert not successor.take_over_publisher(0, -1), "it is somebody's already"
    assert not successor.take_over_publisher(1, -1)
    assert not successor.take_over_publisher(99, -1)


def test_nobody_is_woken_in_place_of_who_slept_when_the_broker_was_killed() -> None:
    ring = RawRing()
    receiver(ring)
    for word in (ROW_SLEEPING, ROW_WANTS_ANY_SLOT):
        ring.set_u32(ring.row_at(0) + word, 1)
    taken_over(ring, ring.broker())
    assert [ring.u32(ring.row_at(0) + word) for word in (ROW_SLEEPING, ROW_WANTS_ANY_SLOT)] == [
        0,
        0,
    ]


# --- relay ----------------------------------------------------------------------------------------


def send(core: _core.RelayCore, count: int) -> None:
    """Takes the first batches, as if to send them."""
    assert all(core.next(seq, 0) is not None for seq in range(1, count + 1))


def test_a_committed_batch_is_where_the_relay_says() -> None:
    ring = RawRing()
    core, publisher = relay(ring), ring.publisher()
    assert core.next(1, 0) is None
    publisher.publish(MESSAGE)
    publisher.publish(MESSAGE)
    publisher.flush()
    header, body, size = core.next(1, 0) or pytest.fail("it is committed")
    assert (header, size) == (ring.header_at(0), 128)
    assert ring.memory[body : body + size] == MESSAGE + MESSAGE
    assert core.next(2, 0) is None


def test_a_batch_can_be_sent_again_until_it_is_acknowledged() -> None:
    ring = RawRing()
    core, publisher = relay(ring), ring.publisher()
    commit_batches(publisher, 2)
    first, second = core.next(1, 0), core.next(2, 0)
    assert core.next(1, 0) == first
    core.acknowledge(1)
    assert core.next(1, 0) is None
    assert core.next(2, 0) == second
    assert (core.acknowledged, publisher.accepted_seq, publisher.in_flight) == (1, 1, 1)


def test_acknowledgements_are_cumulative_and_never_go_back() -> None:
    ring = RawRing()
    core, publisher = relay(ring), ring.publisher(quota=3)
    commit_batches(publisher, 3)
    send(core, 3)
    core.acknowledge(2)
    core.acknowledge(1)
    core.acknowledge(0)
    core.acknowledge(2)
    assert (core.acknowledged, publisher.accepted_seq, publisher.in_flight) == (2, 2, 1)
    assert (ring.u64(HEAD), ring.u64(RELEASED)) == (2, 2)
    core.acknowledge(3)
    assert publisher.in_flight == 0


@pytest.mark.parametrize("seq", [2, 3, 4, 2**64 - 1])
def test_what_was_never_sent_cannot_be_acknowledged(seq: int) -> None:
    ring = RawRing()
    core, publisher = relay(ring), ring.publisher()
    commit_batches(publisher, 2)
    send(core, 1)
    with pytest.raises(ValueError, match="never sent"):
        core.acknowledge(seq)
    assert core.acknowledged == 0
    assert core.next(2, 0) is not None


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_more_batches_than_slots_and_tickets_go_through(slots: int) -> None:
    ring = RawRing(slots=slots)
    core, publisher = relay(ring), ring.publisher(quota=slots)
    sent = 0
    numbers = itertools.count()
    for lap in range(40):
        count = lap % slots + 1
        for _ in range(count):
            publisher.publish(bytes([next(numbers) % 256]) * 64)
            publisher.flush()
        for _ in range(count):
            sent += 1
            header, body, size = core.next(sent, 0) or pytest.fail(f"{sent} is committed")
            assert ring.memory[body : body + size] == bytes([(sent - 1) % 256]) * 64
            assert ring.u64(header + 24) == sent
        assert core.next(sent + 1, 0) is None
        core.acknowledge(sent)
        assert publisher.in_flight == 0
    assert sent > 2 * ring.geometry.tickets


def test_batches_are_numbered_from_one() -> None:
    core = relay(RawRing())
    with pytest.raises(ValueError, match="numbered from 1"):
        core.next(0, 0)


@pytest.mark.parametrize("seq", [5, 2**63, 2**64 - 1])
def test_a_batch_far_ahead_is_not_there(seq: int) -> None:
    ring = RawRing()
    core, publisher = relay(ring), ring.publisher()
    commit_batches(publisher, 2)
    assert core.next(seq, 0) is None


def test_a_commit_ends_the_wait_for_it() -> None:
    ring = RawRing()
    core, publisher = relay(ring), ring.publisher()
    thread, results = in_thread(lambda: core.next(1, None))
    wait_for_sleeper(ring, None)
    commit_batches(publisher)
    thread.join()
    assert results == [(ring.header_at(0), ring.header_at(0) + 4096, 64)]


def test_a_wake_ends_the_present_wait_or_the_next_one_and_no_more() -> None:
    ring = RawRing()
    core = relay(ring)
    thread, results = in_thread(lambda: core.next(1, None))
    wait_for_sleeper(ring, None)
    core.wake()
    thread.join()
    assert results == [None]
    core.wake()
    assert core.next(1, None) is None
    thread, results = in_thread(lambda: core.next(1, None))
    wait_for_sleeper(ring, None)
    assert not results
    core.wake()
    thread.join()


def test_a_wake_does_not_hide_a_batch() -> None:
    ring = RawRing()
    core, publisher = relay(ring), ring.publisher()
    core.wake()
    commit_batches(publisher)
    assert core.next(1, None) is not None


def test_a_publisher_that_waits_for_a_slot_gets_it_with_the_acknowledgement() -> None:
    ring = RawRing()
    core, publisher = relay(ring), ring.publisher(quota=1, timeout=None)
    commit_batches(publisher)
    thread, results = in_thread(lambda: (publisher.publish(MESSAGE), publisher.flush()))
    wait_for_sleeper(ring)
    send(core, 1)
    core.acknowledge(1)
    thread.join()
    assert results == [(None, 2)]
    assert ring.u32(ring.row_at(0) + ROW_EVENT) > 0


def test_an_abandoned_publisher_learns_that_nothing_will_be_acknowledged() -> None:
    ring = RawRing()
    core, publisher = relay(ring), ring.publisher(timeout=None)
    commit_batches(publisher)
    thread, results = in_thread(lambda: publisher.wait_acked(None, 1))
    wait_for_sleeper(ring)
    core.abandon()
    thread.join()
    assert isinstance(results[0], BrokerGone)
    for call in (lambda: publisher.publish(MESSAGE), lambda: publisher.wait_acked(None, 1)):
        with pytest.raises(BrokerGone):
            call()
    assert core.next(1, 0) is not None  # it is still there, if that helps anybody
    assert ring.u32(EVENT) >= 0


def test_two_threads_send_and_acknowledge_at_once() -> None:
    ring = RawRing()
    core, publisher = relay(ring), ring.publisher(quota=3, timeout=None)
    total = 300
    sent = 0

    def send() -> None:
        nonlocal sent
        while sent < total:
            if core.next(sent + 1, None) is not None:
                sent += 1

    def acknowledge() -> None:
        while core.acknowledged < total:
            core.acknowledge(sent)
            time.sleep(0)  # else it keeps the interpreter for itself

    threads = [in_thread(call) for call in (send, acknowledge)]
    commit_batches(publisher, total)
    publisher.wait_acked(None, total)
    for thread, results in threads:
        thread.join()
        assert results == [None]
    assert publisher.accepted_seq == total


# --- stage times ----------------------------------------------------------------------------------


def test_times_of_sending_are_counted_summed_and_put_into_buckets() -> None:
    times = relay(RawRing())
    empty = times.send_times()
    assert (empty["count"], empty["sum"], empty["max"]) == (0, 0, 0)
    assert not list(empty["buckets"])
    for ns in (0, 31, 31, 1000, 2**41):
        times.record_send(ns)
    found = times.send_times()
    assert (found["count"], found["sum"], found["max"]) == (5, 62 + 1000 + 2**41, 2**41)
    assert sum(count for _, count in found["buckets"]) == 5
    bounds = [bound for bound, _ in found["buckets"]]
    assert bounds == sorted(bounds)
    assert dict(found["buckets"])[31] == 2
    assert 1000 <= bounds[2] <= 1000 * 17 / 16
