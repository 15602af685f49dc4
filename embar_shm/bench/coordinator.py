"""Runs one workload: processes, ceiling, barrier, clock, integrity.

The clock runs from the moment the coordinator opens the barrier (the first publisher is told to
begin) to the moment the last publisher has its last acknowledgement (ack 0: its last commit).
Both are CLOCK_MONOTONIC, which all processes of a machine share.

While publishers work, nobody asks them anything: progress comes from the counters in the rings.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from embar_shm import _core, transports
from embar_shm.address import SHM_DIRECTORY, RingName
from embar_shm.bench import environment, instrumentation, stages
from embar_shm.bench.fleet import Fleet, Worker
from embar_shm.bench.result import Result, build
from embar_shm.bench.usage import Usage, total
from embar_shm.config import LoadedConfig, RunConfig
from embar_shm.errors import RunFailed
from embar_shm.layout import Geometry
from embar_shm.segment import Segment, not_enough_space, remove_dead
from embar_shm.units import format_size

__all__ = ["Progress", "run"]

_START_TIMEOUT = 60.0  # seconds all processes together may take until they are ready
_CEILING_BYTES = 32 * 2**30  # a longer run's ceiling is measured with so much
_POLL = 0.001  # seconds between two looks at a counter at the end of a run with ack 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, from the counters in the rings."""

    phase: str
    payload_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class _Measured:
    """What the measured part of a run gave."""

    elapsed_seconds: float  # from the barrier to the last acknowledgement
    usage: dict[str, Usage]  # by role
    publisher_stages: list[dict[str, Any]]  # of each


def run(config: LoadedConfig, on_progress: Callable[[Progress], None]) -> Result:
    """Runs the workload and returns its result.

    Blocks until it is over. `on_progress` is called about ten times a second. Raises
    `ConfigurationError` for a transport that does not exist, `RunFailed` when a process dies or
    nothing moves for `timeout` seconds, `IntegrityError` when batches were lost or damaged, and
    what the processes raised. Leaves no process and no segment.
    """
    values = config.values
    transports.get(values.transport)  # an unknown one is told before anything is started
    started = datetime.now(UTC).isoformat(timespec="seconds")
    begin = time.monotonic()
    sample_costs = instrumentation.measured_costs()
    geometry = Geometry.plan(values.slots, values.effective_slot_size, values.max_publishers)
    rings = [RingName(f"run-{os.getpid()}", str(broker)) for broker in range(values.brokers)]
    _check_space(values, geometry)
    with _clean_up(rings), Fleet() as fleet:
        brokers, publishers = _start(values, geometry, rings, fleet)
        startup_seconds = time.monotonic() - begin
        with _monitors(rings) as monitors:
            watch = _Watch(values, monitors, on_progress)
            copies = _Ceiling(values, fleet, publishers, watch)
            copies.measure()
            measured = _publish(values, fleet, brokers, publishers, watch, monitors)
            counters = _counters(monitors)
            counters["missed_wakeups"] += sum(
                monitor.publisher(row)["missed_wakeups"]
                for monitor in monitors
                for row in range(values.publishers_per_broker)
            )
            copies.measure()
            fleet.dismiss(publishers)
            stage_times = stages.collect(
                monitors, values.publishers_per_broker, measured.publisher_stages
            )
            return build(
                config,
                started=started,
                startup_seconds=startup_seconds,
                elapsed_seconds=measured.elapsed_seconds,
                counters=counters,
                copy_bytes_per_second=copies.best,
                stages=stage_times,
                instrumentation=instrumentation.describe(
                    values.sample_every, stage_times, measured.usage, sample_costs
                ),
                system=measured.usage,
                segment_bytes=geometry.total_bytes * values.brokers,
                environment=environment.describe(),
            )


