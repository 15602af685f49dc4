"""Exactly once into the log, wherever a TCP connection is cut.

Connections go through a proxy that cuts them at a byte. The broker's log is read by the test.
"""

from __future__ import annotations

import itertools
import logging
import random
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from byhand import ByHand

import embar_shm as es
from embar_shm.net import Stream
from embar_shm.protocol import State
from embar_shm.testing import Cut, Proxy, wait_until
from embar_shm.transports.base import ListenOptions
from embar_shm.transports.tcp_listener import Limits, TcpListener

TOKEN = "a secret for the handshake with a challenge"
PATIENT = {"linger_ms": 0, "connect_timeout": 30}


class Listening:
    """A broker that listens on TCP, its log, and a proxy in front of it."""

    def __init__(self, broker: es.Broker, listener: TcpListener, proxy: Proxy) -> None:
        self.broker = broker
        self.listener = listener
        self.proxy = proxy
        self.log = ByHand(broker)

    def attached(self, publisher_id: int) -> bool:
        """Has this publisher a row?"""
        monitor = self.broker.segment.monitor()
        rows = range(self.broker.segment.geometry.max_publishers)
        return any(monitor.publisher(i)["publisher_id"] == publisher_id for i in rows)


@pytest.fixture
def listening(make_broker: Callable[..., es.Broker]) -> Iterator[Callable[..., Listening]]:
    """Makes brokers behind proxies: ``listening(token=..., limits=..., slots=...)``."""
    with ExitStack() as stack:

        def listen(
            token: str | None = None, limits: Limits | None = None, **options: Any
        ) -> Listening:
            broker = make_broker(**options)
            listener = TcpListener(
                broker, ("127.0.0.1", 0), ListenOptions(token=token), limits or Limits()
            )
            stack.callback(listener.stop)
            proxy = stack.enter_context(Proxy(listener.address))
            found = Listening(broker, listener, proxy)
            stack.callback(found.log.stop)
            return found

        yield listen


# --- cuts at every byte ---------------------------------------------------------------------------

# The bytes of a conversation of three batches of one 8-byte message (16 bytes with its frame).
UP = (16 + 48) + (16 + 32) + 3 * (128 + 16) + 128  # HELLO, PROOF, batches, GOODBYE
DOWN = (16 + 32) + (16 + 24) + 3 * (16 + 8) + 16  # CHALLENGE, WELCOME, ACKs, GOODBYE


def converse(there: Listening, number: int, one_by_one: bool) -> None:
    """One such conversation, whatever happens to its connections; checks the log."""
    messages = [struct.pack("<II", number, seq) for seq in range(3)]
    with es.Publisher.connect(
        there.proxy.address, publisher_id=number, token=TOKEN, in_flight=3, **PATIENT
    ) as pub:
        for message in messages:
            pub.publish(message)
            pub.flush()
            if one_by_one:
                pub.wait_acked()
    there.log.check_exactly_once(number, messages)


def test_the_conversation_has_the_bytes_that_are_cut(listening: Callable[..., Listening]) -> None:
    there = listening(token=TOKEN)
    with there.log:
        converse(there, 1, one_by_one=True)
        wait_until(lambda: there.proxy.passed == {"up": UP, "down": DOWN}, "those bytes, no others")
    assert there.proxy.connections == 1


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_cut_at_every_byte_of_a_conversation_loses_and_doubles_nothing(
    listening: Callable[..., Listening], direction: Any
) -> None:
    there = listening(token=TOKEN, max_publishers=4)
    positions = range((UP if direction == "up" else DOWN) + 1)
    with there.log:
        for position in positions:
            there.proxy.plan([Cut(direction, position, reset=position % 2 == 0)])
            converse(there, position, one_by_one=True)
        there.log.check_all_is_free()
    assert there.proxy.cuts_made == len(positions)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_nor_does_one_that_the_broker_does_not_notice(
    listening: Callable[..., Listening], direction: Any
) -> None:
    there = listening(token=TOKEN, max_publishers=4)
    # The answer to the goodbye may come before acknowledgements, which are not needed any more.
    positions = range(UP + 1 if direction == "up" else DOWN + 1 - 3 * (16 + 8))
    with there.log:
        for position in positions:
            there.proxy.plan([Cut(direction, position, side="client")])
            converse(there, position, one_by_one=False)
            there.proxy.cut()  # those the broker still believes in
        there.log.check_all_is_free()
    assert there.proxy.cuts_made == len(positions)


