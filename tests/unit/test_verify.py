"""Stamped messages, and what a subscriber finds wrong with them: each fault is made by hand."""

from __future__ import annotations

import os
import time

import pytest

from embar_shm._core import STAMP_BYTES, Delays, Verifier, stamp, wait_until

SIZE = 100  # no multiple of 8: the last word of a message is half full
PUBLISHER = 7


def batch(*numbers: int, publisher: int = PUBLISHER, size: int = SIZE) -> bytearray:
    """A batch with these messages of a publisher, each of random bytes."""
    body = bytearray()
    for number in numbers:
        message = bytearray(os.urandom(size))
        stamp(message, size, publisher, number)
        body += message
    return body


def verified(*batches: bytearray) -> Verifier:
    verifier = Verifier()
    for ticket, body in enumerate(batches):
        verifier.check(body, SIZE, PUBLISHER, ticket)
    return verifier


def counted(verifier: Verifier) -> dict[str, int]:
    return {kind: count for kind, count in verifier.counts.items() if count}


def test_what_comes_as_it_was_sent_has_no_fault() -> None:
    verifier = verified(batch(1, 2, 3), batch(4), batch(5, 6))
    assert verifier.first is None
    assert counted(verifier) == {"messages": 6}
    assert verifier.next == {PUBLISHER: 7}


def test_many_messages_are_stamped_with_numbers_in_turn() -> None:
    body = bytearray(3 * SIZE)
    stamp(body, SIZE, PUBLISHER, 1)
    assert counted(verified(body)) == {"messages": 3}


def test_publishers_have_numbers_of_their_own() -> None:
    verifier = Verifier()
    verifier.check(batch(1, 2, publisher=1), SIZE, 1, 0)
    verifier.check(batch(1, publisher=2), SIZE, 2, 1)
    verifier.check(batch(3, publisher=1), SIZE, 1, 2)
    assert verifier.first is None
    assert verifier.next == {1: 4, 2: 2}


def test_a_message_that_never_comes_is_lost_and_the_first_one_is_named() -> None:
    verifier = verified(batch(1, 2), batch(5, 6), batch(9))
    assert verifier.first == {
        "kind": "lost", "publisher": PUBLISHER, "expected": 3, "found": 5, "ticket": 1,
    }  # fmt: skip
    assert counted(verifier) == {"messages": 5, "lost": 4}


def test_a_message_that_comes_twice_is_duplicated() -> None:
    verifier = verified(batch(1, 2), batch(2, 3))
    assert verifier.first == {
        "kind": "duplicated", "publisher": PUBLISHER, "expected": 3, "found": 2, "ticket": 1,
    }  # fmt: skip
    assert counted(verifier) == {"messages": 4, "duplicated": 1}


def test_messages_that_change_places_are_reordered_and_not_lost() -> None:
    verifier = verified(batch(1, 4, 2), batch(3, 5))
    assert verifier.first == {
        "kind": "reordered", "publisher": PUBLISHER, "expected": 2, "found": 4, "ticket": 0,
    }  # fmt: skip
    assert counted(verifier) == {"messages": 5, "reordered": 2}


def test_a_gap_that_is_filled_in_part_is_still_a_loss() -> None:
    verifier = verified(batch(1, 5, 3))
    assert (verifier.first or {})["kind"] == "lost"
    assert counted(verifier) == {"messages": 3, "lost": 2, "reordered": 1}


def test_a_late_message_that_comes_twice_is_duplicated() -> None:
    assert counted(verified(batch(1, 3, 2, 2, 4))) == {
        "messages": 5,
        "reordered": 1,
        "duplicated": 1,
    }


@pytest.mark.parametrize("place", range(SIZE))
def test_a_damaged_byte_is_found_wherever_it_is(place: int) -> None:
    body = batch(1, 2, 3)
    body[SIZE + place] ^= 1
    verifier = verified(body)
    found = verifier.first
    assert found is not None
    assert (found["kind"], found["publisher"], found["expected"]) == ("corrupt", PUBLISHER, 2)
    assert counted(verifier) == {"messages": 3, "corrupt": 1}, "the next one is in its place"


