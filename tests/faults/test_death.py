"""Publishers and brokers that are stopped, killed or interrupted at the worst moment block nobody.

Processes are real ones, and killed for real; every wait is for a condition.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest
from programs import BUSY

import embar_shm as es
from embar_shm.address import RingName
from embar_shm.segment import Segment
from embar_shm.testing import Child, wait_until

HOLDER = """
import sys
import embar_shm as es

pub = es.Publisher.connect(sys.argv[1], linger_ms=0)
pub.publish(b"committed")
pub.flush()
pub.publish(b"never committed")
print("holding")
input()
pub.wait_acked()
print("acknowledged")
input()
"""

RESERVER = """
import sys
import embar_shm as es

pub = es.Publisher.connect(sys.argv[1], in_flight=1, linger_ms=0)
with pub.reserve(8) as view:
    view[:4] = b"half"
    print("holding")
    input()
"""

# Publishes until it blocks, then tells how that ended; with a second argument it waits for acks.
WAITER = """
import sys
import embar_shm as es

pub = es.Publisher.connect(sys.argv[1], message_size=4096, in_flight=2, timeout=None, linger_ms=0)
pub.publish(bytes(4096))
pub.publish(bytes(4096))
print("waiting")
try:
    pub.wait_acked() if sys.argv[2] == "wait_acked" else pub.publish(bytes(4096))
except BaseException as error:
    print(type(error).__name__, error.hint if isinstance(error, es.EmbarError) else "")
else:
    print("went on")
input()
pub.publish(bytes(4096))
pub.wait_acked()
pub.close()
print("closed")
"""

# A broker that accepts nothing until it is told to.
BROKER = """
import sys
import embar_shm as es

