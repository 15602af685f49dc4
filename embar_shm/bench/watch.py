"""How far a run is, from the counters in the rings; nobody who works is asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embar_shm import _core
from embar_shm.config.schema import RunConfig

__all__ = ["Progress", "Watch", "counters"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, from the counters in the rings."""

    phase: str
    payload_bytes: int
    total_bytes: int


class Watch:
    """Progress of the run, and the moment at which standing still becomes a failure."""

    def __init__(
        self,
        values: RunConfig,
        monitors: Sequence[_core.Monitor],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._phase = "start"
        self._monitors = monitors
        self._on_progress = on_progress
        self._total = values.total_messages * values.message_size
        # The publishers' own waits end after `timeout` with a better message than ours.
        self._patience = 2 * values.timeout
        self._seen = (-1, -1)  # bytes accepted, batches released: readers move the latter
        self._moved = time.monotonic()

    def tick(self) -> None:
        """Looks at the counters; called about ten times a second."""
        if not self._monitors:  # the brokers run elsewhere
            self._on_progress(Progress(self._phase, 0, self._total))
            return
        now = counters(self._monitors)
        accepted = now["payload_bytes"]
        if (accepted, now["released"]) != self._seen:
            self._seen = (accepted, now["released"])
            self._moved = time.monotonic()
        self._on_progress(Progress(self._phase, accepted, self._total))

    def deadline(self) -> float:
        """When the run has failed if nothing moves until then (time.monotonic).

        Where there are no counters to look at, only the publishers' own waits end.
        """
        if not self._monitors:
            return math.inf
        return self._moved + self._patience

    def begin(self, phase: str) -> None:
        """Another phase begins."""
        self._phase = phase
        self._moved = time.monotonic()


def counters(monitors: Sequence[_core.Monitor]) -> dict[str, int]:
    """The brokers' counters, added up."""
    controls = [monitor.control() for monitor in monitors]
    return {name: sum(control[name] for control in controls) for name in controls[0]}