def test_messages_of_another_publisher_in_a_batch_are_corrupt() -> None:
    verifier = verified(batch(1, publisher=PUBLISHER + 1))
    assert counted(verifier) == {"messages": 1, "corrupt": 1}


def test_zeros_and_an_empty_message_do_not_pass_for_a_stamp() -> None:
    assert counted(verified(bytearray(SIZE))) == {"messages": 1, "corrupt": 1}


def test_a_gap_that_was_announced_excuses_what_each_publisher_skips_once() -> None:
    verifier = verified(batch(1))
    verifier.check(batch(5, 6), SIZE, PUBLISHER, 9, gap=True)
    assert verifier.first is None
    assert counted(verifier) == {"messages": 3, "overrun": 3}
    verifier.check(batch(8), SIZE, PUBLISHER, 10)
    assert (verifier.first or {})["kind"] == "lost"


def test_a_gap_does_not_excuse_what_came_before() -> None:
    verifier = verified(batch(1, 2))
    verifier.check(batch(1), SIZE, PUBLISHER, 9, gap=True)
    assert (verifier.first or {})["kind"] == "duplicated"


def test_another_log_may_begin_with_what_came_before() -> None:
    verifier = verified(batch(1, 2, 3))
    verifier.restart()
    verifier.check(batch(2, 3, 4, 5), SIZE, PUBLISHER, 0)
    assert verifier.first is None
    assert counted(verifier) == {"messages": 7, "resent": 2}
    assert verifier.next == {PUBLISHER: 6}


def test_another_log_may_begin_later_and_what_is_skipped_is_counted() -> None:
    verifier = verified(batch(1))
    verifier.restart()
    verifier.check(batch(4, 5), SIZE, PUBLISHER, 0)
    assert verifier.first is None
    assert counted(verifier) == {"messages": 3, "overrun": 2}


@pytest.mark.parametrize(
    ("then", "kind"), [((2, 4), "lost"), ((2, 2), "duplicated"), ((2, 3, 1), "duplicated")]
)
def test_what_is_sent_again_must_be_complete_too(then: tuple[int, ...], kind: str) -> None:
    verifier = verified(batch(1, 2, 3))
    verifier.restart()
    verifier.check(batch(*then), SIZE, PUBLISHER, 0)
    assert (verifier.first or {})["kind"] == kind


@pytest.mark.parametrize("size", [0, STAMP_BYTES - 1])
def test_messages_without_room_for_a_stamp_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="at least 32"):
        stamp(bytearray(64), size, 1, 1)
    with pytest.raises(ValueError, match="at least 32"):
        Verifier().check(bytearray(64), size, 1, 1)


def test_a_body_that_is_no_whole_number_of_messages_is_refused() -> None:
    with pytest.raises(ValueError, match="no whole number"):
        Verifier().check(batch(1)[:-1], SIZE, PUBLISHER, 0)


def test_delays_count_from_the_moment_a_message_was_due() -> None:
    delays = Delays()
    late, early = 10_000_000, 3_600_000_000_000
    delays.record(time.monotonic_ns() - late)
    body = bytearray(2 * SIZE)
    stamp(body, SIZE, PUBLISHER, 1, due_ns=time.monotonic_ns() - late)
    delays.record_batch(body, SIZE)
    delays.record(time.monotonic_ns() + early)
    found = delays.as_dict()
    assert found["count"] == 4
    assert found["max"] >= late
    assert min(bound for bound, _ in found["buckets"]) == 0, "not due yet: it is not late"


def test_waiting_ends_when_the_moment_has_come() -> None:
    deadline = time.monotonic_ns() + 2_000_000
    wait_until(deadline, 100)
    assert time.monotonic_ns() >= deadline
    wait_until(0, 100)  # has come already
