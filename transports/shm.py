"""Shared memory: a publisher writes its batches straight into the slots of the broker's ring.

The address is the ring's name, "cluster/broker". The ring itself is what publishers connect to, so
listening needs nothing beyond `Broker.create`. Same machine and user only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import TYPE_CHECKING

from embar_shm import _core
from embar_shm import options as checks
from embar_shm.address import RingName
from embar_shm.cpus import available_cpus
from embar_shm.diagnose import publisher_error, table_full
from embar_shm.errors import BrokerGone, ConfigurationError, MisuseError
from embar_shm.options import COPY_MODES, WAIT_MODES
from embar_shm.segment import Segment
from embar_shm.transports.base import (
    Listener,
    PublisherLink,
    PublisherOptions,
    PublisherStats,
    Transport,
)

if TYPE_CHECKING:
    from embar_shm.broker import Broker
    from embar_shm.transports.base import Message

__all__ = ["ShmLink", "ShmTransport"]

_POLL = 0.005  # seconds between two looks at a full publishers table
_REAP_TIME = 2.0  # seconds a broker may take to free the row of a publisher that left or died


class ShmTransport(Transport):
    """``shm://cluster/broker``."""

    scheme = "shm"

    def connect(self, address: str, options: PublisherOptions) -> PublisherLink:
        name = RingName.parse(address)
        segment = Segment.attach(name, timeout=options.connect_timeout)
        try:
            return ShmLink(segment, options)
        except BaseException:
            segment.close()
            raise

    def listen(self, broker: Broker, address: str | None = None) -> Listener:
        if address is not None and RingName.parse(address) != broker.segment.name:
            raise ConfigurationError(
                f"a ring cannot have a second name: {broker.name} cannot listen on shm://{address}"
            )
        return _RingListener(broker.address)


class _RingListener(Listener):
    def __init__(self, address: str) -> None:
        self._address = address

    @property
    def address(self) -> str:
        return self._address

    def stop(self) -> None:
        """The ring goes with its broker: there is nothing in between to stop."""


class ShmLink(PublisherLink):
    """A row of the ring's publishers table, held by its liveness lock."""

    def __init__(self, segment: Segment, options: PublisherOptions) -> None:
        self._segment = segment
        self._monitor = segment.monitor()
        self._last_stats: PublisherStats | None = None  # of a closed publisher
        slot_bytes = segment.geometry.slot_bytes
        batch_size = slot_bytes if options.batch_size is None else options.batch_size
        if not _MIN_BATCH <= batch_size <= slot_bytes:
            raise ConfigurationError(
                f"batch_size {batch_size} is not between {_MIN_BATCH} and {slot_bytes}, "
                f"the slot size of the broker {segment.name}",
                "use smaller batches, or start the broker with larger slots",
            )
        if options.message_size is not None and options.message_size > batch_size:
            raise ConfigurationError(
                f"message_size {options.message_size} is larger than batch_size {batch_size}",
                "use larger batches (the broker's slot_size limits them) or smaller messages",
            )
        slots = segment.geometry.slots
        in_flight = min(2, slots) if options.in_flight is None else options.in_flight
        if in_flight > slots:
            raise ConfigurationError(
                f"in_flight {in_flight} is more than the {slots} slots of the broker {segment.name}"
            )
        index = self._take_row()
        self._core = _core.PublisherCore(
            context=segment,
            buffer=segment.memory,
            index=index,
            lock_fd=segment.lock_fd,
            publisher_id=options.publisher_id,
            incarnation=time.time_ns(),
            message_size=options.message_size or 0,
            batch_bytes=batch_size,
            quota=in_flight,
            ack=options.ack,
            linger_ms=options.linger_ms,
            copy=COPY_MODES[options.copy],
            sample_every=options.sample_every,
            wait_mode=WAIT_MODES[options.wait],
            spin_us=options.spin_us,
            cpus=available_cpus(),
            timeout=options.timeout,
        )

    def _take_row(self) -> int:
        """Finds a free row and locks its byte; the lock is what makes it ours."""
        fd = self._segment.lock_fd
        deadline = time.monotonic() + _REAP_TIME
        while True:
            for row in range(self._segment.geometry.max_publishers):
                if self._monitor.publisher(row)["state"] != "free":
                    continue
                if not _core.try_lock(fd, _core.publisher_lock(row)):
                    continue  # somebody else is connecting
                if self._monitor.publisher(row)["state"] == "free":
                    return row
                _core.unlock(fd, _core.publisher_lock(row))
            if not _core.is_locked(fd, _core.BROKER_LOCK):
                raise BrokerGone(f"the broker of {self._segment.name} is gone")
            if time.monotonic() >= deadline:
                raise table_full(self._segment)
            time.sleep(_POLL)

    @property
    def publish(self) -> Callable[[Message], None]:
        return self._core.publish

    def publish_many(self, messages: Message, message_size: int | None = None) -> None:
        if message_size is not None:
            message_size = self._message_bytes("message_size", message_size)
        self._core.publish_many(messages, message_size)

    def reserve(self, nbytes: int) -> AbstractContextManager[memoryview]:
        size = self._message_bytes("nbytes", nbytes)
        return _Reservation(_core.Reservation(self._core, size))

    def _message_bytes(self, parameter: str, value: int) -> int:
        size = checks.nbytes(parameter, value)
        if size > _core.MAX_SLOT_BYTES:  # the core's numbers end somewhere
            raise publisher_error(self._core, "too_large", size)
        return size

    def flush(self) -> int:
        return self._core.flush()

    def wait_acked(self, timeout: float | None, seq: int | None) -> None:
        if (state := self._core.state) != "ok":
            raise publisher_error(self._core, state, 0)
        if seq is not None and not 0 <= seq <= self._core.committed_seq:
            raise MisuseError(
                f"batch {seq} on {self._segment.name} cannot be waited for: "
                f"{self._core.committed_seq} batches are committed",
                "pass what flush() returned, or no seq at all",
            )
        self._core.wait_acked(timeout, seq)

    def stats(self) -> PublisherStats:
        return self._last_stats or self._stats_now()

    def _stats_now(self) -> PublisherStats:
        row = self._monitor.publisher(self._core.index)
        return PublisherStats(
            messages=row["messages"],
            payload_bytes=row["payload_bytes"],
            committed=row["committed_seq"],
            accepted=row["accepted_seq"],
            in_flight=self._core.in_flight,
            space_waits=row["space_waits"],
        )

    def close(self) -> None:
        if self._core.state in ("closed", "forked"):
            return
        try:
            if not self._core.has_reservation and self._core.open_messages:
                if (peer := self._core.peer) != "ok":
                    raise publisher_error(self._core, peer, self._core.open_messages)
                self._core.flush()
        finally:
            last_stats = self._stats_now()
            self._core.close()  # the row may be somebody else's from here on
            self._last_stats = last_stats
            self._segment.close()

    def after_fork_in_child(self) -> None:
        self._core.after_fork_in_child()
        self._segment.after_fork_in_child()


class _Reservation(AbstractContextManager[memoryview]):
    """Commits what was written when the ``with`` block ends, drops it when the block raises."""

    def __init__(self, native: _core.Reservation) -> None:
        self._native = native
        self._view = memoryview(native)

    def __enter__(self) -> memoryview:
        return self._view

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(
            BufferError
        ):  # somebody uses the view: commit() or abort() refuses, and tells
            self._view.release()
        if kind is None:
            self._native.commit()
        else:
            self._native.abort()


_MIN_BATCH = 16  # one framed message
