"""The publisher of `embar_shm.aio`."""

from __future__ import annotations

import asyncio
from asyncio import get_running_loop
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, Unpack

import numpy as np

import embar_shm.publisher as blocking
from embar_shm.aio.connecting import connected
from embar_shm.aio.threads import in_thread
from embar_shm.aio.waits import NEWS, Order, Turns, Waits, Wish
from embar_shm.errors import ClosedError, PeerError, WaitTimeout
from embar_shm.options import CopyMode, WaitMode, number
from embar_shm.transports.base import PublisherStats, WouldWait

if TYPE_CHECKING:
    import ssl

    from numpy.typing import NDArray

    from embar_shm.net import SocketCounters
    from embar_shm.transports.base import Message

__all__ = ["Publisher", "PublisherArguments"]

T = TypeVar("T")

_PIECE = 128 * 1024  # bytes copied in one go: some ten microseconds


class PublisherArguments(TypedDict, total=False):
    """The options of `embar_shm.Publisher.connect`."""

    message_size: int | str | None
    batch_size: int | str | None
    in_flight: int | None
    ack: int
    linger_ms: float
    timeout: float | None
    connect_timeout: float
    restart_timeout: float
    wait: WaitMode
    spin_us: float
    copy: CopyMode
    sample_every: int
    publisher_id: int | None
    token: str | None
    tls: ssl.SSLContext | None
    socket_buffer: int | str | None