def _start(
    values: RunConfig, geometry: Geometry, rings: list[RingName], fleet: Fleet
) -> tuple[list[Worker], list[Worker]]:
    """Starts all processes at once; returns when every publisher is connected to its broker."""
    brokers = [fleet.start(f"broker {ring.broker}", _broker_spec(values, ring)) for ring in rings]
    publishers = [
        fleet.start(f"publisher {n} of broker {ring.broker}", spec)
        for ring in rings
        for n, spec in enumerate(_publisher_specs(values, ring, geometry))
    ]
    ready_by = time.monotonic() + _START_TIMEOUT
    listening = fleet.gather(brokers, "listening", lambda: ready_by)
    for n, publisher in enumerate(publishers):
        address = listening[n // values.publishers_per_broker]["address"]
        publisher.tell(do="connect", address=address)
    fleet.gather(publishers, "ready", lambda: ready_by)
    return brokers, publishers


def _publish(
    values: RunConfig,
    fleet: Fleet,
    brokers: list[Worker],
    publishers: list[Worker],
    watch: _Watch,
    monitors: list[_core.Monitor],
) -> _Measured:
    """The measured part.

    The brokers have stopped when it returns: everything committed is accepted.
    """
    for broker in brokers:
        broker.tell(do="mark")
    watch.begin("publish")
    start_ns = time.monotonic_ns()
    for publisher in publishers:
        publisher.tell(do="publish")
    published = fleet.gather(publishers, "published", watch.deadline, watch.tick)
    elapsed_seconds = (max(p["end_ns"] for p in published) - start_ns) / 1e9
    _await_accepted(monitors, values)
    for broker in brokers:
        broker.tell(do="stop")
    done = fleet.gather(brokers, "done", watch.deadline)
    fleet.dismiss(brokers)
    return _Measured(
        elapsed_seconds,
        {
            "broker": total([d["usage"] for d in done]),
            "publisher": total([p["usage"] for p in published]),
        },
        [p["stages"] for p in published],
    )


def _broker_spec(values: RunConfig, ring: RingName) -> dict[str, Any]:
    return {
        "role": "broker",
        "transport": values.transport,
        "ring": str(ring),
        "slots": values.slots,
        "slot_size": values.effective_slot_size,
        "max_publishers": values.max_publishers,
        "wait": values.wait,
        "spin_us": values.spin_us,
        "scheduling": values.broker_scheduling,
        "sample_every": values.sample_every,
    }


def _publisher_specs(
    values: RunConfig, ring: RingName, geometry: Geometry
) -> Iterator[dict[str, Any]]:
    for n in range(values.publishers_per_broker):
        number = int(ring.broker) * values.publishers_per_broker + n
        share, rest = divmod(values.total_messages, values.publishers)
        yield {
            "role": "publisher",
            "publisher_id": number,
            "messages": share + (number < rest),
            "message_size": values.message_size,
            "batch_size": values.batch_size,
            "slots": values.slots,
            "slot_stride": geometry.slot_stride,
            "in_flight": values.in_flight,
            "ack": values.ack,
            "linger_ms": values.linger_ms,
            "timeout": values.timeout,
            "wait": values.wait,
            "spin_us": values.spin_us,
            "copy": values.copy_mode,
            "sample_every": values.sample_every,
            "producer": values.producer,
            "messages_per_call": values.messages_per_call,
            "ceiling": values.ceiling,
        }


class _Watch:
    """Progress of the run, and the moment at which standing still becomes a failure."""

    def __init__(
        self,
        values: RunConfig,
        monitors: list[_core.Monitor],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._phase = "start"
        self._monitors = monitors
        self._on_progress = on_progress
        self._total = values.total_messages * values.message_size
        # The publishers' own waits end after `timeout` with a better message than ours.
        self._patience = 2 * values.timeout
        self._accepted = -1
        self._moved = time.monotonic()

    def tick(self) -> None:
        accepted = _counters(self._monitors)["payload_bytes"]
        if accepted != self._accepted:
            self._accepted = accepted
            self._moved = time.monotonic()
        self._on_progress(Progress(self._phase, accepted, self._total))

    def deadline(self) -> float:
        return self._moved + self._patience

    def begin(self, phase: str) -> None:
        """Another phase begins."""
        self._phase = phase
        self._moved = time.monotonic()


class _Ceiling:
    """Bare memory copy in the publishers' own processes, half of it before and half after the run.

    Measured with plain and with non-temporal stores; the better one is the ceiling.
    """

    def __init__(
        self, values: RunConfig, fleet: Fleet, publishers: list[Worker], watch: _Watch
    ) -> None:
        self._enabled = values.ceiling
        self._fleet = fleet
        self._publishers = publishers
        self._watch = watch
        batch = values.batch_size // values.message_size * values.message_size
        half = min(values.total_messages * values.message_size, _CEILING_BYTES) / 2
        self._batches = max(1, round(half / batch / len(publishers)))
        self._bytes_per_pass = self._batches * batch * len(publishers)
        self._seconds = {False: 0.0, True: 0.0}
        self._passes = 0

    def measure(self) -> None:
        if not self._enabled:
            return
        self._passes += 1
        modes = [False, True] if _core.HAS_NONTEMPORAL else [False]
        for nontemporal in modes:
            self._watch.begin("ceiling")
            start_ns = time.monotonic_ns()
            for publisher in self._publishers:
                publisher.tell(do="ceiling", batches=self._batches, nontemporal=nontemporal)
            ended = self._fleet.gather(
                self._publishers, "ceiling", self._watch.deadline, self._watch.tick
            )
            self._seconds[nontemporal] += (max(e["end_ns"] for e in ended) - start_ns) / 1e9

    @property
    def best(self) -> float | None:
        """Bytes per second of all publishers together; None when it was not measured."""
        if not self._passes:
            return None
        return self._bytes_per_pass * self._passes / min(s for s in self._seconds.values() if s)


def _await_accepted(monitors: list[_core.Monitor], values: RunConfig) -> None:
    """With ack 0 the last batches may still be on their way to the broker."""
    deadline = time.monotonic() + values.timeout
    while any((c := m.control())["head"] < c["tail"] for m in monitors):
        if time.monotonic() >= deadline:
            raise RunFailed("the brokers did not accept everything that was committed")
        time.sleep(_POLL)


def _check_space(values: RunConfig, geometry: Geometry) -> None:
    """Says what the whole run needs, before the first of its rings fits and the last does not."""
    needed = geometry.total_bytes * values.brokers
    space = os.statvfs(SHM_DIRECTORY)
    if needed > space.f_bavail * space.f_frsize:
        raise not_enough_space(
            "the run",
            needed,
            f"{values.brokers} brokers with {values.slots} slots of "
            f"{format_size(values.effective_slot_size)} each",
        )


def _counters(monitors: list[_core.Monitor]) -> dict[str, int]:
    """The brokers' counters, added up."""
    controls = [monitor.control() for monitor in monitors]
    return {name: sum(control[name] for control in controls) for name in controls[0]}


@contextmanager
def _monitors(rings: list[RingName]) -> Iterator[list[_core.Monitor]]:
    with ExitStack() as stack:
        segments = [Segment.attach(ring, prefault=False) for ring in rings]
        for segment in segments:
            stack.callback(segment.close)
        yield [segment.monitor() for segment in segments]


@contextmanager
def _clean_up(rings: list[RingName]) -> Iterator[None]:
    """Brokers unlink their rings; what a killed one left behind is ours to remove."""
    try:
        yield
    finally:
        for ring in rings:
            remove_dead(ring)