# --- cuts at random -------------------------------------------------------------------------------


def random_cuts(rng: random.Random, count: int, reach: int) -> Iterator[Cut]:
    for _ in range(count):
        # Not "target": a publisher whose broker vanishes learns it from the kernel, much later.
        side: Any = rng.choice(["both", "both", "client"])
        direction: Any = rng.choice(["up", "up", "down"])
        after = rng.randrange(reach if direction == "up" else 400)
        yield Cut(direction, after, rng.random() < 0.5, side)


def publish_numbered(address: str, number: int, seed: int, count: int) -> list[bytes]:
    """Publishes messages that tell publisher and sequence, in batches of random size."""
    rng = random.Random(seed * 1000 + number)  # noqa: S311 - a test is to be repeated
    sent = []
    with es.Publisher.connect(
        address, publisher_id=number, in_flight=rng.randint(1, 4), **PATIENT
    ) as pub:
        for seq in range(count):
            sent.append(struct.pack("<II", number, seq) + rng.randbytes(rng.randrange(300)))
            pub.publish(sent[-1])
            if rng.random() < 0.4:
                pub.flush()
            if rng.random() < 0.05:
                pub.wait_acked()
    return sent


@pytest.mark.parametrize("seed", range(6))
def test_cuts_at_random_bytes_lose_double_and_reorder_nothing(
    listening: Callable[..., Listening], seed: int
) -> None:
    there = listening(slots=6, slot_size=1024)
    rng = random.Random(seed)  # noqa: S311 - a test is to be repeated
    there.proxy.plan(random_cuts(rng, count=60, reach=6000))
    sent: dict[int, list[bytes]] = {}

    def publish(number: int) -> None:
        sent[number] = publish_numbered(there.proxy.address, number, seed, count=200)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    with there.log:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(sent) == 4
        for number, messages in sent.items():
            there.log.check_exactly_once(number, messages)
        there.proxy.cut()
        there.log.check_all_is_free()
    assert there.proxy.cuts_made > 10
    stats = there.broker.stats()
    assert stats.messages == 800
    assert (stats.duplicated, stats.out_of_order, stats.corrupt) == (0, 0, 0)


# --- close() --------------------------------------------------------------------------------------


def test_close_delivers_everything_although_the_broker_cannot_be_reached_for_a_while(
    listening: Callable[..., Listening],
) -> None:
    there = listening()
    pub = es.Publisher.connect(there.proxy.address, publisher_id=1, **PATIENT)
    there.proxy.hold("up")
    pub.publish(b"on its way")
    pub.flush()
    there.proxy.plan([Cut("up", 0)] * 5)
    there.proxy.cut()
    there.proxy.go_on()
    with there.log:
        pub.close()
        assert there.proxy.connections == 7
        there.log.check_exactly_once(1, [b"on its way"])


def test_close_raises_when_the_broker_cannot_be_reached_any_more(
    listening: Callable[..., Listening],
) -> None:
    there = listening()
    pub = es.Publisher.connect(there.proxy.address, timeout=0.2, **PATIENT)
    there.proxy.hold()
    pub.publish(b"on its way")
    pub.flush()
    there.proxy.refuse()
    there.proxy.cut()
    ring: Any = pub._link
    wait_until(lambda: ring._private.lost_because, "it notices")
    with pytest.raises((es.BrokerGone, es.WaitTimeout), match=r"lost.* 1 messages were not ack"):
        pub.close()


def test_close_does_not_wait_for_a_broker_that_has_everything(
    listening: Callable[..., Listening],
) -> None:
    there = listening()
    pub = es.Publisher.connect(there.proxy.address, timeout=None, **PATIENT)
    with there.log:
        pub.publish(b"arrives")
        pub.wait_acked()
    there.proxy.refuse()
    there.proxy.cut()
    pub.close()


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "cut off"])
def test_close_raises_when_the_broker_takes_nothing_more(
    listening: Callable[..., Listening], connected: bool
) -> None:
    there = listening()
    pub = es.Publisher.connect(there.proxy.address, timeout=0.1, **PATIENT)
    there.proxy.hold()
    pub.publish(b"on its way")
    if not connected:
        there.proxy.cut()  # the next connection waits for its handshake
    with pytest.raises(es.EmbarError, match=r"1 messages .*not acknowledged") as caught:
        pub.close()
    assert isinstance(caught.value, es.WaitTimeout | es.BrokerGone)
    assert not [t for t in threading.enumerate() if t.name == f"send {there.proxy.address}"]


