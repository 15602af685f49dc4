"""Threads in which a loop lets something wait: as many as wait at a moment, and a few that rest.

A piece of work is done in two steps. `wait` blocks; `tell` passes its result on and does not. The
thread counts as free before `tell`, so that what is told can make use of it at once.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

__all__ = ["THREADS", "Threads", "Work", "in_thread"]

T = TypeVar("T")

_REST = 1.0  # seconds without work after which a thread ends
_LAST_WORDS = 1.0  # seconds that the threads get to end when the program does


class Work(NamedTuple):
    """Something to wait for. Neither of the first two raises."""

    wait: Callable[[], Any]
    tell: Callable[[Any], None]
    interrupt: Callable[[], None] | None  # ends `wait`, if anything can


class _Thread(threading.Thread):
    def __init__(self, serve: Callable[[_Thread], None]) -> None:
        super().__init__(name="embar-shm aio", daemon=True)
        self.work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._serve = serve

    def run(self) -> None:
        self._serve(self)


class Threads:
    """Any number of threads, for any number of loops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held for moments only
        self._resting: list[_Thread] = []
        self._waiting: dict[_Thread, Work] = {}

    def run(self, work: Work) -> None:
        """Does `work` in a thread of its own. Does not block.

        Raises RuntimeError when the machine has no more threads.
        """
        with self._lock:
            if self._resting:
                thread = self._resting.pop()
            else:
                thread = _Thread(self._serve)
                thread.start()
            self._waiting[thread] = work
        thread.work.put(work)

    def _serve(self, thread: _Thread) -> None:
        while True:
            try:
                work = thread.work.get(timeout=_REST)
            except queue.Empty:
                with self._lock:
                    if thread not in self._resting:  # it is given work at this very moment
                        continue
                    self._resting.remove(thread)
                return
            if work is None:
                return
            result = work.wait()
            with self._lock:
                del self._waiting[thread]
                self._resting.append(thread)
            work.tell(result)
            del work, result  # nothing is kept alive by a thread that rests

    def end(self) -> None:
        """The program ends: so does every wait that can be interrupted, and its thread."""
        with self._lock:
            threads = [*self._resting, *self._waiting]
            works = list(self._waiting.values())
            self._resting.clear()
        for work in works:
            if work.interrupt is not None:
                work.interrupt()
        for thread in threads:
            thread.work.put(None)
        deadline = time.monotonic() + _LAST_WORDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def forget(self) -> None:
        """In a forked child, which has none of the threads."""
        self.__init__()  # type: ignore[misc]


THREADS = Threads()
# Before the exit function of `lifecycle`, which closes what these threads are waiting in.
atexit.register(THREADS.end)
os.register_at_fork(after_in_child=THREADS.forget)


async def in_thread(call: Callable[[], T], discard: Callable[[T], object] | None = None) -> T:
    """What `call` returns, in a thread. Raises what it raises.

    A call whose task is cancelled goes on without it. What it then returns is given to `discard`,
    in a thread, too; what it raises goes to the loop's exception handler unless there is one.
    """
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()
    lock = threading.Lock()  # of the next two: whoever comes second takes care of the outcome
    outcome: Callable[[], T] | None = None  # returns it, or raises it
    is_abandoned = False

    def wait() -> bool:
        nonlocal outcome
        found = _outcome_of(call)
        with lock:
            if not is_abandoned:
                outcome = found
                return True
        give_away(found)
        return False

    def wake() -> None:
        if not over.done():
            over.set_result(None)

    def tell(is_wanted: bool) -> None:
        if is_wanted:
            with suppress(RuntimeError):  # the loop is closed: it gives the outcome away below
                loop.call_soon_threadsafe(wake)

    def give_away(late: Callable[[], T]) -> None:
        try:
            result = late()
            if discard is not None:
                discard(result)
        except Exception as error:
            if discard is None:  # else it failed to give what nobody wants
                what = f"{call} failed after its task was cancelled"
                context = {"message": what, "exception": error}
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(loop.call_exception_handler, context)

    THREADS.run(Work(wait, tell, None))
    try:
        await over
    except BaseException:  # cancelled, or forgotten with its loop
        with lock:
            is_abandoned, late = True, outcome
        if late is not None:
            THREADS.run(Work(lambda: give_away(late), lambda _: None, None))
        raise
    if outcome is None:
        raise RuntimeError("told of an outcome that is not there")
    return outcome()


def _outcome_of(call: Callable[[], T]) -> Callable[[], T]:
    try:
        result = call()
    except BaseException as error:  # it is raised where it is awaited
        failure = error

        def fail() -> T:
            raise failure

        return fail
    return lambda: result
