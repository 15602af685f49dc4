"""In an event loop: nothing blocks it, and no cancelled call loses anything."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

import embar_shm as es
from embar_shm import aio, lifecycle
from embar_shm.address import RingName
from embar_shm.aio import publisher as aio_publisher
from embar_shm.aio import threads
from embar_shm.aio.threads import THREADS
from embar_shm.testing import Child, Log, wait_until

Brokers = Callable[..., es.Broker]
Children = Callable[..., Child]

_MANY = {"slots": 256, "slot_size": 256}
_IN_FLIGHT = 2  # of a publisher over shared memory, unless it is told otherwise


@pytest.fixture(params=["shm", "tcp"])
def address(request: pytest.FixtureRequest, make_broker: Brokers) -> str:
    """Of a broker that serves, over each transport."""
    broker = make_broker(slot_size=65536).start()
    return broker.address if request.param == "shm" else broker.listen("tcp://127.0.0.1:0").address


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with everything that is done in a thread."""
    done: list[str] = []
    run = THREADS.run

    def counted(work: Any) -> None:
        done.append(str(work.wait))
        run(work)

    monkeypatch.setattr(THREADS, "run", counted)
    return done


@pytest.fixture(autouse=True)
def no_thread_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What waits has ended with the test; threads that rest end by themselves."""
    monkeypatch.setattr(threads, "_REST", 0.02)
    yield
    wait_until(lambda: not THREADS._waiting, "every wait ends")
    wait_until(lambda: not our_threads(), "the threads end")


def our_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "embar-shm aio"]


def messages(batch: es.Batch) -> list[bytes]:
    with batch:
        return [bytes(message) for message in batch.messages()]


async def read(subscriber: aio.Subscriber, count: int) -> list[bytes]:
    """So many messages, or more if the last batch has some."""
    found: list[bytes] = []
    while len(found) < count:
        found += messages(await subscriber.next(timeout=30))
    return found


@asynccontextmanager
async def ticking() -> AsyncIterator[Callable[[], int]]:
    """How many turns another task got since."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    task = asyncio.create_task(tick())
    try:
        yield lambda: ticks
    finally:
        task.cancel()


async def turns(ticks: Callable[[], int], count: int = 50) -> None:
    """Returns when the loop has gone round so many times."""
    until = ticks() + count
    while ticks() < until:
        await asyncio.sleep(0)


async def fill(publisher: aio.Publisher) -> int:
    """Publishes batches of one byte, as many as may be in flight; how many those are."""
    for _ in range(_IN_FLIGHT):
        await publisher.publish(b".")
        await publisher.flush()
    return _IN_FLIGHT


# --- reading and publishing -----------------------------------------------------------------------


def test_one_publisher_and_three_subscribers_in_one_loop(address: str) -> None:
    sent = [b"%d" % number for number in range(5000)]

    async def write() -> None:
        async with await aio.Publisher.connect(address) as publisher:
            for message in sent[:4000]:
                await publisher.publish(message)
            await publisher.publish_many(b"".join(sent[4000:]), 4)
            await publisher.wait_acked()
            assert publisher.stats().messages == 5000

    async def main() -> None:
        subscribers = [await aio.Subscriber.connect(address) for _ in range(3)]
        reading = [asyncio.create_task(read(subscriber, 5000)) for subscriber in subscribers]
        await write()
        for subscriber, found in zip(subscribers, await asyncio.gather(*reading), strict=True):
            assert found == sent
            assert subscriber.stats().messages == 5000
            assert subscriber.position.ticket == subscriber.stats().batches
            await subscriber.close()

    asyncio.run(main())


def test_batches_that_are_there_and_messages_with_room_need_no_thread(
    make_broker: Brokers, works: list[str]
) -> None:
    broker = make_broker(**_MANY).start()

    async def main() -> None:
        publisher = await aio.Publisher.connect(broker.address, in_flight=100, linger_ms=0)
        subscriber = await aio.Subscriber.connect(broker.address)
        connecting = len(works)
        for number in range(100):
            await publisher.publish(b"%d" % number)
            assert await publisher.flush() == number + 1
        wait_until(lambda: broker.stats().batches == 100, "everything is in the log")
        await publisher.wait_acked()
        for number in range(100):
            assert messages(await subscriber.next()) == [b"%d" % number]
        assert subscriber.poll() is None
        assert len(works) == connecting
        await publisher.close()
        await subscriber.close()

    asyncio.run(main())


