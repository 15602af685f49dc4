"""What subscribers of every transport have in common: a ring whose slots the batches are read in.

Over shared memory it is the broker's ring, over a network one of the subscriber's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from embar_shm import _core
from embar_shm.cpus import available_cpus
from embar_shm.diagnose import RingContext
from embar_shm.diagnose_subscriber import subscriber_error
from embar_shm.errors import EmbarError
from embar_shm.options import START_PLACES, SUBSCRIBE_MODES, WAIT_MODES
from embar_shm.transports.base import Position, SubscriberLink, SubscriberOptions, SubscriberStats

if TYPE_CHECKING:
    import mmap

__all__ = ["ReadingLink", "fitting_name"]

_TICKET = 2  # a start that is neither of START_PLACES
_MOST = 2**64 - 1


class ReadingLink(SubscriberLink):
    """A `SubscriberLink` around the native subscriber of one row of a ring."""

    def __init__(
        self,
        ring: RingContext,
        options: SubscriberOptions,
        *,
        log: int,
        memory: mmap.mmap,
        slots: mmap.mmap | None,
        row: int,
        lock_fd: int,
        on_left: Callable[[], None],
        sole: bool = False,
        broker: _core.BrokerCore | None = None,
    ) -> None:
        """`on_left` is called when the row is given back, which may be after `close`.

        `sole`: the ring is private, and `options.start` somebody else's business.
        """
        self.name = options.name
        self.mode = options.mode
        self._log = log
        self._monitor = ring.monitor()
        self._last_stats: SubscriberStats | None = None  # of a closed subscriber
        start, ticket = _native_start(options)
        self._core = _core.SubscriberCore(
            context=ring,
            buffer=memory,
            slots=slots,
            index=row,
            lock_fd=lock_fd,
            name=fitting_name(options.name),
            mode=SUBSCRIBE_MODES[options.mode],
            start=start,
            ticket=ticket,
            sole=sole,
            wait_mode=WAIT_MODES[options.wait],
            spin_us=options.spin_us,
            cpus=available_cpus(),
            timeout=options.timeout,
            broker=broker,
            on_left=on_left,
            restart_timeout=options.restart_timeout,
        )

    @property
    def next(self) -> Callable[..., _core.Batch]:
        return self._core.next

    @property
    def poll(self) -> Callable[[], _core.Batch | None]:
        return self._core.poll

    def __iter__(self) -> Iterator[_core.Batch]:
        return iter(self._core)

    def wait(self, timeout: float | None) -> bool:
        return self._core.wait(timeout)

    def interrupt(self) -> None:
        self._core.interrupt()

    def timed_out(self, waited: float) -> EmbarError:
        return subscriber_error(self._core, "timeout", waited)

    def position(self) -> Position:
        return Position(self._log, self._core.position)

    def stats(self) -> SubscriberStats:
        return self._last_stats or self._stats_now()

    def _stats_now(self) -> SubscriberStats:
        row = self._monitor.subscriber(self._core.index)
        return SubscriberStats(
            batches=row["batches"],
            messages=row["messages"],
            payload_bytes=row["payload_bytes"],
            lost=row["lost"],
            held=self._core.held,
            lag=max(0, self._newest() - self._core.next_place),
            waits=row["waits"],
        )

    def _newest(self) -> int:
        """The ticket after the last one that can be read."""
        return self._monitor.control()["head"]

    def close(self) -> None:
        if self._core.is_closed:
            return
        self._last_stats = self._stats_now()  # the row may be somebody else's afterwards
        self._core.close()

    @property
    def is_closed(self) -> bool:
        return self._core.is_closed

    def after_fork_in_child(self) -> None:
        """The core sees by itself that it is in a child."""


def _native_start(options: SubscriberOptions) -> tuple[int, int]:
    if isinstance(options.start, str):
        return START_PLACES[options.start], 0
    ticket = options.start.ticket if isinstance(options.start, Position) else options.start
    return _TICKET, ticket


def fitting_name(name: str, where: str = "") -> str:
    """As much of the name as the table has room for, and all of `where` behind it."""
    room = 63 - len(where.encode())
    return name.encode(errors="replace")[: max(room, 0)].decode(errors="ignore") + where