class Publisher:
    """A connection to one broker, in an event loop. An async context manager.

    What it does, and what its errors mean, is as for `embar_shm.Publisher`. Tasks that have to
    wait for a slot get it in the order of their calls. After a fork the child's copy raises
    `ClosedError`.
    """

    def __init__(self, publisher: blocking.Publisher, timeout: float | None) -> None:
        """Use `Publisher.connect`."""
        self._publisher = publisher
        self._link = publisher._link
        self._link.blocking = False
        self._timeout = timeout
        self._is_closed = False
        self._turns = Turns()
        self._order = Order()  # held by the task that publishes, while it has to wait

        def wait(wish: Wish) -> bool:
            return publisher._link.wait(wish.news, wish.seq, None)

        self._waits = Waits(wait, self._link.interrupt, self._link.accepted)

    @classmethod
    async def connect(cls, address: str, **options: Unpack[PublisherArguments]) -> Self:
        """Connects to the broker at `address`; belongs to the running loop from then on.

        Options and errors as for `embar_shm.Publisher.connect`. A task that is cancelled leaves no
        connection behind.
        """
        publisher = await connected(
            blocking.Publisher.connect, blocking.Publisher.close, address, dict(options)
        )
        return cls(publisher, options.get("timeout", 30.0))

    async def publish(self, message: Message) -> None:
        """Appends one message. Waits while the ring is full, for `timeout` seconds at most.

        Cancelled, or when it raises, no part of the message is in a batch. Its bytes must not
        change until it returns. Raises like `embar_shm.Publisher.publish`.
        """
        if get_running_loop() is not self._waits.loop or self._is_closed:
            self._check()
        size = len(message) if type(message) is bytes else _size(message)
        if size <= _PIECE and not self._order.locked() and not self._turns.is_over():
            try:
                return self._publisher.publish(message)
            except WouldWait:
                pass
        if size > _PIECE and (array := _plain(message)) is not None:
            await self._publish_large(message, _bytes_of(array))
        else:
            await self._soon(self._publisher.publish, message)
        return None

    async def _publish_large(self, message: Message, source: NDArray[np.uint8]) -> None:
        fixed = self._link.message_size
        if fixed is not None and fixed != source.size:
            self._publisher.publish(message)  # raises: a reservation may be for several messages
        async with self.reserve(source.size) as view:
            for at in range(0, source.size, _PIECE):
                view[at : at + _PIECE] = source[at : at + _PIECE].data
                if self._turns.is_over():
                    await self._turns.pass_on()

    async def publish_many(self, messages: Message, message_size: int | None = None) -> None:
        """Appends many messages of one size.

        Arguments and errors as for `embar_shm.Publisher.publish_many`. `timeout` is for standing
        still. Whatever ends it when it has begun, a cancellation too: the exception's attribute
        `appended` tells how many messages are in batches already.
        """
        self._check()
        array = _plain(messages)
        size = None if array is None else self._row_bytes(array, message_size)
        if array is None or size is None:  # these raise, or are none at all
            return await self._soon(self._publisher.publish_many, messages, message_size)
        source = _bytes_of(array)
        rows, sent = source.size // size, 0
        piece = max(1, _PIECE // size)

        def append() -> bool:
            nonlocal sent
            some = source[sent * size : min(sent + piece, rows) * size]
            try:
                self._publisher.publish_many(some, size)
            except WouldWait as error:
                sent += error.appended
                raise
            sent += some.size // size
            return sent == rows

        try:
            await self._in_order(append, lambda: sent)
        except BaseException as error:
            error.__dict__["appended"] = sent
            raise
        return None

    def _row_bytes(self, array: NDArray[Any], message_size: int | None) -> int | None:
        """The size of each of many messages; None if the native core is to say what is wrong."""
        row = array.nbytes // len(array) if array.ndim == 2 else None
        if message_size is None:
            size = self._link.message_size if row is None else row
        else:
            size = message_size if row is None or row == message_size else None
        if not isinstance(size, int) or size <= 0 or array.nbytes % size:
            return None
        return size

    @asynccontextmanager
    async def reserve(self, nbytes: int) -> AsyncIterator[memoryview]:
        """Writable memory in the slot for one message of `nbytes` bytes: nothing is copied.

            async with pub.reserve(1024) as view:
                view[:] = ...

        As `embar_shm.Publisher.reserve`. Other tasks that publish wait until the block ends.
        """
        self._check()
        reservation: AbstractContextManager[memoryview] = await self._in_order(
            lambda: self._publisher.reserve(nbytes), keep_order=True
        )
        try:
            with reservation as view:
                yield view
        finally:
            self._order.release()

    async def flush(self) -> int:
        """Commits the open batch, if any message is in it. Does not wait for the acknowledgement.

        Returns the sequence number of the last committed batch (0: none), for `wait_acked`.
        """
        self._check()
        return await self._soon(self._publisher.flush)

    async def wait_acked(self, timeout: float | None = None, *, seq: int | None = None) -> None:
        """Waits until the broker has everything published so far in its log.

        Commits the open batch first. With `seq` (from `flush`) it waits for the batches up to
        that one only. Any number of tasks may wait. `timeout` in seconds; None: the publisher's.
        Raises like `embar_shm.Publisher.wait_acked`.
        """
        self._check()
        seconds = self._timeout if timeout is None else number("timeout", timeout)
        if seq is None:
            seq = await self.flush()
        with suppress(WouldWait):
            return self._publisher.wait_acked(seq=seq)
        begin, limit = self._waits.loop.time(), asyncio.timeout(seconds)
        try:
            async with limit:
                while True:
                    await self._waits.until(seq)
                    self._turns.begin()
                    self._check()
                    with suppress(WouldWait):
                        return self._publisher.wait_acked(seq=seq)
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._link.timed_out("ack", seq, self._waits.loop.time() - begin) from None

    def stats(self) -> PublisherStats:
        """The counters now."""
        return self._publisher.stats()

    def stages(self) -> dict[str, dict[str, Any]]:
        """Histograms of this publisher's stages in nanoseconds, by name (docs/result.md)."""
        return self._publisher.stages()

    def sockets(self) -> SocketCounters | None:
        """What its sockets did; None: it has none."""
        return self._publisher.sockets()

    async def close(self) -> None:
        """Commits the open batch and disconnects. Idempotent, in any loop.

        Calls of other tasks that are waiting raise `ClosedError`. Over a network it waits until
        all batches are in the broker's ring; errors as for `embar_shm.Publisher.close`. Cancelled,
        it goes on in the background.
        """
        self._is_closed = True
        self._waits.wake_all()
        await in_thread(self._publisher.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            await self.close()
            return
        if issubclass(kind, KeyboardInterrupt | asyncio.CancelledError):
            self._publisher.hurry()
        with suppress(PeerError, WaitTimeout):  # the error that is on its way tells more
            await self.close()

    def __repr__(self) -> str:
        return f"<aio {self._publisher!r}{', closed' * self._is_closed}>"

    # --- waiting ------------------------------------------------------------------------------

    def _check(self) -> None:
        self._waits.check_loop("publisher")
        if self._is_closed:
            raise ClosedError("the publisher is closed", "connect a new one")

    async def _soon(self, call: Callable[..., T], *arguments: Any) -> T:
        """The result of a call that appends all or nothing: at once, if nobody is waiting."""
        if self._turns.is_over():
            await self._turns.pass_on()
            self._check()
        if not self._order.locked():
            with suppress(WouldWait):
                return call(*arguments)
        return await self._in_order(lambda: call(*arguments))

    async def _in_order(
        self,
        call: Callable[[], T],
        progress: Callable[[], int] | None = None,
        *,
        keep_order: bool = False,
    ) -> T:
        """The result of `call`, when it no longer has to wait; after those that called before.

        progress: `call` does a part of the work, returns whether that was the last one, and this
            is how far it is; the timeout begins anew with each step.
        keep_order: do not let others publish when it returns.
        """
        loop = self._waits.loop
        begin, limit = loop.time(), asyncio.timeout(self._timeout)
        done = False
        if self._link.is_closed:
            call()  # raises; in a forked child nobody would let it have its turn
        try:
            async with limit:
                await self._order.acquire()
                try:
                    while True:
                        self._check()
                        before = progress() if progress else 0
                        try:
                            result = call()
                            done = progress is None or bool(result)
                            if done:
                                return result
                        except WouldWait as error:
                            await self._pause(error.message)
                        else:
                            if self._turns.is_over():
                                await self._turns.pass_on()
                        if progress and progress() != before and self._timeout is not None:
                            begin = loop.time()
                            limit.reschedule(begin + self._timeout)
                finally:
                    if not (done and keep_order):
                        self._order.release()
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._link.timed_out("space", 0, loop.time() - begin) from None

    async def _pause(self, why: str) -> None:
        """Returns when a call that would have to wait is worth another try."""
        if why == "lock":  # somebody commits: for microseconds
            await self._turns.pass_on()
        else:
            await self._waits.until(NEWS)
            self._turns.begin()


def _size(message: Any) -> int:
    """Bytes of a buffer; 0 if it is none."""
    try:
        return memoryview(message).nbytes
    except (TypeError, ValueError, BufferError):
        return 0


def _plain(messages: Any) -> NDArray[Any] | None:
    """A buffer as an array, not copied; None if it is empty, or none that can be sent."""
    try:
        array = np.asarray(memoryview(messages))
    except (TypeError, ValueError, BufferError):
        return None
    if array.dtype.hasobject or not array.flags.c_contiguous or not array.nbytes:
        return None
    return array


def _bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)
