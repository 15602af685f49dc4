"""The native ends of a batch's way to a distant subscriber, without a network in between."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from raw_ring import RawRing, accept, commit_batches
from wire import batch_header

import embar_shm as es
from embar_shm import _core, protocol
from embar_shm.batch_header import Delivery
from embar_shm.participants import take_subscriber_row
from embar_shm.private_ring import PrivateRing
from embar_shm.segment import Segment
from embar_shm.testing import wait_until

SLOTS = 4
RELIABLE, LOSSY, LATEST = False, True, 0


class Inbox:
    """A private ring, what brings batches into it, and what reads them."""

    def __init__(self, first: int = 0, *, reliable: bool = True) -> None:
        self.ring = PrivateRing("tcp://b:1", SLOTS, 4096)
        self.intake = _core.IntakeCore(self.ring, self.ring.memory, reliable, first)
        self.reader = _core.SubscriberCore(
            context=self.ring,
            buffer=self.ring.memory,
            slots=None,
            index=0,
            lock_fd=-1,
            name="reads",
            mode=0,
            start=0,
            ticket=0,
            sole=True,
            wait_mode=2,
            spin_us=0,
            cpus=1,
            timeout=30,
            broker=None,
            on_left=lambda: None,
        )

    def arrive(self, *tickets: int) -> None:
        for ticket in tickets:
            place = self.intake.claim()
            assert place is not None
            self.ring.memory[place : place + 64] = bytes([ticket]) * 64
            self.intake.commit(batch_header(1 + ticket, 64, ticket=ticket, committed_ns=5))


# --- the intake -----------------------------------------------------------------------------------


def test_what_arrives_is_read_as_it_was_sent() -> None:
    inbox = Inbox(first=7)
    assert inbox.intake.connect() == SLOTS
    inbox.arrive(7, 9)  # 8 was refused by the broker
    for ticket in (7, 9):
        batch = inbox.reader.next(timeout=0)
        assert (batch.ticket, batch.copy()) == (ticket, bytes([ticket]) * 64)
        assert batch.committed_ns == 5, "the time of the machine that published it"
    assert inbox.intake.next_ticket == 10


def test_no_more_is_taken_than_there_are_slots() -> None:
    inbox = Inbox()
    inbox.intake.connect()
    inbox.arrive(0, 1, 2, 3)
    assert inbox.intake.claim() is None
    inbox.reader.next(timeout=0).release()
    assert inbox.intake.claim() is not None
    inbox.intake.give_back()


def test_each_batch_that_arrives_is_told_with_the_slots_that_are_free() -> None:
    inbox = Inbox(first=7)
    assert inbox.intake.connect() == SLOTS
    assert inbox.intake.next_credit(True) is None, "nothing has happened"
    inbox.arrive(7)
    assert inbox.intake.next_credit(True) == (8, SLOTS)
    assert inbox.intake.next_credit(True) is None, "it was told"
    inbox.reader.next(timeout=0).release()
    inbox.arrive(8)
    assert inbox.intake.next_credit(True) == (9, SLOTS + 1)


def test_a_slot_that_comes_free_is_told_by_itself_only_when_the_broker_has_few_left() -> None:
    inbox = Inbox()
    inbox.intake.connect()
    inbox.arrive(0)
    assert inbox.intake.next_credit(True) == (1, SLOTS)
    inbox.reader.next(timeout=0).release()
    assert inbox.intake.next_credit(False) is None, "three are left: it can wait"
    inbox.arrive(1, 2)
    assert inbox.intake.next_credit(True) == (3, SLOTS + 1)
    inbox.reader.next(timeout=0).release()
    assert inbox.intake.wait_credit()
    assert inbox.intake.next_credit(False) == (3, SLOTS + 2)


def test_a_wait_for_a_credit_ends_with_the_next_slot_that_comes_free() -> None:
    inbox = Inbox()
    inbox.intake.connect()
    inbox.arrive(0, 1, 2, 3)
    inbox.intake.next_credit(True)
    found: list[bool] = []
    waiting = threading.Thread(target=lambda: found.append(inbox.intake.wait_credit()))
    waiting.start()
    inbox.reader.next(timeout=0).release()
    waiting.join()
    assert found == [True]
    assert inbox.intake.next_credit(False) == (4, SLOTS + 1)


def test_slots_come_free_in_the_order_of_tickets() -> None:
    inbox = Inbox()
    inbox.intake.connect()
    inbox.arrive(0, 1)
    first, second = inbox.reader.next(timeout=0), inbox.reader.next(timeout=0)
    second.release()
    assert inbox.intake.next_credit(True) == (2, SLOTS)
    first.release()
    inbox.arrive(2)
    assert inbox.intake.next_credit(True) == (3, SLOTS + 2)


def test_without_a_connection_nothing_is_told_and_nobody_waits() -> None:
    inbox = Inbox()
    assert not inbox.intake.wait_credit()
    inbox.intake.connect()
    found: list[bool] = []
    waiting = threading.Thread(target=lambda: found.append(inbox.intake.wait_credit()))
    waiting.start()
    inbox.arrive(0)
    inbox.intake.disconnect()
    waiting.join()
    assert found == [False]
    assert inbox.intake.next_credit(True) is None


def test_the_credit_of_the_next_connection_is_for_the_slots_that_are_free() -> None:
    inbox = Inbox()
    inbox.intake.connect()
    inbox.arrive(0, 1, 2)
    inbox.intake.disconnect()
    inbox.reader.next(timeout=0).release()
    assert inbox.intake.connect() == 2
    inbox.arrive(3)
    assert inbox.intake.next_credit(True) == (4, 2), "counted from its beginning"


def test_what_follows_the_credits_waits_for_the_one_that_is_being_sent() -> None:
    inbox = Inbox()
    inbox.intake.connect()
    inbox.arrive(0, 1, 2, 3)
    inbox.intake.next_credit(True)
    inbox.reader.next(timeout=0).release()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                ours.send(bytes(1024))
        ours.setblocking(True)
        telling = threading.Thread(
            target=inbox.intake.send_credits, args=(ours.fileno(), protocol.CREDIT_HEAD)
        )
        telling.start()
        wait_until(lambda: inbox.intake.socket_calls()["send_calls"] == 1, "it is being sent")
        inbox.intake.disconnect()
        settling = threading.Thread(target=inbox.intake.settle)
        settling.start()
        settling.join(0.1)
        assert settling.is_alive()
        theirs.setblocking(False)

        def is_told() -> bool:
            with suppress(BlockingIOError):
                theirs.recv(65536)
            return not telling.is_alive()

        wait_until(is_told, "it is sent")
        settling.join()


# --- the feed -------------------------------------------------------------------------------------


@pytest.fixture
def feed(make_broker: Callable[..., es.Broker]) -> Iterator[Callable[..., _core.FeedCore]]:
    """Makes feeds of one broker that serves; `feed.broker`."""
    broker = make_broker(slots=4, slot_size=4096).start()
    segment = Segment.attach(broker.segment.name)  # locks of its own, as a listener has
    made: list[_core.FeedCore] = []

    def make(lossy: bool = RELIABLE) -> _core.FeedCore:
        row = take_subscriber_row(segment)
        core = _core.FeedCore(
            segment.memory, row, segment.lock_fd, "fed", lossy, LATEST, 0, 2, 0.0, 1
        )
        made.append(core)
        assert core.join(30) == "yes"
        return core

    make.broker = broker  # type: ignore[attr-defined]
    yield make
    for core in made:
        core.close()
    segment.close()


def publish(feed: Callable[..., _core.FeedCore], count: int) -> None:
    with es.Publisher.connect(feed.broker.address, in_flight=4) as pub:  # type: ignore[attr-defined]
        for _ in range(count):
            pub.publish(b"x")
            pub.flush()
        pub.wait_acked(30)


def tickets(core: _core.FeedCore, count: int) -> list[int]:
    return [core.next()[1] for _ in range(count)]


def test_what_is_not_received_is_sent_again_to_the_next_connection(
    feed: Callable[..., _core.FeedCore],
) -> None:
    core = feed()
    assert core.resume(0, 10)
    publish(feed, 3)
    assert tickets(core, 3) == [0, 1, 2]
    assert core.credit(1, 10)
    assert core.known() == (1, 10, 3, 3)
    assert core.resume(2, 1)  # it has received more than it could say
    assert tickets(core, 1) == [2]
    assert core.known() == (2, 1, 1, 3)


def test_what_is_not_received_keeps_its_slot(feed: Callable[..., _core.FeedCore]) -> None:
    core = feed()
    assert core.resume(0, 10)
    publish(feed, 3)
    assert tickets(core, 3) == [0, 1, 2]
    stats = feed.broker.stats  # type: ignore[attr-defined]
    assert stats().in_flight == 3
    assert core.credit(3, 10)
    wait_until(lambda: stats().in_flight == 0, "all slots come free")


def test_what_a_lossy_subscriber_is_sent_keeps_no_slot(
    feed: Callable[..., _core.FeedCore],
) -> None:
    core = feed(LOSSY)
    assert core.resume(0, 100)
    publish(feed, 20)
    expected = 0
    while expected < 20:
        _, ticket, header, _ = core.next()
        assert header is not None
        gap = Delivery.unpack(header).gap
        assert ticket == expected + gap
        expected = ticket + 1
    assert core.known()[2] < 20, "some were overwritten"


@pytest.mark.parametrize(
    ("received", "granted"),
    [(0, 10), (4, 10), (2, 9), (2, 2 + 4096 + 2), (2**64 - 1, 10), (2, 2**64 - 1)],
)
def test_a_credit_that_cannot_be_changes_nothing(
    feed: Callable[..., _core.FeedCore], received: int, granted: int
) -> None:
    core = feed()
    assert core.resume(0, 10)
    publish(feed, 3)
    tickets(core, 3)
    assert core.credit(1, 10)
    known = core.known()
    assert not core.credit(received, granted)
    assert core.known() == known


@pytest.mark.parametrize("ticket", [0, 4, 2**64 - 1])
def test_a_resume_that_cannot_be_changes_nothing(
    feed: Callable[..., _core.FeedCore], ticket: int
) -> None:
    core = feed()
    assert core.resume(0, 10)
    publish(feed, 3)
    tickets(core, 3)
    assert core.credit(1, 10)
    known = core.known()
    assert not core.resume(ticket, 10)
    assert core.known() == known


def test_an_interrupt_ends_a_wait_until_the_next_connection(
    feed: Callable[..., _core.FeedCore],
) -> None:
    core = feed()
    assert core.resume(0, 1)
    found: list[str] = []
    waiting = threading.Thread(target=lambda: found.append(core.next()[0]))
    waiting.start()
    core.interrupt()
    waiting.join()
    assert found == ["interrupted"]
    assert core.next()[0] == "interrupted"
    assert core.resume(0, 1)
    publish(feed, 2)
    assert core.next()[0] == "batch"
    without_credit = threading.Thread(target=lambda: found.append(core.next()[0]))
    without_credit.start()
    core.interrupt()
    without_credit.join()
    assert found == ["interrupted", "interrupted"]


def test_the_end_comes_after_everything_was_sent(feed: Callable[..., _core.FeedCore]) -> None:
    core = feed()
    assert core.resume(0, 10)
    publish(feed, 2)
    feed.broker.stop()  # type: ignore[attr-defined]
    feed.broker._open_core().retire()  # type: ignore[attr-defined]
    assert [core.next()[0] for _ in range(3)] == ["batch", "batch", "end"]


# --- the feed of a broker that was killed ---------------------------------------------------------

WHO = (7, 1)  # id and incarnation of the subscriber


def raw_feed(ring: RawRing, resumes_at: int | None = None) -> _core.FeedCore:
    return _core.FeedCore(
        ring.memory,
        0,
        -1,
        "fed",
        RELIABLE,
        LATEST,
        0,
        2,
        0.0,
        1,
        comes_back=WHO,
        resumes_at=resumes_at,
    )


def killed_after(sent: int, received: int) -> tuple[RawRing, _core.BrokerCore]:
    """A ring with four batches in the log, of which a subscriber was sent some; its next broker."""
    ring = RawRing(slots=4)
    broker, core = ring.broker(), raw_feed(ring)
    broker.admit()
    assert core.join(0) == "yes"
    assert core.resume(0, 10)
    commit_batches(ring.publisher(quota=4), 4)
    for _ in range(4):
        accept(broker)
    assert tickets(core, sent) == list(range(sent))
    assert core.credit(received, 10)
    return ring, ring.broker()


def fed_again(ring: RawRing, successor: _core.BrokerCore) -> _core.FeedCore:
    (found,) = successor.adopted_subscribers
    assert (found["remote_id"], found["remote_incarnation"]) == WHO
    assert successor.take_over_subscriber(found["index"], -1)
    return raw_feed(ring, resumes_at=found["cursor"])


def test_a_feed_that_was_taken_over_goes_on_where_its_subscriber_is() -> None:
    ring, successor = killed_after(sent=2, received=1)
    core = fed_again(ring, successor)
    assert core.known() == (1, 0, 0, 1)
    assert core.resume(1, 10)
    assert tickets(core, 3) == [1, 2, 3]


def test_what_a_subscriber_had_received_and_could_not_say_is_not_sent_again() -> None:
    ring, successor = killed_after(sent=3, received=1)
    core = fed_again(ring, successor)
    assert core.resume(3, 10)
    assert tickets(core, 1) == [3]
    assert [successor.release() for _ in range(4)] == [True, True, True, False]


def test_what_is_not_received_stays_in_the_ring_although_the_broker_was_killed() -> None:
    ring, successor = killed_after(sent=3, received=1)
    assert [successor.release() for _ in range(2)] == [True, False]
    core = fed_again(ring, successor)
    assert not successor.release()
    assert core.resume(1, 10)
    assert tickets(core, 3) == [1, 2, 3]
    assert core.credit(4, 10)
    assert [successor.release() for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("ticket", [0, 5, 2**64 - 1])
def test_a_feed_that_was_taken_over_believes_nothing_that_cannot_be(ticket: int) -> None:
    ring, successor = killed_after(sent=3, received=1)
    core = fed_again(ring, successor)
    assert not core.resume(ticket, 10), "ticket 0 was said to be received, and 4 is the next one"
    assert core.resume(4, 10)


def test_the_second_connection_to_a_new_broker_is_like_any_other() -> None:
    ring, successor = killed_after(sent=3, received=1)
    core = fed_again(ring, successor)
    assert core.resume(1, 1)
    assert tickets(core, 1) == [1]
    assert not core.resume(3, 10), "it was sent 1 only"
    assert core.resume(1, 10)
    assert tickets(core, 3) == [1, 2, 3]


def test_what_was_passed_because_it_was_refused_need_not_have_been_received() -> None:
    ring = RawRing(slots=4)
    broker, core = ring.broker(), raw_feed(ring)
    broker.admit()
    assert core.join(0) == "yes"
    assert core.resume(0, 10)
    publisher = ring.publisher(quota=4)
    commit_batches(publisher, 3)
    ring.forge_header(1, seq=1)  # of batch 2, which so is a duplicate
    ring.forge_header(2, seq=2)
    assert [accept(broker)["verdict"] for _ in range(3)] == ["accepted", "duplicate", "accepted"]
    assert tickets(core, 2) == [0, 2]
    assert core.credit(1, 10)
    successor = ring.broker()
    assert successor.adopted_subscribers[0]["cursor"] == 2, "it has passed the duplicate by itself"
    again = fed_again(ring, successor)
    assert again.resume(1, 10)
    assert again.known() == (1, 10, 0, 1)
    assert tickets(again, 1) == [2]


def test_only_reliable_subscribers_are_kept() -> None:
    ring = RawRing()
    _core.FeedCore(ring.memory, 0, -1, "lossy", LOSSY, LATEST, 0, 2, 0.0, 1)
    ring.subscriber(index=1)
    raw = _core.FeedCore(ring.memory, 2, -1, "fed", RELIABLE, LATEST, 0, 2, 0.0, 1, comes_back=WHO)
    ring.broker().admit()
    assert raw.join(0) == "yes"
    assert [found["index"] for found in ring.broker().adopted_subscribers] == [2]
    with pytest.raises(ValueError, match="reliable"):
        _core.FeedCore(ring.memory, 0, -1, "", LOSSY, LATEST, 0, 2, 0.0, 1, resumes_at=0)


def test_one_that_has_not_joined_joins_anew() -> None:
    ring = RawRing()
    ring.broker()
    raw_feed(ring)
    assert ring.broker().adopted_subscribers == []