def test_waiting_for_many_batches_takes_one_thread_for_each_object(
    make_broker: Brokers, works: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = make_broker().start()
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def counted(thread: threading.Thread) -> None:
        if thread.name == "embar-shm aio":
            started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", counted)
    monkeypatch.setattr(threads, "_REST", 1.0)

    async def main() -> None:
        subscribers = [await aio.Subscriber.connect(broker.address) for _ in range(3)]
        publisher = await aio.Publisher.connect(broker.address)
        before = len(works)
        for number in range(100):
            reading = [asyncio.create_task(subscriber.next()) for subscriber in subscribers]
            await asyncio.sleep(0)  # all of them wait
            await publisher.publish(b"%d" % number)
            await publisher.wait_acked()
            for batch in await asyncio.gather(*reading):
                assert messages(batch) == [b"%d" % number]
        assert len(works) - before >= 300
        assert len(started) <= 4
        for each in (publisher, *subscribers):
            await each.close()

    asyncio.run(main())


def test_tasks_that_share_a_subscriber_get_each_batch_once_in_order(make_broker: Brokers) -> None:
    broker = make_broker(**_MANY).start()

    async def main() -> None:
        async with (
            await aio.Subscriber.connect(broker.address) as subscriber,
            await aio.Publisher.connect(broker.address, in_flight=20) as publisher,
        ):
            tasks = [asyncio.create_task(subscriber.next(timeout=30)) for _ in range(20)]
            await asyncio.sleep(0)
            for number in range(20):
                await publisher.publish(b"%d" % number)
                await publisher.flush()
            found = [messages(batch) for batch in await asyncio.gather(*tasks)]
            assert found == [[b"%d" % number] for number in range(20)]

    asyncio.run(main())


def test_a_lossy_subscriber_reads_copies_and_counts_gaps(make_broker: Brokers) -> None:
    broker = make_broker(slots=2).start()

    async def main() -> None:
        async with (
            await aio.Subscriber.connect(broker.address, mode="lossy") as subscriber,
            await aio.Publisher.connect(broker.address) as publisher,
        ):
            for number in range(50):
                await publisher.publish(b"%d" % number)
                await publisher.wait_acked()
            last = 0
            while last < 49:
                batch = await subscriber.next(timeout=30)
                last = batch.ticket
                assert messages(batch) == [b"%d" % last]
            stats = subscriber.stats()
            assert stats.lost > 0
            assert stats.lost + stats.batches == 50
            assert (subscriber.mode, subscriber.sockets()) == ("lossy", None)

    asyncio.run(main())


def test_a_task_that_always_finds_something_to_do_lets_others_run(make_broker: Brokers) -> None:
    broker = make_broker(**_MANY, retain=200).start()

    async def main() -> None:
        async with (
            ticking() as ticks,
            await aio.Publisher.connect(broker.address, in_flight=200, linger_ms=0) as publisher,
        ):
            await turns(ticks, 1)
            before = ticks()
            for _ in range(20_000):  # messages of 1 byte in batches of 16: there is always room
                await publisher.publish(b".")
                if publisher.stats().in_flight > 150:
                    await publisher.wait_acked()
            assert ticks() > before + 5
            await publisher.wait_acked()
            async with await aio.Subscriber.connect(broker.address, start="earliest") as subscriber:
                before = ticks()
                for _ in range(100):
                    batch = await subscriber.next()
                    while not turns_over(subscriber):  # it is used for a while
                        batch.copy()
                assert ticks() > before + 90

    asyncio.run(main())


def turns_over(subscriber: aio.Subscriber) -> bool:
    return subscriber._turns.is_over()


# --- the end of reading ---------------------------------------------------------------------------


def test_iteration_ends_and_next_raises_when_the_broker_has_stopped(address: str) -> None:
    async def main() -> None:
        async with await aio.Subscriber.connect(address) as subscriber:
            async with await aio.Publisher.connect(address) as publisher:
                await publisher.publish(b"the last one")
            stop = asyncio.create_task(asyncio.to_thread(stop_broker))
            found = [message async for batch in subscriber for message in messages(batch)]
            assert found == [b"the last one"]
            with pytest.raises(es.EndOfLog):
                await subscriber.next()
            await stop

    asyncio.run(main())


def stop_broker() -> None:
    """Closes the only broker of the test."""
    (broker,) = lifecycle._brokers
    broker.close()


_BROKER = """
import sys
import embar_shm as es

with es.Broker.create(sys.argv[1], slots=4, slot_size=4096) as broker:
    print("serving")
    broker.serve()
"""


def test_a_broker_that_dies_ends_all_that_is_waiting(cluster: str, run_child: Children) -> None:
    child = run_child(_BROKER, f"{cluster}/0")
    child.expect("serving")

    async def main() -> None:
        address = f"shm://{cluster}/0"
        async with await aio.Subscriber.connect(address) as subscriber:
            publisher = await aio.Publisher.connect(address)
            child.signal(signal.SIGSTOP)
            await fill(publisher)
            waiting = [
                asyncio.create_task(wait)
                for wait in (
                    subscriber.next(),
                    publisher.publish(b"x"),
                    publisher.wait_acked(seq=1),
                )
            ]
            async with ticking() as ticks:
                await turns(ticks)
            child.kill()
            for outcome in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(outcome, es.BrokerGone), outcome
            with pytest.raises(es.BrokerGone):
                async for _ in subscriber:
                    pass
            await publisher.close()

    asyncio.run(main())
    RingName.parse(f"{cluster}/0").path.unlink()


# --- cancellation and timeouts of readers ---------------------------------------------------------


def test_a_cancelled_next_leaves_the_batch_to_the_next_one(address: str) -> None:
    async def main() -> None:
        async with (
            await aio.Subscriber.connect(address) as subscriber,
            await aio.Publisher.connect(address) as publisher,
        ):
            for number in range(5):
                task = asyncio.create_task(subscriber.next())
                await asyncio.sleep(0.001)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
                await publisher.publish(b"%d" % number)
                await publisher.wait_acked()
                assert messages(await subscriber.next(timeout=30)) == [b"%d" % number]

    asyncio.run(main())


def test_no_batch_is_lost_or_doubled_when_it_arrives_while_its_reader_is_cancelled(
    make_broker: Brokers,
) -> None:
    broker = make_broker(**_MANY).start()
    count = 200

    async def main() -> None:
        with es.Publisher.connect(broker.address, in_flight=256, linger_ms=0) as publisher:
            subscriber = await aio.Subscriber.connect(broker.address)
            found: list[bytes] = []
            cancelled = 0
            for number in range(count):
                task = asyncio.create_task(subscriber.next())
                await asyncio.sleep(0)
                publisher.publish(b"%d" % number)
                publisher.flush()
                for _ in range(number % 7):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    found += messages(await task)
                except asyncio.CancelledError:
                    cancelled += 1
            while len(found) < count:
                found += messages(await subscriber.next(timeout=30))
            assert found == [b"%d" % number for number in range(count)]
            assert cancelled > 0
            await subscriber.close()

    asyncio.run(main())


def test_a_timeout_of_asyncio_around_next_loses_nothing(make_broker: Brokers) -> None:
    broker = make_broker().start()

    async def main() -> None:
        async with (
            await aio.Subscriber.connect(broker.address) as subscriber,
            await aio.Publisher.connect(broker.address) as publisher,
        ):
            with pytest.raises(TimeoutError) as ours:
                async with asyncio.timeout(0.01):
                    await subscriber.next()
            assert not isinstance(ours.value, es.EmbarError)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(subscriber.next(), 0.01)
            await publisher.publish(b"x")
            await publisher.flush()
            assert messages(await asyncio.wait_for(subscriber.next(), 30)) == [b"x"]

    asyncio.run(main())


@pytest.mark.parametrize("given", ["argument", "option"])
def test_a_next_that_waited_for_too_long_says_for_whom(make_broker: Brokers, given: str) -> None:
    broker = make_broker().start()
    mine, others = ({"timeout": 0.02}, {}) if given == "argument" else ({}, {"timeout": 0.02})

    async def main() -> None:
        async with await aio.Subscriber.connect(broker.address, **others) as subscriber:
            with pytest.raises(es.WaitTimeout, match=rf"no batch came on {broker.name} within 0\."):
                await subscriber.next(**mine)
            with pytest.raises(es.WaitTimeout):
                await subscriber.next(timeout=0)
            with pytest.raises(es.ConfigurationError, match=r"timeout=-1"):
                await subscriber.next(timeout=-1)

    asyncio.run(main())


def test_closing_ends_the_waits_of_other_tasks(address: str) -> None:
    async def main() -> None:
        subscriber = await aio.Subscriber.connect(address)
        tasks = [asyncio.create_task(subscriber.next()) for _ in range(3)]
        await asyncio.sleep(0)
        await subscriber.close()
        await subscriber.close()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, es.ClosedError), outcome
        with pytest.raises(es.ClosedError):
            await subscriber.next()
        assert "closed" in repr(subscriber)

    asyncio.run(main())


