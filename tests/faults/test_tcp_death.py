"""Processes at both ends of TCP connections are killed, stopped or interrupted at the worst moment.

Processes are real ones, and every wait is for a condition. Where a publisher has to be in the
middle of a batch, a proxy holds the batch back: it is larger than what the kernel's buffers take.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from byhand import ByHand
from programs import BUSY

import embar_shm as es
from embar_shm.address import RingName
from embar_shm.testing import Child, Proxy, leftovers, wait_until
from embar_shm.transports.base import ListenOptions
from embar_shm.transports.tcp_listener import Limits, TcpListener

LARGE = 8 * 2**20  # bytes of a batch: more than all buffers between the processes hold

# Publishes a small batch, and then large ones with one value each, when it is told to.
LARGE_ONES = f"""
import sys
import embar_shm as es

with es.Publisher.connect(
    sys.argv[1], publisher_id=7, linger_ms=0, in_flight=2, socket_buffer=65536, timeout=None
) as pub:
    pub.publish(b"first")
    pub.wait_acked()
    print("acknowledged")
    input()
    for value in range(1, 4):
        pub.publish(bytes([value]) * ({LARGE} - 8))
        pub.flush()
    pub.wait_acked()
print("closed")
"""

# Two small batches, one more than the ring of `BROKER` has slots; then it waits as it is told to.
WAITER = """
import sys
import embar_shm as es

with es.Publisher.connect(
    sys.argv[1], message_size=4096, in_flight=2, timeout=None, linger_ms=0
) as pub:
    for _ in range(2):
        pub.publish(bytes(4096))
    print("waiting")
    match sys.argv[2]:
        case "publish":
            pub.publish(bytes(4096))
        case "wait_acked":
            pub.wait_acked()
        case "close":
            pub.close()
print("went on")
"""

# A broker that listens, and accepts nothing until it is told to; or it closes when it is told to.
BROKER = """
import sys
import embar_shm as es

with es.Broker.create(sys.argv[1], slots=1, slot_size=4096) as broker:
    print(broker.listen("tcp://127.0.0.1:0").address)
    if input() == "serve":
        print("serving")
        broker.serve()
