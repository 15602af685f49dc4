"""A broker on a ring that another one has left, at whatever store that one was killed."""

from __future__ import annotations

import random

import pytest
from raw_ring import (
    BROKER_STATE,
    HEAD,
    LINE,
    MESSAGE,
    NEWS,
    RELEASED,
    ROW_EVENT,
    ROW_WANTS_ANY_SLOT,
    SPACE_WAITERS,
    TAIL,
    VARIABLE,
    RawRing,
    accept,
    commit_batches,
    free_entry,
    free_slot,
    owned_slot,
    used_entry,
)

import embar_shm as es
from embar_shm import _core

RELEASING = RELEASED + 8
LOG_OWNER = _core.LOG_OWNER
QUARANTINED = 4

# In a row of the publishers table.
REMOTE = 40
ACCEPTED_SEQ, RELEASED_BATCHES = LINE, LINE + 8


def wrong(ring: RawRing) -> list[tuple[str, str]]:
    return _core.check_ring(ring.memory)


def accepted_ring(batches: int = 2, **options: int) -> tuple[RawRing, _core.PublisherCore]:
    """A publisher whose batches are accepted, and a broker that has just died."""
    ring = RawRing(**options)
    broker, publisher = ring.broker(), ring.publisher(quota=4)
    commit_batches(publisher, batches)
    for _ in range(batches):
        accept(broker)
    return ring, publisher


def release_all(broker: _core.BrokerCore) -> int:
    count = 0
    while broker.release():
        count += 1
    return count


# --- what is in the log ---------------------------------------------------------------------------


def test_a_new_ring_has_nothing_to_recover() -> None:
    ring = RawRing()
    broker = ring.broker()
    assert broker.corruption is None
    assert broker.recovered == dict.fromkeys(
        ("head", "unread", "unaccepted", "release", "acknowledgement", "slots"), 0
    )
    assert wrong(ring) == []


def test_what_was_accepted_stays_in_the_log_and_is_not_accepted_again() -> None:
    ring, publisher = accepted_ring(2)
    broker = ring.broker()
    assert (broker.recovered["head"], broker.recovered["unread"]) == (2, 2)
    assert broker.accept() is None
    assert publisher.accepted_seq == 2
    assert release_all(broker) == 2
    assert publisher.in_flight == 0
    assert ring.monitor().control()["duplicated"] == 0
    assert wrong(ring) == []


def test_what_was_committed_meanwhile_is_accepted_now() -> None:
    ring, publisher = accepted_ring(1)
    commit_batches(publisher, 2)
    broker = ring.broker()
    assert broker.recovered["unaccepted"] == 2
    assert [accept(broker)["seq"] for _ in range(2)] == [2, 3]
    assert publisher.accepted_seq == 3


def test_a_ring_that_has_gone_round_many_times_is_recovered() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    for number in range(1, 50):
        commit_batches(publisher)
        accept(broker)
        broker = ring.broker()
        assert broker.release()
        assert publisher.accepted_seq == number
        assert wrong(ring) == []
    assert ring.monitor().control()["epoch"] == 50


def test_a_ring_whose_laps_wrap_around_is_recovered() -> None:
    ring = RawRing()
    ring.start_at(4 * 2**32 - 2)
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    for _ in range(4):
        commit_batches(publisher, 2)
        accept(broker)
        accept(broker)
        broker = ring.broker()
        assert broker.corruption is None
        assert release_all(broker) == 2


# --- a release that was cut short ----------------------------------------------------------------


def cut_release(ring: RawRing, stores: int) -> None:
    """Makes the first of the stores that release ticket 0, in slot 0."""
    for offset, value in (
        (RELEASING, used_entry(0, 0, 0)),
        (ring.entry_at(0), free_entry(1)),
        (ring.slot_at(0), free_slot(1)),
        (RELEASED, 1),
    )[:stores]:
        ring.set_u64(offset, value)


@pytest.mark.parametrize("stores", range(5))
def test_a_release_is_finished_wherever_it_was_cut_short(stores: int) -> None:
    ring, publisher = accepted_ring(2)
    cut_release(ring, stores)
    assert wrong(ring) == []
    broker = ring.broker()
    begun = stores >= 2
    assert broker.recovered["unread"] == (1 if begun else 2)
    assert bool(broker.recovered["release"]) == (2 <= stores < 4)
    assert release_all(broker) == (1 if begun else 2)
    assert [ring.slot(slot) for slot in range(2)] == [free_slot(1)] * 2, "freed, and only once"
    assert (ring.u64(RELEASED), publisher.in_flight) == (2, 0)
    assert wrong(ring) == []