# --- back-pressure --------------------------------------------------------------------------------


def test_a_full_ring_stops_the_publisher_and_not_the_loop(address: str) -> None:
    sent = [b"%d" % number for number in range(100)]  # far more than there is room for

    async def main() -> None:
        async with (
            ticking() as ticks,
            await aio.Subscriber.connect(address, in_flight=2) as subscriber,
            await aio.Publisher.connect(address, linger_ms=0) as publisher,
        ):

            async def write() -> None:
                for message in sent:
                    await publisher.publish(message)
                    await publisher.flush()

            writing = asyncio.create_task(write())
            await turns(ticks, 500)
            assert not writing.done()
            assert await read(subscriber, 100) == sent
            await writing

    asyncio.run(main())


def test_publishers_that_wait_get_their_slots_in_the_order_of_their_calls(
    make_broker: Brokers,
) -> None:
    broker = make_broker(slots=2).start()

    async def main() -> None:
        async with (
            await aio.Subscriber.connect(broker.address) as subscriber,
            await aio.Publisher.connect(broker.address, batch_size=16) as publisher,
        ):
            room = await fill(publisher)
            tasks = [asyncio.create_task(publisher.publish(b"%d" % number)) for number in range(20)]
            await asyncio.sleep(0)
            tasks[3].cancel()
            found = await read(subscriber, room + 19)
            await asyncio.wait(tasks)
            assert found[room:] == [b"%d" % number for number in range(20) if number != 3]

    asyncio.run(main())