print("closed")
"""


class Listening:
    """A broker of this process that listens on TCP, and a proxy in front of it."""

    def __init__(self, broker: es.Broker, listener: TcpListener, proxy: Proxy) -> None:
        self.broker = broker
        self.listener = listener
        self.proxy = proxy

    def owned(self) -> int:
        return sum(owner >= 0 for _, owner, _, _ in self.broker.segment.monitor().slots())

    def connected(self) -> int:
        with self.listener._lock:
            return len(self.listener._links)


@pytest.fixture
def listening(make_broker: Callable[..., es.Broker]) -> Iterator[Callable[..., Listening]]:
    with ExitStack() as stack:

        def listen(limits: Limits | None = None, **options: Any) -> Listening:
            broker = make_broker(**options)
            listener = TcpListener(
                broker, ("127.0.0.1", 0), ListenOptions(socket_buffer=65536), limits or Limits()
            )
            stack.callback(listener.stop)
            return Listening(broker, listener, stack.enter_context(Proxy(listener.address)))

        yield listen


@pytest.fixture
def other_broker(cluster: str, run_child: Callable[..., Child]) -> Iterator[tuple[Child, str]]:
    """A broker in a process of its own, and where it listens."""
    name = RingName(cluster, "0")
    child = run_child(BROKER, name)
    yield child, child.read()
    child.kill()
    name.path.unlink(missing_ok=True)  # a killed one leaves it behind


def publish_batches(pub: es.Publisher, count: int) -> None:
    for _ in range(count):
        pub.publish(b"x")
        pub.flush()
    pub.wait_acked()


def state(child: Child) -> str:
    """R, S, T, ...: what the kernel calls the state of a process (proc(5))."""
    with open(f"/proc/{child.pid}/stat") as file:  # noqa: PTH123 - a pseudo file
        return file.read().rpartition(")")[2].split()[0]


def stop(child: Child) -> None:
    """SIGSTOP; returns when the process does not run any more."""
    child.signal(signal.SIGSTOP)
    wait_until(lambda: state(child) == "T", "the process stops")


# --- publishers -----------------------------------------------------------------------------------


def in_the_middle_of_a_batch(there: Listening, child: Child) -> None:
    """Returns when a part of the first large batch has come, and no more comes."""
    child.expect("acknowledged")
    there.proxy.hold("up", after=1000)
    child.tell()
    wait_until(lambda: there.owned() == 1, "it has a slot")


def test_the_slot_of_a_publisher_killed_in_the_middle_of_a_batch_comes_back(
    listening: Callable[..., Listening],
    connect: Callable[..., es.Publisher],
    run_child: Callable[..., Child],
) -> None:
    there = listening(slots=1, slot_size=LARGE, max_publishers=2)
    with ByHand(there.broker) as log:
        victim = run_child(LARGE_ONES, there.proxy.address)
        in_the_middle_of_a_batch(there, victim)
        victim.kill()
        pub = connect(there.listener.address, publisher_id=8, linger_ms=0)
        pub.publish(b"waits for the only slot")
        pub.flush()
        there.proxy.go_on()
        pub.wait_acked()
        wait_until(lambda: there.connected() == 1, "the listener has noticed")
        assert there.owned() == 0
        newcomer = connect(there.listener.address, linger_ms=0)  # in the row of the killed one
        publish_batches(newcomer, 10)
        log.check_exactly_once(7, [b"first"])


def test_a_publisher_stopped_in_the_middle_of_a_batch_loses_its_slot_and_nothing_else(
    listening: Callable[..., Listening],
    connect: Callable[..., es.Publisher],
    run_child: Callable[..., Child],
) -> None:
    there = listening(Limits(stall=0.3), slots=1, slot_size=LARGE)
    with ByHand(there.broker) as log:
        victim = run_child(LARGE_ONES, there.proxy.address)
        in_the_middle_of_a_batch(there, victim)
        stop(victim)
        there.proxy.go_on()
        publish_batches(connect(there.listener.address, linger_ms=0), 10)  # through the only slot
        victim.signal(signal.SIGCONT)
        victim.expect("closed")
        assert victim.wait() == 0
        large = [bytes([value]) * (LARGE - 8) for value in range(1, 4)]
        log.check_exactly_once(7, [b"first", *large])
    assert there.proxy.connections > 1


def test_publishers_killed_at_any_instant_leave_a_sound_ring(
    listening: Callable[..., Listening],
    connect: Callable[..., es.Publisher],
    run_child: Callable[..., Child],
) -> None:
    there = listening(max_publishers=3)
    broker = there.broker.start()
    pub = connect(there.listener.address, linger_ms=0)
    for _ in range(3):
        victims = [run_child(BUSY, there.listener.address) for _ in range(2)]
        for victim in victims:
            victim.expect("publishing")
        reached = broker.stats().messages + 200
        wait_until(lambda reached=reached: broker.stats().messages >= reached, "they publish")
        for victim in victims:
            victim.kill()
        publish_batches(pub, 20)
        wait_until(lambda: there.connected() == 1, "the listener has noticed")
    wait_until(lambda: broker.stats().in_flight == 0, "everything is released")
    stats = broker.stats()
    assert (stats.duplicated, stats.out_of_order, stats.corrupt) == (0, 0, 0)
    assert there.owned() == 0
    assert pub.stats().accepted == 60


# --- brokers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", ["publish", "wait_acked", "close"])
def test_publishers_of_a_killed_broker_are_told_what_was_not_acknowledged(
    other_broker: tuple[Child, str], wait: str
) -> None:
    broker, address = other_broker
    pub = es.Publisher.connect(address, in_flight=2, linger_ms=0, timeout=0.3)
    for _ in range(2):
        pub.publish(b"x")
        pub.flush()
    broker.kill()
    with pytest.raises(es.EmbarError, match=r"; 2 .* were not acknowledged") as caught:
        if wait == "wait_acked":
            pub.wait_acked(timeout=30)
        elif wait == "publish":
            while True:
                try:
                    pub.publish(b"x")
                except es.WaitTimeout as error:  # as long as it tries to connect
                    assert "connection lost" in error.message
        else:
            pub.close()
    # close() may not wait longer than the publisher does in the background
    expected = es.BrokerGone | es.WaitTimeout if wait == "close" else es.BrokerGone
    assert isinstance(caught.value, expected)
    assert re.search("nobody listens|connection lost", caught.value.message)
    pub.close()


@pytest.mark.parametrize("wait", ["publish", "wait_acked"])
def test_publishers_learn_at_once_that_their_broker_closes(
    other_broker: tuple[Child, str], run_child: Callable[..., Child], wait: str
) -> None:
    broker, address = other_broker
    waiter = run_child(WAITER, address, wait)
    waiter.expect("waiting")
    wait_until(lambda: state(waiter) == "S", "it sleeps")
    broker.tell("close")
    broker.expect("closed")
    assert waiter.wait() == 1
    assert f"BrokerGone: {address} says: the broker " in waiter.errors
    assert "has stopped" in waiter.errors
    assert re.search(r"[12] .* were not acknowledged", waiter.errors)


def test_sigterm_closes_a_broker_with_its_port_and_its_publishers_learn_it(
    other_broker: tuple[Child, str], cluster: str
) -> None:
    broker, address = other_broker
    broker.tell("serve")
    broker.expect("serving")
    pub = es.Publisher.connect(address, timeout=None, linger_ms=0)
    publish_batches(pub, 3)
    broker.signal(signal.SIGTERM)
    assert broker.wait() == 0, broker.errors
    assert leftovers(cluster) == []
    with pytest.raises(es.NoSuchBroker, match="nobody listens"):
        es.Publisher.connect(address)
    with pytest.raises(es.BrokerGone, match="has stopped"):
        while True:
            pub.publish(b"x")
            pub.flush()
    pub.close()


# --- Ctrl-C ---------------------------------------------------------------------------------------


def interrupt(child: Child) -> None:
    """Ctrl-C for a process whose main thread waits; it has to end by that."""
    wait_until(lambda: state(child) == "S", "it sleeps")
    child.signal(signal.SIGINT)
    assert child.wait() == -signal.SIGINT, child.errors
    assert "KeyboardInterrupt" in child.errors
    assert "leaked" not in child.errors  # its threads have ended, too


@pytest.mark.parametrize("wait", ["publish", "wait_acked", "close"])
def test_ctrl_c_ends_a_publisher_that_waits_for_a_broker_that_does_not_get_on(
    listening: Callable[..., Listening], run_child: Callable[..., Child], wait: str
) -> None:
    there = listening(slots=1)  # accepts nothing
    waiter = run_child(WAITER, there.listener.address, wait)
    waiter.expect("waiting")
    monitor = there.broker.segment.monitor()
    wait_until(lambda: monitor.publisher(0)["space_waits"] == 1, "the ring is full")
    interrupt(waiter)
    there.broker.start()
    wait_until(lambda: there.connected() == 0, "the listener has noticed")
    wait_until(lambda: there.broker.stats().in_flight == 0, "everything is released")
    assert there.owned() == 0
    assert 1 <= there.broker.stats().messages <= 2


def test_ctrl_c_ends_a_publisher_without_a_with_block(
    listening: Callable[..., Listening], run_child: Callable[..., Child]
) -> None:
    there = listening(slots=1)  # accepts nothing
    waiter = run_child(
        BUSY.replace("in_flight=2", "in_flight=2, timeout=None"), there.listener.address
    )
    waiter.expect("publishing")
    monitor = there.broker.segment.monitor()
    wait_until(lambda: monitor.publisher(0)["space_waits"] == 1, "the ring is full")
    interrupt(waiter)


@pytest.mark.parametrize("reason", ["nobody listens", "no answer"])
def test_ctrl_c_ends_a_publisher_that_connects(
    listening: Callable[..., Listening], run_child: Callable[..., Child], reason: str
) -> None:
    there = listening()
    if reason == "no answer":
        there.proxy.hold()
    else:
        there.proxy.refuse()
    waiter = run_child(
        """
        import sys
        import embar_shm as es

        print("connecting")
        es.Publisher.connect(sys.argv[1], connect_timeout=3600, timeout=None)
        """,
        there.proxy.address,
    )
    waiter.expect("connecting")
    if reason == "no answer":
        wait_until(lambda: there.proxy.connections == 1, "it waits for the answer")
    interrupt(waiter)


def test_ctrl_c_ends_a_publisher_that_connects_again(
    listening: Callable[..., Listening], run_child: Callable[..., Child]
) -> None:
    there = listening(slots=1)
    waiter = run_child(WAITER, there.proxy.address, "close")
    waiter.expect("waiting")
    there.proxy.hold()
    there.proxy.cut()
    wait_until(lambda: there.proxy.connections == 2, "it waits for the answer")
    interrupt(waiter)


# --- fork -----------------------------------------------------------------------------------------


def test_a_fork_of_a_publisher_only_raises_and_its_parent_goes_on(
    listening: Callable[..., Listening], run_child: Callable[..., Child]
) -> None:
    there = listening(Limits(forget_after=0.0, housekeeping=0.01))
    with ByHand(there.broker) as log:
        parent = run_child(
            """
            import os, sys, warnings
            import embar_shm as es

            pub = es.Publisher.connect(sys.argv[1], publisher_id=7, linger_ms=0)
            pub.publish(b"before")
            pub.flush()
            pub.publish(b"open batch")
            warnings.simplefilter("ignore")  # newer Pythons warn: there are threads
            if os.fork() == 0:
                told = 0
                for use in (lambda: pub.publish(b"child"), pub.flush, pub.wait_acked):
                    try:
                        use()
                    except es.ClosedError as error:
                        told += "belongs to the parent" in error.message
                pub.close()
                os.write(1, b"%d times told\\n" % told)  # whole lines: two processes write
                input()  # outlives its parent
                os._exit(0)
            pub.publish(b"after")
            pub.wait_acked()
            os.write(1, b"acknowledged\\n")
            while True:
                pub.publish(b"until it is killed")
                pub.wait_acked()
            """,
            there.listener.address,
        )
        assert sorted((parent.read(), parent.read())) == ["3 times told", "acknowledged"]
        assert log.messages(7)[:3] == [b"before", b"open batch", b"after"]
        parent.kill()  # its child lives on, and does not keep the connection
        log.check_all_is_free()
        assert {batch.verdict for batch in log.of(7)} == {"accepted"}
        parent.tell()


def test_a_fork_of_a_broker_does_not_keep_its_port_or_its_connections(
    cluster: str, run_child: Callable[..., Child]
) -> None:
    parent = run_child(
        """
        import os, select, sys, warnings
        import embar_shm as es

        broker = es.Broker.create(sys.argv[1], slots=4, slot_size=4096).start()
        listener = broker.listen("tcp://127.0.0.1:0")
        print(listener.address)
        input()
        warnings.simplefilter("ignore")  # newer Pythons warn: there are threads
        if os.fork() == 0:
            listener.stop()
            broker.close()
            try:
                broker.listen("tcp://127.0.0.1:0")
            except es.ClosedError:
                os.write(1, b"only raises\\n")  # whole lines: two processes write
            until_hang_up = select.poll()  # outlives its parent, and reads nothing that is for it
            until_hang_up.register(0, 0)
            until_hang_up.poll()
            os._exit(0)
        os.write(1, b"forked\\n")
        input()
        broker.close()
        os._exit(0)
        """,
        RingName(cluster, "0"),
    )
    address = parent.read()
    pub = es.Publisher.connect(address, timeout=None, linger_ms=0)
    publish_batches(pub, 3)
    parent.tell()
    assert sorted((parent.read(), parent.read())) == ["forked", "only raises"]
    publish_batches(pub, 3)
    parent.tell()
    assert parent.wait() == 0, parent.errors
    with pytest.raises(es.BrokerGone, match="has stopped"):
        while True:
            pub.publish(b"x")
            pub.flush()
    pub.close()
    with pytest.raises(es.NoSuchBroker, match="nobody listens"):
        es.Publisher.connect(address)
