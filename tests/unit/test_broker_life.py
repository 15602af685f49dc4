"""What the broker does besides accepting: wakes, reaps, stops, counts; one step at a time."""

from __future__ import annotations

import threading
import time

import pytest
from raw_ring import (
    EVENT,
    MESSAGE,
    RELEASED,
    ROW_EVENT,
    ROW_SLEEPING,
    ROW_WANTS_ANY_SLOT,
    SLEEPING,
    SPACE_WAITERS,
    TAIL,
    VARIABLE,
    RawRing,
    accept,
    commit_batches,
    free_slot,
    owned_slot,
)

from embar_shm import _core
from embar_shm.errors import BrokerGone
from embar_shm.testing import wait_until

# --- wake-ups: the flag is set by hand, as if somebody slept --------------------------------------


def test_a_commit_wakes_the_broker_that_sleeps_and_only_then() -> None:
    ring = RawRing()
    publisher = ring.publisher()
    commit_batches(publisher)
    assert ring.u32(EVENT) == 0
    ring.set_u32(SLEEPING, 1)
    commit_batches(publisher)
    assert (ring.u32(EVENT), ring.u32(SLEEPING)) == (1, 0)
    assert ring.monitor().publisher(0)["wakes_sent"] == 1


def test_a_release_wakes_the_publisher_whose_batch_it_was() -> None:
    ring = RawRing()
    broker, a = ring.broker(), ring.publisher(0)
    ring.publisher(1)
    commit_batches(a)
    accept(broker)
    for row in (0, 1):
        ring.set_u32(ring.row_at(row) + ROW_SLEEPING, 1)
    broker.release()
    assert [ring.u32(ring.row_at(row) + ROW_EVENT) for row in (0, 1)] == [1, 0]
    assert [ring.u32(ring.row_at(row) + ROW_SLEEPING) for row in (0, 1)] == [0, 1]
    assert ring.monitor().control()["wakes_sent"] == 1


def test_each_slot_that_comes_free_wakes_one_of_those_who_wait_for_any() -> None:
    ring = RawRing()
    broker, a = ring.broker(), ring.publisher(0, quota=3)
    commit_batches(a, 3)
    for _ in range(3):
        accept(broker)
    ring.set_u32(SPACE_WAITERS, 1)
    for row in (1, 3):
        ring.set_u32(ring.row_at(row) + ROW_SLEEPING, 1)
        ring.set_u32(ring.row_at(row) + ROW_WANTS_ANY_SLOT, 1)
    woken = []
    for _ in range(2):
        broker.release()
        woken.append([ring.u32(ring.row_at(row) + ROW_EVENT) for row in range(4)])
    assert woken == [[0, 1, 0, 0], [0, 1, 0, 1]]
    for row in (1, 3):  # both have what they wanted
        ring.set_u32(ring.row_at(row) + ROW_WANTS_ANY_SLOT, 0)
    broker.release()
    assert ring.u32(SPACE_WAITERS) == 0


# --- the dead -----------------------------------------------------------------------------------


def test_a_dead_owner_loses_the_slot_no_ticket_refers_to() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(2)
    publisher.publish(MESSAGE)
    assert ring.slot(0) == owned_slot(0, 2)
    assert broker.reap_row(2)
    assert ring.slot(0) == free_slot(1)
    assert ring.monitor().publisher(2)["state"] == "free"
    control = ring.monitor().control()
    assert (control["reaped_publishers"], control["reaped_slots"]) == (1, 1)


def test_a_dead_owner_keeps_its_row_until_its_batches_are_accepted() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(2)
    commit_batches(publisher)
    publisher.publish(MESSAGE)
    assert not broker.reap_row(2)
    assert [ring.slot(s) for s in (0, 1)] == [owned_slot(0, 2), owned_slot(0, 2)]
    assert ring.monitor().publisher(2)["state"] == "active"


def test_what_a_dead_owner_has_in_the_log_is_the_logs_until_it_is_released() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(2)
    commit_batches(publisher)
    publisher.publish(MESSAGE)
    accept(broker)
    assert broker.reap_row(2)
    assert [ring.slot(s) for s in (0, 1)] == [owned_slot(0, _core.LOG_OWNER), free_slot(1)]
    assert ring.monitor().publisher(2)["state"] == "free"

    heir = ring.publisher(2, publisher_id=5, incarnation=6)
    commit_batches(heir)
    assert accept(broker)["verdict"] == "accepted"
    assert broker.release()
    assert ring.slot(0) == free_slot(1)
    assert heir.in_flight == 1  # it was the dead one's batch that was released
    assert broker.release()
    assert heir.in_flight == 0


def test_the_next_owner_of_a_row_begins_with_sequence_number_one() -> None:
    ring = RawRing()
    broker, dead = ring.broker(), ring.publisher(0)
    commit_batches(dead, 2)
    for _ in range(2):
        accept(broker)
        broker.release()
    assert broker.reap_row(0)
    row = ring.monitor().publisher(0)
    assert {name: value for name, value in row.items() if value} == {"state": "free"}

    heir = ring.publisher(0, publisher_id=5, incarnation=6)
    commit_batches(heir)
    assert accept(broker)["verdict"] == "accepted"
    assert (heir.accepted_seq, heir.in_flight) == (1, 1)