def test_a_cancelled_publish_leaves_no_message_and_no_harm(make_broker: Brokers) -> None:
    broker = make_broker(slots=2).start()

    async def main() -> None:
        async with (
            await aio.Subscriber.connect(broker.address) as subscriber,
            await aio.Publisher.connect(broker.address, linger_ms=0) as publisher,
        ):
            room = await fill(publisher)
            task = asyncio.create_task(publisher.publish(b"cancelled"))
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert await read(subscriber, room) == [b"."] * room
            await publisher.publish(b"next")
            await publisher.wait_acked()
            assert await read(subscriber, 1) == [b"next"]

    asyncio.run(main())


def test_a_publish_that_waited_for_too_long_names_who_holds_the_slots(make_broker: Brokers) -> None:
    broker = make_broker(slots=2).start()

    async def main() -> None:
        async with (
            await aio.Subscriber.connect(broker.address, name="sleepy") as subscriber,
            await aio.Publisher.connect(broker.address, timeout=0.1, linger_ms=0) as publisher,
        ):
            room = await fill(publisher)
            waits = [publisher.publish(b"x"), publisher.publish_many(b"abcd", 2)]
            for outcome in await asyncio.gather(*waits, return_exceptions=True):
                assert isinstance(outcome, es.WaitTimeout), outcome
                assert "sleepy" in str(outcome)
            assert await read(subscriber, room) == [b"."] * room
            assert subscriber.poll() is None

    asyncio.run(main())


def test_the_timeout_of_publish_many_is_for_standing_still(make_broker: Brokers) -> None:
    broker = make_broker(slots=2, slot_size=64).start()
    rows = np.arange(400, dtype=np.uint64).reshape(50, 8)  # a batch each

    async def main() -> None:
        async with (
            await aio.Subscriber.connect(broker.address) as subscriber,
            await aio.Publisher.connect(broker.address, timeout=1.0) as publisher,
        ):
            task = asyncio.create_task(publisher.publish_many(rows))
            for row in rows[:40]:
                await asyncio.sleep(0.05)  # 2 s in all
                with await subscriber.next(timeout=30) as batch:
                    assert batch.array(np.uint64).tolist() == row.tolist()
            with pytest.raises(es.WaitTimeout) as stopped:
                await task
            assert stopped.value.appended == 42  # type: ignore[attr-defined]

    asyncio.run(main())


