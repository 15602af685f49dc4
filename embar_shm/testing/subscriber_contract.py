"""What subscribers of every transport promise, as a pytest class.

A transport's own test module subclasses it, and that is all, if brokers can be listened on at a
default address:

    from embar_shm.testing import SubscriberContract

    class TestCarrierPigeon(SubscriberContract):
        scheme = "pigeon"
"""

# ruff: noqa: S101 - these are tests, though they ship with the package

from __future__ import annotations

import gc
import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest

import embar_shm as es
from embar_shm import transports
from embar_shm.testing.conditions import DEADLINE, wait_until
from embar_shm.testing.isolation import isolated, unique_cluster
from embar_shm.testing.processes import Child

__all__ = ["Stage", "SubscriberContract"]

SLOT = 4096  # bytes of a batch in these tests
ENOUGH = 200  # batches that no ring and no subscriber of these tests can hold together


def batch_of(number: int) -> bytes:
    """What batch `number` consists of: it fills a slot, and is like no other."""
    return number.to_bytes(4, "little") * (SLOT // 4)


def number_of(batch: Any) -> int:
    """Which one it is; every byte of it is looked at."""
    words = np.frombuffer(batch, dtype="<u4")
    assert words.size == SLOT // 4
    assert (words == words[0]).all()
    return int(words[0])


@dataclass(frozen=True)
class Stage:
    """A broker that serves, and where its transport listens."""

    broker: es.Broker
    address: str
    connect: Callable[..., es.Subscriber]
    """Connects a subscriber that is closed after the test, and waits for `DEADLINE` at most."""
    publisher: es.Publisher
    """Publishes over shared memory: one message fills a batch. It waits for space only shortly."""

    def publish(self, *numbers: int) -> None:
        """One batch for each of these numbers; they are in the log when this returns."""
        for number in numbers:
            wait_until(partial(published, self.publisher, number), "there is room")
        self.publisher.wait_acked(DEADLINE)

    def publish_until_full(self, first: int = 0) -> int:
        """Publishes until nothing more is taken; the number after the last one that was."""
        for number in itertools.count(first):
            assert number < first + ENOUGH, "nobody holds the publisher back"
            try:
                self.publisher.publish(batch_of(number))
            except es.WaitTimeout:
                return number
        raise AssertionError("a count that ends")


class SubscriberContract:
    """Subclasses set `scheme`; those that need more than a default address override the rest."""

    scheme: ClassVar[str]

    def listen(self, broker: es.Broker, address: str | None = None) -> transports.Listener:
        """Lets subscribers reach `broker`; one that was killed is forgotten within a second."""
        return transports.get(self.scheme).listen(broker, address)

    def vacant(self, name: str) -> str:
        """Where the broker `name`, which does not exist yet, can `listen`."""
        return name

    @pytest.fixture
    def staged(self) -> Iterator[Callable[..., Stage]]:
        """Makes stages: ``staged(slots=4, retain=0, ...)``."""
        cluster = unique_cluster("contract")
        numbers = itertools.count()
        with isolated(), ExitStack() as stack:

            def make(**options: Any) -> Stage:
                options = {"slots": 4, "slot_size": SLOT, "max_publishers": 4} | options
                broker = es.Broker.create(f"{cluster}/{next(numbers)}", **options)
                stack.enter_context(broker)
                listener = self.listen(broker)
                stack.callback(listener.stop)
                broker.start()
                publisher = es.Publisher.connect(
                    broker.address,
                    message_size=SLOT,
                    in_flight=options["slots"],
                    linger_ms=0,
                    timeout=0.2,
                    publisher_id=7,
                )
                stack.callback(close_whatever_happens, publisher)

                def connect(**options: Any) -> es.Subscriber:
                    options = {"timeout": DEADLINE} | options
                    return stack.enter_context(es.Subscriber.connect(listener.address, **options))

                return Stage(broker, listener.address, connect, publisher)

            yield make

    @pytest.fixture
    def stage(self, staged: Callable[..., Stage]) -> Stage:
        """A stage with four slots."""
        return staged()

    # --- what arrives -----------------------------------------------------------------------------

    @pytest.mark.parametrize("mode", ["reliable", "lossy"])
    def test_every_batch_arrives_once_and_in_the_order_of_tickets(
        self, stage: Stage, mode: str
    ) -> None:
        sub = stage.connect(mode=mode)
        for number in range(30):  # one by one: a lossy one misses nothing, either
            stage.publish(number)
            with sub.next() as batch:
                assert (batch.ticket, number_of(batch), batch.gap) == (number, number, 0)
        assert sub.poll() is None

    def test_each_of_several_subscribers_gets_every_batch(self, stage: Stage) -> None:
        found: list[list[int]] = [[], [], []]

        def read(sub: es.Subscriber, numbers: list[int]) -> None:
            while len(numbers) < 50:
                with sub.next() as batch:
                    numbers.append(number_of(batch))

        readers = [
            threading.Thread(target=read, args=(stage.connect(), numbers)) for numbers in found
        ]
        for reader in readers:
            reader.start()
        for number in range(50):
            stage.publish(number)
        for reader in readers:
            reader.join()
        assert found == [list(range(50))] * 3

    def test_batches_of_several_publishers_are_the_same_for_every_subscriber(
        self, stage: Stage
    ) -> None:
        subs = [stage.connect(), stage.connect()]
        found: list[list[tuple[int, int, int]]] = [[], []]

        def publish(number: int) -> None:
            with es.Publisher.connect(
                stage.broker.address, message_size=8, publisher_id=number, timeout=DEADLINE
            ) as pub:
                for seq in range(30):
                    pub.publish(seq.to_bytes(8, "little"))
                    pub.flush()

        def read(sub: es.Subscriber, log: list[tuple[int, int, int]]) -> None:
            while len(log) < 90:
                with sub.next() as batch:
                    log.append((batch.ticket, batch.publisher_id, batch.seq))

        threads = [threading.Thread(target=publish, args=(number,)) for number in range(3)]
        threads += [
            threading.Thread(target=read, args=pair) for pair in zip(subs, found, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found[0] == found[1]
        assert [ticket for ticket, _, _ in found[0]] == list(range(90))
        for number in range(3):
            seqs = [seq for _, publisher_id, seq in found[0] if publisher_id == number]
            assert seqs == list(range(1, 31))

    def test_a_batch_tells_who_published_it_and_what_is_in_it(self, stage: Stage) -> None:
        sub = stage.connect()
        with es.Publisher.connect(
            stage.broker.address, message_size=8, publisher_id=2**64 - 1
        ) as pub:
            for message in (b"aaaaaaaa", b"bbbbbbbb", b"cccccccc"):
                pub.publish(message)
        with sub.next() as batch:
            assert (batch.publisher_id, batch.seq, batch.incarnation > 0) == (2**64 - 1, 1, True)
            assert (batch.count, batch.message_size) == (3, 8)
            assert (batch.nbytes, batch.payload_bytes) == (24, 24)
            assert 0 < batch.opened_ns <= batch.committed_ns
            assert batch.copy() == b"aaaaaaaabbbbbbbbcccccccc"
            assert memoryview(batch).readonly
            assert [bytes(message) for message in batch.messages()] == [
                b"aaaaaaaa",
                b"bbbbbbbb",
                b"cccccccc",
            ]

    def test_messages_of_any_size_come_one_by_one(self, stage: Stage) -> None:
        sub = stage.connect()
        sent = [bytes([size]) * size for size in range(1, 40)]
        with es.Publisher.connect(stage.broker.address) as pub:
            for message in sent:
                pub.publish(message)
        with sub.next() as batch:
            assert (batch.count, batch.message_size) == (39, 0)
            assert batch.payload_bytes == sum(map(len, sent))
            assert [bytes(message) for message in batch.messages()] == sent
        assert sub.stats().messages == 39

    def test_messages_of_a_fixed_size_are_an_array_without_a_copy(self, stage: Stage) -> None:
        sub = stage.connect()
        rows = np.arange(12, dtype="<f8").reshape(3, 4)
        with es.Publisher.connect(stage.broker.address, message_size=rows[0].nbytes) as pub:
            pub.publish_many(rows)
        batch = sub.next()
        found = batch.array(np.float64, shape=(-1, 4))
        assert (found == rows).all()
        assert not found.flags.writeable
        assert np.shares_memory(found, batch.array())
        with pytest.raises(es.MisuseError):
            batch.array(np.dtype("V7"))

    def test_a_subscriber_can_be_iterated_over(self, stage: Stage) -> None:
        sub = stage.connect()
        stage.publish(0, 1, 2)
        found = []
        for batch in sub:
            found.append(number_of(batch))
            batch.release()
            if len(found) == 3:
                break
        assert found == [0, 1, 2]

    # --- where it begins --------------------------------------------------------------------------

    def test_the_latest_position_is_after_everything_that_was_accepted(self, stage: Stage) -> None:
        stage.publish(0, 1, 2)
        sub = stage.connect()
        assert sub.position.ticket == 3
        stage.publish(3)
        with sub.next() as batch:
            assert (batch.ticket, number_of(batch)) == (3, 3)

    def test_the_earliest_position_is_the_oldest_batch_that_is_there(
        self, staged: Callable[..., Stage]
    ) -> None:
        stage = staged(slots=8, retain=4)
        stage.publish(*range(20))
        sub = stage.connect(start="earliest")
        first = sub.position.ticket
        assert first <= 16
        for ticket in range(first, 20):
            with sub.next() as batch:
                assert (batch.ticket, number_of(batch)) == (ticket, ticket)

    @pytest.mark.parametrize("mode", ["reliable", "lossy"])
    def test_a_subscriber_begins_at_the_ticket_it_asks_for(
        self, staged: Callable[..., Stage], mode: str
    ) -> None:
        stage = staged(slots=8, retain=4)
        stage.publish(*range(20))
        sub = stage.connect(start=18, mode=mode)
        for ticket in (18, 19):
            with sub.next() as batch:
                assert (batch.ticket, number_of(batch)) == (ticket, ticket)

    def test_another_subscriber_goes_on_at_the_position_of_the_first(
        self, staged: Callable[..., Stage]
    ) -> None:
        stage = staged(slots=8, retain=6)
        with es.Subscriber.connect(stage.address, timeout=DEADLINE) as first:
            start = first.position
            stage.publish(*range(5))
            for _ in range(3):
                first.next().release()
            position = first.position
        assert (start.ticket, position.ticket, start.log) == (0, 3, position.log)
        sub = stage.connect(start=position)
        assert sub.position == position
        with sub.next() as batch:
            assert (batch.ticket, number_of(batch)) == (3, 3)

    @pytest.mark.parametrize("ticket", [0, 50], ids=["overwritten", "never existed"])
    @pytest.mark.parametrize("as_position", [True, False], ids=["position", "ticket"])
    def test_a_position_that_is_not_there_is_refused_with_those_that_are(
        self, stage: Stage, ticket: int, as_position: bool
    ) -> None:
        with es.Subscriber.connect(stage.address) as sub:
            log = sub.position.log
        stage.publish(*range(30))
        start = es.Position(log, ticket) if as_position else ticket
        with pytest.raises(es.PositionLost, match=rf"\b{ticket}\b.*\b(29|30)\b") as caught:
            stage.connect(start=start)
        assert caught.value.hint

    def test_a_position_of_another_log_is_refused(self, stage: Stage) -> None:
        with es.Subscriber.connect(stage.address) as sub:
            position = sub.position
        with pytest.raises(es.BrokerRestarted) as caught:
            stage.connect(start=es.Position(position.log - 1, 0))
        assert caught.value.hint

    @pytest.mark.parametrize(
        "options",
        [{"mode": "fast"}, {"start": "middle"}, {"start": -1}, {"wait": "never"}, {"timeout": -1}],
        ids=str,
    )
    def test_what_makes_no_sense_is_refused(self, stage: Stage, options: dict[str, Any]) -> None:
        with pytest.raises((es.ConfigurationError, es.MisuseError)):
            stage.connect(**options)

    # --- back-pressure ----------------------------------------------------------------------------

    def test_a_publisher_waits_for_a_reliable_subscriber_and_then_goes_on(
        self, stage: Stage
    ) -> None:
        sub = stage.connect()
        count = stage.publish_until_full()
        found = []

        def read() -> None:
            for batch in sub:
                found.append(number_of(batch))
                batch.release()
                if found[-1] == ENOUGH:
                    return

        reader = threading.Thread(target=read)
        reader.start()
        pub = stage.publisher
        for number in range(count, ENOUGH + 1):
            wait_until(partial(published, pub, number), "the publisher goes on")
        reader.join()
        assert found == list(range(ENOUGH + 1))

    def test_a_publisher_that_waits_is_told_for_whom(self, stage: Stage) -> None:
        stage.connect(name="the slow one")

        def is_told(number: int) -> bool:  # not at the first wait, where those in between are slow
            try:
                stage.publisher.publish(batch_of(number))
            except es.WaitTimeout as error:
                return "the slow one" in str(error)
            return False

        wait_until(partial(is_told, stage.publish_until_full()), "it is told for whom")

    def test_a_batch_that_is_kept_holds_the_publisher_back(self, stage: Stage) -> None:
        sub = stage.connect()
        stage.publish(0)
        kept = sub.next()
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                with suppress(es.WaitTimeout):
                    sub.next(timeout=0.02).release()

        reader = threading.Thread(target=read)
        reader.start()
        try:
            stage.publish_until_full(1)
            assert number_of(kept) == 0
        finally:
            stop.set()
            reader.join()
        kept.release()

    def test_a_batch_that_nobody_refers_to_is_released(self, stage: Stage) -> None:
        sub = stage.connect()
        for number in range(40):
            stage.publish(number)
            assert number_of(sub.next()) == number
        gc.collect()
        assert sub.stats().held == 0

    def test_a_lossy_subscriber_holds_nobody_back_and_learns_what_it_missed(
        self, stage: Stage
    ) -> None:
        sub = stage.connect(mode="lossy")
        stage.publish(*range(ENOUGH))  # would be a timeout
        expected = missed = batches = 0
        while expected < ENOUGH:
            with sub.next() as batch:
                assert batch.ticket == expected + batch.gap
                assert number_of(batch) == batch.ticket
                missed += batch.gap
                batches += 1
                expected = batch.ticket + 1
        assert missed > 0
        stats = sub.stats()
        assert (stats.lost, stats.batches) == (missed, batches)
        assert missed + batches == ENOUGH

    def test_a_subscriber_that_closes_holds_nobody_back(self, stage: Stage) -> None:
        sub = es.Subscriber.connect(stage.address)
        number = stage.publish_until_full()
        sub.close()
        pub = stage.publisher
        for more in range(number, number + 20):
            wait_until(partial(published, pub, more), "the publisher goes on")

    def test_a_subscriber_that_is_killed_holds_nobody_back(self, stage: Stage) -> None:
        with Child(_WAITING, stage.address) as program:
            program.expect("connected")
            number = stage.publish_until_full()
            program.kill()
        pub = stage.publisher
        for more in range(number, number + 20):
            wait_until(partial(published, pub, more), "the publisher goes on")

    # --- waiting ----------------------------------------------------------------------------------

    def test_without_a_batch_a_wait_is_a_timeout_that_says_for_whom(self, stage: Stage) -> None:
        sub = stage.connect(timeout=0.05)
        with pytest.raises(es.WaitTimeout) as caught:
            sub.next()
        assert stage.broker.name in str(caught.value) or stage.address in str(caught.value)
        assert caught.value.hint
        with pytest.raises(es.WaitTimeout):
            next(iter(sub))
        with pytest.raises(es.WaitTimeout):
            sub.next(timeout=0)

    def test_a_timeout_loses_nothing(self, stage: Stage) -> None:
        sub = stage.connect()
        for number in range(3):
            with pytest.raises(es.WaitTimeout):
                sub.next(timeout=0.01)
            stage.publish(number)
            assert number_of(sub.next()) == number

    def test_poll_never_waits(self, stage: Stage) -> None:
        sub = stage.connect()
        assert sub.poll() is None
        stage.publish(0)
        found: list[es.Batch | None] = [None]

        def polled() -> bool:
            found[0] = sub.poll()
            return found[0] is not None

        wait_until(polled, "the batch arrives")
        assert number_of(found[0]) == 0
        assert sub.poll() is None

    @pytest.mark.parametrize("wait", ["adaptive", "spin", "block"])
    def test_a_subscriber_that_waits_gets_a_batch_when_there_is_one(
        self, stage: Stage, wait: str
    ) -> None:
        sub = stage.connect(wait=wait)
        found = []

        def read() -> None:
            for _ in range(5):
                with sub.next() as batch:
                    found.append(number_of(batch))

        reader = threading.Thread(target=read)
        reader.start()
        for number in range(5):
            stage.publish(number)
            wait_until(partial(is_long, found, number + 1), "the batch is read")
        reader.join()
        assert found == [0, 1, 2, 3, 4]

    def test_ctrl_c_ends_a_wait(self, stage: Stage) -> None:
        with Child(_INTERRUPTED, stage.address) as program:
            program.expect("waiting")
            program.signal(signal.SIGINT)
            program.expect("interrupted")
            stage.publish(5)
            program.expect("5")
            assert program.wait() == 0, program.errors

    # --- the end ----------------------------------------------------------------------------------

    def test_the_end_of_the_log_comes_after_its_last_batch(self, stage: Stage) -> None:
        sub = stage.connect()
        stage.publish(0, 1, 2)
        closing = threading.Thread(target=stage.broker.close)
        closing.start()
        for number in range(3):
            with sub.next() as batch:
                assert number_of(batch) == number
        for _ in range(2):
            with pytest.raises(es.EndOfLog) as caught:
                sub.next()
        assert stage.broker.name in str(caught.value) or stage.address in str(caught.value)
        with pytest.raises(es.EndOfLog):
            sub.poll()
        assert list(sub) == []
        closing.join()

    def test_a_subscriber_that_waits_learns_of_the_end_of_the_log(self, stage: Stage) -> None:
        sub = stage.connect()
        ended = []

        def read() -> None:
            for batch in sub:
                batch.release()
            ended.append(True)

        reader = threading.Thread(target=read)
        reader.start()
        wait_until(lambda: sub.stats().waits > 0, "it waits")
        stage.broker.close()
        reader.join()
        assert ended == [True]

    def test_a_broker_that_closed_cannot_be_subscribed_to(self, stage: Stage) -> None:
        stage.broker.close()
        with pytest.raises((es.NoSuchBroker, es.BrokerGone)):
            stage.connect()

    def test_what_a_killed_broker_left_is_read_before_its_end_is_told(self) -> None:
        name = f"{unique_cluster('contract')}/0"
        where = self.vacant(name)
        with isolated(), Child(_BROKER, name, self.scheme, where) as program:
            address = program.read()
            with es.Subscriber.connect(address, timeout=1) as sub:
                program.tell("publish")
                program.expect("published")
                wait_until(lambda: sub.stats().lag == 3, "all of it can be read")
                program.kill()
                for number in range(3):
                    with sub.next() as batch:
                        assert number_of(batch) == number
                with pytest.raises(es.BrokerGone) as caught:
                    read_until_it_ends(sub)
                assert caught.value.hint
        remove(name)

    def test_a_subscriber_cannot_connect_where_no_broker_is(self) -> None:
        nowhere = self.vacant(f"{unique_cluster('contract')}/0")
        with pytest.raises(es.NoSuchBroker):
            es.Subscriber.connect(f"{self.scheme}://{nowhere}")

    def test_a_subscriber_waits_for_its_broker_to_appear(self) -> None:
        name = f"{unique_cluster('contract')}/0"
        where = self.vacant(name)
        found: list[es.Subscriber] = []

        def connect() -> None:
            sub = es.Subscriber.connect(f"{self.scheme}://{where}", connect_timeout=DEADLINE)
            found.append(sub)

        with isolated(), ExitStack() as stack:
            connecting = threading.Thread(target=connect)
            connecting.start()
            broker = stack.enter_context(es.Broker.create(name, slots=2, slot_size=SLOT)).start()
            listener = self.listen(broker, where)
            stack.callback(listener.stop)
            connecting.join()
            assert len(found) == 1
            found[0].close()

    # --- lifetimes --------------------------------------------------------------------------------

    def test_data_never_changes_under_a_view(self, stage: Stage) -> None:
        sub = stage.connect()
        stage.publish(0)
        batch = sub.next()
        views = [memoryview(batch), batch.array(np.uint32), next(batch.messages())]
        del batch
        stage.publish_until_full(1)
        for view in views:
            assert number_of(view) == 0

    def test_a_batch_with_a_view_cannot_be_released(self, stage: Stage) -> None:
        sub = stage.connect()
        stage.publish(0)
        batch = sub.next()
        array = batch.array()
        with pytest.raises(BufferError):
            batch.release()
        assert not batch.released
        assert number_of(array) == 0
        del array
        batch.release()
        assert batch.released

    def test_a_released_batch_cannot_be_used(self, stage: Stage) -> None:
        sub = stage.connect()
        stage.publish(0)
        batch = sub.next()
        batch.release()
        uses: list[Callable[[], object]] = [
            batch.release,
            batch.copy,
            batch.array,
            lambda: list(batch.messages()),
        ]
        for use in uses:
            with pytest.raises(es.ClosedError):
                use()
        with pytest.raises((BufferError, es.ClosedError)):
            memoryview(batch)

    def test_views_outlive_a_closed_subscriber(self, stage: Stage) -> None:
        sub = stage.connect()
        stage.publish(0)
        batch = sub.next()
        array = batch.array(np.uint32)
        sub.close()
        with suppress(es.WaitTimeout):
            for number in range(1, 20):
                stage.publisher.publish(batch_of(number))
        assert number_of(array) == 0
        del batch
        assert number_of(array) == 0

    def test_views_outlive_the_broker(self, stage: Stage) -> None:
        sub = stage.connect()
        stage.publish(0)
        view = memoryview(sub.next())
        stage.broker.close()
        assert number_of(view) == 0
        sub.close()
        assert number_of(view) == 0

    def test_close_may_be_called_twice_and_ends_everything(self, stage: Stage) -> None:
        sub = stage.connect()
        stage.publish(0)
        position = sub.position
        sub.close()
        sub.close()
        uses: list[Callable[[], object]] = [sub.next, sub.poll, lambda: next(iter(sub))]
        for use in uses:
            with pytest.raises(es.ClosedError):
                use()
        assert sub.position == position
        assert sub.stats().batches == 0

    def test_a_program_may_end_with_subscriber_and_views_alive(self, stage: Stage) -> None:
        with Child(_ENDING, stage.address) as program:
            program.expect("connected")
            stage.publish(0, 1)
            program.expect("0 1")
            assert program.wait() == 0, program.errors
            assert program.errors == ""

    def test_a_forked_child_cannot_use_its_parents_subscriber(self, stage: Stage) -> None:
        with Child(_FORKING, stage.address) as program:
            program.expect("connected")
            stage.publish(0)
            program.expect("next:ClosedError poll:ClosedError")
            program.expect("0")
            stage.publish(1)
            program.expect("1")
            assert program.wait() == 0, program.errors

    # --- statistics -------------------------------------------------------------------------------

    def test_a_subscriber_counts_what_it_reads(self, stage: Stage) -> None:
        sub = stage.connect(name="counting", mode="reliable")
        assert (sub.name, sub.mode) == ("counting", "reliable")
        stage.publish(0, 1, 2)
        wait_until(lambda: sub.stats().lag == 3, "all of it can be read")
        sub.next().release()
        kept = sub.next()
        stats = sub.stats()
        assert (stats.batches, stats.messages, stats.payload_bytes) == (2, 2, 2 * SLOT)
        assert (stats.lost, stats.held, stats.lag) == (0, 1, 1)
        kept.release()
        assert sub.stats().held == 0
        sub.close()
        assert (sub.stats().batches, sub.stats().messages) == (2, 2)


def close_whatever_happens(publisher: es.Publisher) -> None:
    """Many of these tests end with a broker that is gone, or a full ring."""
    with suppress(es.PeerError, es.WaitTimeout):
        publisher.close()


def published(publisher: es.Publisher, number: int) -> bool:
    """Could this batch be published by now?"""
    try:
        publisher.publish(batch_of(number))
    except es.WaitTimeout:
        return False
    return True


def is_long(found: list[int], count: int) -> bool:
    """Are there so many by now?"""
    return len(found) == count


def read_until_it_ends(sub: es.Subscriber) -> None:
    """Raises what comes in the end; that nothing comes for a while is not it."""
    while True:
        with suppress(es.WaitTimeout):
            sub.next().release()


def remove(name: str) -> None:
    """The ring of a broker that was killed."""
    es.Broker.create(name, slots=1, slot_size=SLOT, replace_dead=True).close()


_WAITING = """
import sys
import embar_shm as es

sub = es.Subscriber.connect(sys.argv[1])
print("connected")
input()
"""

_INTERRUPTED = """
import sys, threading
import embar_shm as es

sub = es.Subscriber.connect(sys.argv[1])

def tell():
    while not sub.stats().waits:
        pass
    print("waiting")

threading.Thread(target=tell, daemon=True).start()
try:
    sub.next()
except KeyboardInterrupt:
    print("interrupted")
with sub.next() as batch:
    print(int.from_bytes(batch.copy()[:4], "little"))
sub.close()
"""

_BROKER = """
import sys
import embar_shm as es
from embar_shm import transports

name, scheme, where = sys.argv[1:]
broker = es.Broker.create(name, slots=4, slot_size=4096).start()
listener = transports.get(scheme).listen(broker, where)
print(listener.address)
input()
with es.Publisher.connect(broker.address, message_size=4096, in_flight=4) as pub:
    for number in range(3):
        pub.publish(number.to_bytes(4, "little") * 1024)
    pub.wait_acked()
print("published")
input()
"""

_ENDING = """
import sys
import numpy as np
import embar_shm as es

sub = es.Subscriber.connect(sys.argv[1])
print("connected")
first = sub.next()
array = first.array(np.uint32)
second = sub.next()
view = memoryview(second)
print(array[0], view[0])
"""

_FORKING = """
import os, sys
import embar_shm as es

sub = es.Subscriber.connect(sys.argv[1])
print("connected")
batch = sub.next()
child = os.fork()
if child == 0:
    found = []
    for use in ("next", "poll"):
        try:
            getattr(sub, use)()
        except es.EmbarError as error:
            found.append(f"{use}:{type(error).__name__}")
    print(" ".join(found))
    sub.close()
    sys.exit()  # exit handlers run: they must not disturb the parent, either
os.waitpid(child, 0)
print(batch.copy()[0])
batch.release()
with sub.next() as batch:
    print(batch.copy()[0])
sub.close()
"""
