"""The subscriber of `embar_shm.aio`."""

from __future__ import annotations

import asyncio
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypedDict, Unpack

import embar_shm.subscriber as blocking
from embar_shm.aio.connecting import connected
from embar_shm.aio.threads import in_thread
from embar_shm.aio.waits import NEWS, Order, Turns, Waits
from embar_shm.errors import EndOfLog
from embar_shm.options import StartPlace, SubscribeMode, WaitMode, number
from embar_shm.transports.base import Position, SubscriberStats

if TYPE_CHECKING:
    import ssl

    from embar_shm._core import Batch
    from embar_shm.net import SocketCounters

__all__ = ["Subscriber", "SubscriberArguments"]


class SubscriberArguments(TypedDict, total=False):
    """The options of `embar_shm.Subscriber.connect`."""

    mode: SubscribeMode
    start: StartPlace | int | Position
    name: str | None
    timeout: float | None
    connect_timeout: float
    restart_timeout: float
    wait: WaitMode
    spin_us: float
    in_flight: int | None
    token: str | None
    tls: ssl.SSLContext | None
    socket_buffer: int | str | None


class Subscriber:
    """A reader of one broker's log, in an event loop. An async context manager and iterator.

    What it reads, and what its errors mean, is as for `embar_shm.Subscriber`. Several tasks may
    call `next`: each batch goes to one of them, in the order in which they wait.
    After a fork the child's copy raises `ClosedError`.
    """

    def __init__(self, subscriber: blocking.Subscriber, timeout: float | None) -> None:
        """Use `Subscriber.connect`."""
        self._subscriber = subscriber
        self._link = subscriber._link
        self._timeout = timeout
        self._turns = Turns()
        self._order = Order()  # held by the task that waits
        self._waits = Waits(lambda _: subscriber.wait(None), subscriber.interrupt)

    @classmethod
    async def connect(cls, address: str, **options: Unpack[SubscriberArguments]) -> Self:
        """Connects to the broker at `address`; belongs to the running loop from then on.

        Options and errors as for `embar_shm.Subscriber.connect`; `timeout` is for `next` and
        ``async for``. A task that is cancelled leaves no connection behind.
        """
        subscriber = await connected(
            blocking.Subscriber.connect, blocking.Subscriber.close, address, dict(options)
        )
        return cls(subscriber, options.get("timeout"))

    async def next(self, timeout: float | EllipsisType | None = ...) -> Batch:
        """The next batch; waits for it, without the loop's thread.

        `timeout` in seconds, None: forever; left out: the subscriber's. Raises `WaitTimeout`;
        `EndOfLog` and `BrokerGone` when everything was read; `CorruptBatch`, after which the next
        call goes on with the batch behind; `ClosedError`, also when it is closed meanwhile.
        Cancelled, it has not taken a batch: the next call gets it.
        """
        self._waits.check_loop(f"subscriber {self.name!r}")
        if self._turns.is_over():
            await self._turns.pass_on()
        is_my_turn = not self._order.locked() or self._link.is_closed  # which raises
        if is_my_turn and (batch := self._subscriber.poll()) is not None:
            return batch
        seconds = self._timeout if timeout is ... else timeout
        return await self._wait_for_next(None if seconds is None else number("timeout", seconds))

    async def _wait_for_next(self, timeout: float | None) -> Batch:
        begin, limit = self._waits.loop.time(), asyncio.timeout(timeout)
        try:
            async with limit, self._order:
                while (batch := self._subscriber.poll()) is None:
                    await self._waits.until(NEWS)
                    self._turns.begin()
                return batch
        except TimeoutError:
            if not limit.expired():
                raise
            if not self._order.locked() and (batch := self._subscriber.poll()) is not None:
                return batch  # it came at the last moment
            waited = self._waits.loop.time() - begin
            raise self._link.timed_out(waited) from None

    def poll(self) -> Batch | None:
        """The next batch, or None when there is none now. Never waits. Raises like `next`."""
        return self._subscriber.poll()

    @property
    def name(self) -> str:
        """How statistics and the messages of those who wait call it."""
        return self._subscriber.name

    @property
    def mode(self) -> Literal["reliable", "lossy"]:
        """ "reliable" or "lossy"."""
        return self._subscriber.mode

    @property
    def position(self) -> Position:
        """The place after the last batch read: where another subscriber would go on."""
        return self._subscriber.position

    def stats(self) -> SubscriberStats:
        """The counters now, or at `close`."""
        return self._subscriber.stats()

    def sockets(self) -> SocketCounters | None:
        """What its sockets did; None: it has none."""
        return self._subscriber.sockets()

    async def close(self) -> None:
        """Reads no more; who waits for a batch gets `ClosedError`. Idempotent, in any loop.

        Views and arrays of batches stay as they are, see `embar_shm.Subscriber.close`.
        """
        try:
            await in_thread(self._subscriber.close)
        finally:
            self._waits.wake_all()

    def __aiter__(self) -> Self:
        """Iterates over batches, waiting for each; ends when the broker has stopped in order."""
        return self

    async def __anext__(self) -> Batch:
        try:
            return await self.next()
        except EndOfLog:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt | asyncio.CancelledError):
            self._subscriber.hurry()
        await self.close()

    def __repr__(self) -> str:
        return f"<aio {self._subscriber!r}>"
