"""What publishers of every transport have in common: a ring whose slots the batches are filled in.

Over shared memory it is the broker's ring, over a network one of the publisher's own.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from embar_shm import _core
from embar_shm import options as checks
from embar_shm.cpus import available_cpus
from embar_shm.diagnose import RingContext, publisher_error, publisher_timeout
from embar_shm.errors import ConfigurationError, EmbarError, MisuseError
from embar_shm.options import COPY_MODES, WAIT_MODES
from embar_shm.transports.base import PublisherLink, PublisherOptions, PublisherStats

if TYPE_CHECKING:
    from embar_shm.transports.base import Message

__all__ = ["PUBLISHER_STAGES", "MappedRing", "RingLink", "batch_size_for"]

PUBLISHER_STAGES = ("buffer_write", "wait_space", "send_payload", "wait_ack")
_MIN_BATCH = 16  # one framed message


class MappedRing(RingContext, Protocol):
    """A ring in memory of this process."""

    @property
    def memory(self) -> mmap.mmap:
        """All of it."""


def batch_size_for(options: PublisherOptions, slot_bytes: int, broker: object) -> int:
    """The batch size that was asked for, if the broker's slots and the messages allow it."""
    batch_size = slot_bytes if options.batch_size is None else options.batch_size
    if not _MIN_BATCH <= batch_size <= slot_bytes:
        raise ConfigurationError(
            f"batch_size {batch_size} is not between {_MIN_BATCH} and {slot_bytes}, "
            f"the slot size of the broker {broker}",
            "use smaller batches, or start the broker with larger slots",
        )
    if options.message_size is not None and options.message_size > batch_size:
        raise ConfigurationError(
            f"message_size {options.message_size} is larger than batch_size {batch_size}",
            "use larger batches (the broker's slot_size limits them) or smaller messages",
        )
    return batch_size


class RingLink(PublisherLink):
    """A `PublisherLink` around the native publisher of one row of a ring."""

    def __init__(
        self,
        ring: MappedRing,
        options: PublisherOptions,
        *,
        batch_size: int,
        in_flight: int,
        row: int,
        lock_fd: int,
        incarnation: int,
    ) -> None:
        self._ring = ring
        self._monitor = ring.monitor()
        self._last_stats: PublisherStats | None = None  # of a closed publisher
        self._core = _core.PublisherCore(
            context=ring,
            buffer=ring.memory,
            index=row,
            lock_fd=lock_fd,
            publisher_id=options.publisher_id,
            incarnation=incarnation,
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
            restart_timeout=options.restart_timeout,
        )

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
        if seq is not None:
            seq = checks.whole("seq", seq, -(2**63), 2**64)
        if seq is not None and not 0 <= seq <= self._core.committed_seq:
            raise MisuseError(
                f"batch {seq} on {self._ring.name} cannot be waited for: "
                f"{self._core.committed_seq} batches are committed",
                "pass what flush() returned, or no seq at all",
            )
        self._core.wait_acked(timeout, seq)

    @property
    def message_size(self) -> int | None:
        return self._core.message_size or None

    @property
    def blocking(self) -> bool:
        return self._core.blocking

    @blocking.setter
    def blocking(self, blocking: bool) -> None:
        self._core.blocking = blocking

    def wait(self, space: bool, seq: int | None, timeout: float | None) -> bool:
        return self._core.wait(space, seq, timeout)

    def interrupt(self) -> None:
        self._core.interrupt()

    def accepted(self) -> int:
        return self._core.accepted_seq

    def timed_out(self, what: str, seq: int, waited: float) -> EmbarError:
        return publisher_timeout(self._core, what, seq, waited)

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

    def stages(self) -> dict[str, dict[str, Any]]:
        recorded = self._monitor.publisher_stages(self._core.index)
        return {name: recorded[name] for name in PUBLISHER_STAGES}

    @property
    def is_closed(self) -> bool:
        return self._core.state in ("closed", "forked")

    def _flush_before_close(self) -> None:
        """Commits the open batch, without an open reservation. Other threads add nothing any more.

        Raises `BufferError` while a view of that is alive, and why messages cannot be committed.
        """
        self._core.begin_close()
        self._core.blocking = True  # it may wait for a commit in the background
        self._core.drop_reservation()
        if self._core.open_messages:
            if (peer := self._core.peer) != "ok":
                raise publisher_error(self._core, peer, self._core.open_messages)
            self._core.flush()

    def _close_core(self) -> None:
        """Gives the row back; the counters stay as they were. Raises `BufferError`."""
        last_stats = self._stats_now()
        if self._core.close():  # else another thread has, and the row may be somebody else's
            self._last_stats = last_stats


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
        with suppress(BufferError):  # still in use: commit() or abort() refuses, and tells
            self._view.release()
        if kind is None:
            self._native.commit()
            return
        with suppress(BufferError):  # the error on its way tells more, and it is dropped anyway
            self._native.abort()
