"""The subscribers' half of the protocol: its frames and what they may contain; without sockets."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import batch, batch_header

from embar_shm import _core, errors, protocol
from embar_shm.errors import EmbarError, ProtocolError
from embar_shm.protocol import HEAD_BYTES, Connection, Delivery, Kind, Role, State
from embar_shm.subscribe_frames import (
    MAX_CREDIT,
    Credit,
    Mode,
    Start,
    Subscribe,
    Subscribed,
    check_credit,
)

HEADER = _core.BATCH_HEADER_BYTES
SUBSCRIBE = Subscribe(subscriber_id=7, incarnation=1, credit=4)
words = st.integers(0, 2**64 - 1)


def connection(role: Role, state: State) -> Connection:
    found = Connection(role)
    found.state = state
    return found


def test_a_whole_conversation_keeps_both_sides_in_the_same_state() -> None:
    subscriber, broker = Connection(Role.SUBSCRIBER), Connection(Role.BROKER)
    conversation = [
        (subscriber, Kind.SUBSCRIBE, SUBSCRIBE.pack()),
        (broker, Kind.CHALLENGE, bytes(32)),
        (subscriber, Kind.PROOF, bytes(32)),
        (broker, Kind.SUBSCRIBED, Subscribed(1, 0, 0, 4096).pack()),
        (subscriber, Kind.CREDIT, Credit(0, 5).pack()),
        (broker, Kind.END, b""),
        (subscriber, Kind.CREDIT, Credit(1, 5).pack()),
        (subscriber, Kind.GOODBYE, b""),
        (broker, Kind.GOODBYE, b""),
    ]
    for sender, kind, body in conversation:
        receiver = broker if sender is subscriber else subscriber
        frame = sender.send(kind, body)
        assert receiver.head(frame[:HEAD_BYTES]) == (kind, len(body))
        assert receiver.received(kind, body).body == body
        assert subscriber.state is broker.state
    assert broker.state is State.CLOSED


# --- frames ---------------------------------------------------------------------------------------


@given(
    st.builds(
        Subscribe,
        words,
        words,
        st.integers(0, MAX_CREDIT),
        st.sampled_from(Mode),
        st.sampled_from(Start),
        words,
        words,
        st.text(st.characters(categories=["L", "N"]), max_size=16),
    )
)
def test_a_subscribe_arrives_as_it_was_sent(subscribe: Subscribe) -> None:
    assert Subscribe.unpack(subscribe.pack()) == subscribe


@pytest.mark.parametrize(
    ("name", "arrives"),
    [("a" * 99, "a" * 64), ("\u20ac" * 22, "\u20ac" * 21), ("\x1b[2J", "?[2J"), ("x\0y", "x?y")],
    ids=["long", "cut between letters", "escape", "zero"],
)
def test_a_name_is_cut_and_can_be_shown(name: str, arrives: str) -> None:
    assert Subscribe.unpack(replace(SUBSCRIBE, name=name).pack()).name == arrives


def test_a_name_that_is_no_text_can_be_shown() -> None:
    body = bytearray(replace(SUBSCRIBE, name="xyz").pack())
    body[-64:-61] = b"\xff\xfe\x80"
    assert Subscribe.unpack(bytes(body)).name.isprintable()


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("features", 4, "features 0x4"),
        ("mode", 2, "mode 2 and start 0"),
        ("start", 6, "mode 0 and start 6"),
        ("credit", MAX_CREDIT + 1, f"{MAX_CREDIT} batches on their way, not {MAX_CREDIT + 1}"),
        ("credit", 2**32 - 1, f"not {2**32 - 1}"),
    ],
)
def test_a_subscriber_that_cannot_be_served_is_told_why(field: str, value: int, says: str) -> None:
    changes: dict[str, Any] = {field: value}
    with pytest.raises(ProtocolError, match=says):
        Subscribe.unpack(replace(SUBSCRIBE, **changes).pack())


@given(st.binary(min_size=112, max_size=112))
def test_random_bytes_are_a_subscribe_or_a_protocol_error(body: bytes) -> None:
    try:
        found = Subscribe.unpack(body)
    except ProtocolError as error:
        assert error.message
    else:
        assert found.name.isprintable()


@given(words, words, words, st.integers(1, _core.MAX_SLOT_BYTES))
def test_the_answer_arrives_as_it_was_sent(
    log: int, first: int, head: int, slot_bytes: int
) -> None:
    answer = Subscribed(log, first, head, slot_bytes)
    assert Subscribed.unpack(answer.pack()) == answer


@pytest.mark.parametrize(
    ("slot_bytes", "features", "says"),
    [
        (0, 0, "slots of 0 bytes"),
        (_core.MAX_SLOT_BYTES + 1, 0, f"slots of {_core.MAX_SLOT_BYTES + 1} bytes"),
        (4096, 2, "features 0x2"),
    ],
)
def test_a_broker_that_makes_no_sense_is_refused(slot_bytes: int, features: int, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        Subscribed.unpack(Subscribed(1, 0, 0, slot_bytes, features).pack())


@given(words, words)
def test_a_credit_arrives_as_it_was_sent(received: int, granted: int) -> None:
    assert Credit.unpack(Credit(received, granted).pack()) == Credit(received, granted)


# Three batches were sent, up to ticket 12; the last CREDIT said so.
SENT = (Credit(10, 8), 3, 12)


@pytest.mark.parametrize("credit", [(10, 8), (12, 8), (11, 9), (12, 3 + MAX_CREDIT)], ids=str)
def test_a_credit_that_can_be_is_taken(credit: tuple[int, int]) -> None:
    check_credit(Credit(*credit), *SENT)


@pytest.mark.parametrize(
    ("credit", "says"),
    [
        ((13, 8), "those from 12 on were never sent"),
        ((2**64 - 1, 8), "never sent"),
        ((9, 8), r"took .*received=10.* back"),
        ((12, 7), r"took .*granted=8.* back"),
        ((12, 4 + MAX_CREDIT), f"granted {4 + MAX_CREDIT} batches after 3"),
        ((12, 2**64 - 1), "granted"),
    ],
    ids=["never sent", "far beyond", "taken back", "credit taken back", "too much", "overflow"],
)
def test_a_credit_that_cannot_be_is_refused(credit: tuple[int, int], says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        check_credit(Credit(*credit), *SENT)


# --- batches, and what comes in their place -------------------------------------------------------

AGREED = (4096, 6)  # largest body, lowest ticket


@pytest.mark.parametrize("reliable", [True, False])
def test_a_batch_that_can_come_next_is_taken(reliable: bool) -> None:
    side = connection(Role.SUBSCRIBER, State.STREAMING)
    for ticket, gap in [(6, 0), (9, 0), *(() if reliable else [(7, 1), (9, 2)])]:
        header = batch_header(1, 64, ticket=ticket, gap=gap)
        assert side.delivery(header, *AGREED, reliable) == Delivery(ticket, gap, 64)
    assert side.state is State.STREAMING


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (batch_header(1, 0, ticket=6), "0 bytes, the limit is 4096"),
        (batch_header(1, 4097, ticket=6), "4097 bytes, the limit is 4096"),
        (batch_header(1, 2**64 - 1, ticket=6), "the limit is 4096"),
        (batch_header(1, 64, ticket=5), "ticket 5 came, 6 was expected"),
        (batch_header(1, 64, ticket=6, gap=1), "1 batches are said to be lost before ticket 6"),
        (batch_header(1, 64, ticket=8, gap=3), "3 batches are said to be lost"),
        (batch_header(1, 64, ticket=6, check=1), "damaged"),
        (batch_header(1, 64, ticket=6, magic=1), "magic 0x1 "),
        (bytes(128), "magic 0x0 "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("reliable", [True, False])
def test_a_batch_that_cannot_come_next_is_refused_by_its_header(
    header: bytes, says: str, reliable: bool
) -> None:
    with pytest.raises(ProtocolError, match=says):
        connection(Role.SUBSCRIBER, State.STREAMING).delivery(header, *AGREED, reliable)


def test_a_reliable_subscriber_cannot_have_lost_anything() -> None:
    header = batch_header(1, 64, ticket=8, gap=1)
    with pytest.raises(ProtocolError, match="1 batches are said to be lost"):
        connection(Role.SUBSCRIBER, State.STREAMING).delivery(header, *AGREED, reliable=True)


@pytest.mark.parametrize("body_bytes", [20, 112, 113, 1000])
def test_an_error_among_batches_begins_with_as_many_bytes_as_a_batch(body_bytes: int) -> None:
    body = bytes([7]) * body_bytes
    frame = connection(Role.BROKER, State.STREAMING).send(Kind.ERROR, body)
    assert len(frame) == max(HEADER, HEAD_BYTES + body_bytes)
    side = connection(Role.SUBSCRIBER, State.STREAMING)
    assert side.among_batches(frame[:HEADER]) == (Kind.ERROR, body_bytes, body[: HEADER - 16])


def test_the_end_of_the_log_comes_in_the_place_of_a_batch_and_nothing_but_an_error_after_it() -> (
    None
):
    broker, side = (connection(role, State.STREAMING) for role in (Role.BROKER, Role.SUBSCRIBER))
    end = broker.send(Kind.END)
    assert len(end) == HEADER
    assert side.among_batches(end) == (Kind.END, 0, b"")
    side.received(Kind.END)
    with pytest.raises(ProtocolError, match="DATA is not allowed"):
        side.delivery(batch_header(1, 64, ticket=6), *AGREED, reliable=True)
    assert len(broker.send(Kind.ERROR, b"x")) == HEADER


def test_what_crosses_the_goodbye_of_a_subscriber_is_taken() -> None:
    side = connection(Role.SUBSCRIBER, State.STREAMING)
    side.send(Kind.GOODBYE)
    side.delivery(batch_header(1, 64, ticket=6), *AGREED, reliable=True)
    side.received(Kind.END)
    side.received(Kind.GOODBYE)
    assert side.state is State.CLOSED


def test_a_batch_is_no_control_frame() -> None:
    side = connection(Role.SUBSCRIBER, State.STREAMING)
    assert side.among_batches(batch_header(1, 64)) is None
    assert side.among_batches(bytes(HEADER)) is None


@pytest.mark.parametrize("position", [16, 127])
def test_a_control_frame_with_something_behind_it_is_refused(position: int) -> None:
    end = bytearray(connection(Role.BROKER, State.STREAMING).send(Kind.END))
    end[position] = 1
    with pytest.raises(ProtocolError, match="follows END"):
        connection(Role.SUBSCRIBER, State.STREAMING).among_batches(bytes(end))


# --- fuzz -----------------------------------------------------------------------------------------


def conversation() -> bytes:
    """All that a broker sends in a valid conversation."""
    side = Connection(Role.BROKER)
    side.received(Kind.SUBSCRIBE)
    said = side.send(Kind.SUBSCRIBED, Subscribed(1, 0, 0, 4096).pack())
    for ticket in range(3):
        said += batch(1, ticket=ticket)
    return said + side.send(Kind.END) + side.send(Kind.ERROR, b"BrokerGone\nstopped\nstart it")


def understand(data: bytes) -> Iterator[Kind]:
    """Reads `data` as the transport does."""
    side = Connection(Role.SUBSCRIBER)
    side.send(Kind.SUBSCRIBE, SUBSCRIBE.pack())
    at = ticket = 0
    while side.state is not State.CLOSED:
        streaming = side.state in (State.STREAMING, State.ENDED)
        size = HEADER if streaming else HEAD_BYTES
        head, at = data[at : at + size], at + size
        if len(head) < size:
            return
        control = side.among_batches(head) if streaming else (*side.head(head), b"")
        if control is None:
            found = side.delivery(head, 4096, ticket, reliable=True)
            ticket, at = found.ticket + 1, at + found.body_bytes
            yield Kind.DATA
            continue
        kind, length, begun = control
        body = begun + data[at : at + length - len(begun)]
        at += length - len(begun)
        if len(body) < length:
            return
        side.received(kind, body)
        if kind is Kind.ERROR:
            raise protocol.error_from("it", body)
        if kind is Kind.SUBSCRIBED:
            Subscribed.unpack(body)
        yield kind


def test_a_valid_conversation_is_understood_to_its_end() -> None:
    found = []
    with pytest.raises(errors.BrokerGone, match="stopped"):
        for kind in understand(conversation()):
            found.append(kind)  # noqa: PERF402 - it raises in the end
    assert found == [Kind.SUBSCRIBED, Kind.DATA, Kind.DATA, Kind.DATA, Kind.END]


@given(st.binary(max_size=400))
def test_random_bytes_raise_nothing_but_protocol_errors(data: bytes) -> None:
    try:
        assert not list(understand(data))
    except ProtocolError as error:
        assert error.message


@given(
    cut=st.integers(0, 1200),
    flips=st.lists(st.tuples(st.integers(0, 1200), st.integers(1, 255)), max_size=3),
    insert=st.tuples(st.integers(0, 1200), st.binary(max_size=20)),
)
@settings(max_examples=400)
def test_a_damaged_conversation_raises_nothing_but_our_errors(
    cut: int, flips: list[tuple[int, int]], insert: tuple[int, bytes]
) -> None:
    data = bytearray(conversation())
    for at, mask in flips:
        data[at % len(data)] ^= mask
    data[insert[0] : insert[0]] = insert[1]
    try:
        list(understand(bytes(data[:cut])))
    except EmbarError as error:
        assert error.message


def test_the_kinds_of_publishers_have_kept_their_numbers() -> None:
    assert [kind.value for kind in Kind] == list(range(1, 13))
    frame = Connection(Role.SUBSCRIBER).send(Kind.SUBSCRIBE, SUBSCRIBE.pack())
    assert struct.unpack_from("<4sHHQ", frame) == (b"EMBC", 9, 1, 112)
