"""What the broker accepts, acknowledges and refuses; one batch at a time.

Batches come from real publishers; where a test needs a damaged one, its header or the words around
it are changed between commit and accept.
"""

from __future__ import annotations

import pytest
from raw_ring import (
    HEAD,
    MESSAGE,
    RELEASED,
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

from embar_shm import _core
from embar_shm.errors import PeerError

# --- accept and release -------------------------------------------------------------------------


def test_a_batch_is_accepted_with_everything_its_header_says() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(2)
    assert broker.accept() is None
    publisher.publish(MESSAGE)
    publisher.publish(MESSAGE)
    publisher.flush()
    assert broker.accept() == {
        "ticket": 0,
        "slot": 0,
        "owner": 2,
        "verdict": "accepted",
        "publisher_id": 1002,
        "seq": 1,
        "format": 0,
        "messages": 2,
        "message_size": 64,
        "body_bytes": 128,
        "payload_bytes": 128,
        "payload_offset": ring.header_at(0) + 4096,
    }
    assert broker.accept() is None


def test_an_accepted_batch_keeps_its_slot_until_it_is_released() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    commit_batches(publisher)
    accept(broker)
    assert ring.entry(0) == used_entry(0, 0, 0)
    assert ring.slot(0) == owned_slot(0, 0)
    assert (ring.u64(HEAD), ring.u64(RELEASED), publisher.in_flight) == (1, 0, 1)

    assert broker.release()
    assert ring.entry(0) == free_entry(1)
    assert ring.slot(0) == free_slot(1)
    assert (ring.u64(HEAD), ring.u64(RELEASED), publisher.in_flight) == (1, 1, 0)
    assert not broker.release()


def test_nothing_is_accepted_while_every_ticket_waits_for_its_release() -> None:
    ring = RawRing(slots=4)  # as many slots as tickets
    broker, publisher = ring.broker(), ring.publisher(quota=4)
    commit_batches(publisher, 4)
    assert [accept(broker)["ticket"] for _ in range(4)] == [0, 1, 2, 3]
    assert broker.accept() is None
    assert broker.corruption is None
    assert broker.release()
    commit_batches(publisher)
    assert accept(broker)["ticket"] == 4


def test_the_broker_goes_on_where_head_and_released_stand() -> None:
    ring = RawRing()
    ring.start_at(4 * 2**32 - 2)  # two tickets before the lap number wraps
    broker, publisher = ring.broker(), ring.publisher()
    for seq in range(1, 6):
        commit_batches(publisher)
        batch = accept(broker)
        assert (batch["ticket"], batch["seq"]) == (4 * 2**32 - 3 + seq, seq)
        broker.release()
    assert ring.u64(TAIL) == ring.u64(HEAD) == ring.u64(RELEASED) == 4 * 2**32 + 3


# --- acknowledgement ----------------------------------------------------------------------------


def test_an_acknowledgement_does_not_cover_a_batch_that_is_not_committed() -> None:
    ring = RawRing()
    broker, a, b = ring.broker(), ring.publisher(0), ring.publisher(1)
    commit_batches(a)
    a.publish(MESSAGE)  # batch 2 of a stays open
    commit_batches(b)
    assert [accept(broker)["owner"] for _ in range(2)] == [0, 1]
    assert broker.accept() is None
    assert (a.accepted_seq, a.committed_seq, b.accepted_seq) == (1, 1, 1)
    a.flush()
    assert a.accepted_seq == 1
    accept(broker)
    assert a.accepted_seq == 2


def test_an_acknowledgement_cannot_be_forged_in_the_segment() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    accepted_seq = ring.row_at(0) + 128
    commit_batches(publisher)
    accept(broker)
    ring.set_u64(accepted_seq, 7)
    commit_batches(publisher)
    assert accept(broker)["verdict"] == "accepted"
    assert publisher.accepted_seq == 2


def test_waiting_for_an_acknowledgement_ends_with_it_or_at_the_timeout() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    commit_batches(publisher)
    with pytest.raises(TimeoutError, match="has accepted up to 0 of 1 committed"):
        publisher.wait_acked(0.0)
    accept(broker)
    publisher.wait_acked(0.0)
    assert ring.monitor().publisher(0)["ack_waits"] == 1


# --- refused batches ----------------------------------------------------------------------------


@pytest.mark.parametrize("seq", [0, 1, 2])
def test_a_duplicate_is_dropped_and_changes_nothing(seq: int) -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    commit_batches(publisher, 3)
    ring.forge_header(2, seq=seq)
    verdicts = [accept(broker)["verdict"] for _ in range(3)]
    assert verdicts == ["accepted", "accepted", "duplicate"]
    assert publisher.accepted_seq == 2
    control = ring.monitor().control()
    assert (control["batches"], control["messages"], control["duplicated"]) == (2, 2, 1)
    assert publisher.peer == "ok"
    assert [broker.release() for _ in range(4)] == [True, True, True, False]
    assert publisher.in_flight == 0


@pytest.mark.parametrize("seq", [3, 9, 2**64 - 1])
def test_a_batch_that_leaves_a_gap_is_refused_and_so_is_what_follows(seq: int) -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(quota=3)
    commit_batches(publisher, 3)
    ring.forge_header(1, seq=seq)
    verdicts = [accept(broker)["verdict"] for _ in range(3)]
    assert verdicts == ["accepted", "out_of_order", "out_of_order"]
    assert publisher.accepted_seq == 1
    control = ring.monitor().control()
    assert (control["batches"], control["out_of_order"]) == (1, 2)
    row = ring.monitor().publisher(0)
    assert (row["fault"], row["fault_seq"]) == (2, seq)  # the first of the two
    with pytest.raises(PeerError, match=rf"refused batch {seq} .*: a batch before it is missing"):
        publisher.publish(MESSAGE)


FIXED = {  # four messages of 64 bytes in a slot of 256
    "another magic": {"magic": 0x48425244},
    "another version": {"version": 2},
    "unknown format": {"format": 2},
    "last unknown format": {"format": 0xFFFF},
    "variable, with a message size": {"format": 1},
    "another publisher": {"publisher_id": 1001},
    "another incarnation": {"incarnation": 2},
    "no messages": {"messages": 0},
    "a message less": {"messages": 3},
    "a message more": {"messages": 5},
    "no message size": {"message_size": 0},
    "another message size": {"message_size": 65},
    "body one byte less": {"body_bytes": 255, "payload_bytes": 255},
    "payload less than the body": {"payload_bytes": 255},
    "payload more than the body": {"payload_bytes": 257},
    "larger than the slot": {"messages": 5, "body_bytes": 320, "payload_bytes": 320},
    "so large that it overflows": {
        "messages": 2**32 - 1,
        "message_size": 2**32 - 1,
        "body_bytes": (2**32 - 1) ** 2,
        "payload_bytes": (2**32 - 1) ** 2,
    },
}
VARIABLE_SIZE = {  # three messages of 10 bytes: body 72, payload 30
    "fixed, without a message size": {"format": 0},
    "with a message size": {"message_size": 10},
    "body not a multiple of 8": {"body_bytes": 70},
    "no messages": {"messages": 0},
    "more messages than payload bytes": {"messages": 31, "body_bytes": 256},
    "payload more than the body": {"payload_bytes": 73},
    "payload leaves no room for framing": {"payload_bytes": 72 - 3 * 8 + 1},
    "larger than the slot": {"body_bytes": 264},
    "payload so large that it overflows": {"payload_bytes": 2**64 - 1},
}


def assert_refused(ring: RawRing, broker: _core.BrokerCore, sender: _core.PublisherCore) -> None:
    assert accept(broker)["verdict"] == "bad_header"
    assert sender.accepted_seq == 0
    control = ring.monitor().control()
    assert (control["corrupt"], control["batches"], control["messages"]) == (1, 0, 0)
    row = ring.monitor().publisher(0)
    assert (row["fault"], row["fault_seq"], row["accepted_messages"]) == (1, 1, 0)
    with pytest.raises(PeerError, match=r"refused batch 1 .*: its header is damaged"):
        sender.publish(MESSAGE)
    assert broker.release()
    assert ring.slot(0) == free_slot(1)


@pytest.mark.parametrize("fields", FIXED.values(), ids=FIXED)
def test_a_fixed_size_batch_whose_header_makes_no_sense_is_refused(fields: dict[str, int]) -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    for _ in range(4):
        publisher.publish(MESSAGE)
    ring.forge_header(0, **fields)
    assert_refused(ring, broker, publisher)


@pytest.mark.parametrize("fields", VARIABLE_SIZE.values(), ids=VARIABLE_SIZE)
def test_a_variable_size_batch_whose_header_makes_no_sense_is_refused(
    fields: dict[str, int],
) -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(**VARIABLE)
    for _ in range(3):
        publisher.publish(bytes(10))
    publisher.flush()
    ring.forge_header(0, **fields)
    assert_refused(ring, broker, publisher)


@pytest.mark.parametrize("byte", range(128))
def test_a_header_with_a_single_wrong_byte_is_refused(byte: int) -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    commit_batches(publisher)
    ring.memory[ring.header_at(0) + byte] ^= 0x10
    assert_refused(ring, broker, publisher)


def test_a_header_that_was_only_rewritten_is_accepted() -> None:
    """Or the tests above would show nothing."""
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    commit_batches(publisher)
    ring.forge_header(0, opened_ns=1, reserved=bytes(48))
    assert accept(broker)["verdict"] == "accepted"


# --- damaged words ------------------------------------------------------------------------------

DAMAGED_WORDS = {
    "entry used in another lap": (used_entry(1, 0, 0), owned_slot(0, 0)),
    "entry with a slot beyond the pool": (used_entry(0, 3, 0), owned_slot(0, 0)),
    "entry with another generation": (used_entry(0, 0, 1), owned_slot(0, 0)),
    "entry with another, free slot": (used_entry(0, 1, 0), owned_slot(0, 0)),
    "slot free": (used_entry(0, 0, 0), free_slot(0)),
    "slot owned by nobody in the table": (used_entry(0, 0, 0), owned_slot(0, 4)),
    "all bits set": (2**64 - 1, 2**64 - 1),
}


@pytest.mark.parametrize(("entry", "word"), DAMAGED_WORDS.values(), ids=DAMAGED_WORDS)
def test_damaged_words_stop_the_broker_with_a_reason(entry: int, word: int) -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher()
    commit_batches(publisher)
    ring.set_u64(ring.entry_at(0), entry)
    ring.set_u64(ring.slot_at(0), word)
    assert broker.accept() is None
    assert broker.corruption is not None
    assert broker.corruption.startswith("tickets[0]: ")
    assert broker.serve(None) == "corrupt"
    assert (ring.u64(HEAD), publisher.accepted_seq) == (0, 0)
