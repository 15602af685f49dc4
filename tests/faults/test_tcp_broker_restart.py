"""A broker with a TCP listener is killed, and another one goes on with its ring at the same port.

Nothing that was acknowledged is lost, nothing comes twice, each publisher's order is kept. The
brokers that are killed are processes of their own, and every wait is for a condition.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Self

import pytest
from listening import FORGETFUL, Listening
from wire import HELLO, SUBSCRIBE, Peer, batch, endpoint_of

import embar_shm as es
from embar_shm.address import RingName
from embar_shm.protocol import Kind
from embar_shm.segment import Segment
from embar_shm.subscribe_frames import Start
from embar_shm.testing import Child, Proxy, wait_until
from embar_shm.transports.base import ListenOptions
from embar_shm.transports.tcp_listener import Limits, TcpListener

END = 2**32 - 1  # in place of a publisher's number: nothing comes after it
TOKEN = "a secret that the next broker knows as well"
PATIENT = {"connect_timeout": 30, "timeout": 30}
READING = PATIENT | {"restart_timeout": 30}

RING: dict[str, Any] = {"slots": 6, "slot_size": 4096}

# Arguments: the ring, where to listen, the most publishers. To be filled in: what is run before,
# sizes, and a token.
BROKER = """
import sys
import embar_shm as es

{}
name, address, rows = sys.argv[1:]
with es.Broker.open_or_recover(name, max_publishers=int(rows), **{!r}) as broker:
    print(broker.listen(address, token={!r}).address)
    broker.serve()
"""

# Kills the process where it gives away the row of a publisher that said goodbye.
KILLED_BEFORE_THE_ANSWER = """
import os
from embar_shm.protocol import Kind
from embar_shm.transports.tcp_remote import Link

say = Link.say
def killed(self, kind, body=b""):
    if kind is Kind.GOODBYE:
        os.kill(os.getpid(), 9)
    say(self, kind, body)
Link.say = killed
"""
KILLED_AFTER_THE_ROW_IS_GIVEN_AWAY = """
import os
from embar_shm.transports.tcp_listener import TcpListener

forget = TcpListener._forget
def killed(self, remote):
    forget(self, remote)
    os.kill(os.getpid(), 9)
TcpListener._forget = killed
"""

# It has a child that outlives it and inherits what a fork inherits.
WITH_A_CHILD = """
import os, signal, threading

def fork_after_listening():
    listen = es.Broker.listen
    def listening(self, *args, **kwargs):
        found = listen(self, *args, **kwargs)
        if (child := os.fork()) == 0:
            signal.pause()
        print(child)
        return found
    es.Broker.listen = listening
