"""The subscriber: reads the log of one broker, batch by batch.

The path of a batch: `Subscriber.next` is the native method ``SubscriberCore.next``
(``_native/bind_subscriber.cpp``), which takes the next ticket from the ring
(``_native/subscriber.hpp``) and hands out a `Batch` (``_native/batch.hpp``).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

from embar_shm import _core, lifecycle, transports
from embar_shm.address import split_address
from embar_shm.errors import ConfigurationError
from embar_shm.options import (
    START_PLACES,
    SUBSCRIBE_MODES,
    WAIT_MODES,
    StartPlace,
    SubscribeMode,
    WaitMode,
    choose,
    number,
    secret,
    size,
    whole,
)
from embar_shm.transports.base import Position, SubscriberLink, SubscriberOptions, SubscriberStats

if TYPE_CHECKING:
    import ssl

    from embar_shm.net import SocketCounters

__all__ = ["OwnSubscriber", "Subscriber", "start_place", "subscriber_name"]


class Subscriber:
    """A reader of one broker's log. A context manager, and an iterator over batches.

    Every subscriber sees every batch from its starting place on, in the order of the tickets. One
    thread at a time reads; batches may be released by any. After a fork the child's copy raises
    `ClosedError`: connect in the child.
    """

    closes_at_exit: ClassVar[int] = 0  # part of `lifecycle`

    next: Callable[..., _core.Batch]
    """``next(timeout=...)`` waits for the next `Batch` and returns it; nothing is copied.

    `timeout` in seconds, None: forever; left out: the subscriber's. Blocks without the GIL, and
    Ctrl-C interrupts it. Raises `WaitTimeout`; when everything in the log was read `EndOfLog` (the
    broker stopped in order) or `BrokerGone` (it died); `CorruptBatch`, after which the next call
    goes on with the batch behind (over tcp it is the end); `ClosedError`. A lossy subscriber gets
    copies, and ``batch.gap`` tells how many batches it has missed before.
    """
    poll: Callable[[], _core.Batch | None]
    """``poll()`` returns the next `Batch`, or None when there is none now. Raises like `next`."""

    def __init__(self, link: SubscriberLink) -> None:
        """Use `Subscriber.connect`, or `Broker.subscribe`."""
        self._link = link
        self.next = link.next
        self.poll = link.poll
        self._batches = iter(link)
        lifecycle.register_client(self)

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        mode: SubscribeMode = "reliable",
        start: StartPlace | int | Position = "latest",
        name: str | None = None,
        timeout: float | None = None,
        connect_timeout: float = 0.0,
        restart_timeout: float = 5.0,
        wait: WaitMode = "adaptive",
        spin_us: float = 50,
        in_flight: int | None = None,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        socket_buffer: int | str | None = None,
    ) -> Self:
        """Connects to the broker at `address`, as `Publisher.connect` does.

        mode: "reliable": no batch is lost; the slots of batches it has not released are not used
            again, so publishers wait for it when the ring is full of them. "lossy": nobody waits
            for it; batches that are overwritten before it reads them are counted, and told as
            `Batch.gap`.
        start: "latest": batches accepted from now on; "earliest": what is in the ring still; or a
            ticket; or a `Position` of another subscriber, which also says of which log.
        name: how statistics and the messages of those who wait for it call it; None: the program.
        timeout: seconds that `next` and iteration may wait. None: forever.
        connect_timeout: seconds to wait for the broker to appear.
        restart_timeout: seconds to wait for a broker that died to be started again, within
            `timeout`; then `BrokerGone`. Over tcp: where nobody listens at its address any more.
        wait, spin_us: see `Broker.create`.
        in_flight: tcp: batches that may be on their way or in use here at a time; None: 4.
        token, tls, socket_buffer: tcp: see `Publisher.connect`.

        Returns when the broker has admitted it, which takes a serving broker. Raises
        `ConfigurationError`, `NoSuchBroker`, `BrokerGone`, `IncompatibleSegment`, `WaitTimeout`,
        `AccessDenied`, `NotEnoughSpace` (too many subscribers), `PositionLost` (nothing is there,
        or not any more), `BrokerRestarted` (`start` is a position in the log of an earlier broker);
        over tcp also `ConnectionLost` and `ProtocolError`.
        """
        scheme, rest = split_address(address)
        choose("mode", mode, SUBSCRIBE_MODES)
        choose("wait", wait, WAIT_MODES)
        options = SubscriberOptions(
            mode=mode,
            start=start_place(start),
            name=subscriber_name(name),
            timeout=None if timeout is None else number("timeout", timeout),
            connect_timeout=number("connect_timeout", connect_timeout),
            restart_timeout=number("restart_timeout", restart_timeout),
            wait=wait,
            spin_us=number("spin_us", spin_us),
            in_flight=None if in_flight is None else whole("in_flight", in_flight, 1, 4096),
            token=secret("token", token),
            tls=tls,
            socket_buffer=None if socket_buffer is None else size("socket_buffer", socket_buffer),
        )
        return cls(transports.get(scheme).subscribe(rest, options))

    @property
    def name(self) -> str:
        """How statistics and the messages of those who wait call it."""
        return self._link.name

    @property
    def mode(self) -> SubscribeMode:
        """ "reliable" or "lossy"."""
        return self._link.mode

    @property
    def position(self) -> Position:
        """The place after the last batch read: where another subscriber would go on."""
        return self._link.position()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until `poll` has something to tell (True), for `timeout` seconds at most (False).

        Blocks without the GIL. For programs that wait in one thread and read in another.
        """
        return self._link.wait(None if timeout is None else number("timeout", timeout))

    def interrupt(self) -> None:
        """Ends a `wait` that another thread is in (it returns False), or else the next one."""
        self._link.interrupt()

    def stats(self) -> SubscriberStats:
        """The counters now, or at `close`."""
        return self._link.stats()

    def sockets(self) -> SocketCounters | None:
        """What its sockets did; None: it has none."""
        return self._link.sockets()

    def close(self) -> None:
        """Reads no more. Idempotent. Over a network it waits, for a second or two at most, until
        the broker has heard that it need not keep anything; else it does not block.

        Batches without a view or array are released. Those with one keep their bytes, and a
        reliable subscriber's hold their slots, until the last view is gone; and with them, as the
        log is released in order, everything after the oldest of them. Copy what is kept for long.
        """
        self._link.close()

    def hurry(self) -> None:
        """Part of `lifecycle`: the program was interrupted, `close` shall not wait long."""
        self._link.hurry()

    def after_fork_in_child(self) -> None:
        """Part of `lifecycle`: the connection stays the parent's."""
        self._link.after_fork_in_child()

    def __iter__(self) -> Iterator[_core.Batch]:
        """Iterates over batches, waiting for each; ends when the broker has stopped in order."""
        return self  # not the link's iterator: it would not keep this object, and so not stay open

    def __next__(self) -> _core.Batch:
        return next(self._batches)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.hurry()
        self.close()

    def __del__(self) -> None:
        link = getattr(self, "_link", None)
        if link is not None and not link.is_closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"<Subscriber {self.name!r}, {self.mode}{', closed' * self._link.is_closed}>"


