"""What the machine can do at best, measured by the processes of the run with its sizes.

Each ceiling is measured half before and half after the run: a machine that changes in between
changes both alike. `yardsticks` is what the processes do.
"""

from __future__ import annotations

import time
from typing import Any

from embar_shm import _core
from embar_shm.bench.crew import Crew, reads_along
from embar_shm.bench.fleet import Fleet, Worker
from embar_shm.bench.watch import Watch
from embar_shm.config.schema import RunConfig
from embar_shm.errors import RunFailed

__all__ = ["Ceilings"]

# A longer run's ceiling is measured with so many bytes.
_COPY_BYTES = 32 * 2**30
_LOOPBACK_BYTES = 4 * 2**30


class Ceilings:
    """All ceilings of a run; none with ``ceiling: false``."""

    def __init__(self, values: RunConfig, crew: Crew, watch: Watch) -> None:
        self._copy = self._read = self._loopback = None
        if values.ceiling:
            fleet, publishers = crew.fleet, crew.publishers
            self._copy = _MemoryCopy(values, fleet, publishers, watch)
            if crew.brokers:  # else they are elsewhere, and there is nobody here to receive
                self._loopback = _TcpLoopback(values, fleet, crew.brokers, publishers, watch)
            if reads_along(values):
                self._read = _CopyAndRead(values, crew, watch)

    def measure(self) -> None:
        """Measures one half. Raises `RunFailed` when a process dies or stands still."""
        for ceiling in (self._copy, self._read, self._loopback):
            if ceiling is not None:
                ceiling.measure()

    @property
    def bytes_per_second(self) -> dict[str, float]:
        """All publishers together, by ceiling: what could be measured."""
        found = {
            "memory_copy": self._copy and self._copy.best,
            "tcp_loopback": self._loopback and self._loopback.rate,
            "copy_and_read": self._read and self._read.best,
        }
        return {name: rate for name, rate in found.items() if rate}

    @property
    def warnings(self) -> list[str]:
        """Why a ceiling could not be measured."""
        if self._loopback is None or not self._loopback.unavailable:
            return []
        return [f"tcp_loopback was not measured: {self._loopback.unavailable}"]


class _Amount:
    """How much a measurement moves: as much as the run, up to `most` bytes, in two halves."""

    def __init__(self, values: RunConfig, most: int) -> None:
        batch = values.batch_size // values.message_size * values.message_size
        half = min(values.total_messages * values.message_size, most) / 2
        self.batches = max(1, round(half / batch / values.publishers))  # of each publisher
        self.bytes = self.batches * batch * values.publishers


class _Stores:
    """What copies: measured with plain and with non-temporal stores, the better is the ceiling."""

    def __init__(self, values: RunConfig, watch: Watch) -> None:
        self._watch = watch
        self._half = _Amount(values, _COPY_BYTES)
        self._seconds = {False: 0.0, True: 0.0}
        self._halves = 0

    def measure(self) -> None:
        self._halves += 1
        modes = [False, True] if _core.HAS_NONTEMPORAL else [False]
        for nontemporal in modes:
            self._watch.begin("ceiling")
            start_ns = time.monotonic_ns()
            ended = self._move(nontemporal)
            self._seconds[nontemporal] += (max(e["end_ns"] for e in ended) - start_ns) / 1e9

    def _move(self, nontemporal: bool) -> list[dict[str, Any]]:
        """Moves half of it; what each process said."""
        raise NotImplementedError

    @property
    def best(self) -> float | None:
        if not self._halves:
            return None
        return self._half.bytes * self._halves / min(s for s in self._seconds.values() if s)


class _MemoryCopy(_Stores):
    """Bare memory copy in the publishers' own processes."""

    def __init__(
        self, values: RunConfig, fleet: Fleet, publishers: list[Worker], watch: Watch
    ) -> None:
        super().__init__(values, watch)
        self._fleet = fleet
        self._publishers = publishers

    def _move(self, nontemporal: bool) -> list[dict[str, Any]]:
        for publisher in self._publishers:
            publisher.tell(do="copy", batches=self._half.batches, nontemporal=nontemporal)
        return self._fleet.gather(
            self._publishers, "copied", self._watch.deadline, self._watch.tick
        )


