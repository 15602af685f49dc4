"""The ring's words: every step of a slot word and a ticket entry, one at a time.

The steps are those of ``_native/ring.hpp``; nothing runs at the same time here. Races are the
business of tests/native.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from raw_ring import (
    GENERATIONS,
    LAPS,
    TAIL,
    RawRing,
    free_entry,
    free_slot,
    owned_slot,
    used_entry,
)

ANYBODY = 3


def claim(ring: RawRing, owner: int = 0) -> tuple[int, int]:
    claimed = ring.steps.claim(owner)
    assert claimed is not None
    return claimed


def commit(ring: RawRing, slot: int, generation: int) -> int:
    ticket = ring.steps.commit(slot, generation)
    assert ticket is not None
    return ticket


# --- slot words ---------------------------------------------------------------------------------

STEPS_OF_A_SLOT: list[tuple[str, int, Callable[[RawRing], object], object, int]] = [
    # what, word before, step, what the step returns, word after
    ("claim", free_slot(0), lambda r: r.steps.claim(2), (0, 0), owned_slot(0, 2)),
    ("claim again", free_slot(7), lambda r: r.steps.claim(2), (0, 7), owned_slot(7, 2)),
    ("claim what is owned", owned_slot(7, 1), lambda r: r.steps.claim(2), None, owned_slot(7, 1)),
    ("release", owned_slot(7, 1), lambda r: r.steps.release(0, 0, 1, 7), None, free_slot(8)),
    ("reap", owned_slot(7, 1), lambda r: r.steps.reap_slots(1), 1, free_slot(8)),
    ("reap another's", owned_slot(7, 1), lambda r: r.steps.reap_slots(2), 0, owned_slot(7, 1)),
    ("reap what is free", free_slot(7), lambda r: r.steps.reap_slots(0), 0, free_slot(7)),
    (
        "claim in the last generation",
        free_slot(GENERATIONS - 1),
        lambda r: r.steps.claim(2),
        (0, GENERATIONS - 1),
        owned_slot(GENERATIONS - 1, 2),
    ),
    (
        "release in the last generation",
        owned_slot(GENERATIONS - 1, 1),
        lambda r: r.steps.release(0, 0, 1, GENERATIONS - 1),
        None,
        free_slot(0),
    ),
]


@pytest.mark.parametrize(
    ("before", "step", "returns", "after"),
    [row[1:] for row in STEPS_OF_A_SLOT],
    ids=[row[0] for row in STEPS_OF_A_SLOT],
)
def test_a_slot_word_takes_its_steps(
    before: int, step: Callable[[RawRing], object], returns: object, after: int
) -> None:
    ring = RawRing(slots=1)
    ring.set_u64(ring.slot_at(0), before)
    assert step(ring) == returns
    assert ring.slot(0) == after


def test_claims_take_the_first_free_slot_until_the_pool_is_full() -> None:
    ring = RawRing(slots=3)
    assert [ring.steps.claim(0) for _ in range(4)] == [(0, 0), (1, 0), (2, 0), None]


def test_a_slot_that_came_free_is_claimed_before_those_behind_it() -> None:
    ring = RawRing(slots=4)
    for owner in (0, 1, 2):
        claim(ring, owner)
    assert ring.steps.reap_slots(1) == 1
    assert claim(ring, ANYBODY) == (1, 1)
    assert claim(ring, ANYBODY) == (3, 0)


def test_reaping_frees_all_slots_of_one_owner_and_no_others() -> None:
    ring = RawRing(slots=4)
    for owner in (1, 2, 1, 3):
        claim(ring, owner)
    assert ring.steps.reap_slots(1) == 2
    assert [ring.slot(s) for s in range(4)] == [
        free_slot(1),
        owned_slot(0, 2),
        free_slot(1),
        owned_slot(0, 3),
    ]


# --- ticket entries -----------------------------------------------------------------------------

STEPS_OF_AN_ENTRY: list[tuple[str, int, Callable[[RawRing], object], object, int]] = [
    ("commit", free_entry(0), lambda r: r.steps.commit(2, 5), 0, used_entry(0, 2, 5)),
    ("release", used_entry(0, 2, 5), lambda r: r.steps.release(0, 2, 1, 5), None, free_entry(1)),
    (
        "commit with the low bits of a large generation",
        free_entry(0),
        lambda r: r.steps.commit(1, 2**19 + 3),
        0,
        used_entry(0, 1, 3),
    ),
    (
        "release in the last lap",
        used_entry(LAPS - 1, 2, 5),
        lambda r: r.steps.release((LAPS - 1) * 4, 2, 1, 5),
        None,
        free_entry(0),
    ),
]


@pytest.mark.parametrize(
    ("before", "step", "returns", "after"),
    [row[1:] for row in STEPS_OF_AN_ENTRY],
    ids=[row[0] for row in STEPS_OF_AN_ENTRY],
)
def test_a_ticket_entry_takes_its_steps(
    before: int, step: Callable[[RawRing], object], returns: object, after: int
) -> None:
    ring = RawRing(slots=3)
    ring.set_u64(ring.entry_at(0), before)
    assert step(ring) == returns
    assert ring.entry(0) == after


def test_tickets_are_given_in_the_order_of_commits_not_of_claims() -> None:
    ring = RawRing(slots=3)
    first, second, third = claim(ring, 0), claim(ring, 1), claim(ring, 2)
    assert commit(ring, *third) == 0
    assert commit(ring, *first) == 1
    assert commit(ring, *second) == 2
    assert ring.u64(TAIL) == 3
    assert [ring.entry(t) for t in range(4)] == [
        used_entry(0, 2, 0),
        used_entry(0, 0, 0),
        used_entry(0, 1, 0),
        free_entry(0),
    ]


@pytest.mark.parametrize("start", [0, 4 * (LAPS - 1) + 2], ids=["first lap", "lap wraps"])
@pytest.mark.parametrize("lag", [1, 2, 3])
@pytest.mark.parametrize("released", [0, 1, 2, 3])
def test_a_commit_moves_a_tail_that_lags_behind(start: int, lag: int, released: int) -> None:
    """As after the death of publishers between the CAS of their commits and the step of `tail`."""
    ring = RawRing(slots=4)
    ring.start_at(start)
    slots = [claim(ring) for _ in range(3)]
    tickets = [commit(ring, *slot) for slot in slots]
    for ticket, (slot, generation) in list(zip(tickets, slots, strict=True))[:released]:
        ring.steps.release(ticket, slot, 0, generation)
    ring.set_u64(TAIL, start + 3 - lag)

    assert commit(ring, *claim(ring)) == start + 3
    assert ring.u64(TAIL) == start + 4


@pytest.mark.parametrize("lap", [0, LAPS - 3, 2 * LAPS - 3], ids=["new", "wraps", "wraps again"])
@pytest.mark.parametrize("slots", [1, 3, 4])
def test_tickets_count_on_over_many_laps(lap: int, slots: int) -> None:
    ring = RawRing(slots=slots)
    tickets = ring.geometry.tickets
    start = lap * tickets
    ring.start_at(start)
    waiting: list[tuple[int, int, int]] = []
    for n in range(100):
        slot, generation = claim(ring)
        ticket = commit(ring, slot, generation)
        assert ticket == start + n
        assert ring.entry(ticket) == used_entry(ticket // tickets % LAPS, slot, generation)
        waiting.append((ticket, slot, generation))
        if len(waiting) == slots:
            ticket, slot, generation = waiting.pop(0)
            assert ring.steps.look(ticket) == "committed"
            ring.steps.release(ticket, slot, 0, generation)
            assert ring.entry(ticket) == free_entry((ticket // tickets + 1) % LAPS)
    assert ring.u64(TAIL) == start + 100
    assert sum(ring.slot(s) >> 16 for s in range(slots)) == 100 - len(waiting)  # one per release


# --- what a ticket says, and what damaged memory says -------------------------------------------

G = 2**19 + 5  # a generation that does not fit into an entry

WORDS = {
    "nothing committed": (free_entry(0), owned_slot(G, 1), "empty"),
    "committed": (used_entry(0, 1, G), owned_slot(G, 1), "committed"),
    "free in another lap": (free_entry(9), owned_slot(G, 1), "corrupt"),
    "used in an earlier lap": (used_entry(LAPS - 1, 1, G), owned_slot(G, 1), "corrupt"),
    "used in a later lap": (used_entry(1, 1, G), owned_slot(G, 1), "corrupt"),
    "slot beyond the pool": (used_entry(0, 3, G), owned_slot(G, 1), "corrupt"),
    "last slot that fits the bits": (used_entry(0, 4095, G), owned_slot(G, 1), "corrupt"),
    "another generation": (used_entry(0, 1, G + 1), owned_slot(G, 1), "corrupt"),
    "slot free": (used_entry(0, 1, G), free_slot(G), "corrupt"),
    "slot free again": (used_entry(0, 1, G), free_slot(G + 1), "corrupt"),
    "owner beyond the table": (used_entry(0, 1, G), owned_slot(G, 4), "corrupt"),
    "last owner that fits the bits": (used_entry(0, 1, G), owned_slot(G, 0x7FFF), "corrupt"),
    "all bits set": (2**64 - 1, 2**64 - 1, "corrupt"),
}


@pytest.mark.parametrize(("entry", "word", "seen"), WORDS.values(), ids=WORDS)
def test_a_ticket_is_read_with_its_slot_word(entry: int, word: int, seen: str) -> None:
    ring = RawRing(slots=3, max_publishers=4)
    ring.set_u64(ring.entry_at(0), entry)
    ring.set_u64(ring.slot_at(1), word)
    assert ring.steps.look(0) == seen


@pytest.mark.parametrize(
    "entry",
    [free_entry(LAPS - 1), used_entry(LAPS - 1, 0, 0), free_entry(LAPS // 2)],
    ids=["earlier lap", "earlier lap, used", "half the laps away"],
)
def test_a_commit_gives_up_on_an_entry_that_makes_no_sense(entry: int) -> None:
    ring = RawRing()
    slot = claim(ring)
    ring.set_u64(ring.entry_at(0), entry)
    assert ring.steps.commit(*slot) is None
    assert ring.entry(0) == entry
    assert ring.u64(TAIL) == 0


def test_a_commit_ends_when_every_entry_and_the_tail_are_garbage() -> None:
    ring = RawRing(slots=4)
    slot = claim(ring)
    for ticket in range(4):
        ring.set_u64(ring.entry_at(ticket), 2**64 - 1 - ticket)
    ring.set_u64(TAIL, 2**64 - 1)
    ring.steps.commit(*slot)  # any answer will do: it came
    assert ring.slot(slot[0]) == owned_slot(slot[1], 0)


def test_committed_tickets_of_an_owner_are_found_from_the_given_ticket_on() -> None:
    ring = RawRing(slots=4)
    for owner in (1, 2, 1):
        commit(ring, *claim(ring, owner))
    claim(ring, 3)
    found = [[ring.steps.has_committed(owner, since=t) for t in range(4)] for owner in (1, 2, 3)]
    assert found == [
        [True, True, True, False],
        [True, True, False, False],
        [False, False, False, False],
    ]


def test_the_search_for_committed_tickets_ends_on_a_full_ring_and_on_garbage() -> None:
    ring = RawRing(slots=4)
    for _ in range(4):
        commit(ring, *claim(ring, 1))
    assert not ring.steps.has_committed(2, since=0)
    for ticket in range(4):
        ring.set_u64(ring.entry_at(ticket), 2**64 - 1)
    assert not ring.steps.has_committed(1, since=0)
