"""What comes to a broker's port, says SUBSCRIBE, and is no well-behaved subscriber.

After each test the `listen` fixture checks that no slot, row or thread is left.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from listening import FORGETFUL, Listening
from wire import SUBSCRIBE, Peer

import embar_shm as es
from embar_shm import _core, protocol
from embar_shm.errors import (
    AccessDenied,
    BrokerGone,
    BrokerRestarted,
    NotEnoughSpace,
    PositionLost,
    ProtocolError,
    WaitTimeout,
)
from embar_shm.protocol import Kind
from embar_shm.subscribe_frames import MAX_CREDIT, Credit, Mode, Start, Subscribe
from embar_shm.testing import wait_until
from embar_shm.transports.tcp_listener import Limits

Listen = Callable[..., Listening]
SUBSCRIBE_FRAME = protocol.encode(Kind.SUBSCRIBE, SUBSCRIBE.pack())


def publish(broker: Listening, *bodies: bytes) -> None:
    """One batch for each of these messages."""
    with es.Publisher.connect(broker.broker.address, in_flight=4) as pub:
        for body in bodies:
            pub.publish(body)
            pub.flush()
        pub.wait_acked()


def message_of(delivery: tuple[int, int, bytes]) -> bytes:
    (size,) = struct.unpack_from("<I", delivery[2])
    return delivery[2][8 : 8 + size]


def rows(broker: Listening) -> int:
    return len(broker.broker.stats().subscribers)


# --- introductions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "value", "says"),
    [
        (16, b"\1", "features 0x1"),
        (44, b"\7", "mode 7"),
        (46, b"\7", "start 7"),
        (42, b"\1", "4096"),
    ],
    ids=["features", "mode", "start", "credit"],
)
def test_an_introduction_that_makes_no_sense_is_refused_with_the_reason(
    listen: Listen, position: int, value: bytes, says: str
) -> None:
    broker = listen()
    body = bytearray(SUBSCRIBE.pack())
    body[position : position + 1] = value
    with broker.peer() as peer:
        peer.say(Kind.SUBSCRIBE, bytes(body))
        error = peer.error()
        assert isinstance(error, ProtocolError)
        assert says in error.message
        peer.wait_for_end()
    assert rows(broker) == 0


@settings(max_examples=60, deadline=None, database=None)
@given(body=st.binary(min_size=112, max_size=112))
def introduce(listening: Listening, body: bytes) -> None:
    with listening.peer() as peer:
        peer.say(Kind.SUBSCRIBE, body)
        kind, _ = peer.frame()
        assert kind in (Kind.ERROR, Kind.SUBSCRIBED)


def test_nonsense_introductions_leave_the_broker_serving(listen: Listen) -> None:
    broker = listen()
    introduce(broker)
    broker.check_that_it_serves()


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"start": Start.TICKET, "ticket": 1}, PositionLost, "was never written"),
        ({"start": Start.TICKET, "ticket": 2**64 - 1}, PositionLost, "was never written"),
        ({"start": Start.POSITION, "log": 5}, BrokerRestarted, "another log"),
        ({"start": Start.RESUME, "log": 5}, BrokerRestarted, "another log"),
    ],
    ids=["future", "far future", "another log", "resume in another log"],
)
def test_a_place_that_does_not_exist_is_refused_with_the_reason(
    listen: Listen, changes: dict[str, Any], kind: type[es.EmbarError], says: str
) -> None:
    broker = listen()
    with broker.peer() as peer:
        peer.say(Kind.SUBSCRIBE, replace(SUBSCRIBE, **changes).pack())
        error = peer.error()
        assert type(error) is kind
        assert says in error.message
        peer.wait_for_end()
    assert rows(broker) == 0


def test_a_resume_of_a_subscriber_that_nobody_knows_begins_where_it_says(listen: Listen) -> None:
    broker = listen()
    log = broker.broker.segment.log
    with broker.peer() as keeps, broker.peer() as peer:
        keeps.subscribe(replace(SUBSCRIBE, subscriber_id=8, credit=0))  # all that comes from now on
        publish(broker, b"zero", b"one", b"two")
        resume = replace(SUBSCRIBE, start=Start.RESUME, log=log, ticket=1)
        assert peer.subscribe(resume).first == 1
        assert message_of(peer.delivery()) == b"one"


def test_when_all_places_are_taken_the_next_subscriber_is_told(listen: Listen) -> None:
    broker = listen(replace(FORGETFUL, handshake=0.2), ring={"max_subscribers": 1})
    with broker.peer() as peer:
        peer.subscribe()
        with broker.peer() as other:
            other.say(Kind.SUBSCRIBE, replace(SUBSCRIBE, subscriber_id=8).pack())
            error = other.error()
        assert isinstance(error, NotEnoughSpace)
        assert "all 1 places for subscribers" in error.message


def test_a_broker_that_does_not_serve_admits_nobody_and_says_so(listen: Listen) -> None:
    broker = listen(replace(FORGETFUL, handshake=0.2))
    broker.broker.stop()
    with broker.peer() as peer:
        peer.say(Kind.SUBSCRIBE, SUBSCRIBE.pack())
        error = peer.error()
        assert isinstance(error, WaitTimeout)
        assert "not admitted" in error.message
        peer.wait_for_end()
    broker.broker.start()


# --- credits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("credit", "says"),
    [
        (Credit(0, 3), "took"),
        (Credit(1, 1), "took"),
        (Credit(2, 2), "never sent"),
        (Credit(2**64 - 1, 2), "never sent"),
        (Credit(1, 2 + MAX_CREDIT), "granted"),
        (Credit(1, 2**64 - 1), "granted"),
    ],
    ids=["received back", "granted back", "never sent", "far beyond", "too much", "overflow"],
)
def test_a_credit_that_cannot_be_ends_the_connection_with_the_reason(
    listen: Listen, credit: Credit, says: str
) -> None:
    broker = listen()
    with broker.peer() as peer:
        peer.subscribe()
        publish(broker, b"zero")
        assert message_of(peer.delivery()) == b"zero"
        peer.credit(1, 2)
        peer.credit(credit.received, credit.granted)
        error = peer.feed_error()
        assert isinstance(error, ProtocolError)
        assert says in error.message
        peer.wait_for_end()
    broker.check_that_it_serves()


def test_no_more_is_sent_than_was_granted(listen: Listen) -> None:
    broker = listen()
    with broker.peer() as peer:
        peer.subscribe()
        publish(broker, b"zero", b"one", b"two")
        assert [message_of(peer.delivery()) for _ in range(2)] == [b"zero", b"one"]
        peer.socket.settimeout(0.1)
        with pytest.raises(TimeoutError):
            peer.delivery()
        peer.socket.settimeout(30)
        peer.credit(2, 3)
        assert message_of(peer.delivery()) == b"two"


def test_without_any_credit_nothing_is_sent_but_the_end(listen: Listen) -> None:
    broker = listen(Limits(farewell=0.1))
    with broker.peer() as peer:
        peer.subscribe(replace(SUBSCRIBE, credit=0))
        publish(broker, b"zero")
        broker.broker._listeners.append(broker.listener)
        broker.broker.close()
        error = peer.feed_error()
        assert isinstance(error, BrokerGone)


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.SUBSCRIBE, Kind.PROOF, Kind.ACK, Kind.END])
def test_what_a_subscriber_may_not_say_ends_the_connection(listen: Listen, kind: Kind) -> None:
    broker = listen()
    sizes = {Kind.HELLO: 48, Kind.SUBSCRIBE: 112, Kind.PROOF: 32, Kind.ACK: 8, Kind.END: 0}
    with broker.peer() as peer:
        peer.subscribe()
        peer.say(kind, bytes(sizes[kind]))
        error = peer.feed_error()
        assert isinstance(error, ProtocolError)
        assert f"{kind.name} is not allowed" in error.message
        peer.wait_for_end()
    broker.check_that_it_serves()


def test_random_and_damaged_bytes_leave_the_broker_serving(listen: Listen) -> None:
    broker = listen()
    said = SUBSCRIBE_FRAME + b"".join(
        protocol.encode(Kind.CREDIT, Credit(0, granted).pack()) for granted in (3, 4)
    )

    @settings(max_examples=60, deadline=None, database=None)
    @given(
        noise=st.binary(max_size=200),
        cut=st.integers(0, 200),
        flip=st.integers(0, 400) | st.none(),
        reset=st.booleans(),
    )
    def attack(noise: bytes, cut: int, flip: int | None, reset: bool) -> None:
        data = bytearray(said[:cut] + noise)
        if flip is not None and flip < len(data):
            data[flip] ^= 0x10
        with broker.peer() as peer:
            peer.send(data)
            if reset:
                peer.reset()

    attack()
    broker.check_that_it_serves()


# --- connections ----------------------------------------------------------------------------------


def test_a_second_connection_of_a_subscriber_takes_over_from_the_first(listen: Listen) -> None:
    broker = listen(Limits())
    log = broker.broker.segment.log
    with broker.peer() as old, broker.peer() as new:
        old.subscribe()
        publish(broker, b"zero", b"one")
        assert [old.delivery()[0] for _ in range(2)] == [0, 1]
        resume = replace(SUBSCRIBE, start=Start.RESUME, log=log, ticket=1)
        assert new.subscribe(resume).first == 1
        old.wait_for_end()
        assert new.delivery()[0] == 1
        new.say(Kind.GOODBYE)
        new.wait_for_end()
    wait_until(lambda: rows(broker) == 0, "its row becomes free")


def test_an_introduction_that_is_repeated_gets_what_was_not_received(listen: Listen) -> None:
    broker = listen(Limits())
    with broker.peer() as old, broker.peer() as new:
        assert old.subscribe().first == 0
        publish(broker, b"zero", b"one")
        assert old.delivery()[0] == 0
        old.credit(1, 2)
        wait_until(lambda: broker.held_slots() == 1, "the first batch is received")
        assert new.subscribe().first == 1
        assert message_of(new.delivery()) == b"one"
        new.say(Kind.GOODBYE)
        new.wait_for_end()


@pytest.mark.parametrize("known", [True, False])
def test_who_only_wants_to_leave_is_answered_and_keeps_no_place(
    listen: Listen, known: bool
) -> None:
    broker = listen(Limits())
    with ExitStack() as stack:
        if known:
            old = stack.enter_context(broker.peer())
            old.subscribe()
            publish(broker, b"zero")
            old.delivery()
        peer = stack.enter_context(broker.peer())
        peer.say(Kind.SUBSCRIBE, replace(SUBSCRIBE, start=Start.LEAVE).pack())
        assert peer.frame() == (Kind.GOODBYE, b"")
        assert peer.wait_for_end() == b""
    wait_until(lambda: rows(broker) == 0, "no row is taken")


@pytest.mark.parametrize("ticket", [0, 3, 2**64 - 1], ids=["again", "never sent", "far beyond"])
def test_a_resume_that_cannot_be_is_refused(listen: Listen, ticket: int) -> None:
    broker = listen(replace(FORGETFUL, forget_after=0.5))
    log = broker.broker.segment.log
    with broker.peer() as old:
        old.subscribe()
        publish(broker, b"zero", b"one")
        assert [old.delivery()[0] for _ in range(2)] == [0, 1]
        old.credit(1, 2)
        wait_until(lambda: broker.held_slots() == 1, "the first batch is received")
        with broker.peer() as new:
            resume = replace(SUBSCRIBE, start=Start.RESUME, log=log, ticket=ticket)
            new.say(Kind.SUBSCRIBE, resume.pack())
            error = new.error()
            assert isinstance(error, ProtocolError)
            assert f"go on with ticket {ticket}" in error.message


STAGES: dict[str, Callable[[Peer], object]] = {
    "in the introduction": lambda peer: peer.send(SUBSCRIBE_FRAME[:40]),
    "introduced": lambda peer: peer.send(SUBSCRIBE_FRAME),
    "answered": lambda peer: peer.subscribe(),
    "in a credit": lambda peer: (peer.subscribe(), peer.send(protocol.CREDIT_HEAD[:7])),
    "in the body of a credit": lambda peer: (peer.subscribe(), peer.send(protocol.CREDIT_HEAD)),
    "goodbye said": lambda peer: (peer.subscribe(), peer.say(Kind.GOODBYE)),
}
ENDS: dict[str, Callable[[Peer], object]] = {"reset": Peer.reset, "closed": Peer.close}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("mode", Mode)
def test_a_connection_may_end_anywhere(listen: Listen, stage: str, end: str, mode: Mode) -> None:
    broker = listen()
    with broker.peer() as peer:
        STAGES[stage](peer)
        publish(broker, b"zero", b"one")
        ENDS[end](peer)
    broker.check_that_it_serves()


def test_a_subscriber_that_takes_nothing_is_sent_away_and_stops_nobody(listen: Listen) -> None:
    broker = listen(
        replace(FORGETFUL, stall=0.2), ring={"slot_size": "4MiB"}, socket_buffer=64 * 1024
    )
    with broker.peer() as peer:
        peer.subscribe()
        publish(broker, bytes(4 * 2**20 - 8))  # more than all buffers hold together
        wait_until(lambda: rows(broker) == 0, "it is forgotten")
    broker.check_that_it_serves()


def test_a_subscriber_that_has_nothing_to_say_may_stay(listen: Listen) -> None:
    broker = listen(replace(FORGETFUL, handshake=0.1, stall=0.05))
    with broker.peer() as peer:
        peer.subscribe()
        for _ in range(2):  # a stranger is sent away: that long the subscriber has been silent
            with broker.peer() as stranger:
                assert isinstance(stranger.error(), WaitTimeout)
        publish(broker, b"zero")
        assert message_of(peer.delivery()) == b"zero"


def test_a_subscriber_that_stalls_in_a_credit_is_sent_away(listen: Listen) -> None:
    broker = listen(replace(FORGETFUL, stall=0.2))
    with broker.peer() as peer:
        peer.subscribe()
        peer.send(protocol.CREDIT_HEAD + b"\0")
        error = peer.feed_error()
        assert isinstance(error, WaitTimeout)
        assert "stands still" in error.message


# --- tokens ---------------------------------------------------------------------------------------


def test_a_wrong_token_is_refused_before_anything_else_is_said(listen: Listen) -> None:
    broker = listen(token="secret")
    with broker.peer() as peer:
        peer.say(Kind.SUBSCRIBE, SUBSCRIBE.pack())
        kind, nonce = peer.frame()
        assert kind is Kind.CHALLENGE
        peer.say(Kind.PROOF, protocol.prove("guess", nonce, SUBSCRIBE.pack()))
        assert isinstance(peer.error(), AccessDenied)
        assert peer.wait_for_end() == b""
    assert rows(broker) == 0
    with broker.peer() as peer:
        peer.subscribe(token="secret")


# --- the end of the broker ------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["answered", "in a credit", "in the body of a credit"])
@pytest.mark.parametrize("closes", ["listener", "broker"])
def test_a_subscriber_is_told_that_the_broker_stops(
    listen: Listen, stage: str, closes: str
) -> None:
    broker = listen(Limits(farewell=0.2))
    with broker.peer() as peer:
        STAGES[stage](peer)
        if closes == "listener":
            end = threading.Thread(target=broker.listener.stop)
        else:
            broker.broker._listeners.append(broker.listener)
            end = threading.Thread(target=broker.broker.close)
        end.start()
        found = peer.delivery_or_frame()
        assert found[0] is (Kind.ERROR if closes == "listener" else Kind.END)
        if closes == "listener":
            assert isinstance(protocol.error_from("it", found[1]), BrokerGone)  # type: ignore[arg-type]
        peer.close()
        end.join()


def test_many_subscribers_that_say_nothing_do_not_keep_a_broker_from_closing(
    listen: Listen,
) -> None:
    broker = listen(Limits(farewell=0.2))
    broker.broker._listeners.append(broker.listener)
    with ExitStack() as stack:
        for number in range(10):
            peer = stack.enter_context(broker.peer())
            peer.subscribe(Subscribe(number, 1, 2, Mode(number % 2)))
        broker.broker.close()
        assert not broker.threads


def test_a_subscriber_is_called_by_its_name_and_host(listen: Listen) -> None:
    broker = listen()
    with broker.peer() as peer:
        peer.subscribe(replace(SUBSCRIBE, name="x" * 64))
        (status,) = broker.broker.stats().subscribers
        assert status.name == "x" * (63 - len(" on 127.0.0.1")) + " on 127.0.0.1"


def test_headers_have_their_ticket_and_a_check_that_fits(listen: Listen) -> None:
    broker = listen()
    publish(broker, b"zero")
    with broker.peer() as peer:
        peer.subscribe()
        publish(broker, b"one")
        header = peer.read(_core.BATCH_HEADER_BYTES)
        assert protocol.Delivery.unpack(header) == protocol.Delivery(1, 0, 16)