def test_a_slot_that_is_somebody_elses_again_is_left_alone() -> None:
    """The release had come to the slot, and another publisher has claimed it since."""
    ring, _ = accepted_ring(1)
    cut_release(ring, 3)
    assert ring.steps.claim(1) == (0, 1)
    ring.publisher(1)
    ring.broker()
    assert ring.slot(0) == owned_slot(1, 1)
    assert ring.u64(RELEASED) == 1
    assert wrong(ring) == []


def test_a_recycled_ticket_that_is_used_again_is_left_alone() -> None:
    """With as many tickets as slots, the next lap's batch is committed before `released` moves."""
    ring, publisher = accepted_ring(4, slots=4)
    cut_release(ring, 3)
    other = ring.publisher(1)
    commit_batches(other)
    assert ring.entry(0) == used_entry(1, 0, 1)
    broker = ring.broker()
    assert broker.corruption is None
    assert (broker.recovered["unread"], broker.recovered["unaccepted"]) == (3, 1)
    assert accept(broker)["publisher_id"] == 1001
    assert release_all(broker) == 4
    assert (publisher.in_flight, wrong(ring)) == (0, [])


def test_without_a_journal_a_release_that_was_cut_short_is_damage() -> None:
    ring, _ = accepted_ring(1)
    ring.set_u64(ring.entry_at(0), free_entry(1))
    broker = ring.broker()
    assert broker.corruption is not None
    assert broker.corruption.startswith("control.releasing: ")


# --- an acknowledgement that was cut short --------------------------------------------------------


def test_an_acknowledgement_that_was_cut_short_is_made() -> None:
    ring, publisher = accepted_ring(2)
    ring.set_u64(ring.row_at(0) + ACCEPTED_SEQ, 1)
    broker = ring.broker()
    assert broker.recovered["acknowledgement"]
    assert publisher.accepted_seq == 2
    commit_batches(publisher)
    assert (accept(broker)["verdict"], publisher.accepted_seq) == ("accepted", 3)


def test_a_batch_that_was_refused_is_not_acknowledged_after_a_restart() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(**VARIABLE)
    publisher.publish(MESSAGE)
    publisher.flush()
    ring.forge_header(0, seq=2)
    assert accept(broker)["verdict"] == "out_of_order"
    ring.forge_header(0, seq=1)
    broker = ring.broker()
    assert not broker.recovered["acknowledgement"]
    assert publisher.accepted_seq == 0
    assert broker.release()


def test_a_batch_that_is_accepted_by_head_only_is_looked_at_again() -> None:
    """The broker had judged it, and not come to moving `head`."""
    ring, publisher = accepted_ring(2)
    ring.set_u64(HEAD, 1)
    ring.set_u64(ring.row_at(0) + ACCEPTED_SEQ, 1)
    broker = ring.broker()
    assert (accept(broker)["verdict"], publisher.accepted_seq) == ("accepted", 2)


def test_the_log_keeps_what_a_publisher_that_is_gone_has_left() -> None:
    ring, publisher = accepted_ring(2)
    publisher.close()
    broker = ring.broker()
    assert broker.reap_row(0)
    assert {ring.slot(slot) for slot in range(2)} == {owned_slot(0, LOG_OWNER)}
    again = ring.broker()
    assert (again.recovered["unread"], wrong(ring)) == (2, [])
    assert release_all(again) == 2
    assert ring.slot(0) == free_slot(1)


# --- who waits ------------------------------------------------------------------------------------


def test_publishers_are_told_what_was_passed_before() -> None:
    """The broker was killed between the release and the word to its publisher."""
    ring, publisher = accepted_ring(3)
    broker = ring.broker()
    assert publisher.in_flight == 0, "nobody reads: all is passed"
    assert release_all(broker) == 3
    ring.set_u64(ring.row_at(0) + RELEASED_BATCHES, 1)
    commit_batches(publisher)
    accept(broker)
    ring.broker()
    assert publisher.in_flight == 0


