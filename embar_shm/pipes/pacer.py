"""Sends at a rate: an open loop, whose schedule does not wait for the broker."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Pacer"]


class Pacer:
    """Message number i, from 0, is due i / rate seconds after the first one.

    Who is late, because the broker was slow, sends what is due at once. Time in which there was no
    input is taken out of the schedule: a pipe that stood still is not made up for by a burst.
    """

    def __init__(
        self,
        rate: float,
        wait: Callable[[float], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`rate` in messages per second. `wait` sleeps; True: there is no time any more, all of
        the rest is due now."""
        self._rate = rate
        self._wait = wait
        self._clock = clock
        self._start: float | None = None
        self._sent = 0
        self._hurried = False

    def due(self, most: int) -> int:
        """Waits until a message is due; how many are, `most` at most. They count as sent."""
        now = self._clock()
        if self._start is None:
            self._start = now
        while not self._hurried:
            if now >= self._next:  # the product below may be a hair less
                due = max(1, int((now - self._start) * self._rate) + 1 - self._sent)
                most = min(most, due)
                break
            self._hurried = self._wait(self._next - now)
            now = self._clock()
        self._sent += most
        return most

    def waited_for_input(self, since: float) -> None:
        """From `since` (of the clock) to now there was no input."""
        if self._start is not None:
            self._start += max(0.0, self._clock() - max(since, self._next))

    @property
    def _next(self) -> float:
        return (self._start or 0.0) + self._sent / self._rate