broker = es.Broker.create(sys.argv[1], slots=4, slot_size=4096)
print(broker.address)
input()
broker.serve()
"""


def slots_owned(broker: es.Broker) -> int:
    return sum(owner >= 0 for _, owner, _, _ in broker.segment.monitor().slots())


def publish_batches(pub: es.Publisher, count: int) -> None:
    for _ in range(count):
        pub.publish(b"x")
        pub.flush()
    pub.wait_acked()


@pytest.fixture
def dying_broker(
    cluster: str, run_child: Callable[..., Child]
) -> Iterator[tuple[Child, RingName, Segment]]:
    """A broker in a process of its own that accepts nothing, its ring, and a look at it."""
    name = RingName(cluster, "0")
    child = run_child(BROKER, name)
    child.expect(f"shm://{name}")
    segment = Segment.attach(name)
    yield child, name, segment
    child.kill()
    segment.unlink()
    segment.close()


# --- publishers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "committed"),
    [(HOLDER, 1), (RESERVER, 0)],
    ids=["open batch", "open reservation"],
)
def test_the_slot_and_row_of_a_killed_publisher_come_back(
    make_broker: Callable[..., es.Broker],
    connect: Callable[..., es.Publisher],
    run_child: Callable[..., Child],
    program: str,
    committed: int,
) -> None:
    broker = make_broker(slots=2, max_publishers=2).start()
    holder = run_child(program, broker.address)
    holder.expect("holding")
    pub = connect(broker, in_flight=1, linger_ms=0)
    holder.kill()
    wait_until(lambda: broker.stats().reaped_slots == 1, "the slot comes back")
    wait_until(lambda: broker.stats().publishers == 1, "the row comes back")
    assert slots_owned(broker) == 0
    assert broker.stats().reaped_publishers == 1
    publish_batches(pub, 50)
    assert broker.stats().messages == committed + 50  # nothing of the killed one's open batch
    publish_batches(connect(broker), 1)  # in the row that came back


def test_a_publisher_that_waits_for_a_slot_gets_that_of_a_killed_one(
    make_broker: Callable[..., es.Broker],
    connect: Callable[..., es.Publisher],
    run_child: Callable[..., Child],
) -> None:
    broker = make_broker(slots=1).start()
    holder = run_child(RESERVER, broker.address)
    holder.expect("holding")
    waiter = run_child(
        """
        import sys
        import embar_shm as es

        with es.Publisher.connect(sys.argv[1], in_flight=1, timeout=None) as pub:
            print("waiting")
            pub.publish(b"x")
            pub.wait_acked()
            print("went on")
        """,
        broker.address,
    )
    waiter.expect("waiting")
    monitor = broker.segment.monitor()
    wait_until(lambda: monitor.publisher(1)["space_waits"] == 1, "the other one waits")
    holder.kill()
    waiter.expect("went on")
    assert waiter.wait() == 0


def test_what_a_killed_publisher_committed_is_in_the_log(
    make_broker: Callable[..., es.Broker], run_child: Callable[..., Child]
) -> None:
    broker = make_broker()  # accepts nothing yet
    holder = run_child(HOLDER, broker.address)
    holder.expect("holding")
    holder.kill()
    broker.start()
    wait_until(lambda: broker.stats().reaped_publishers == 1, "the row comes back")
    assert broker.stats().messages == 1
    assert slots_owned(broker) == 0


def test_publishers_killed_at_any_instant_leave_a_sound_ring(
    make_broker: Callable[..., es.Broker],
    connect: Callable[..., es.Publisher],
    run_child: Callable[..., Child],
) -> None:
    broker = make_broker(max_publishers=4).start()
    pub = connect(broker, in_flight=1)
    for number in range(1, 6):
        victims = [run_child(BUSY, broker.address) for _ in range(2)]
        for victim in victims:
            victim.expect("publishing")
        reached = broker.stats().messages + 200
        wait_until(lambda reached=reached: broker.stats().messages >= reached, "they publish")
        for victim in victims:
            victim.kill()
        publish_batches(pub, 20)
        died = 2 * number
        wait_until(lambda died=died: broker.stats().reaped_publishers == died, "both are reaped")
    pub.wait_acked()
    wait_until(lambda: broker.stats().in_flight == 0, "everything is released")
    stats = broker.stats()
    assert (stats.duplicated, stats.out_of_order, stats.corrupt) == (0, 0, 0)
    assert slots_owned(broker) == 0
    assert pub.stats().accepted == 100


def test_a_stopped_publisher_blocks_nobody_and_goes_on_when_continued(
    make_broker: Callable[..., es.Broker],
    connect: Callable[..., es.Publisher],
    run_child: Callable[..., Child],
) -> None:
    broker = make_broker(slots=2).start()
    holder = run_child(HOLDER, broker.address)
    holder.expect("holding")
    stop(holder)
    pub = connect(broker, in_flight=1)
    publish_batches(pub, 1000)
    assert broker.stats().messages == 1001
    wait_until(lambda: broker.stats().in_flight == 0, "everything is released")
    assert slots_owned(broker) == 1  # nobody took the stopped one's slot away
    holder.signal(signal.SIGCONT)
    holder.tell()
    holder.expect("acknowledged")
    assert broker.stats().messages == 1002


def test_publishers_stopped_at_any_instant_block_nobody(
    make_broker: Callable[..., es.Broker],
    connect: Callable[..., es.Publisher],
    run_child: Callable[..., Child],
) -> None:
    broker = make_broker(slots=8).start()
    pub = connect(broker, in_flight=1)
    busy = [run_child(BUSY, broker.address) for _ in range(2)]
    for child in busy:
        child.expect("publishing")
    for _ in range(10):
        for child in busy:
            stop(child)
        publish_batches(pub, 100)
        before = broker.stats().messages
        for child in busy:
            child.signal(signal.SIGCONT)
        wait_until(
            lambda before=before: broker.stats().messages > before + 100, "they publish again"
        )
    assert pub.stats().accepted == 1000
    stats = broker.stats()
    assert (stats.duplicated, stats.out_of_order, stats.corrupt) == (0, 0, 0)


# --- brokers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", ["publish", "wait_acked"])
def test_publishers_that_wait_for_a_killed_broker_learn_it(
    dying_broker: tuple[Child, RingName, Segment], run_child: Callable[..., Child], wait: str
) -> None:
    broker, name, segment = dying_broker
    waiter = run_child(WAITER, f"shm://{name}", wait)
    waiter.expect("waiting")
    if wait == "publish":
        monitor = segment.monitor()
        wait_until(lambda: monitor.publisher(0)["space_waits"] == 1, "it waits for a slot")
    broker.kill()
    error, _, hint = waiter.read().partition(" ")
    assert error == "BrokerGone"
    assert "connect to a new broker" in hint


def test_a_publisher_tells_how_much_a_killed_broker_did_not_acknowledge(
    dying_broker: tuple[Child, RingName, Segment],
) -> None:
    broker, name, _ = dying_broker
    with es.Publisher.connect(f"shm://{name}") as pub:
        pub.publish(b"x")
        pub.flush()
        broker.kill()
        with pytest.raises(es.BrokerGone, match=r"died .*; 1 committed batches were not ack"):
            pub.wait_acked()


def test_nobody_can_connect_to_a_killed_broker_and_a_new_one_takes_its_place(
    dying_broker: tuple[Child, RingName, Segment], make_broker: Callable[..., es.Broker]
) -> None:
    broker, name, _ = dying_broker
    broker.kill()
    with pytest.raises(es.BrokerGone, match=r"left .* behind"):
        es.Publisher.connect(f"shm://{name}", connect_timeout=5)
    new = make_broker(name.broker, replace_dead=True).start()
    with es.Publisher.connect(new.address) as pub:
        publish_batches(pub, 1)


def test_a_stopped_broker_is_waited_for(
    dying_broker: tuple[Child, RingName, Segment],
) -> None:
    broker, name, _ = dying_broker
    broker.tell("serve")
    stop(broker)
    with es.Publisher.connect(f"shm://{name}") as pub:
        pub.publish(b"x")
        with pytest.raises(es.WaitTimeout, match=f"broker .pid {broker.pid}.") as caught:
            pub.wait_acked(timeout=0.05)
        assert "is alive" in caught.value.hint
        broker.signal(signal.SIGCONT)
        pub.wait_acked()


def test_a_batch_that_a_closing_broker_accepts_is_acknowledged(
    make_broker: Callable[..., es.Broker], run_child: Callable[..., Child]
) -> None:
    waiter = run_child(
        """
        import embar_shm as es

        while address := input():
            # Spins for a second: looks at every word the moment it changes.
            with es.Publisher.connect(address, linger_ms=0, wait="spin", spin_us=1e6) as pub:
                pub.publish(b"x")
                pub.flush()
                print("waiting")
                try:
                    pub.wait_acked()
                except es.BrokerGone as error:
                    print(error.message)
                else:
                    print("acknowledged")
        """
    )
    for _ in range(10):
        broker = make_broker()  # accepts nothing until it is closed
        waiter.tell(broker.address)
        waiter.expect("waiting")
        broker.close()
        assert broker.stats().messages == 1
        waiter.expect("acknowledged")
    waiter.tell()
    assert waiter.wait() == 0


# --- Ctrl-C ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", ["publish", "wait_acked"])
def test_ctrl_c_interrupts_a_waiting_publisher_that_can_go_on_afterwards(
    make_broker: Callable[..., es.Broker], run_child: Callable[..., Child], wait: str
) -> None:
    broker = make_broker()  # accepts nothing yet
    waiter = run_child(WAITER, broker.address, wait)
    waiter.expect("waiting")
    asleep(waiter)
    waiter.signal(signal.SIGINT)
    waiter.expect("KeyboardInterrupt ")
    broker.start()
    waiter.tell()
    waiter.expect("closed")
    assert waiter.wait() == 0
    assert broker.stats().messages == 3  # the interrupted one was not appended


@pytest.mark.parametrize("wait", ["publish", "wait_acked"])
def test_after_ctrl_c_a_program_can_end_although_the_broker_does_not_get_on(
    make_broker: Callable[..., es.Broker], run_child: Callable[..., Child], wait: str
) -> None:
    broker = make_broker()  # accepts nothing
    program = """
        import sys
        import embar_shm as es

        with es.Publisher.connect(
            sys.argv[1], message_size=4096, in_flight=1, timeout=None, linger_ms=0
        ) as pub:
            pub.publish(bytes(4096))
            print("waiting")
            getattr(pub, sys.argv[2])(*([bytes(4096)] if sys.argv[2] == "publish" else []))
        """
    waiter = run_child(program, broker.address, wait)
    waiter.expect("waiting")
    asleep(waiter)
    waiter.signal(signal.SIGINT)
    assert waiter.wait() == -signal.SIGINT
    assert "KeyboardInterrupt" in waiter.errors
    assert broker.segment.monitor().publisher(0)["state"] == "closed"


# --- a full table ---------------------------------------------------------------------------------


def test_one_publisher_too_many_is_refused_with_the_pids_of_the_others(
    make_broker: Callable[..., es.Broker],
    connect: Callable[..., es.Publisher],
    run_child: Callable[..., Child],
) -> None:
    broker = make_broker(max_publishers=2).start()
    holder = run_child(HOLDER, broker.address)
    holder.expect("holding")
    connect(broker)
    with pytest.raises(es.NotEnoughSpace, match="all 2 places") as caught:
        connect(broker)
    for pid in (holder.pid, os.getpid()):
        assert str(pid) in str(caught.value)
    assert "max_publishers" in caught.value.hint


def test_the_row_of_a_closed_publisher_is_used_again(
    make_broker: Callable[..., es.Broker],
) -> None:
    broker = make_broker(max_publishers=1).start()
    for count in range(1, 6):
        with es.Publisher.connect(broker.address) as pub:
            publish_batches(pub, 3)
            assert pub.stats().accepted == 3  # counts from the beginning
        assert broker.stats().messages == 3 * count
    wait_until(lambda: broker.stats().publishers == 0, "the last row is free")
    assert broker.stats().reaped_publishers == 0  # they left in order


# --- helpers --------------------------------------------------------------------------------------


def state(child: Child) -> str:
    """R, S, T, ...: what the kernel calls the state of a process (proc(5))."""
    with open(f"/proc/{child.pid}/stat") as file:  # noqa: PTH123 - a pseudo file
        return file.read().rpartition(")")[2].split()[0]


def stop(child: Child) -> None:
    """SIGSTOP; returns when the process does not run any more."""
    child.signal(signal.SIGSTOP)
    wait_until(lambda: state(child) == "T", "the process stops")


def asleep(child: Child) -> None:
    """Returns when a process of one thread, which is about to wait, sleeps in its wait."""
    wait_until(lambda: state(child) == "S", "the process sleeps")