def test_a_pass_that_was_never_told_is_told_although_the_log_is_empty() -> None:
    """Killed after the release, before the word to the publisher, which waits for its quota."""
    ring, publisher = accepted_ring(1)
    cut_release(ring, 4)
    assert publisher.in_flight == 1
    ring.broker()
    assert (publisher.in_flight, wrong(ring)) == (0, [])


def test_a_restart_looks_for_who_waits_for_a_slot_whatever_the_flag_says() -> None:
    ring, _ = accepted_ring(1)
    ring.set_u32(ring.row_at(0) + ROW_WANTS_ANY_SLOT, 1)
    ring.broker()
    assert ring.u32(SPACE_WAITERS) == 1


def test_a_restart_keeps_what_is_retained_while_nobody_waits_for_a_slot() -> None:
    ring = RawRing(slots=2)
    broker, publisher = ring.broker(retain=2), ring.publisher(quota=2)
    commit_batches(publisher, 2)
    assert broker.serve(0.0) == "timeout"
    broker = ring.broker(retain=2)
    assert broker.serve(0.0) == "timeout"
    assert ring.u64(RELEASED) == 0


def test_a_restart_wakes_everybody_whatever_their_flags_say() -> None:
    """The broker was killed between taking a flag back and the wake-up."""
    ring, _ = accepted_ring(1)
    events = [NEWS, ring.row_at(0) + ROW_EVENT]
    before = [ring.u32(event) for event in events]
    ring.broker()
    assert [ring.u32(event) for event in events] == [event + 1 for event in before]


def test_what_a_subscriber_has_not_released_stays() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    reader = ring.subscriber(broker)
    commit_batches(publisher, 2)
    accept(broker)
    accept(broker)
    first = reader.next(timeout=0)
    broker = ring.broker()
    assert not broker.release()
    assert publisher.in_flight == 2
    first.release()
    assert broker.release()
    assert not broker.release()
    reader.next(timeout=0).release()
    broker.release_passed(False)
    assert (publisher.in_flight, wrong(ring)) == (0, [])


def test_a_subscriber_that_was_joining_is_answered_by_the_next_broker() -> None:
    ring, _ = accepted_ring(2)
    reader = ring.subscriber(start="earliest")
    broker = ring.broker()
    broker.admit()
    reader.join(0.0)
    assert [reader.next(timeout=0).ticket for _ in range(2)] == [0, 1]


def test_a_cursor_that_cannot_be_holds_everything_back_and_does_no_harm() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    ring.subscriber(broker)
    commit_batches(publisher, 2)
    accept(broker)
    accept(broker)
    ring.set_u64(ring.reader_at(0) + LINE, 77)
    assert [field for field, _ in wrong(ring)] == ["subscribers[0].cursor"]
    broker = ring.broker()
    assert broker.corruption is None
    assert not broker.release()
    ring.set_u64(ring.reader_at(0) + LINE, 2)
    assert release_all(broker) == 2


# --- rows that are kept ---------------------------------------------------------------------------


def remote_ring() -> tuple[RawRing, _core.PublisherCore]:
    """One batch of a publisher on a network is accepted, another committed, a third half there."""
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    ring.set_u32(ring.row_at(0) + REMOTE, 1)
    commit_batches(publisher, 2)
    accept(broker)
    assert ring.steps.claim(0) == (2, 0)
    return ring, publisher


def test_the_place_of_a_publisher_on_a_network_is_kept_with_what_came() -> None:
    ring, _ = remote_ring()
    broker = ring.broker()
    assert broker.adopted_publishers == [
        {
            "index": 0,
            "publisher_id": 1000,
            "incarnation": 1,
            "received_seq": 2,
            "quota": 3,
            "ack": 1,
        }
    ]
    assert ring.slot(2) == free_slot(1), "what was half there comes again"
    assert broker.recovered["slots"] == 1
    assert accept(broker)["seq"] == 2
    assert wrong(ring) == []


def test_a_place_that_is_kept_is_taken_over_once() -> None:
    ring, _ = remote_ring()
    broker = ring.broker()
    assert broker.take_over_publisher(0, -1)
    assert not broker.take_over_publisher(0, -1)
    assert not broker.take_over_publisher(99, -1)


def test_a_slot_that_a_publisher_of_this_machine_fills_stays_its_own() -> None:
    ring, _ = accepted_ring(1)
    assert ring.steps.claim(0) == (1, 0)
    broker = ring.broker()
    assert (broker.adopted_publishers, ring.slot(1)) == ([], owned_slot(0, 0))