# --- nothing is acknowledged ----------------------------------------------------------------------


def test_with_ack_0_a_cut_with_batches_on_their_way_is_the_end_and_tells_how_many(
    listening: Callable[..., Listening],
) -> None:
    there = listening()
    pub = es.Publisher.connect(there.proxy.address, publisher_id=1, ack=0, **PATIENT)
    with there.log:
        pub.publish(b"arrives")
        pub.flush()
        wait_until(lambda: there.log.messages(1) == [b"arrives"], "the first one arrives")
        there.proxy.hold("up")
        for _ in range(2):
            pub.publish(b"is lost")
            pub.flush()
        wait_until(lambda: pub.stats().accepted == 3, "the kernel has them")
        there.proxy.cut()
        there.proxy.go_on()
        with pytest.raises(es.BrokerGone, match=r"2 batches were on their way .* up to 1 only"):
            pub.close()
        there.log.check_exactly_once(1, [b"arrives"])


def test_with_ack_0_whoever_goes_on_publishing_learns_that_batches_were_lost(
    listening: Callable[..., Listening],
) -> None:
    there = listening()
    pub = es.Publisher.connect(there.proxy.address, ack=0, **PATIENT)
    with there.log:
        there.proxy.hold("up")
        pub.publish(b"is lost")
        pub.flush()
        wait_until(lambda: pub.stats().accepted == 1, "the kernel has it")
        there.proxy.cut()
        there.proxy.go_on()
        with pytest.raises(es.BrokerGone, match="batches were on their way"):
            while True:
                pub.publish(b"more")
                pub.flush()
        pub.close()  # it was told


def test_with_ack_0_a_cut_with_nothing_on_its_way_goes_on(
    listening: Callable[..., Listening],
) -> None:
    there = listening()
    with there.log:
        with es.Publisher.connect(there.proxy.address, publisher_id=1, ack=0, **PATIENT) as pub:
            for number in range(3):
                pub.publish(b"%d" % number)
                pub.flush()
                wait_until(lambda: len(there.log.messages(1)) == number + 1, "it arrives")  # noqa: B023
                there.proxy.cut()
        there.log.check_exactly_once(1, [b"0", b"1", b"2"])
    assert there.proxy.connections == 4


def test_with_ack_0_close_tells_how_many_batches_are_in_doubt(
    listening: Callable[..., Listening],
) -> None:
    there = listening()
    pub = es.Publisher.connect(there.proxy.address, ack=0, timeout=0.2, **PATIENT)
    there.proxy.hold("up")
    for _ in range(2):
        pub.publish(b"who knows")
        pub.flush()
    wait_until(lambda: pub.stats().accepted == 2, "the kernel has them")
    there.proxy.refuse()
    there.proxy.cut()
    with pytest.raises((es.BrokerGone, es.WaitTimeout), match="2 batches are in doubt"):
        pub.close()


def test_with_ack_0_a_broker_that_closes_tells_what_it_has(
    listening: Callable[..., Listening],
) -> None:
    there = listening()
    pub = es.Publisher.connect(there.proxy.address, publisher_id=1, ack=0, **PATIENT)
    with there.log:
        pub.publish(b"arrives")
        pub.flush()
        wait_until(lambda: there.log.messages(1) == [b"arrives"], "it arrives")
    there.broker.close()
    there.listener.stop()
    pub.close()  # all is delivered


# --- take-over ------------------------------------------------------------------------------------

HELLO = 16 + 48


@pytest.mark.parametrize(
    "position",
    [HELLO + 5, HELLO + 64, HELLO + 128 + 500, HELLO + 128 + 1024],
    ids=["no header", "in a header", "in a body", "between batches"],
)
def test_a_new_connection_takes_over_from_one_that_the_broker_believes_in(
    listening: Callable[..., Listening], position: int
) -> None:
    there = listening(slots=2)
    there.proxy.plan([Cut("up", position, side="client")])
    messages = [bytes([number]) * 1016 for number in range(5)]
    with there.log:
        with es.Publisher.connect(there.proxy.address, publisher_id=1, **PATIENT) as pub:
            for message in messages:
                pub.publish(message)
                pub.flush()
            pub.wait_acked()
            assert there.proxy.connections == 2
            wait_until(lambda: serving(there) == 1, "the thread of the first connection ends")
            there.log.check_exactly_once(1, messages)
        there.log.check_all_is_free()