def test_a_cancelled_publish_many_tells_how_far_it_came(make_broker: Brokers) -> None:
    broker = make_broker(slots=2, slot_size=64).start()

    async def main() -> None:
        async with (
            await aio.Subscriber.connect(broker.address) as subscriber,
            await aio.Publisher.connect(broker.address) as publisher,
        ):
            told: list[int] = []

            async def publish() -> None:
                try:
                    await publisher.publish_many(bytes(6400), 64)
                except asyncio.CancelledError as error:
                    told.append(error.appended)  # type: ignore[attr-defined]
                    raise

            task = asyncio.create_task(publish())
            await read(subscriber, 10)
            while publisher.stats().committed < 12:
                await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.wait([task])
            assert told == [12]
            assert len(await read(subscriber, 2)) == 2
            assert subscriber.poll() is None

    asyncio.run(main())


# --- what is published ----------------------------------------------------------------------------


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "any size"])
def test_a_large_message_is_copied_in_pieces_with_turns_for_others_in_between(
    make_broker: Brokers, fixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = make_broker(slots=4, slot_size="8MiB").start()
    message = np.random.default_rng(1).integers(0, 2**63, 2**19, dtype=np.uint64)  # 4 MiB
    monkeypatch.setattr(aio_publisher.Turns, "is_over", lambda _: True)

    async def main() -> None:
        size = message.nbytes if fixed else None
        async with (
            ticking() as ticks,
            await aio.Subscriber.connect(broker.address) as subscriber,
            await aio.Publisher.connect(broker.address, message_size=size) as publisher,
        ):
            before = ticks()
            await publisher.publish(message)
            assert ticks() - before >= message.nbytes // aio_publisher._PIECE - 1
            await publisher.wait_acked()
            with await subscriber.next(timeout=30) as batch:
                assert np.array_equal(batch.array(np.uint64), message)
            if fixed:
                with pytest.raises(es.MessageSizeError, match=f"message_size={message.nbytes}"):
                    await publisher.publish(message.repeat(2))
            else:
                with pytest.raises(es.MessageSizeError, match="does not fit into a batch"):
                    await publisher.publish(message.repeat(4))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("rows", "size"),
    [
        (np.arange(300_000, dtype=np.uint16).reshape(-1, 100), None),
        (np.arange(300_000, dtype=np.uint16).tobytes(), 200),
        (bytearray(np.arange(300_000, dtype=np.uint16).tobytes()), 200),
        (memoryview(np.arange(300_000, dtype=np.uint16)), 200),
    ],
    ids=["array", "bytes", "bytearray", "memoryview"],
)
def test_many_messages_arrive_in_order_through_a_ring_that_is_too_small_for_them(
    make_broker: Brokers, rows: Any, size: int | None
) -> None:
    broker = make_broker(slots=2, slot_size=4096).start()

    async def main() -> None:
        async with (
            await aio.Subscriber.connect(broker.address) as subscriber,
            await aio.Publisher.connect(broker.address) as publisher,
        ):
            publishing = asyncio.create_task(publisher.publish_many(rows, size))
            found = b"".join(await read(subscriber, 2980))
            await publishing
            await publisher.flush()
            found += b"".join(await read(subscriber, 3000 - len(found) // 200))
            assert found == np.arange(300_000, dtype=np.uint16).tobytes()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("text",), es.BufferTypeError),
        ((b"abc",), es.BufferTypeError),
        ((b"abc", 2), es.BufferTypeError),
        ((b"ab", 0), es.MessageSizeError),
        ((b"ab", -1), es.MisuseError),
        ((b"ab", "2"), es.MisuseError),
        ((np.zeros((2, 4), object),), es.BufferTypeError),
        ((np.zeros((4, 4))[:, :2],), es.BufferTypeError),
        ((np.zeros((2, 4)), 7), es.BufferTypeError),
        ((bytes(10_000), 5000), es.MessageSizeError),
    ],
    ids=repr,
)
def test_publish_many_refuses_what_the_blocking_one_refuses(
    make_broker: Brokers, arguments: tuple[Any, ...], error: type[Exception]
) -> None:
    broker = make_broker().start()

    async def main() -> None:
        async with await aio.Publisher.connect(broker.address) as publisher:
            with pytest.raises(error):
                await publisher.publish_many(*arguments)
            await publisher.publish_many(np.zeros((0, 4)))
            assert publisher.stats().messages == 0
            await publisher.publish(b"it still works")

    with es.Publisher.connect(broker.address) as blocking, pytest.raises(error):
        blocking.publish_many(*arguments)
    asyncio.run(main())