# --- what cannot be -------------------------------------------------------------------------------

DAMAGE = {
    "released beyond head": (RELEASED, 3, "control.released"),
    "more than all slots": (HEAD, 2**40, "control.released"),
    "head before released": (HEAD, 2**64 - 1, "control.released"),
    "tail far behind": (TAIL, 0, "control.tail"),
    "tail far ahead": (TAIL, 9, "control.tail"),
    "tail all ones": (TAIL, 2**64 - 1, "control.tail"),
}


@pytest.mark.parametrize(("offset", "value", "field"), DAMAGE.values(), ids=DAMAGE)
def test_a_control_word_that_cannot_be_is_named(offset: int, value: int, field: str) -> None:
    ring, _ = accepted_ring(2)
    ring.set_u64(offset, value)
    assert [found for found, _ in wrong(ring)] == [field]
    broker = ring.broker()
    assert broker.corruption is not None
    assert broker.corruption.startswith(f"{field}: ")


ENTRIES = {
    "of another lap": used_entry(3, 0, 0),
    "with a slot that does not exist": used_entry(0, 3, 0),
    "with the slot of another ticket": used_entry(0, 1, 0),
    "with a free slot": used_entry(0, 2, 0),
    "of another generation": used_entry(0, 0, 5),
    "free": free_entry(0),
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_a_ticket_that_cannot_be_is_named_and_the_ring_quarantined(entry: int) -> None:
    ring, publisher = accepted_ring(2)
    ring.set_u64(ring.entry_at(0), entry)
    broker = ring.broker()
    assert broker.corruption is not None
    assert broker.corruption.startswith("tickets[")
    assert broker.corruption == ring.monitor().damage
    assert ring.u32(BROKER_STATE) == QUARANTINED
    with pytest.raises(es.CorruptSegment, match=r"quarantined: tickets\["):
        commit_batches(publisher)
    again = ring.broker()
    assert again.corruption == "control.state: 4: a broker has quarantined it"
    assert ring.monitor().damage == broker.corruption, "the first finding is the one to tell"


def test_a_subscriber_of_a_quarantined_ring_is_told_so_and_does_not_just_end() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    reader = ring.subscriber(broker)
    commit_batches(publisher)
    ring.set_u64(ring.entry_at(0), used_entry(3, 0, 0))
    assert broker.serve(None) == "corrupt"
    with pytest.raises(es.CorruptSegment, match=r"quarantined: tickets\[0\]"):
        reader.next(timeout=0)


def test_a_damaged_batch_is_a_readers_misfortune_and_not_the_brokers() -> None:
    ring, publisher = accepted_ring(2)
    ring.memory[ring.header_at(0)] ^= 1
    assert [field for field, _ in wrong(ring)] == ["slots[0].header"]
    broker = ring.broker()
    assert broker.corruption is None
    assert (publisher.accepted_seq, release_all(broker)) == (2, 2)


def test_slots_that_nobody_will_free_are_found() -> None:
    ring = RawRing()
    ring.broker()
    assert ring.steps.claim(2) == (0, 0)
    assert [field for field, _ in wrong(ring)] == ["slot_words[0]"]
    ring.publisher(2)
    assert wrong(ring) == [], "it fills it"
    assert ring.steps.claim(2) == (1, 0)
    assert [field for field, _ in wrong(ring)] == ["slot_words[1]"], "one at a time"


@pytest.mark.parametrize("seed", range(40))
def test_random_words_are_found_or_do_no_harm(seed: int) -> None:
    """The broker serves on, or names what is wrong; it never hangs."""

    dice = random.Random(seed)  # noqa: S311 - a test is to be repeated
    ring, _ = accepted_ring(3)
    for _ in range(dice.randrange(1, 4)):
        where = dice.choice([TAIL, HEAD, RELEASED, RELEASING, ring.entry_at(0), ring.slot_at(1)])
        ring.set_u64(where, dice.choice([dice.getrandbits(64), dice.randrange(6), 2**64 - 1]))
    broker = ring.broker()
    if broker.corruption is None:
        assert broker.serve(0.0) in ("timeout", "corrupt")
    else:
        assert ring.u32(BROKER_STATE) == QUARANTINED