def test_a_publisher_that_gives_up_again_and_again_delivers_once(
    listening: Callable[..., Listening],
) -> None:
    there = listening(slots=3)
    with there.log:
        with es.Publisher.connect(there.proxy.address, publisher_id=1, **PATIENT) as pub:
            for number in range(100):
                pub.publish(b"%d" % number)
                pub.flush()
                there.proxy.cut("client")
            pub.wait_acked()
        there.log.check_exactly_once(1, [b"%d" % number for number in range(100)])
        there.proxy.cut()
        there.log.check_all_is_free()
        wait_until(lambda: serving(there) == 0, "all threads end")


def test_a_connection_that_waits_for_a_slot_gives_way(
    listening: Callable[..., Listening],
) -> None:
    there = listening(slots=1)
    with es.Publisher.connect(there.proxy.address, publisher_id=1, in_flight=4, **PATIENT) as pub:
        for number in range(4):
            pub.publish(b"%d" % number)
            pub.flush()
        monitor = there.broker.segment.monitor()
        wait_until(lambda: monitor.publisher(0)["space_waits"] == 1, "one waits for a slot")
        there.proxy.cut("client")
        wait_until(lambda: there.proxy.connections == 2, "it connects again")
        with there.log:
            pub.wait_acked()
            there.log.check_exactly_once(1, [b"0", b"1", b"2", b"3"])


def test_a_goodbye_on_the_old_connection_and_one_on_the_new_are_one_goodbye(
    listening: Callable[..., Listening],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Stream, "plain_fd", None)  # so that a lock can hold acknowledgements back
    there = listening()
    pub = es.Publisher.connect(there.proxy.address, publisher_id=1, timeout=None, **PATIENT)
    wait_until(lambda: there.attached(1), "it is greeted")
    (link,) = there.listener._links
    with there.log:
        closing = threading.Thread(target=pub.close)
        with link._saying:  # the old connection's goodbye waits for its acknowledgement
            pub.publish(b"only once")
            pub.flush()
            wait_until(lambda: there.log.messages(1), "it is accepted")
            closing.start()
            wait_until(
                lambda: link.connection.state is State.LEAVING, "it says goodbye for the first time"
            )
            there.proxy.cut("client")
            wait_until(lambda: serving(there) == 2, "it connects again")
            (remote,) = there.listener._remotes.values()
            wait_until(lambda: remote.link is not link, "the new connection takes over")
        closing.join()
        there.log.check_exactly_once(1, [b"only once"])
        there.log.check_all_is_free()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def serving(there: Listening) -> int:
    """Connections that the listener serves."""
    with there.listener._lock:
        return len(there.listener._links)


# --- forgotten ------------------------------------------------------------------------------------


def disconnect(there: Listening) -> None:
    """Cuts everybody off, and lets nobody in."""
    there.proxy.refuse()
    there.proxy.cut()
    wait_until(lambda: serving(there) == 0, "the listener has noticed")


@pytest.mark.parametrize("unsent", [False, True], ids=["nothing to send", "batches to send"])
def test_a_publisher_that_lost_its_row_to_a_newcomer_is_told(
    listening: Callable[..., Listening], unsent: bool
) -> None:
    there = listening(max_publishers=1)
    with there.log:
        pub = es.Publisher.connect(there.proxy.address, publisher_id=1, **PATIENT)
        pub.publish(b"first")
        pub.wait_acked()
        disconnect(there)
        if unsent:
            pub.publish(b"second")
            pub.flush()
        with es.Publisher.connect(there.listener.address, publisher_id=2) as newcomer:
            newcomer.publish(b"newcomer")
            newcomer.wait_acked()
            there.proxy.admit()
            if not unsent:
                wait_until(lambda: there.proxy.connections == 2, "it is back")
                pub.publish(b"second")
                pub.flush()
            with pytest.raises(es.BrokerGone, match=r"place .* 1 committed batches were not ack"):
                pub.wait_acked()
            pub.close()
            newcomer.publish(b"more")
            newcomer.wait_acked()
        there.log.check_exactly_once(1, [b"first"])
        there.log.check_exactly_once(2, [b"newcomer", b"more"])