@pytest.mark.parametrize("message", ["text", None, 1, b"", bytes(5000), [1]], ids=repr)
def test_publish_refuses_what_the_blocking_one_refuses(make_broker: Brokers, message: Any) -> None:
    broker = make_broker().start()

    async def main() -> None:
        async with await aio.Publisher.connect(broker.address) as publisher:
            with pytest.raises(es.MisuseError):
                await publisher.publish(message)
            await publisher.publish(b"it still works")

    asyncio.run(main())


def test_lingering_commits_in_between_and_nothing_is_lost(make_broker: Brokers) -> None:
    broker = make_broker().start()

    async def main() -> None:
        async with await aio.Publisher.connect(broker.address, linger_ms=0.01) as publisher:
            for number in range(20_000):
                await publisher.publish(b"%d" % number)
                if number % 100 == 0:
                    await publisher.flush()
            await publisher.wait_acked()

    asyncio.run(main())
    stats = broker.stats()
    assert stats.messages == 20_000
    assert (stats.duplicated, stats.out_of_order, stats.corrupt) == (0, 0, 0)


def test_lingering_commits_while_the_loop_does_something_else(make_broker: Brokers) -> None:
    broker = make_broker().start()

    async def main() -> None:
        async with (
            await aio.Subscriber.connect(broker.address) as subscriber,
            await aio.Publisher.connect(broker.address, linger_ms=1) as publisher,
        ):
            await publisher.publish(b"x")
            assert await read(subscriber, 1) == [b"x"]

    asyncio.run(main())


def test_reserved_memory_is_published_when_its_block_ends(make_broker: Brokers) -> None:
    broker = make_broker().start()

    async def main() -> None:
        async with (
            await aio.Subscriber.connect(broker.address) as subscriber,
            await aio.Publisher.connect(broker.address) as publisher,
        ):
            async with publisher.reserve(4) as view:
                view[:] = b"1234"
                other = asyncio.create_task(publisher.publish(b"5678"))
                await asyncio.sleep(0.01)
                assert not other.done()
            await other
            with pytest.raises(ZeroDivisionError):
                async with publisher.reserve(4) as view:
                    raise ZeroDivisionError
            with pytest.raises(es.MessageSizeError):
                async with publisher.reserve(5000):
                    pass
            await publisher.flush()
            assert await read(subscriber, 2) == [b"1234", b"5678"]

    asyncio.run(main())


# --- acknowledgements -----------------------------------------------------------------------------


def test_many_tasks_await_the_acknowledgement_of_their_own_batch(address: str) -> None:
    async def main() -> None:
        async with await aio.Publisher.connect(address, in_flight=4) as publisher:

            async def publish(number: int) -> int:
                await publisher.publish(b"%d" % number)
                seq = await publisher.flush()
                await publisher.wait_acked(seq=seq)
                assert publisher.stats().accepted >= seq
                return seq

            found = await asyncio.gather(*(publish(number) for number in range(200)))
            assert max(found) <= 200
            assert publisher.stats().messages == 200

    asyncio.run(main())


def test_an_acknowledgement_that_does_not_come_in_time_is_a_wait_timeout(
    make_broker: Brokers,
) -> None:
    broker = make_broker()  # it does not serve
    log = Log.of(broker)

    async def main() -> None:
        async with await aio.Publisher.connect(broker.address, timeout=0.05) as publisher:
            await publisher.publish(b"x")
            with pytest.raises(es.WaitTimeout, match=r"batch 1 .* was not acknowledged within 0\."):
                await publisher.wait_acked()
            with pytest.raises(es.WaitTimeout):
                await publisher.wait_acked(timeout=0)
            with pytest.raises(es.MisuseError, match=r"batch 2 .* cannot be waited for"):
                await publisher.wait_acked(seq=2)
            waiting = asyncio.create_task(publisher.wait_acked(timeout=30))
            await asyncio.sleep(0.01)
            log.take()
            await waiting

    asyncio.run(main())


def test_nobody_waits_for_acknowledgements_that_were_not_asked_for(make_broker: Brokers) -> None:
    broker = make_broker().start()

    async def main() -> None:
        async with await aio.Publisher.connect(broker.address, ack=0) as publisher:
            await publisher.publish(b"x")
            with pytest.raises(es.MisuseError, match="ack=0"):
                await publisher.wait_acked()

    asyncio.run(main())


# --- closing a publisher --------------------------------------------------------------------------


