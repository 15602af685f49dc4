"""A ring of a client's own: where batches wait for, or come from, a broker on another machine.

Anonymous memory of this process with the layout of a segment, one row, and as many slots as batches
may be in flight; so filling, committing and waiting are the same code as in a broker's ring.
"""

from __future__ import annotations

import mmap
import time

from embar_shm import _core
from embar_shm.errors import EmbarError, NotEnoughSpace
from embar_shm.layout import Geometry, boot_id
from embar_shm.shared_memory import prefault_memory

__all__ = ["PrivateRing"]


class PrivateRing:
    """A publisher's own ring. `name` is what errors call it: the address of the broker."""

    advice = "look at that broker, and at the network in between"

    def __init__(self, name: str, slots: int, slot_bytes: int) -> None:
        self.name = name
        self.failure: EmbarError | None = None
        """Why nothing will be acknowledged any more."""
        self.failure_was_told = False
        self.lost_at: float | None = None
        """time.monotonic() at which the connection was lost; None while there is one."""
        self.lost_because = ""
        self.geometry = Geometry.plan(slots, slot_bytes, 1, 1)
        # Private: a forked child gets a copy it cannot disturb its parent with.
        try:
            self.memory = mmap.mmap(
                -1, self.geometry.total_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            )
            prefault_memory(self.memory)
        except OSError as error:
            raise NotEnoughSpace(
                f"{slots} batches of {slot_bytes} bytes for {name} need {self.geometry.total_bytes}"
                f" bytes of memory, which this process cannot get: {error}",
                "connect with a smaller in_flight; a publisher, with a smaller batch_size",
            ) from error
        _core.format_segment(
            self.memory, slots, slot_bytes, 1, 1, name[:128], boot_id(), time.time_ns()
        )
        _core.publish_segment(self.memory)

    def monitor(self) -> _core.Monitor:
        """A look at its counters."""
        return _core.Monitor(self.memory)

    def describe_broker(self) -> str:
        """Who is waited for, and in which state."""
        if self.lost_at is None:
            return f"the broker at {self.name}"
        seconds = time.monotonic() - self.lost_at
        return (
            f"the broker at {self.name} (connection lost {seconds:.3g} s ago: {self.lost_because})"
        )

    def explain_end(self) -> EmbarError | None:
        """The failure, for the user, who knows it from then on."""
        self.failure_was_told = self.failure is not None
        return self.failure
