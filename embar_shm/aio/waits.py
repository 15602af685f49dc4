"""The waits of one object: many tasks, one thread, one native wait at a time.

A task says what it waits for: `NEWS`, or the number of a batch to be acknowledged. All of it
becomes one wish, for which a thread waits. When that tells that something has happened, the tasks
it may concern look for themselves, and wait again if it was nothing for them. So nothing is handed
over from a thread to a task, and a task that is cancelled has nothing to give back.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable
from typing import Final, NamedTuple

from embar_shm.aio.threads import THREADS, Work
from embar_shm.errors import EmbarError, MisuseError

__all__ = ["NEWS", "Order", "Turns", "Waits", "Wish"]

NEWS: Final = 0  # a batch to read, or a slot to write; a number from 1: that batch is in the log
_LONGEST_TURN = 200_000  # ns


class Wish(NamedTuple):
    """What a thread is to wait for: either of it."""

    news: bool
    seq: int | None


class Waits:
    """Lets tasks of the running loop wait for one object.

    `wait(wish)` blocks until a wish may be fulfilled (True), or `interrupt()` was called (False;
    once, and if nobody is waiting, the next time). It must not refer back to this object.
    `accepted()` tells up to which batch everything is in the log.
    """

    def __init__(
        self,
        wait: Callable[[Wish], bool],
        interrupt: Callable[[], None],
        accepted: Callable[[], int] = lambda: NEWS,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._wait = wait
        self._interrupt = interrupt
        self._accepted = accepted
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._wish: Wish | None = None  # that a thread waits for
        self._is_interrupted = False

    async def until(self, what: int) -> None:
        """Returns when `what` may have happened: look for yourself."""
        future = self.loop.create_future()
        self._waiting[future] = what
        try:
            if self._wish is None:
                self._begin()
            elif not self._covers(what):
                self._end()  # and begin again with this wish, too
            await future
        finally:
            self._waiting.pop(future, None)
            if not self._waiting and self._wish is not None:
                self._end()

    def wake_all(self) -> None:
        """All tasks that wait shall look for themselves: the object is being closed."""
        if not self.loop.is_closed():  # else there is nobody left who could
            self._wake(list(self._waiting))
        self._waiting.clear()
        if self._wish is not None:
            self._end()

    def check_loop(self, name: str) -> None:
        """Raises `MisuseError` in another loop than the one all this belongs to."""
        if asyncio.get_running_loop() is not self.loop:
            raise MisuseError(
                f"the {name} belongs to another event loop",
                "connect one in each loop that needs it",
            )

    def _covers(self, what: int) -> bool:
        wish = self._wish
        if wish is None:
            return False
        return wish.news if what == NEWS else wish.seq is not None and wish.seq <= what

    def _begin(self) -> None:
        acks = [what for what in self._waiting.values() if what != NEWS]
        wish = Wish(len(acks) < len(self._waiting), min(acks, default=None))
        wait, loop, told = self._wait, self.loop, weakref.WeakMethod(self._told)

        def wait_for_wish() -> bool:
            try:
                return wait(wish)
            except EmbarError:  # the call that this is about will tell the same
                return True

        # The thread does not keep this object: if the loop is gone, nobody else may.
        def tell(ready: bool) -> None:
            if (method := told()) is None:
                return
            try:
                loop.call_soon_threadsafe(method, ready)
            except RuntimeError:
                if not loop.is_closed():
                    raise

        THREADS.run(Work(wait_for_wish, tell, self._interrupt))
        self._wish = wish

    def _end(self) -> None:
        if not self._is_interrupted:
            self._is_interrupted = True
            self._interrupt()

    def _told(self, ready: bool) -> None:
        self._wish, self._is_interrupted = None, False
        if ready:
            accepted = self._accepted()
            woken = [future for future, what in self._waiting.items() if what <= accepted]
            self._wake(woken or list(self._waiting))  # if it is for none, it is an error for all
        if not self._waiting:
            return
        try:
            self._begin()
        except RuntimeError as error:  # no thread can be started
            for future in self._waiting:
                if not future.done():
                    future.set_exception(error)
            self._waiting.clear()

    def _wake(self, futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            del self._waiting[future]
            if not future.done():
                future.set_result(None)


class Order(asyncio.Lock):
    """Tasks that have to wait for one another, in the order in which they came."""

    def __init__(self) -> None:
        super().__init__()
        self._loop_of_tasks = asyncio.get_running_loop()

    def release(self) -> None:
        try:
            super().release()
        except RuntimeError:  # nobody can be next in a loop that is closed
            if not self._loop_of_tasks.is_closed():
                raise


class Turns:
    """Remembers for how long tasks have not let others run."""

    def __init__(self) -> None:
        self._since = time.monotonic_ns()

    def is_over(self) -> bool:
        """Is it time for `pass_on`?"""
        return time.monotonic_ns() - self._since > _LONGEST_TURN

    async def pass_on(self) -> None:
        """Lets others run. May raise CancelledError: nothing must be in hand."""
        await asyncio.sleep(0)
        self.begin()

    def begin(self) -> None:
        """Others have run just now."""
        self._since = time.monotonic_ns()