def test_closing_commits_the_open_batch(address: str) -> None:
    async def main() -> None:
        async with await aio.Subscriber.connect(address) as subscriber:
            async with await aio.Publisher.connect(address, linger_ms=0) as publisher:
                await publisher.publish(b"x")
            await publisher.close()
            assert await read(subscriber, 1) == [b"x"]
            for call in (publisher.publish(b"y"), publisher.flush(), publisher.wait_acked()):
                with pytest.raises(es.ClosedError):
                    await call

    asyncio.run(main())


def test_closing_while_others_wait_for_a_slot_or_an_acknowledgement_tells_them(
    make_broker: Brokers,
) -> None:
    broker = make_broker(slots=2)  # it does not serve

    async def main() -> None:
        publisher = await aio.Publisher.connect(broker.address, linger_ms=0)
        await fill(publisher)
        tasks = [
            asyncio.create_task(wait)
            for wait in (
                publisher.publish(b"x"),
                publisher.publish(b"y"),
                publisher.publish_many(b"zz", 1),
                publisher.wait_acked(),
                publisher.wait_acked(seq=1),
            )
        ]
        await asyncio.sleep(0.01)
        await publisher.close()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, es.ClosedError), outcome

    asyncio.run(main())


def test_leaving_with_an_error_closes_and_keeps_the_error(make_broker: Brokers) -> None:
    broker = make_broker().start()

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with (
                await aio.Subscriber.connect(broker.address),
                await aio.Publisher.connect(broker.address) as publisher,
            ):
                await publisher.publish(b"x")
                raise ZeroDivisionError
        wait_until(lambda: broker.stats().publishers == 0, "the publisher leaves")
        assert broker.stats().messages == 1
        assert broker.stats().subscribers == ()

    asyncio.run(main())


# --- connecting -----------------------------------------------------------------------------------


def test_connecting_waits_for_the_broker_while_the_loop_goes_on(
    cluster: str, make_broker: Brokers
) -> None:
    async def main() -> None:
        address = f"shm://{cluster}/late"
        async with ticking() as ticks:
            connecting = [
                asyncio.create_task(each.connect(address, connect_timeout=60))
                for each in (aio.Publisher, aio.Subscriber)
            ]
            await turns(ticks, 200)
            assert not any(task.done() for task in connecting)
            make_broker("late").start()
            for each in await asyncio.gather(*connecting):
                await each.close()

    asyncio.run(main())


@pytest.mark.parametrize("kind", [aio.Publisher, aio.Subscriber])
def test_connecting_to_nobody_is_an_error(cluster: str, kind: Any) -> None:
    with pytest.raises(es.NoSuchBroker):
        asyncio.run(kind.connect(f"shm://{cluster}/nobody"))
    with pytest.raises(es.ConfigurationError, match=r"connect_timeout=-1"):
        asyncio.run(kind.connect(f"shm://{cluster}/nobody", connect_timeout=-1))
    with pytest.raises(TypeError, match="colour"):
        asyncio.run(kind.connect(f"shm://{cluster}/nobody", colour="red"))


@pytest.mark.parametrize("kind", [aio.Publisher, aio.Subscriber])
def test_a_cancelled_connect_leaves_no_connection(make_broker: Brokers, kind: Any) -> None:
    broker = make_broker().start()

    async def main() -> None:
        for turns_before in range(20):
            task = asyncio.create_task(kind.connect(broker.address))
            for _ in range(turns_before):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                await task.result().close()
        wait_until(lambda: not THREADS._waiting, "what was begun ends")

    asyncio.run(main())
    wait_until(lambda: not broker.stats().publishers, "publishers are gone")
    wait_until(lambda: not broker.stats().subscribers, "subscribers are gone")


# --- loops and processes --------------------------------------------------------------------------


def test_each_loop_needs_objects_of_its_own(make_broker: Brokers) -> None:
    broker = make_broker().start()

    async def connect() -> tuple[aio.Publisher, aio.Subscriber]:
        return (
            await aio.Publisher.connect(broker.address),
            await aio.Subscriber.connect(broker.address),
        )

    publisher, subscriber = asyncio.run(connect())
    calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        subscriber.next,
        publisher.flush,
        publisher.wait_acked,
        lambda: publisher.publish(b"x"),
        lambda: publisher.publish_many(b"x", 1),
    ]
    for call in calls:
        with pytest.raises(es.MisuseError, match="belongs to another event loop"):
            asyncio.run(call())
    asyncio.run(publisher.close())
    asyncio.run(subscriber.close())


