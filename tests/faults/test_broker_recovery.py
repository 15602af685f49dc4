"""Brokers that are killed and started again on their ring, with everybody else in place."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

import embar_shm as es
from embar_shm.address import RingName
from embar_shm.segment import Segment
from embar_shm.testing import Child, wait_until

DEADLINE = 30.0
SIZES = {"slots": 4, "slot_size": 4096}

# Goes on with the ring, and tells what it found.
BROKER = """
import sys
import embar_shm as es

broker = es.Broker.open_or_recover(
    sys.argv[1], slots=4, slot_size=4096, max_publishers=8, max_subscribers=8
)
found = broker.recovery
print("new" if found is None else f"{found.epoch} {found.accepted} {found.unread}", flush=True)
broker.serve()
broker.close()
print("closed", flush=True)
"""

# Goes on with the ring as soon as nobody else does, once told.
SUCCESSOR = """
import sys
import embar_shm as es

print("ready", flush=True)
input()
try:
    broker = es.Broker.open_or_recover(sys.argv[1])
except es.BrokerExists:
    print("too late", flush=True)
else:
    print("broker", flush=True)
    input()
    broker.close()
"""


@pytest.fixture
def name(cluster: str) -> Iterator[str]:
    """Of a ring that is gone after the test, whoever was killed."""
    yield f"{cluster}/0"
    RingName(cluster, "0").path.unlink(missing_ok=True)


@contextmanager
def broker(name: str) -> Iterator[Child]:
    with Child(BROKER, name) as child:
        yield child


@contextmanager
def killed_broker(name: str) -> Iterator[None]:
    """The ring of a broker that was killed."""
    with broker(name) as child:
        child.expect("new")
        child.kill()
    yield


def numbered(numbers: range) -> list[bytes]:
    return [number.to_bytes(8) * 8 for number in numbers]


def read(subscriber: es.Subscriber, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        with subscriber.next(timeout=DEADLINE) as batch:
            found += [bytes(message) for message in batch.messages()]
    return found


# --- everybody goes on ----------------------------------------------------------------------------


def test_everybody_goes_on_over_many_deaths_of_the_broker_and_nothing_is_lost(name: str) -> None:
    """Killed at five moments while it works; the publisher and subscriber never notice."""
    messages, deaths = numbered(range(20_000)), 5
    found: list[bytes] = []
    with ExitStack() as processes:
        child = processes.enter_context(broker(name))
        child.expect("new")
        address = f"shm://{name}"
        with (
            es.Subscriber.connect(address, timeout=DEADLINE, restart_timeout=DEADLINE) as sub,
            es.Publisher.connect(
                address, message_size=64, timeout=DEADLINE, restart_timeout=DEADLINE
            ) as pub,
        ):
            reader = threading.Thread(target=lambda: found.extend(read(sub, len(messages))))
            reader.start()
            share = len(messages) // (deaths + 1)
            for death in range(deaths):
                for message in messages[death * share : (death + 1) * share]:
                    pub.publish(message)
                child.kill()
                child = processes.enter_context(broker(name))
                assert child.read().split()[0] == str(death + 2)
            for message in messages[deaths * share :]:
                pub.publish(message)
            pub.wait_acked()
            reader.join(DEADLINE)
            assert found == messages
            assert pub.stats().accepted == pub.stats().committed
        child.signal(signal.SIGTERM)
        child.expect("closed")


def test_a_publisher_that_waits_for_a_slot_goes_on_by_itself(name: str) -> None:
    with broker(name) as first:
        first.expect("new")
        with (
            es.Subscriber.connect(f"shm://{name}", timeout=DEADLINE) as sub,
            es.Publisher.connect(
                f"shm://{name}", in_flight=1, timeout=DEADLINE, restart_timeout=DEADLINE
            ) as pub,
        ):
            pub.publish(b"one")
            pub.wait_acked()
            first.kill()
            errors: list[BaseException] = []

            def publish() -> None:
                try:
                    pub.publish(b"two")
                    pub.wait_acked()
                except BaseException as error:
                    errors.append(error)

            waiter = threading.Thread(target=publish)
            waiter.start()
            wait_until(lambda: pub.stats().space_waits == 1, "it waits")
            with broker(name) as second:
                second.expect("2 1 1")
                assert [bytes(m) for m in read(sub, 2)] == [b"one", b"two"]
                waiter.join(DEADLINE)
                assert errors == []


def test_what_was_committed_while_there_was_no_broker_is_accepted_by_the_next(name: str) -> None:
    with broker(name) as first:
        first.expect("new")
        with es.Publisher.connect(f"shm://{name}", timeout=DEADLINE, restart_timeout=60) as pub:
            first.kill()
            pub.publish(b"nobody hears")
            pub.flush()
            with broker(name) as second:
                second.expect("2 0 0")
                pub.wait_acked()


def test_a_publisher_that_died_meanwhile_is_freed_and_its_batches_stay(name: str) -> None:
    program = """
    import sys
    import embar_shm as es
    pub = es.Publisher.connect(sys.argv[1], linger_ms=0, in_flight=3)
    pub.publish(b"acknowledged")
    pub.wait_acked()
    print("acknowledged", flush=True)
    input()
    pub.publish(b"committed")
    pub.flush()
    pub.publish(b"never committed")
    print("done", flush=True)
    input()
    """
    with broker(name) as first:
        first.expect("new")
        with (
            es.Subscriber.connect(f"shm://{name}", timeout=DEADLINE, restart_timeout=60) as sub,
            Child(program, f"shm://{name}") as publisher,
        ):
            publisher.expect("acknowledged")
            first.kill()
            publisher.tell()
            publisher.expect("done")
            publisher.kill()
            with broker(name) as second:
                second.expect("2 1 1")
                assert read(sub, 2) == [b"acknowledged", b"committed"]
                monitor = Segment.attach(RingName.parse(name), prefault=False).monitor()
                wait_until(lambda: monitor.control()["attached"] == 0, "its row is free")
                wait_until(
                    lambda: [owner for _, owner, _, _ in monitor.slots() if owner >= 0] == [],
                    "all slots are free",
                )


def test_a_subscriber_that_died_meanwhile_holds_nothing_back(name: str) -> None:
    program = """
    import sys
    import embar_shm as es
    sub = es.Subscriber.connect(sys.argv[1])
    print("connected", flush=True)
    input()
    """
    with broker(name) as first:
        first.expect("new")
        with es.Publisher.connect(f"shm://{name}", timeout=DEADLINE, restart_timeout=60) as pub:
            with Child(program, f"shm://{name}") as reader:
                reader.expect("connected")
                pub.publish(b"held")
                pub.wait_acked()
                first.kill()
                reader.kill()
            with broker(name) as second:
                second.expect("2 1 1")
                for _ in range(20):
                    pub.publish(bytes(3000))
                pub.wait_acked()


def test_a_stopped_subscriber_keeps_its_batch_over_the_death_of_the_broker(name: str) -> None:
    program = """
    import sys
    import embar_shm as es
    sub = es.Subscriber.connect(sys.argv[1], restart_timeout=60)
    print("connected", flush=True)
    batch = sub.next()
    print("reading", flush=True)
    input()
    print(bytes(batch).decode(), flush=True)
    input()
    """
    with broker(name) as first:
        first.expect("new")
        with (
            es.Publisher.connect(
                f"shm://{name}", message_size=4, in_flight=4, timeout=DEADLINE, restart_timeout=60
            ) as pub,
            Child(program, f"shm://{name}") as reader,
        ):
            reader.expect("connected")
            pub.publish(b"keep")
            pub.flush()
            reader.expect("reading")
            reader.signal(signal.SIGSTOP)
            first.kill()
            with broker(name) as second:
                second.expect("2 1 1")
                for _ in range(3):
                    pub.publish(b"more")
                    pub.wait_acked()
                reader.signal(signal.SIGCONT)
                reader.tell()
                reader.expect("keep")


# --- nobody comes ---------------------------------------------------------------------------------


def test_without_a_successor_everybody_gives_up_after_restart_timeout(name: str) -> None:
    with broker(name) as first:
        first.expect("new")
        pub = es.Publisher.connect(f"shm://{name}", timeout=None, restart_timeout=0.3)
        sub = es.Subscriber.connect(f"shm://{name}", timeout=None, restart_timeout=0.3)
        first.kill()
        pub.publish(b"committed")
        with pytest.raises(es.BrokerGone, match="no other has taken its place"):
            pub.wait_acked()
        with pytest.raises(es.BrokerGone, match="no other has taken its place"):
            sub.next()
        pub.close()
        sub.close()
    with broker(name) as second:
        second.expect("2 0 0")


def test_a_call_whose_own_timeout_is_shorter_says_so(name: str) -> None:
    with broker(name) as first:
        first.expect("new")
        with es.Publisher.connect(f"shm://{name}", timeout=0.2, restart_timeout=60) as pub:
            first.kill()
            pub.publish(b"committed")
            with pytest.raises(es.WaitTimeout, match="not acknowledged") as caught:
                pub.wait_acked()
            assert caught.value.hint.startswith("the broker died: start it again")
            with broker(name) as second:
                second.expect("2 0 0")
                pub.wait_acked(timeout=DEADLINE)


def test_where_the_segment_is_removed_nobody_waits(name: str) -> None:
    with broker(name) as first:
        first.expect("new")
        pub = es.Publisher.connect(f"shm://{name}", timeout=None, restart_timeout=3600)
        sub = es.Subscriber.connect(f"shm://{name}", timeout=None, restart_timeout=3600)
        first.kill()
    RingName.parse(name).path.unlink()
    pub.publish(b"committed")
    with pytest.raises(es.BrokerGone):
        pub.wait_acked()
    with pytest.raises(es.BrokerGone):
        sub.next()
    pub.close()
    sub.close()


# --- who takes over -------------------------------------------------------------------------------


def test_of_many_successors_one_becomes_the_broker(name: str) -> None:
    with killed_broker(name):
        successors = [Child(SUCCESSOR, name) for _ in range(4)]
        try:
            for child in successors:
                child.expect("ready")
            for child in successors:
                child.tell()
            said = [child.read() for child in successors]
            assert sorted(said) == ["broker", "too late", "too late", "too late"]
        finally:
            for child in successors:
                child.close()


def test_a_living_broker_is_not_taken_over(name: str) -> None:
    with es.Broker.create(name, slots=2, slot_size=4096) as living:
        with pytest.raises(es.BrokerExists, match="is running"):
            es.Broker.open_or_recover(name)
        assert living.recovery is None


def test_a_ring_that_is_in_use_keeps_its_sizes_and_the_difference_is_told(name: str) -> None:
    with broker(name) as first:
        first.expect("new")
        with es.Publisher.connect(f"shm://{name}", restart_timeout=60):
            first.kill()
            with es.Broker.open_or_recover(name, slots=16, slot_size="1MiB") as second:
                assert second.segment.geometry.slots == 4
                assert second.recovery is not None
                assert second.recovery.notes[:2] == (
                    "slots: the ring has 4, 16 was asked for",
                    "slot_size: the ring has 4 KiB, 1 MiB was asked for",
                )


def test_a_ring_that_nobody_uses_is_made_anew_where_other_sizes_are_asked_for(name: str) -> None:
    with broker(name) as first:
        first.expect("new")
        with es.Publisher.connect(f"shm://{name}", timeout=DEADLINE) as pub:
            pub.publish(b"read by nobody, and released")
            pub.wait_acked()
        first.kill()
    with es.Broker.open_or_recover(name, slots=16) as second:
        assert second.segment.geometry.slots == 16
        assert second.recovery is None


def test_what_is_unread_is_not_thrown_away_for_other_sizes(name: str) -> None:
    with broker(name) as first:
        first.expect("new")
        with (
            es.Subscriber.connect(f"shm://{name}"),
            es.Publisher.connect(f"shm://{name}", timeout=DEADLINE) as pub,
        ):
            pub.publish(b"unread")
            pub.wait_acked()
            first.kill()
    with es.Broker.open_or_recover(name, slots=16) as second:
        assert second.segment.geometry.slots == 4
        assert second.recovery is not None
        assert (second.recovery.accepted, second.recovery.unread) == (1, 1)


def test_a_segment_whose_creator_died_before_it_was_complete_is_made_anew(name: str) -> None:
    path = RingName.parse(name).path
    path.write_bytes(bytes(8192))
    path.chmod(0o600)
    with es.Broker.open_or_recover(name, slots=2, slot_size=4096) as new:
        assert new.recovery is None


def test_a_file_that_is_no_segment_is_left_alone(name: str) -> None:
    path = RingName.parse(name).path
    path.write_bytes(b"precious")
    path.chmod(0o600)
    with pytest.raises(es.IncompatibleSegment, match="is truncated: it has 8 bytes"):
        es.Broker.open_or_recover(name)
    assert path.read_bytes() == b"precious"


def test_a_damaged_ring_is_quarantined_and_stays(name: str) -> None:
    with broker(name) as first:
        first.expect("new")
        first.kill()
    path = RingName.parse(name).path
    with path.open("r+b") as file:
        file.seek(4096)  # tail
        file.write(b"\xff" * 8)
    for _ in range(2):
        with pytest.raises(es.CorruptSegment, match=r"control\.tail: 18446744073709551615"):
            es.Broker.open_or_recover(name)
        assert path.exists()
    path.unlink()


def test_a_broker_that_is_closed_by_a_damaged_ring_leaves_it_for_whoever_looks(name: str) -> None:
    living = es.Broker.create(name, slots=2, slot_size=4096)
    with living.segment.name.path.open("r+b") as file:
        file.seek(living.segment.geometry.tickets_offset)
        file.write(b"\xff" * 8)
    with pytest.raises(es.CorruptSegment, match=r"tickets\[0\]"):
        living.serve(1.0)
    living.close()
    assert living.segment.name.path.exists()
    living.segment.name.path.unlink()
