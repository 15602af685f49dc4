"""Rows that a broker keeps for participants on a network, which the broker before it has served.

Their liveness locks died with its process. They will connect again, to whichever listener of the
new broker: that one takes the row over, and it goes on where it was. Who does not come within a
minute is dead to the broker (``_native/kept.hpp``).
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from embar_shm import _core

__all__ = ["KeptPublisher", "KeptRows", "KeptSubscriber", "Key"]

Key = tuple[int, int]
"""Who a participant is: its id and its incarnation."""


@dataclass(frozen=True, slots=True)
class KeptPublisher:
    """A publisher whose row is kept."""

    key: Key
    row: int
    received_seq: int  # batches of it that are in the ring
    quota: int
    ack: int


@dataclass(frozen=True, slots=True)
class KeptSubscriber:
    """A reliable subscriber whose row is kept."""

    key: Key
    row: int
    cursor: int  # the ticket after the last one that it has told to have received


class KeptRows:
    """Those of one broker. For any thread."""

    def __init__(self, core: _core.BrokerCore) -> None:
        self.since: float = time.monotonic()
        """When nobody was left who stood for them."""
        self._core = core
        self._lock = threading.Lock()
        publishers = [
            KeptPublisher(
                (found["publisher_id"], found["incarnation"]),
                found["index"],
                found["received_seq"],
                found["quota"],
                found["ack"],
            )
            for found in core.adopted_publishers
        ]
        subscribers = [
            KeptSubscriber(
                (found["remote_id"], found["remote_incarnation"]), found["index"], found["cursor"]
            )
            for found in core.adopted_subscribers
        ]
        self._publishers = {kept.key: kept for kept in publishers}
        self._subscribers = {kept.key: kept for kept in subscribers}

    def publishers(self) -> list[Key]:
        """Whose rows nobody has taken over."""
        with self._lock:
            return list(self._publishers)

    def subscribers(self) -> list[Key]:
        """Whose rows nobody has taken over."""
        with self._lock:
            return list(self._subscribers)

    def take_publisher(self, key: Key, lock_fd: int) -> KeptPublisher | None:
        """The row of this publisher, whose lock is on `lock_fd` from now on; None: none is kept."""
        with self._lock:
            kept = self._publishers.pop(key, None)
        if kept is None or not self._core.take_over_publisher(kept.row, lock_fd):
            return None
        return kept

    def take_subscriber(self, key: Key, lock_fd: int) -> KeptSubscriber | None:
        """The row of this subscriber, as `take_publisher`."""
        with self._lock:
            kept = self._subscribers.pop(key, None)
        if kept is None or not self._core.take_over_subscriber(kept.row, lock_fd):
            return None
        return kept
