"""The parts of `embar_shm.aio` that need no ring: its threads, and who is woken by what."""

from __future__ import annotations

import asyncio
import gc
import inspect
import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

import embar_shm as es
from embar_shm.aio import threads
from embar_shm.aio.connecting import connected
from embar_shm.aio.publisher import PublisherArguments
from embar_shm.aio.subscriber import SubscriberArguments
from embar_shm.aio.threads import Threads, Work, in_thread
from embar_shm.aio.waits import NEWS, Waits, Wish
from embar_shm.errors import ClosedError, MisuseError, NoSuchBroker
from embar_shm.testing import wait_until


class Source:
    """Something whose waits end when the test says so."""

    def __init__(self) -> None:
        self.wishes: queue.SimpleQueue[Wish] = queue.SimpleQueue()  # as they begin
        self.accepted = 0
        self._answers: queue.SimpleQueue[bool | Exception] = queue.SimpleQueue()

    def wait(self, wish: Wish) -> bool:
        self.wishes.put(wish)
        answer = self._answers.get(timeout=30)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def interrupt(self) -> None:
        self._answers.put(False)

    def tell(self, answer: bool | Exception = True) -> None:
        self._answers.put(answer)

    def waits(self) -> Waits:
        return Waits(self.wait, self.interrupt, lambda: self.accepted)

    async def next_wish(self) -> Wish:
        while self.wishes.empty():
            await asyncio.sleep(0.001)
        return self.wishes.get()


@pytest.mark.parametrize(
    ("arguments", "connect"),
    [
        (PublisherArguments, es.Publisher.connect),
        (SubscriberArguments, es.Subscriber.connect),
    ],
)
def test_connect_takes_the_options_of_the_blocking_one(
    arguments: type, connect: Callable[..., Any]
) -> None:
    names = list(inspect.signature(connect).parameters)
    assert list(arguments.__annotations__) == names[1:]  # without the address
    assert names[0] == "address"


# --- waits ----------------------------------------------------------------------------------------


def test_tasks_that_wait_for_news_share_one_wait_and_are_woken_in_order() -> None:
    async def main() -> None:
        source, woken = Source(), []
        waits = source.waits()

        async def wait(number: int) -> None:
            await waits.until(NEWS)
            woken.append(number)

        tasks = [asyncio.create_task(wait(number)) for number in range(5)]
        assert await source.next_wish() == Wish(news=True, seq=None)
        source.tell()
        await asyncio.gather(*tasks)
        assert woken == [0, 1, 2, 3, 4]
        assert source.wishes.empty()

    asyncio.run(main())


def test_an_acknowledgement_wakes_those_it_is_for_and_the_others_wait_on() -> None:
    async def main() -> None:
        source = Source()
        waits = source.waits()
        tasks = {seq: asyncio.create_task(waits.until(seq)) for seq in (1, 3, 2)}
        assert await source.next_wish() == Wish(news=False, seq=1)
        source.accepted = 2
        source.tell()
        assert await source.next_wish() == Wish(news=False, seq=3)
        assert tasks[1].done()
        assert tasks[2].done()
        assert not tasks[3].done()
        source.accepted = 3
        source.tell()
        await tasks[3]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [(NEWS, 7, Wish(True, 7)), (7, NEWS, Wish(True, 7)), (7, 5, Wish(False, 5))],
)
def test_a_new_wish_joins_the_one_that_is_waited_for(first: int, second: int, both: Wish) -> None:
    async def main() -> None:
        source = Source()
        waits = source.waits()
        tasks = [asyncio.create_task(waits.until(first))]
        await source.next_wish()
        tasks.append(asyncio.create_task(waits.until(second)))
        assert await source.next_wish() == both
        source.accepted = 7
        source.tell()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_a_later_acknowledgement_does_not_disturb_the_wait_for_an_earlier_one() -> None:
    async def main() -> None:
        source = Source()
        waits = source.waits()
        tasks = [asyncio.create_task(waits.until(5))]
        assert await source.next_wish() == Wish(False, 5)
        tasks.append(asyncio.create_task(waits.until(6)))
        await asyncio.sleep(0)
        source.accepted = 5
        source.tell()
        assert await source.next_wish() == Wish(False, 6)  # and not Wish(False, 5) once more
        source.accepted = 6
        source.tell()
        await asyncio.gather(*tasks)

    asyncio.run(main())


@pytest.mark.parametrize("answer", [True, ClosedError("closed meanwhile")], ids=repr)
def test_an_end_that_fulfils_no_wish_wakes_everybody_to_see_why(answer: bool | Exception) -> None:
    async def main() -> None:
        source = Source()
        waits = source.waits()
        tasks = [asyncio.create_task(waits.until(seq)) for seq in (1, 2)]
        await source.next_wish()
        source.tell(answer)
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_the_last_one_to_be_cancelled_ends_the_wait() -> None:
    async def main() -> None:
        source = Source()
        waits = source.waits()
        tasks = [asyncio.create_task(waits.until(NEWS)) for _ in range(2)]
        await source.next_wish()
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        assert waits._wish is not None  # for the other one
        tasks[1].cancel()
        await asyncio.wait(tasks)
        while waits._wish is not None:
            await asyncio.sleep(0.001)
        assert source.wishes.empty()
        again = asyncio.create_task(waits.until(NEWS))
        await source.next_wish()
        source.tell()
        await again

    asyncio.run(main())


def test_a_machine_without_threads_left_is_told_to_everybody_who_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_thread(work: Work) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        source = Source()
        waits = source.waits()
        first, second = (asyncio.create_task(waits.until(seq)) for seq in (1, 2))
        await source.next_wish()
        monkeypatch.setattr(threads.THREADS, "run", no_thread)
        source.accepted = 1
        source.tell()
        await first
        for task in (second, asyncio.create_task(waits.until(3))):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await task

    asyncio.run(main())


