"""What a subscriber may find at the other end, and what becomes of it: always one of our errors."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from wire import FakeBroker, Peer, batch, batch_header

import embar_shm as es
from embar_shm import _core, protocol
from embar_shm.errors import (
    AccessDenied,
    BrokerGone,
    BrokerRestarted,
    ConnectionLost,
    CorruptBatch,
    EndOfLog,
    NotEnoughSpace,
    PositionLost,
    ProtocolError,
    WaitTimeout,
)
from embar_shm.protocol import Kind
from embar_shm.subscribe_frames import Start, Subscribed
from embar_shm.testing import wait_until
from embar_shm.transports import tcp_subscriber

LOG = 77
Script = Callable[[Peer], object]


def subscribed(**fields: int) -> Subscribed:
    return Subscribed(**{"log": LOG, "first": 0, "head": 0, "slot_bytes": 4096} | fields)


def among_batches(kind: Kind, body: bytes = b"") -> bytes:
    return protocol.encode(kind, body).ljust(_core.BATCH_HEADER_BYTES, b"\0")


def feed(*data: bytes, **answer: int) -> Script:
    """A broker that answers, sends this, and hears the other side out."""

    def script(peer: Peer) -> None:
        peer.feed(subscribed(**answer))
        peer.send(b"".join(data))
        hear_out(peer)

    return script


def hear_out(peer: Peer) -> None:
    """Until the goodbye of the other side, which is answered."""
    while peer.frame()[0] is not Kind.GOODBYE:
        pass
    peer.send(among_batches(Kind.GOODBYE))
    peer.wait_for_end()


@contextmanager
def reading(*scripts: Script, **options: Any) -> Iterator[es.Subscriber]:
    with (
        FakeBroker(*scripts) as broker,
        es.Subscriber.connect(broker.address, **{"timeout": 30} | options) as sub,
    ):
        yield sub


def take(sub: es.Subscriber) -> tuple[int, bytes]:
    with sub.next() as found:
        return found.ticket, found.copy()


# --- handshakes that fail -------------------------------------------------------------------------


def answer(data: bytes) -> Script:
    def script(peer: Peer) -> None:
        peer.frame()
        peer.send(data)
        peer.wait_for_end()

    return script


def error(kind: type[es.EmbarError]) -> bytes:
    return protocol.encode(Kind.ERROR, protocol.error_body(kind("no", "do this")))


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ProtocolError, "does not speak this protocol"),
        (protocol.encode(Kind.WELCOME, bytes(24)), ProtocolError, "WELCOME is not allowed"),
        (batch(1), ProtocolError, "does not speak this protocol"),
        (protocol.encode(Kind.SUBSCRIBED, bytes(8)), ProtocolError, "body of 8 bytes"),
        (
            protocol.encode(Kind.SUBSCRIBED, subscribed(slot_bytes=0).pack()),
            ProtocolError,
            "slots of 0 bytes",
        ),
        (
            protocol.encode(Kind.SUBSCRIBED, subscribed(slot_bytes=2**63).pack()),
            ProtocolError,
            f"slots of {2**63} bytes",
        ),
        (protocol.encode(Kind.CHALLENGE, bytes(32)), AccessDenied, "asks for a token"),
        (error(PositionLost), PositionLost, "says: no"),
        (error(BrokerRestarted), BrokerRestarted, "says: no"),
        (error(NotEnoughSpace), NotEnoughSpace, "says: no"),
        (b"", ConnectionLost, "closed the connection"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broker_that_does_not_answer_as_it_should_is_refused_with_the_reason(
    data: bytes, kind: type[es.EmbarError], says: str
) -> None:
    def script(peer: Peer) -> None:
        if data:
            answer(data)(peer)
        else:
            peer.frame()

    with FakeBroker(script) as broker, pytest.raises(kind, match=says):
        es.Subscriber.connect(broker.address)


# --- batches that are not what they should be -----------------------------------------------------


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (batch_header(2, 64, ticket=5), "ticket 5 came, 6 was expected"),
        (batch_header(2, 64, ticket=0), "ticket 0 came"),
        (batch_header(2, 4097, ticket=6), "4097 bytes, the limit is 4096"),
        (batch_header(2, 0, ticket=6), "0 bytes"),
        (batch_header(2, 2**64 - 1, ticket=6), "the limit is 4096"),
        (batch_header(2, 64, ticket=7, gap=1), "1 batches are said to be lost"),
        (batch_header(2, 64, ticket=6, check=5), "damaged"),
        (bytes(128), "magic 0x0"),
        (among_batches(Kind.WELCOME, bytes(24)), "WELCOME is not allowed"),
        (among_batches(Kind.GOODBYE), "GOODBYE is not allowed"),
        (among_batches(Kind.END)[:-1] + b"x", "follows END"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_broker_sends_is_told_after_what_came_before_it(data: bytes, says: str) -> None:
    with reading(feed(batch(1, ticket=5), data, first=5)) as sub:
        assert take(sub) == (5, b"x" * 64)
        for _ in range(2):
            with pytest.raises(ProtocolError, match=says):
                sub.next()


def test_more_batches_than_there_is_room_for_are_refused() -> None:
    data = [batch(1 + ticket, ticket=ticket) for ticket in range(3)]
    with reading(feed(*data), in_flight=2) as sub:
        wait_until(lambda: sub.stats().lag == 2, "two have come")
        found = [sub.next(), sub.next()]
        with pytest.raises(ProtocolError, match="more batches than it had credit for"):
            sub.next()
        assert [batch.ticket for batch in found] == [0, 1]


def test_a_batch_whose_messages_do_not_fit_is_told_and_the_next_one_is_read() -> None:
    data = [batch(1, ticket=0, messages=3), batch(2, b"good" * 16, ticket=1)]
    with reading(feed(*data)) as sub:
        with pytest.raises(CorruptBatch):
            sub.next()
        assert take(sub) == (1, b"good" * 16)


def test_framing_that_points_out_of_the_batch_is_told() -> None:
    body = struct.pack("<II", 10**9, 0) + bytes(56)
    sizes = {"format": 1, "message_size": 0, "payload_bytes": 56}
    with reading(feed(batch(1, body, ticket=0, **sizes))) as sub, sub.next() as found:
        with pytest.raises(CorruptBatch):
            list(found.messages())
        assert found.copy() == body


@pytest.mark.parametrize(
    "kind", [BrokerGone, es.CorruptSegment, CorruptBatch, PositionLost, ProtocolError]
)
def test_an_error_of_the_broker_is_told_after_what_came_before_it(
    kind: type[es.EmbarError],
) -> None:
    body = protocol.error_body(kind("no", "do this"))
    with reading(feed(batch(1, ticket=0), among_batches(Kind.ERROR, body))) as sub:
        assert take(sub)[0] == 0
        with pytest.raises(kind, match="says: no") as caught:
            sub.next()
        assert caught.value.hint == "do this"


# --- connections that end, or stand still ---------------------------------------------------------


def resumes_at(ticket: int, *data: bytes, **answer: int) -> Script:
    """A second connection: asserts what is asked for, and sends this."""

    def script(peer: Peer) -> None:
        found = peer.feed(subscribed(**{"first": ticket} | answer))
        assert (found.start, found.log, found.ticket) == (Start.RESUME, LOG, ticket)
        peer.send(b"".join(data))
        hear_out(peer)

    return script


def ends_after(*data: bytes) -> Script:
    def script(peer: Peer) -> None:
        peer.feed(subscribed())
        peer.send(b"".join(data))
        peer.socket.shutdown(socket.SHUT_WR)
        peer.wait_for_end()

    return script


@pytest.mark.parametrize("cut", [1, 127, 128, 150, 191], ids="{} bytes of the next one".format)
def test_after_a_cut_it_asks_for_the_batch_after_the_last_whole_one(cut: int) -> None:
    first = ends_after(batch(1, ticket=0), batch(2, ticket=1)[:cut])
    with reading(first, resumes_at(1, batch(2, b"again" * 4, ticket=1))) as sub:
        assert take(sub)[0] == 0
        assert take(sub) == (1, b"again" * 4)


def test_a_broker_that_stands_still_in_a_batch_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_subscriber, "_STALL", 0.2)
    first = feed(batch(1, ticket=0)[:150])
    with reading(first, resumes_at(0, batch(1, ticket=0))) as sub:
        assert take(sub) == (0, b"x" * 64)


def test_a_broker_that_has_nothing_to_say_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_subscriber, "_STALL", 0.05)
    go_on = threading.Event()

    def script(peer: Peer) -> None:
        peer.feed(subscribed())
        go_on.wait(30)
        peer.send(batch(1, ticket=0))
        hear_out(peer)

    with reading(script) as sub:
        with pytest.raises(WaitTimeout):
            sub.next(timeout=0.3)
        go_on.set()
        assert take(sub)[0] == 0


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        ({"log": LOG + 1}, BrokerRestarted, "another log"),
        ({"first": 0}, ProtocolError, "goes on with ticket 0, and 1 was asked for"),
        ({"first": 2}, ProtocolError, "goes on with ticket 2, and 1 was asked for"),
        ({"slot_bytes": 8192}, ProtocolError, "larger slots"),
    ],
    ids=str,
)
def test_another_broker_in_its_place_is_noticed(
    answer: dict[str, int], kind: type[es.EmbarError], says: str
) -> None:
    with reading(ends_after(batch(1, ticket=0)), resumes_at(1, **answer)) as sub:
        assert take(sub)[0] == 0
        with pytest.raises(kind, match=says):
            sub.next()


def test_credit_of_a_new_connection_is_for_slots_that_are_free() -> None:
    granted: list[int] = []

    def second(peer: Peer) -> None:
        granted.append(peer.feed(subscribed(first=2)).credit)
        hear_out(peer)

    first = ends_after(batch(1, ticket=0), batch(2, ticket=1))
    with reading(first, second, in_flight=3) as sub:
        kept = sub.next()
        wait_until(lambda: granted, "it connects again")
        assert granted == [1]
        kept.release()


# --- the end --------------------------------------------------------------------------------------


def test_the_end_is_told_although_the_goodbye_is_not_answered() -> None:
    def script(peer: Peer) -> None:
        peer.feed(subscribed())
        peer.send(batch(1, ticket=0) + among_batches(Kind.END))
        peer.wait_for_end()

    with reading(script) as sub:
        assert take(sub)[0] == 0
        with pytest.raises(EndOfLog):
            sub.next()


def test_the_end_is_told_although_the_connection_is_lost_just_after_it() -> None:
    with reading(ends_after(batch(1, ticket=0), among_batches(Kind.END)), lambda _: None) as sub:
        assert take(sub)[0] == 0
        with pytest.raises(EndOfLog):
            sub.next()


def test_batches_that_cross_the_goodbye_disturb_nobody() -> None:
    said: list[Kind] = []

    def script(peer: Peer) -> None:
        peer.feed(subscribed())
        said.append(peer.frame()[0])
        peer.send(batch(1, ticket=0) + among_batches(Kind.END) + among_batches(Kind.GOODBYE))
        assert peer.wait_for_end() == b""

    with FakeBroker(script) as broker:
        es.Subscriber.connect(broker.address).close()
    assert said == [Kind.GOODBYE]


@pytest.mark.parametrize("said", [b"", batch(1, ticket=0)[:150]], ids=["nothing", "half a batch"])
def test_close_does_not_wait_for_a_broker_that_says_nothing_more(said: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.feed(subscribed())
        peer.send(said)
        peer.wait_for_end()

    with FakeBroker(script) as broker:
        sub = es.Subscriber.connect(broker.address)
        sub.hurry()
        sub.close()
        assert not [t for t in threading.enumerate() if t.name == f"receive {broker.address}"]