fork_after_listening()
"""


class Dying:
    """A broker in a process of its own that is killed now and then, and the next one."""

    def __init__(self, name: RingName, rows: int, token: str | None, stack: ExitStack) -> None:
        self.name = name
        self.rows = rows
        self.token = token
        self._stack = stack
        self.address = "tcp://127.0.0.1:0"
        self.kills = 0

    def start(self, prelude: str = "") -> Child:
        """Another one, at the address of the first."""
        program = BROKER.format(prelude, RING, self.token)
        self.child = self._stack.enter_context(Child(program, self.name, self.address, self.rows))
        return self.child

    def listens(self) -> None:
        """Returns when it listens."""
        self.address = self.child.read()

    def kill(self) -> None:
        self.child.kill()
        self.kills += 1

    def kill_and_restart(self) -> None:
        self.kill()
        self.start()
        self.listens()

    def succeed(self, limits: Limits | None = None) -> Listening:
        """The next broker is one of this process, which the test can look into. It serves."""
        broker = es.Broker.open_or_recover(str(self.name), max_publishers=self.rows, **RING)
        self._stack.enter_context(broker)
        listener = TcpListener(
            broker,
            endpoint_of(self.address),
            ListenOptions(token=self.token),
            limits or Limits(),
        )
        self._stack.callback(listener.stop)
        broker.start()
        return Listening(broker, listener)

    def look(self) -> Segment:
        """The ring, while a broker lives."""
        return self._stack.enter_context(closing(Segment.attach(self.name)))


class closing:  # noqa: N801 - as contextlib's, but it is the segment that is wanted
    def __init__(self, segment: Segment) -> None:
        self._segment = segment

    def __enter__(self) -> Segment:
        return self._segment

    def __exit__(self, *error: object) -> None:
        self._segment.close()


@pytest.fixture
def dying(cluster: str) -> Iterator[Callable[..., Dying]]:
    """Starts a broker that listens."""
    with ExitStack() as stack:
        name = RingName(cluster, "0")
        stack.callback(name.path.unlink, missing_ok=True)

        def start(rows: int = 8, token: str | None = None, prelude: str = "") -> Dying:
            found = Dying(name, rows, token, stack)
            found.start(prelude)
            if prelude is not WITH_A_CHILD:
                found.listens()
            return found

        yield start


# --- in the middle of traffic ---------------------------------------------------------------------


class Traffic:
    """Publishers that count, in threads, and a reliable subscriber that reads what they said."""

    def __init__(self, address: str, publishers: int, seed: int, **options: Any) -> None:
        self.address = address
        self.options = PATIENT | options
        self.read: list[list[int]] = [[] for _ in range(publishers)]
        self.published = [0] * publishers
        self.acknowledged = [0] * publishers
        self.batches = 0
        self.errors: list[BaseException] = []
        self._seed = seed
        self._stopping = threading.Event()
        # Before anybody publishes: it is to read everything.
        self._sub = es.Subscriber.connect(
            address, start="earliest", name="reads all", in_flight=3, **READING | options
        )
        self._threads = [
            threading.Thread(target=self._watched, args=(self._publish, number))
            for number in range(publishers)
        ]
        self._reader = threading.Thread(target=self._watched, args=(self._read,))

    def __enter__(self) -> Self:
        for thread in (*self._threads, self._reader):
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        with es.Publisher.connect(self.address, **self.options) as pub:  # after all that they said
            pub.publish(struct.pack("<II", END, 0))
        self._reader.join()

    def count(self) -> int:
        """Messages that were read."""
        if self.errors:
            raise self.errors[0]
        return sum(map(len, self.read))

    def goes_on(self, messages: int) -> None:
        """Returns when so many more were read."""
        reached = self.count() + messages
        wait_until(lambda: self.count() >= reached, "publishers and subscriber go on")

    def check(self) -> None:
        """After the end."""
        if self.errors:
            raise self.errors[0]
        assert self.acknowledged == self.published
        assert self.read == [list(range(count)) for count in self.published]

    def _watched(self, work: Callable[..., None], *args: Any) -> None:
        try:
            work(*args)
        except BaseException as error:
            self.errors.append(error)
            self._stopping.set()

    def _publish(self, number: int) -> None:
        rng = random.Random(self._seed * 100 + number)  # noqa: S311 - a test is to be repeated
        with es.Publisher.connect(
            self.address, in_flight=rng.randint(1, 3), batch_size=2048, **self.options
        ) as pub:
            while not self._stopping.is_set():
                body = struct.pack("<II", number, self.published[number])
                pub.publish(body + rng.randbytes(rng.randrange(400)))
                self.published[number] += 1
                if rng.random() < 0.3:
                    pub.flush()
                if rng.random() < 0.05:
                    pub.wait_acked()
                    self.acknowledged[number] = self.published[number]
            pub.wait_acked()
            self.acknowledged[number] = self.published[number]

    def _read(self) -> None:
        with self._sub as sub:
            while True:
                with sub.next() as found:
                    self.batches += 1
                    for message in found.messages():
                        number, seq = struct.unpack_from("<II", message)
                        if number == END:
                            return
                        self.read[number].append(seq)


@pytest.mark.parametrize(("publishers", "token"), [(1, TOKEN), (6, None)], ids=["one", "many"])
def test_nothing_is_lost_doubled_or_reordered_when_the_broker_is_killed_again_and_again(
    dying: Callable[..., Dying], publishers: int, token: str | None
) -> None:
    there = dying(token=token)
    with Traffic(there.address, publishers, seed=publishers, token=token) as traffic:
        for messages in (300, 1, 700, 40):
            traffic.goes_on(messages)
            there.kill_and_restart()
        traffic.goes_on(300)
    traffic.check()
    assert there.kills == 4


# --- at a certain moment --------------------------------------------------------------------------


def test_a_publisher_whose_broker_is_killed_while_it_connects_has_one_row_and_goes_on(
    dying: Callable[..., Dying],
) -> None:
    there = dying()
    with Proxy(there.address) as proxy:
        proxy.hold("down")  # it is not welcomed
        connected: list[es.Publisher] = []
        thread = threading.Thread(
            target=lambda: connected.append(es.Publisher.connect(proxy.address, **PATIENT))
        )
        thread.start()
        monitor = there.look().monitor()
        wait_until(lambda: monitor.publisher(0)["state"] == "active", "it has a row")
        there.kill()
        successor = there.succeed()
        proxy.go_on()
        thread.join()
        with connected[0] as pub:
            pub.publish(b"to the second")
            pub.wait_acked()
            assert successor.broker.stats().publishers == 1
        successor.wait_until_idle()


@pytest.mark.parametrize(
    "when", [KILLED_BEFORE_THE_ANSWER, KILLED_AFTER_THE_ROW_IS_GIVEN_AWAY], ids=["before", "after"]
)
def test_a_goodbye_is_answered_although_the_broker_is_killed_at_it(
    dying: Callable[..., Dying], when: str
) -> None:
    there = dying(prelude=when)
    with Proxy(there.address) as proxy:
        pub = es.Publisher.connect(proxy.address, linger_ms=0, ack=0, **PATIENT)
        pub.publish(b"delivered")
        pub.flush()
        closing = threading.Thread(
            target=pub.close
        )  # what it raises fails the test: see pytest.ini
        closing.start()
        assert there.child.wait() == -signal.SIGKILL
        successor = there.succeed()
        closing.join()
    assert successor.broker.stats().messages == 1
    assert pub.stats().messages == 1


def test_a_batch_that_was_being_received_comes_again_and_its_slot_is_free(
    dying: Callable[..., Dying],
) -> None:
    there = dying()
    monitor = there.look().monitor()
    with Peer.connect(there.address) as peer:
        peer.greet()
        peer.send(batch(1) + batch(2)[:150])
        wait_until(lambda: monitor.publisher(0)["accepted_seq"] == 1, "the first is acknowledged")
        wait_until(lambda: any(owner == 0 for _, owner, *_ in monitor.slots()), "it has a slot")
        there.kill()
        successor = there.succeed()
    assert successor.held_slots() <= 1, "of the first one, which is retained"
    with successor.peer() as peer:
        assert peer.greet(replace(HELLO, sent_seq=2)).received_seq == 1
        peer.send(batch(2) + batch(3))
        while peer.frame() != (Kind.ACK, (3).to_bytes(8, "little")):
            pass
    stats = successor.broker.stats()
    assert (stats.batches, stats.duplicated, stats.out_of_order) == (3, 0, 0)


def test_what_was_committed_and_not_accepted_is_not_sent_again(dying: Callable[..., Dying]) -> None:
    there = dying(prelude="es.Broker.serve = lambda self: input()")  # accepts nothing
    with Peer.connect(there.address) as peer:
        peer.greet()
        peer.send(batch(1) + batch(2))
        monitor = there.look().monitor()
        wait_until(lambda: monitor.publisher(0)["committed_seq"] == 2, "both are committed")
        there.kill()
    successor = there.succeed()
    wait_until(lambda: successor.broker.stats().batches == 2, "both are accepted")
    with successor.peer() as peer:
        assert peer.greet(replace(HELLO, sent_seq=2)).received_seq == 2
        assert peer.frame() == (Kind.ACK, (2).to_bytes(8, "little"))


# --- who it is ------------------------------------------------------------------------------------


def test_any_listener_of_the_next_broker_takes_a_publisher_and_only_one_does(
    dying: Callable[..., Dying],
) -> None:
    there = dying()
    with Peer.connect(there.address) as peer:
        peer.greet()
        peer.send(batch(1))
        assert peer.frame() == (Kind.ACK, (1).to_bytes(8, "little"))
        there.kill()
    successor = there.succeed()
    other = successor.broker.listen("tcp://127.0.0.1:0")
    again = replace(HELLO, sent_seq=1)
    with Peer.connect(other.address) as peer, successor.peer() as too_late:
        assert peer.greet(again).received_seq == 1
        too_late.say(Kind.HELLO, again.pack())
        assert "does not know this publisher" in too_late.error().message
        peer.send(batch(2))
        assert peer.frame()[0] is Kind.ACK
    assert successor.broker.stats().publishers == 1


def test_a_publisher_that_the_last_broker_did_not_know_is_told(dying: Callable[..., Dying]) -> None:
    there = dying()
    there.kill()
    with there.succeed().peer() as peer:
        peer.say(Kind.HELLO, replace(HELLO, sent_seq=1).pack())
        assert "does not know this publisher" in peer.error().message


def test_a_publisher_that_never_comes_back_is_forgotten_and_its_row_is_free(
    dying: Callable[..., Dying],
) -> None:
    there = dying()
    with Peer.connect(there.address) as peer:
        peer.greet()
        peer.send(batch(1))
        assert peer.frame()[0] is Kind.ACK
        there.kill()
    successor = there.succeed(FORGETFUL)
    successor.wait_until_idle()
    with successor.peer() as peer:
        peer.say(Kind.HELLO, replace(HELLO, sent_seq=5).pack())
        assert "does not know this publisher" in peer.error().message


def test_one_that_does_not_come_back_makes_room_for_a_newcomer(dying: Callable[..., Dying]) -> None:
    there = dying(rows=1)
    with Peer.connect(there.address) as peer:
        peer.greet()
        there.kill()
    successor = there.succeed()
    successor.check_that_it_serves(connect_timeout=30)


def test_a_newcomer_does_not_take_the_row_of_one_that_comes_back(
    dying: Callable[..., Dying],
) -> None:
    there = dying(rows=1)
    with Peer.connect(there.address) as peer:
        peer.greet()
        peer.send(batch(1))
        assert peer.frame()[0] is Kind.ACK
        there.kill()
    successor = there.succeed()
    with successor.peer() as newcomer, successor.peer() as peer:
        newcomer.say(Kind.HELLO, replace(HELLO, publisher_id=8).pack())
        wait_until(lambda: len(successor.threads) == 2, "both are served")
        assert peer.greet(replace(HELLO, sent_seq=1)).received_seq == 1
        assert "publisher" in newcomer.error().message


# --- subscribers ----------------------------------------------------------------------------------


def publish(address: str, count: int) -> None:
    """Batches of one message, until they are in the log."""
    with es.Publisher.connect(address, linger_ms=0, in_flight=4, **PATIENT) as pub:
        for number in range(count):
            pub.publish(bytes([number]))
            pub.flush()
        pub.wait_acked()


def sent_three(there: Dying) -> None:
    """A subscriber made by hand gets three batches, and says that it has received the first."""
    with Peer.connect(there.address) as peer:
        peer.subscribe(replace(SUBSCRIBE, credit=3))
        publish(there.address, 4)
        # Its goodbye is answered first: the next broker would keep a row that is not free yet.
        monitor = there.look().monitor()
        wait_until(lambda: monitor.publisher(0)["state"] == "free", "the publisher's row is free")
        assert [peer.delivery()[0] for _ in range(3)] == [0, 1, 2]
        peer.credit(1, 3)
        monitor = there.look().monitor()
        wait_until(lambda: monitor.subscriber(0)["cursor"] == 1, "it has told")
        there.kill()


@pytest.mark.parametrize("ticket", [1, 2, 3])
def test_a_subscriber_goes_on_with_the_ticket_after_the_last_one_that_arrived(
    dying: Callable[..., Dying], ticket: int
) -> None:
    there = dying()
    sent_three(there)
    successor = there.succeed()
    log = successor.broker.segment.log
    with successor.peer() as peer:
        found = peer.subscribe(
            replace(SUBSCRIBE, credit=9, start=Start.RESUME, log=log, ticket=ticket)
        )
        assert (found.log, found.first, found.head) == (log, ticket, 4)
        assert [peer.delivery()[0] for _ in range(ticket, 4)] == list(range(ticket, 4))
        stats = successor.broker.stats()
        assert [row.name for row in stats.subscribers] == ["by hand on 127.0.0.1"]


def test_a_subscriber_that_has_what_was_never_in_the_log_is_refused(
    dying: Callable[..., Dying],
) -> None:
    there = dying()
    sent_three(there)
    successor = there.succeed()
    log = successor.broker.segment.log
    with successor.peer() as peer:
        resume = replace(SUBSCRIBE, start=Start.RESUME, log=log, ticket=5)
        peer.say(Kind.SUBSCRIBE, resume.pack())
        assert "wants to go on with ticket 5" in peer.error().message


def test_one_that_never_heard_where_it_begins_begins_there(dying: Callable[..., Dying]) -> None:
    there = dying()
    with Peer.connect(there.address) as peer:
        peer.subscribe()  # and does not hear the answer
        publish(there.address, 2)
        there.kill()
    successor = there.succeed()
    with successor.peer() as peer:
        assert peer.subscribe().first == 0, "not the latest: that was asked for before the kill"
        assert [peer.delivery()[0] for _ in range(2)] == [0, 1]


@pytest.mark.parametrize("how", ["forgotten", "leaves"])
def test_a_subscriber_that_does_not_go_on_holds_nobody_back(
    dying: Callable[..., Dying], how: str
) -> None:
    there = dying()
    sent_three(there)
    successor = there.succeed(FORGETFUL if how == "forgotten" else None)
    if how == "leaves":
        assert len(successor.broker.stats().subscribers) == 1
        with successor.peer() as peer:
            peer.say(Kind.SUBSCRIBE, replace(SUBSCRIBE, start=Start.LEAVE).pack())
            assert peer.frame()[0] is Kind.GOODBYE
    wait_until(lambda: not successor.broker.stats().subscribers, "its row becomes free")
    publish(successor.address, 20)  # more than there are slots
    successor.wait_until_idle()


def test_a_lossy_subscriber_goes_on_and_every_batch_is_read_or_missed(
    dying: Callable[..., Dying],
) -> None:
    there = dying()
    with es.Subscriber.connect(there.address, mode="lossy", **READING) as sub:
        publish(there.address, 1)
        assert sub.next().ticket == 0
        there.kill()
        successor = there.succeed()
        publish(successor.address, 3)
        wait_until(lambda: successor.broker.stats().subscribers, "it is there again")
        publish(successor.address, 3)
        seen = 1
        while seen < 7:
            with sub.next() as batch_:
                assert batch_.ticket == seen + batch_.gap
                seen = batch_.ticket + 1


def test_a_broker_that_closes_waits_for_subscribers_of_the_one_before_to_come_back(
    dying: Callable[..., Dying],
) -> None:
    there = dying()
    with Proxy(there.address) as proxy:
        sub = es.Subscriber.connect(proxy.address, **READING)
        proxy.hold("down")
        publish(there.address, 3)
        there.kill()
        successor = there.succeed()
        proxy.refuse()
        proxy.cut()
        closing = threading.Thread(target=successor.broker.close)
        closing.start()
        monitor = successor.broker.segment.monitor()
        wait_until(lambda: monitor.control()["state"] == 3, "it has stopped")
        proxy.go_on()
        proxy.admit()
        with sub:
            assert [found.copy()[-8] for found in sub] == [0, 1, 2]
        closing.join()


# --- its port -------------------------------------------------------------------------------------


def test_a_child_of_the_killed_broker_does_not_keep_its_port_or_its_connections(
    dying: Callable[..., Dying],
) -> None:
    there = dying(prelude=WITH_A_CHILD)
    child = int(there.child.read())
    try:
        there.listens()
        with Peer.connect(there.address) as peer:
            peer.greet()
            there.kill()
            assert peer.wait_for_end() == b""
            there.succeed().check_that_it_serves()
    finally:
        os.kill(child, signal.SIGKILL)