def test_an_object_of_another_loop_is_refused() -> None:
    async def make() -> Waits:
        return Source().waits()

    async def use(waits: Waits) -> None:
        with pytest.raises(MisuseError, match="the thing belongs to another event loop"):
            waits.check_loop("thing")

    asyncio.run(use(asyncio.run(make())))


def test_a_task_that_is_forgotten_with_its_closed_loop_ends_its_wait() -> None:
    source = Source()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # it says that a pending task is destroyed

    async def main() -> None:
        waits = source.waits()
        asyncio.get_running_loop().create_task(waits.until(NEWS)).set_name("forgotten")
        await source.next_wish()

    loop.run_until_complete(main())
    loop.close()
    del loop
    gc.collect()
    wait_until(lambda: not threads.THREADS._waiting, "the wait ends")


# --- threads --------------------------------------------------------------------------------------


def test_a_thread_that_has_told_its_result_takes_the_next_work() -> None:
    pool, used = Threads(), []
    done = threading.Event()

    def tell(left: int) -> None:
        used.append(threading.get_ident())
        if left:
            pool.run(Work(lambda: left - 1, tell, None))
        else:
            done.set()

    pool.run(Work(lambda: 50, tell, None))
    assert done.wait(30)
    assert len(used) == 51
    assert len(set(used)) == 1
    pool.end()


def test_threads_end_when_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_REST", 0.01)
    pool, done = Threads(), threading.Event()
    pool.run(Work(lambda: None, lambda _: done.set(), None))
    assert done.wait(30)
    wait_until(lambda: not pool._resting, "the thread ends")
    done.clear()
    pool.run(Work(lambda: None, lambda _: done.set(), None))  # a new one
    assert done.wait(30)
    pool.end()


def test_no_work_is_lost_to_a_thread_that_is_just_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_REST", 0.0)
    pool, count = Threads(), 2000
    told: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(count):
        pool.run(Work(lambda number=number: number, told.put, None))  # type: ignore[misc]
    assert sorted(told.get(timeout=30) for _ in range(count)) == list(range(count))
    wait_until(lambda: not pool._resting, "the threads end")


def test_the_end_interrupts_waits_and_joins_their_threads() -> None:
    pool, source = Threads(), Source()
    told: list[bool] = []
    pool.run(Work(lambda: source.wait(Wish(True, None)), told.append, source.interrupt))
    source.wishes.get(timeout=30)
    (thread,) = pool._waiting
    pool.end()
    assert told == [False]
    assert not thread.is_alive()


def test_what_a_cancelled_call_returns_later_is_discarded_and_not_lost() -> None:
    go, discarded = threading.Event(), threading.Event()

    async def main() -> None:
        task = asyncio.create_task(in_thread(lambda: go.wait(30), lambda _: discarded.set()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not discarded.is_set()
        go.set()
        while not discarded.is_set():
            await asyncio.sleep(0.001)

    asyncio.run(main())


def test_what_a_call_returns_just_when_its_task_is_cancelled_is_discarded() -> None:
    discarded: queue.SimpleQueue[str] = queue.SimpleQueue()

    async def main() -> None:
        loop, told = asyncio.get_running_loop(), asyncio.Event()

        def call() -> str:
            loop.call_soon_threadsafe(told.set)
            return "result"

        task = asyncio.create_task(in_thread(call, discarded.put))
        await told.wait()
        while not task._fut_waiter.done():  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        task.cancel()  # it would go on with the result in the next turn
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert discarded.get(timeout=30) == "result"


def test_what_a_call_returns_after_its_loop_was_closed_is_discarded() -> None:
    go, discarded = threading.Event(), threading.Event()

    async def main() -> None:
        task = asyncio.create_task(in_thread(lambda: go.wait(30), lambda _: discarded.set()))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(main())
    go.set()
    assert discarded.wait(30)


def test_what_a_cancelled_call_raises_later_is_told_to_the_loop() -> None:
    go = threading.Event()

    def fail() -> None:
        go.wait(30)
        raise ClosedError("too late")

    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        task = asyncio.create_task(in_thread(fail))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        go.set()
        while not told:
            await asyncio.sleep(0.001)
        assert isinstance(told[0]["exception"], ClosedError)

    asyncio.run(main())


# --- connecting -----------------------------------------------------------------------------------


def test_connecting_tries_again_until_its_time_is_over() -> None:
    attempts: list[float] = []

    def connect(_address: str, *, connect_timeout: float, name: str) -> str:
        attempts.append(connect_timeout)
        if len(attempts) < 3:
            raise NoSuchBroker("not yet")
        return name

    options = {"name": "x", "connect_timeout": 60.0}
    assert asyncio.run(connected(connect, print, "shm://x/0", options)) == "x"
    assert len(attempts) == 3
    assert max(attempts) < 1  # a cancelled one is over soon


def test_connecting_without_patience_tries_once() -> None:
    attempts: list[float] = []

    def connect(_address: str, *, connect_timeout: float) -> None:
        attempts.append(connect_timeout)
        raise NoSuchBroker("not there")

    with pytest.raises(NoSuchBroker):
        asyncio.run(connected(connect, print, "shm://x/0", {}))
    assert attempts == [0.0]


def test_the_arguments_have_the_types_of_the_blocking_ones() -> None:
    for arguments, connect in (
        (PublisherArguments, es.Publisher.connect),
        (SubscriberArguments, es.Subscriber.connect),
    ):
        theirs = {name: str(hint) for name, hint in connect.__annotations__.items()}
        ours = {name: hint.__forward_arg__ for name, hint in arguments.__annotations__.items()}
        assert {name: theirs[name] for name in ours} == ours
