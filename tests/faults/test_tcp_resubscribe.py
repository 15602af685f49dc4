"""Every batch once and in order, wherever the TCP connection of a subscriber is cut.

Connections go through a proxy that cuts them at a byte.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

import embar_shm as es
from embar_shm.testing import Child, Cut, Proxy, wait_until
from embar_shm.transports.base import ListenOptions
from embar_shm.transports.tcp_listener import Limits, TcpListener

TOKEN = "a secret for the handshake with a challenge"


class Feeding:
    """A broker that serves, listens on TCP, and a proxy in front of it."""

    def __init__(self, broker: es.Broker, listener: TcpListener, proxy: Proxy) -> None:
        self.broker = broker
        self.listener = listener
        self.proxy = proxy
        self.publisher = es.Publisher.connect(
            broker.address, message_size=8, batch_size=16, linger_ms=0, timeout=30, in_flight=6
        )

    def publish(self, *numbers: int) -> None:
        """A batch for each of these numbers; returns when they are in the log."""
        for number in numbers:
            self.publisher.publish(number.to_bytes(8, "little"))
            self.publisher.flush()
        self.publisher.wait_acked()

    def subscribers(self) -> list[str]:
        """The names of all rows that are taken."""
        monitor = self.broker.segment.monitor()
        rows = [monitor.subscriber(row) for row in range(monitor.max_subscribers)]
        return [row["name"] for row in rows if row["state"] != "free"]


@pytest.fixture
def feeding(make_broker: Callable[..., es.Broker]) -> Iterator[Callable[..., Feeding]]:
    """Makes brokers behind proxies: ``feeding(token=..., limits=..., slots=...)``."""
    with ExitStack() as stack:

        def feed(token: str | None = None, limits: Limits | None = None, **options: Any) -> Feeding:
            broker = make_broker(**{"slots": 8, "slot_size": 4096} | options)
            listener = TcpListener(
                broker, ("127.0.0.1", 0), ListenOptions(token=token), limits or Limits()
            )
            stack.callback(listener.stop)
            broker.start()
            proxy = stack.enter_context(Proxy(listener.address))
            found = Feeding(broker, listener, proxy)
            stack.callback(close_publisher, found.publisher)
            return found

        yield feed


def close_publisher(publisher: es.Publisher) -> None:
    with suppress(es.BrokerGone):
        publisher.close()


def subscribe(there: Feeding, **options: Any) -> es.Subscriber:
    options = {"timeout": 30, "connect_timeout": 30} | options
    return es.Subscriber.connect(there.proxy.address, **options)


def take(sub: es.Subscriber) -> tuple[int, int, int]:
    """Ticket, gap, and the number that was published."""
    with sub.next() as batch:
        return batch.ticket, batch.gap, int.from_bytes(batch.copy(), "little")


# --- cuts at every byte ---------------------------------------------------------------------------

# The bytes of a conversation of three batches of one 8-byte message, read one by one.
UP = (16 + 112) + (16 + 32) + 3 * (16 + 16) + 16  # SUBSCRIBE, PROOF, CREDITs, GOODBYE
DOWN = (16 + 32) + (16 + 40) + 3 * (128 + 8) + 128  # CHALLENGE, SUBSCRIBED, batches, GOODBYE


def converse(there: Feeding, first: int) -> None:
    """One such conversation, whatever happens to its connections."""
    with subscribe(there, token=TOKEN, name=f"from {first}") as sub:
        for number in range(first, first + 3):
            there.publish(number)
            assert take(sub) == (number, 0, number)
        assert sub.poll() is None
        assert sub.position.ticket == first + 3
    wait_until(lambda: not there.subscribers(), "its row becomes free")


def test_the_conversation_has_the_bytes_that_are_cut(feeding: Callable[..., Feeding]) -> None:
    there = feeding(token=TOKEN)
    converse(there, 0)
    wait_until(lambda: there.proxy.passed["down"] == DOWN, f"{there.proxy.passed} of {DOWN}")
    # The last CREDIT may be overtaken by the goodbye; slots that come free may be told apart.
    assert UP - 32 <= there.proxy.passed["up"] <= UP + 3 * 32
    assert there.proxy.connections == 1


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
def test_a_cut_at_every_byte_of_a_conversation_loses_and_doubles_nothing(
    feeding: Callable[..., Feeding], direction: Any, reset: bool
) -> None:
    there = feeding(token=TOKEN)
    positions = range(0, UP - 48 if direction == "up" else DOWN, 3 if reset else 5)
    for turn, position in enumerate(positions):
        there.proxy.plan([Cut(direction, position, reset)])
        converse(there, 3 * turn)
    assert there.proxy.cuts_made == len(positions)


def random_cuts(rng: random.Random, count: int, reach: int) -> Iterator[Cut]:
    for _ in range(count):
        side: Any = rng.choice(["both", "both", "client", "target"])
        direction: Any = rng.choice(["down", "down", "up"])
        after = rng.randrange(reach if direction == "down" else 600)
        yield Cut(direction, after, rng.random() < 0.5, side)


@pytest.mark.parametrize("seed", range(4))
def test_cuts_at_random_bytes_lose_double_and_reorder_nothing(
    feeding: Callable[..., Feeding], seed: int
) -> None:
    there = feeding(slots=6)
    rng = random.Random(seed)  # noqa: S311 - a test is to be repeated
    sides = [cut for cut in random_cuts(rng, count=40, reach=4000) if cut.side != "target"]
    there.proxy.plan(sides)
    subs = [subscribe(there, in_flight=rng.randint(1, 6)) for _ in range(3)]
    found: list[list[tuple[int, int, int]]] = [[] for _ in subs]

    def read(sub: es.Subscriber, log: list[tuple[int, int, int]]) -> None:
        while len(log) < 300:
            log.append(take(sub))

    threads = [threading.Thread(target=read, args=pair) for pair in zip(subs, found, strict=True)]
    for thread in threads:
        thread.start()
    there.publish(*range(300))
    for thread in threads:
        thread.join()
    assert found == [[(number, 0, number) for number in range(300)]] * 3
    assert there.proxy.cuts_made > 5
    there.proxy.cut()
    for sub in subs:
        sub.close()
    wait_until(lambda: not there.subscribers(), "all rows become free")


def test_a_lossy_subscriber_goes_on_after_a_cut_and_every_ticket_is_read_or_missed(
    feeding: Callable[..., Feeding],
) -> None:
    there = feeding()
    rng = random.Random(5)  # noqa: S311 - a test is to be repeated
    there.proxy.plan(cut for cut in random_cuts(rng, 60, 3000) if cut.side != "target")
    with subscribe(there, mode="lossy") as sub:
        expected = 0
        for first in range(0, 400, 8):
            there.publish(*range(first, first + 8))
            while expected < first + 8:
                ticket, gap, number = take(sub)
                assert (ticket, number) == (expected + gap, expected + gap)
                expected = ticket + 1
    assert there.proxy.cuts_made > 5


# --- while there is no connection -----------------------------------------------------------------


def test_batches_are_kept_for_a_reliable_subscriber_whose_connection_is_lost(
    feeding: Callable[..., Feeding],
) -> None:
    there = feeding()
    with subscribe(there) as sub:
        there.publish(0)
        assert take(sub)[2] == 0
        there.proxy.refuse()
        there.proxy.cut()
        there.publish(*range(1, 6))  # the broker may not know that the first one arrived
        there.proxy.admit()
        assert [take(sub)[2] for _ in range(5)] == list(range(1, 6))
    assert there.proxy.connections == 2


def test_who_waits_meanwhile_is_told_that_the_connection_is_lost(
    feeding: Callable[..., Feeding],
) -> None:
    there = feeding()
    with subscribe(there, timeout=0.05) as sub:
        there.proxy.hold()
        there.proxy.cut()
        said = "connection lost"
        wait_until(lambda: said in str(error_of(sub)), "it notices")
        assert isinstance(error_of(sub), es.WaitTimeout)
        there.proxy.go_on()
        there.publish(0)
        wait_until(lambda: sub.stats().lag == 1, "the batch arrives")
        assert take(sub) == (0, 0, 0)


def error_of(sub: es.Subscriber) -> es.EmbarError:
    with pytest.raises(es.EmbarError) as caught:
        sub.next()
    return caught.value


def test_a_subscriber_whose_broker_does_not_come_back_learns_it_after_what_it_has(
    feeding: Callable[..., Feeding],
) -> None:
    there = feeding()
    with subscribe(there, restart_timeout=0.2) as sub:
        there.publish(0, 1)
        wait_until(lambda: sub.stats().lag == 2, "both batches are here")
        there.proxy.refuse()
        there.proxy.cut()
        with pytest.raises(es.BrokerGone, match=r"lost .* no other that lasts: nobody listens"):
            for number in range(3):
                assert take(sub)[2] == number
        assert number == 2
        with pytest.raises(es.BrokerGone):
            sub.next()


def test_a_subscriber_that_was_forgotten_goes_on_where_the_log_still_has_its_place(
    feeding: Callable[..., Feeding],
) -> None:
    there = feeding(limits=Limits(forget_after=0.01, housekeeping=0.01), retain=8)
    with subscribe(there) as sub:
        there.publish(0)
        assert take(sub)[2] == 0
        there.proxy.refuse()
        there.proxy.cut()
        wait_until(lambda: not there.subscribers(), "it is forgotten")
        there.publish(1, 2)
        there.proxy.admit()
        assert [take(sub)[2] for _ in range(2)] == [1, 2]


def test_a_subscriber_that_was_forgotten_and_overrun_is_told(
    feeding: Callable[..., Feeding], caplog: pytest.LogCaptureFixture
) -> None:
    there = feeding(limits=Limits(forget_after=0.01, housekeeping=0.01))
    with subscribe(there, name="away too long") as sub, caplog.at_level(logging.WARNING):
        there.publish(0)
        assert take(sub)[2] == 0
        there.proxy.refuse()
        there.proxy.cut()
        wait_until(lambda: not there.subscribers(), "it is forgotten")
        assert "'away too long' has been gone" in caplog.text
        there.publish(*range(1, 30))
        there.proxy.admit()
        with pytest.raises(es.PositionLost, match=r"ticket 1 .* 30") as caught:
            take(sub)
        assert caught.value.hint


def test_a_subscriber_of_a_broker_that_was_started_anew_is_told(
    feeding: Callable[..., Feeding],
) -> None:
    there, other = feeding(), feeding()
    with subscribe(there) as sub:
        there.publish(0)
        assert take(sub)[2] == 0
        there.proxy._target = other.proxy._target
        there.proxy.cut()
        with pytest.raises(es.BrokerRestarted) as caught:
            take(sub)
        assert caught.value.hint


# --- close() --------------------------------------------------------------------------------------


def test_close_lets_the_publishers_go_on_although_the_connection_was_lost(
    feeding: Callable[..., Feeding],
) -> None:
    there = feeding()
    sub = subscribe(there)
    there.proxy.plan([Cut("up", 0)])
    there.proxy.cut()
    wait_until(lambda: there.proxy.connections >= 2, "it tries to connect again")
    sub.close()
    wait_until(lambda: not there.subscribers(), "its row becomes free")


def test_close_does_not_wait_long_for_a_broker_that_cannot_be_reached(
    feeding: Callable[..., Feeding],
) -> None:
    there = feeding()
    sub = subscribe(there)
    there.proxy.hold()
    sub.close()
    with pytest.raises(es.ClosedError):
        sub.next()
    assert not [t for t in threading.enumerate() if t.name == f"receive {there.proxy.address}"]


# --- the broker stops -----------------------------------------------------------------------------


def test_a_broker_that_closes_waits_until_a_subscriber_that_gets_on_has_everything(
    feeding: Callable[..., Feeding],
) -> None:
    there = feeding()
    there.broker._listeners.append(there.listener)
    with subscribe(there, in_flight=1) as sub:
        there.publish(*range(6))
        closing = threading.Thread(target=there.broker.close)
        closing.start()
        assert [take(sub)[2] for _ in range(6)] == list(range(6))
        with pytest.raises(es.EndOfLog):
            sub.next()
        closing.join()


@pytest.mark.parametrize("position", [0, 60, 130, 135, 137, 300, 500, 679, 680, 700, 807])
def test_a_cut_while_the_broker_closes_loses_nothing_either(
    feeding: Callable[..., Feeding], position: int
) -> None:
    there = feeding()
    there.broker._listeners.append(there.listener)
    with subscribe(there, in_flight=1) as sub:
        there.proxy.hold("down")
        there.publish(*range(5))
        there.proxy.plan([Cut("down", position)])
        there.proxy.cut()
        closing = threading.Thread(target=there.broker.close)
        closing.start()
        there.proxy.go_on()
        assert [number_of(batch) for batch in sub] == list(range(5))
        closing.join()


def number_of(batch: es.Batch) -> int:
    with batch:
        return int.from_bytes(batch.copy(), "little")


def test_a_broker_that_closes_does_not_wait_for_a_subscriber_that_takes_nothing(
    feeding: Callable[..., Feeding], caplog: pytest.LogCaptureFixture
) -> None:
    there = feeding(limits=Limits(farewell=0.1))
    there.broker._listeners.append(there.listener)
    with subscribe(there, in_flight=2, name="asleep") as sub, caplog.at_level(logging.WARNING):
        there.publish(*range(6))
        there.broker.close()
        assert "subscriber 'asleep' takes nothing more" in caplog.text
        assert [take(sub)[2] for _ in range(2)] == [0, 1]
        with pytest.raises(es.BrokerGone, match="stopped"):
            sub.next()


# --- death ----------------------------------------------------------------------------------------

READS = """
import sys
import embar_shm as es

