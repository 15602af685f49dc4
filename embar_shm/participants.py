"""Taking a row of a ring's publishers table.

A row belongs to whoever holds its liveness lock and has seen it free (``_native/liveness.hpp``).
"""

from __future__ import annotations

import time

from embar_shm import _core
from embar_shm.diagnose import table_full
from embar_shm.errors import BrokerGone
from embar_shm.segment import Segment

__all__ = ["take_row"]

_POLL = 0.005  # seconds between two looks at a full table
_REAP_TIME = 2.0  # seconds a broker may take to free the row of a publisher that left or died


def take_row(segment: Segment, patience: float = _REAP_TIME) -> int:
    """Locks a free row of the table for this segment's open file description; its index.

    Waits `patience` seconds for the broker to free one. Raises `NotEnoughSpace` when all rows are
    taken, `BrokerGone` when nobody could free one.
    """
    lock_fd = segment.lock_fd
    monitor = segment.monitor()
    deadline = time.monotonic() + patience
    while True:
        for row in range(segment.geometry.max_publishers):
            if monitor.publisher(row)["state"] != "free":
                continue
            if not _core.try_lock(lock_fd, _core.publisher_lock(row)):
                continue  # somebody else is connecting
            if monitor.publisher(row)["state"] == "free":
                return row
            _core.unlock(lock_fd, _core.publisher_lock(row))
        if not _core.is_locked(lock_fd, _core.BROKER_LOCK):
            raise BrokerGone(f"the broker of {segment.name} is gone")
        if time.monotonic() >= deadline:
            raise table_full(segment)
        time.sleep(_POLL)