def test_a_loop_that_is_closed_under_those_who_wait_keeps_no_thread(make_broker: Brokers) -> None:
    broker = make_broker().start()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # it says that pending tasks are destroyed

    async def main() -> tuple[aio.Publisher, aio.Subscriber]:
        subscriber = await aio.Subscriber.connect(broker.address)
        publisher = await aio.Publisher.connect(broker.address)
        waiting = [asyncio.create_task(subscriber.next()) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in waiting)
        return publisher, subscriber

    publisher, subscriber = loop.run_until_complete(main())
    assert THREADS._waiting
    loop.close()
    with es.Publisher.connect(broker.address) as other:
        other.publish(b"for a loop that is closed")
    wait_until(lambda: not THREADS._waiting, "the wait ends")
    asyncio.run(subscriber.close())
    asyncio.run(publisher.close())


def test_a_forked_child_cannot_use_what_its_parent_connected(
    make_broker: Brokers, run_child: Children
) -> None:
    broker = make_broker().start()
    child = run_child(
        """
        import asyncio, os, sys
        import embar_shm as es
        from embar_shm import aio
        from embar_shm.aio.threads import THREADS

        loop = asyncio.new_event_loop()
        pub = loop.run_until_complete(aio.Publisher.connect(sys.argv[1]))
        sub = loop.run_until_complete(aio.Subscriber.connect(sys.argv[1]))
        waiting = loop.create_task(sub.next())
        loop.run_until_complete(asyncio.sleep(0.01))
        assert len(THREADS._waiting) == 1
        pid = os.fork()
        if pid == 0:
            assert not THREADS._waiting
            for call in (lambda: sub.next(), lambda: pub.publish(b"x"), lambda: pub.flush()):
                try:
                    loop.run_until_complete(call())
                except es.ClosedError as error:
                    assert "parent of this process" in str(error), error
                else:
                    raise AssertionError("the child could use it")

            async def own():
                async with await aio.Publisher.connect(sys.argv[1]) as pub:
                    await pub.publish(b"from the child")
                    await pub.wait_acked()

            asyncio.run(own())
            print("child is done", flush=True)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        batch = loop.run_until_complete(waiting)
        print([bytes(message) for message in batch.messages()])
        loop.run_until_complete(sub.close())
        loop.run_until_complete(pub.close())
        """,
        broker.address,
    )
    child.expect("child is done")
    child.expect("[b'from the child']")
    assert child.wait() == 0, child.errors


_WAITS = """
import asyncio, sys
from embar_shm import aio

async def main():
    async with await aio.Subscriber.connect(sys.argv[1]) as sub:
        async with await aio.Publisher.connect(sys.argv[1]) as pub:
            waiting = asyncio.create_task(sub.next())
            await asyncio.sleep(0)
            print("waiting")
            await waiting
"""


def test_ctrl_c_ends_a_program_that_waits(make_broker: Brokers, run_child: Children) -> None:
    broker = make_broker().start()
    # A signal that comes right before asyncio sleeps is seen by CPython when it wakes up again.
    child = run_child(
        _WAITS
        + """
async def wake_up_often():
    loop = asyncio.get_running_loop()
    def again():
        loop.call_later(0.05, again)
    again()
    await main()

asyncio.run(wake_up_often())
""",
        broker.address,
    )
    child.expect("waiting")
    child.signal(signal.SIGINT)
    assert child.wait() in (-signal.SIGINT, 130)
    assert "KeyboardInterrupt" in child.errors
    assert "Exception ignored" not in child.errors
    wait_until(lambda: not broker.stats().publishers, "the publisher leaves")
    assert not broker.stats().subscribers
    assert broker.stats().reaped_publishers == 0  # it has said goodbye


def test_a_program_ends_though_somebody_still_waits(
    make_broker: Brokers, run_child: Children
) -> None:
    broker = make_broker().start()
    child = run_child(
        _WAITS
        + """
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
task = loop.create_task(main())
loop.run_until_complete(asyncio.sleep(0.1))
loop.call_soon(loop.stop)
loop.run_forever()
sys.exit(7)
""",
        broker.address,
    )
    child.expect("waiting")
    assert child.wait() == 7, child.errors
    wait_until(lambda: not broker.stats().publishers, "the publisher leaves")
