"""Taking a row of one of a ring's tables: a publisher's, or a subscriber's.

A row belongs to whoever holds its liveness lock and has seen it free (``_native/liveness.hpp``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from embar_shm import _core
from embar_shm.diagnose import table_full
from embar_shm.diagnose_subscriber import subscribers_full
from embar_shm.errors import BrokerGone, EmbarError
from embar_shm.segment import Segment

__all__ = ["take_row", "take_subscriber_row"]

_POLL = 0.005  # seconds between two looks at a full table
_REAP_TIME = 2.0  # seconds a broker may take to free the row of a participant that left or died


def take_row(segment: Segment, patience: float = _REAP_TIME) -> int:
    """Locks a free row of the publishers table for this segment's open file description; its index.

    Waits `patience` seconds for the broker to free one. Raises `NotEnoughSpace` when all rows are
    taken, `BrokerGone` when nobody could free one.
    """
    monitor, rows = segment.monitor(), segment.geometry.max_publishers
    return _take(segment, monitor.publisher, rows, _core.publisher_lock, table_full, patience)


def take_subscriber_row(segment: Segment, patience: float = _REAP_TIME) -> int:
    """The same for the subscribers table."""
    monitor, rows = segment.monitor(), segment.geometry.max_subscribers
    return _take(
        segment, monitor.subscriber, rows, _core.subscriber_lock, subscribers_full, patience
    )


def _take(
    segment: Segment,
    row_of: Callable[[int], dict[str, Any]],
    rows: int,
    lock_of: Callable[[int], int],
    full: Callable[[Segment], EmbarError],
    patience: float,
) -> int:
    lock_fd = segment.lock_fd
    deadline = time.monotonic() + patience
    while True:
        for row in range(rows):
            if row_of(row)["state"] != "free":
                continue
            if not _core.try_lock(lock_fd, lock_of(row)):
                continue  # somebody else is connecting
            if row_of(row)["state"] == "free":
                return row
            _core.unlock(lock_fd, lock_of(row))
        if not _core.is_locked(lock_fd, _core.BROKER_LOCK):
            raise BrokerGone(f"the broker of {segment.name} is gone")
        if time.monotonic() >= deadline:
            raise full(segment)
        time.sleep(_POLL)