sub = es.Subscriber.connect(sys.argv[1], mode=sys.argv[2], name="reads")
print("connected")
for batch in sub:
    print(int.from_bytes(batch.copy(), "little"))
    batch.release()
"""


@pytest.mark.parametrize("mode", ["reliable", "lossy"])
def test_a_subscriber_that_is_killed_holds_nobody_back_once_it_is_forgotten(
    feeding: Callable[..., Feeding], run_child: Callable[..., Child], mode: str
) -> None:
    limits = Limits(forget_after=0.3, housekeeping=0.05) if mode == "reliable" else Limits()
    there = feeding(limits=limits)
    child = run_child(READS, there.listener.address, mode)
    child.expect("connected")
    there.publish(0)
    child.expect("0")
    child.kill()
    there.publish(*range(1, 40))
    wait_until(lambda: not there.subscribers(), "its row becomes free")


def test_one_dead_connection_holds_up_no_other_subscriber(
    feeding: Callable[..., Feeding],
) -> None:
    there = feeding()
    with ExitStack() as stack:
        dead = stack.enter_context(subscribe(there, mode="lossy"))
        there.proxy.hold()
        alive = stack.enter_context(es.Subscriber.connect(there.listener.address, timeout=30))
        for number in range(200):
            there.publish(number)
            assert take(alive) == (number, 0, number)
        there.proxy.go_on()
        expected = 0
        while expected < 200:
            ticket, gap, number = take(dead)
            assert ticket == number == expected + gap
            expected = ticket + 1