class OwnSubscriber(Subscriber):
    """A subscriber whose waits serve its broker."""

    closes_at_exit = 2  # publishers may need the broker until then

    def __init__(self, link: SubscriberLink, on_close: Callable[[], None]) -> None:
        super().__init__(link)
        self._on_close = on_close

    def close(self) -> None:
        if not self._link.is_closed:
            try:
                super().close()
            finally:
                self._on_close()


def start_place(start: object) -> StartPlace | int | Position:
    """A place to begin at. Raises `ConfigurationError`."""
    if isinstance(start, Position):
        whole("start.log", start.log, 0, 2**64 - 1)
        whole("start.ticket", start.ticket, 0, 2**64 - 1)
        return start
    if isinstance(start, str) and start in START_PLACES:
        return "earliest" if start == "earliest" else "latest"
    if isinstance(start, int) and not isinstance(start, bool) and 0 <= start < 2**64:
        return start
    raise ConfigurationError(
        f"start={start!r} is no place in a log",
        "it is 'latest', 'earliest', a ticket (a whole number from 0), or Subscriber.position",
    )


def subscriber_name(name: object) -> str:
    """What a subscriber is called. Raises `ConfigurationError`."""
    if name is None:
        program = sys.argv[0] if sys.argv else ""
        return program.rstrip("/").rpartition("/")[2] or "python"
    if isinstance(name, str) and name and name.isprintable():
        return name
    raise ConfigurationError(f"name={name!r} is no text of printable characters")