def test_slots_of_the_dead_wake_those_who_wait_for_any() -> None:
    ring = RawRing()
    broker, dead = ring.broker(), ring.publisher(0)
    dead.publish(MESSAGE)
    ring.set_u32(SPACE_WAITERS, 1)
    ring.set_u32(ring.row_at(1) + ROW_SLEEPING, 1)
    ring.set_u32(ring.row_at(1) + ROW_WANTS_ANY_SLOT, 1)
    assert broker.reap_row(0)
    assert ring.u32(ring.row_at(1) + ROW_EVENT) == 1


def test_a_wake_up_is_not_spent_on_a_waiter_that_is_awake_already() -> None:
    """It may be stopped, or about to give up; the slot would stay free while others sleep."""
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(0)
    commit_batches(publisher)
    accept(broker)
    ring.set_u32(SPACE_WAITERS, 1)
    for row, sleeping in ((1, 0), (2, 1)):
        ring.set_u32(ring.row_at(row) + ROW_SLEEPING, sleeping)
        ring.set_u32(ring.row_at(row) + ROW_WANTS_ANY_SLOT, 1)
    broker.release()
    assert ring.u32(ring.row_at(2) + ROW_EVENT) == 1


def test_nobody_is_found_dead_without_liveness_locks() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    publisher.publish(MESSAGE)
    assert broker.reap() == 0
    assert ring.slot(0) == owned_slot(0, 0)


def test_a_publisher_that_left_is_not_counted_among_the_dead() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    publisher.publish(MESSAGE)
    publisher.close()
    assert ring.monitor().publisher(0)["state"] == "closed"
    assert broker.reap_row(0)
    control = ring.monitor().control()
    assert (control["reaped_publishers"], control["reaped_slots"]) == (0, 1)


# --- serving, retiring, looking -----------------------------------------------------------------


def test_serving_accepts_and_releases_everything_before_it_stops() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    commit_batches(publisher, 2)
    broker.stop()
    assert broker.serve(None) == "stopped"
    assert ring.u64(RELEASED) == ring.u64(TAIL) == 2
    broker.resume()
    commit_batches(publisher)
    assert broker.serve(0.0) == "timeout"
    assert ring.u64(RELEASED) == 3


def test_a_retired_broker_is_gone_for_publishers_that_need_a_slot() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    publisher.publish(MESSAGE)
    ring.set_u32(ring.row_at(0) + ROW_SLEEPING, 1)
    broker.retire()
    assert ring.u32(ring.row_at(0) + ROW_EVENT) == 1
    publisher.flush()
    with pytest.raises(BrokerGone, match="1 committed batches were not acknowledged"):
        publisher.publish(MESSAGE)


def test_a_monitor_shows_the_counters_of_broker_and_publishers() -> None:
    ring = RawRing()
    broker, a, b = ring.broker(), ring.publisher(0), ring.publisher(3, **VARIABLE)
    commit_batches(a, 2)
    b.publish(bytes(3))
    b.flush()
    ring.publisher(1)
    for _ in range(3):
        accept(broker)
    broker.release()
    monitor = ring.monitor()
    control = monitor.control()
    shown = {
        "tail": 3,
        "head": 3,
        "released": 1,
        "state": 1,
        "epoch": 1,
        "attached": 3,
        "batches": 3,
        "messages": 3,
        "payload_bytes": 64 + 64 + 3,
        "missed_wakeups": 0,
    }
    assert {name: control[name] for name in shown} == shown
    row = monitor.publisher(3)
    assert (row["state"], row["publisher_id"], row["quota"], row["ack"]) == ("active", 1003, 2, 1)
    assert (row["messages"], row["payload_bytes"], row["accepted_bytes"]) == (1, 3, 3)
    assert (row["committed_seq"], row["accepted_seq"], row["released_batches"]) == (1, 1, 0)
    owners = [(slot, owner, generation) for slot, owner, generation, _ in monitor.slots()]
    assert owners == [(0, -1, 1), (1, 0, 0), (2, 3, 0)]
    assert monitor.max_publishers == 4


@pytest.mark.parametrize("age", [0, 1, 31, 32, 1000, 10**6, 10**9, 7 * 10**9])
def test_a_stage_time_lands_in_a_bucket_at_most_a_sixteenth_above_it(age: int) -> None:
    """The queue stage counts from the commit time in the header, which is set back here."""
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    commit_batches(publisher)
    committed = time.monotonic_ns() - age
    ring.forge_header(0, committed_ns=committed)
    least = time.monotonic_ns() - committed
    accept(broker)
    most = time.monotonic_ns() - committed
    queue = ring.monitor().broker_stages()["queue"]
    assert queue["count"] == 1
    assert least <= queue["sum"] == queue["max"] <= most
    ((bound, samples),) = queue["buckets"]
    assert samples == 1
    assert queue["sum"] <= bound <= queue["sum"] * 17 // 16


def test_a_wake_up_that_never_comes_is_counted() -> None:
    """Commits as a publisher does, but wakes nobody: the broker finds it after a whole sleep."""
    ring = RawRing()
    broker = ring.broker()
    serving = threading.Thread(target=broker.serve, args=(None,))
    serving.start()
    wait_until(lambda: ring.monitor().control()["sleeps"] > 0, "the broker sleeps")
    claimed = ring.steps.claim(0)
    assert claimed is not None
    ring.steps.commit(*claimed)
    wait_until(lambda: ring.monitor().control()["head"] == 1, "the broker finds the batch")
    broker.stop()
    serving.join()
    assert ring.monitor().control()["missed_wakeups"] == 1