def test_a_publisher_that_lost_its_row_and_has_nothing_to_send_can_leave(
    listening: Callable[..., Listening],
) -> None:
    there = listening(max_publishers=1)
    with there.log:
        pub = es.Publisher.connect(there.proxy.address, publisher_id=1, **PATIENT)
        pub.publish(b"first")
        pub.wait_acked()
        disconnect(there)
        with es.Publisher.connect(there.listener.address, publisher_id=2):
            there.proxy.admit()
            wait_until(lambda: there.proxy.connections == 2, "it is back")
            pub.close()
        there.log.check_exactly_once(1, [b"first"])
        there.log.check_all_is_free()


def test_a_goodbye_whose_answer_was_lost_is_answered_although_the_row_is_somebody_elses(
    listening: Callable[..., Listening],
) -> None:
    there = listening(max_publishers=1)
    with there.log:
        pub = es.Publisher.connect(there.proxy.address, publisher_id=1, timeout=None, **PATIENT)
        pub.publish(b"first")
        pub.flush()
        wait_until(lambda: there.log.messages(1) == [b"first"], "it arrives")
        there.proxy.hold("down")  # the acknowledgement, too, if it is not there yet
        closing = threading.Thread(target=pub.close)
        closing.start()
        wait_until(lambda: there.proxy.passed["up"] == HELLO + 128 + 16 + 128, "it says goodbye")
        with es.Publisher.connect(there.listener.address, publisher_id=2) as newcomer:
            there.proxy.cut()
            there.proxy.go_on()
            closing.join()
            assert there.proxy.connections == 2
            newcomer.publish(b"newcomer")
            newcomer.wait_acked()
        there.log.check_exactly_once(1, [b"first"])
        there.log.check_exactly_once(2, [b"newcomer"])
        there.log.check_all_is_free()


def test_a_publisher_that_was_away_for_too_long_loses_its_row_and_is_told(
    listening: Callable[..., Listening],
) -> None:
    there = listening(limits=Limits(forget_after=0.0, housekeeping=0.01))
    with there.log:
        pub = es.Publisher.connect(there.proxy.address, publisher_id=1, **PATIENT)
        pub.publish(b"first")
        pub.wait_acked()
        disconnect(there)
        there.log.check_all_is_free()
        there.proxy.admit()
        pub.publish(b"second")
        with pytest.raises(es.BrokerGone, match="not acknowledged"):
            pub.wait_acked()
        pub.close()
        there.log.check_exactly_once(1, [b"first"])


def test_a_publisher_that_is_away_for_a_moment_keeps_its_row(
    listening: Callable[..., Listening],
) -> None:
    there = listening(limits=Limits(forget_after=3600, housekeeping=0.01))
    with there.log:
        with es.Publisher.connect(there.proxy.address, publisher_id=1, **PATIENT) as pub:
            pub.publish(b"first")
            pub.wait_acked()
            disconnect(there)
            for _ in range(10):  # each connection lets the listener look at who is gone
                with es.Publisher.connect(there.listener.address):
                    assert there.attached(1)
            there.proxy.admit()
            pub.publish(b"second")
            pub.wait_acked()
        there.log.check_exactly_once(1, [b"first", b"second"])


# --- a broker that does not accept ----------------------------------------------------------------


def takes(pub: es.Publisher, message: bytes) -> bool:
    """False: it found no room within its timeout."""
    try:
        pub.publish(message)
    except es.WaitTimeout:
        return False
    return True


def test_a_full_ring_stops_the_publisher_who_is_told_and_goes_on_when_it_empties(
    listening: Callable[..., Listening],
) -> None:
    there = listening(slots=2)
    address = there.proxy.address
    with es.Publisher.connect(address, publisher_id=1, in_flight=2, timeout=0.1, **PATIENT) as pub:
        sent = itertools.count()
        with pytest.raises(es.WaitTimeout) as caught:
            for number in sent:
                pub.publish(b"%d" % number)
                pub.flush()
        assert f"no slot of {address} came free" in caught.value.message
        assert f"the broker at {address} has released 0 of 2 batches" in caught.value.message
        with there.log:
            wait_until(lambda: pub.stats().accepted == 2, "there is room again")
            for number in range(2, 50):
                wait_until(lambda: takes(pub, b"%d" % number), "there is room")  # noqa: B023
                pub.flush()
            pub.wait_acked(timeout=30)
            there.log.check_exactly_once(1, [b"%d" % number for number in range(50)])