class _CopyAndRead(_Stores):
    """The same with the subscribers' processes, which read every byte: no broker in between.

    Each publisher's copies are handed to all subscribers of its broker, by a word for each batch.
    """

    def __init__(self, values: RunConfig, crew: Crew, watch: Watch) -> None:
        super().__init__(values, watch)
        self._crew = crew
        self._writers = values.publishers_per_broker

    def _move(self, nontemporal: bool) -> list[dict[str, Any]]:
        batches = self._half.batches
        for subscriber in self._crew.subscribers:
            subscriber.tell(do="copy-and-read", batches=batches * self._writers)
        for publisher in self._crew.publishers:
            publisher.tell(do="copy-and-read", batches=batches, nontemporal=nontemporal)
        everybody = [*self._crew.publishers, *self._crew.subscribers]
        return self._crew.fleet.gather(
            everybody, "copied-and-read", self._watch.deadline, self._watch.tick
        )


class _TcpLoopback:
    """Bare send(2) and recv(2) from every publisher's process to its broker's.

    From the barrier to the moment the last broker has everything. A machine without loopback loses
    the ceiling, not the run; what breaks later is a failure.
    """

    def __init__(
        self,
        values: RunConfig,
        fleet: Fleet,
        brokers: list[Worker],
        publishers: list[Worker],
        watch: Watch,
    ) -> None:
        self._fleet = fleet
        self._brokers = brokers
        self._publishers = publishers
        self._each = values.publishers_per_broker
        self._watch = watch
        self._half = _Amount(values, _LOOPBACK_BYTES)
        self._seconds = 0.0
        self._halves = 0
        self.unavailable = ""

    @property
    def rate(self) -> float | None:
        if not self._halves or self.unavailable:
            return None
        return self._half.bytes * self._halves / self._seconds

    def measure(self) -> None:
        if self.unavailable:
            return
        self._watch.begin("ceiling")
        self._connect()
        if self.unavailable:
            for worker in [*self._brokers, *self._publishers]:
                worker.tell(do="loopback-close")
            return
        self._halves += 1
        start_ns = time.monotonic_ns()
        for publisher in self._publishers:
            publisher.tell(do="loopback-send", batches=self._half.batches)
        # Together, so that the death of a broker is told, not what its publishers noticed of it.
        ended = self._gather([*self._brokers, *self._publishers], "loopback-ended")
        if failed := [e["failed"] for e in ended if e["failed"]]:
            raise RunFailed(
                f"the loopback ceiling could not be measured: {failed[0]}",
                "--no-ceiling runs without it",
            )
        received = ended[: len(self._brokers)]
        total = sum(e["bytes"] for e in received)
        if total != self._half.bytes:
            raise RunFailed(
                f"{self._half.bytes} bytes were sent over loopback, {total} received",
                "this is a bug in embar-shm, or in the kernel; please report it",
            )
        self._seconds += (max(e["end_ns"] for e in received) - start_ns) / 1e9

    def _connect(self) -> None:
        """Connects each publisher to its broker, or finds out why that cannot be."""
        for broker in self._brokers:
            broker.tell(do="loopback-listen", connections=self._each)
        listening = self._gather(self._brokers, "loopback-listening")
        if self._cannot(listening):
            return
        for n, publisher in enumerate(self._publishers):
            publisher.tell(do="loopback-connect", address=listening[n // self._each]["address"])
        connected = self._gather(self._publishers, "loopback-connected")
        if self._cannot(connected):
            return
        for n, broker in enumerate(self._brokers):
            mine = connected[n * self._each : (n + 1) * self._each]
            # By port: whoever else connects here is not counted.
            broker.tell(do="loopback-receive", ports=[c["port"] for c in mine])
        self._cannot(self._gather(self._brokers, "loopback-receiving"))

    def _gather(self, workers: list[Worker], event: str) -> list[dict[str, Any]]:
        return self._fleet.gather(workers, event, self._watch.deadline, self._watch.tick)

    def _cannot(self, answers: list[dict[str, Any]]) -> bool:
        self.unavailable = next((a["failed"] for a in answers if a["failed"]), "")
        return bool(self.unavailable)
