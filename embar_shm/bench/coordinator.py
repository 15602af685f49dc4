"""Runs one workload: processes, ceilings, the scenario's phases, integrity.

While publishers work, nobody asks them anything: progress comes from the counters in the rings.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from embar_shm import transports
from embar_shm.address import SHM_DIRECTORY, RingName
from embar_shm.bench import (
    access,
    delivery,
    environment,
    failure,
    instrumentation,
    latency,
    phases,
    scenarios,
    sockets,
    stages,
)
from embar_shm.bench.ceilings import Ceilings
from embar_shm.bench.crew import Crew
from embar_shm.bench.crew import started as crew_of
from embar_shm.bench.fleet import Fleet
from embar_shm.bench.phases import Measured
from embar_shm.bench.result import Result, build
from embar_shm.bench.scenarios import SCENARIOS
from embar_shm.bench.watch import Progress, Watch, counters
from embar_shm.config.loader import LoadedConfig
from embar_shm.config.schema import RunConfig
from embar_shm.layout import Geometry
from embar_shm.left_behind import remove_dead
from embar_shm.shared_memory import not_enough_space
from embar_shm.units import format_size

__all__ = ["run"]

_ELSEWHERE = (
    "the brokers run elsewhere: their stages, their CPU time and loopback TCP are not measured, "
    "and what was accepted is what they acknowledged"
)


def run(config: LoadedConfig, on_progress: Callable[[Progress], None]) -> Result:
    """Runs the workload, in the scenario that it names, and returns its result.

    Blocks until it is over. `on_progress` is called about ten times a second. Raises
    `ConfigurationError` for a transport that does not exist, `RunFailed` when a process dies or
    nothing moves for `timeout` seconds, `IntegrityError` when batches or messages were lost
    or damaged, and what the processes raised. Leaves no process and no segment.
    """
    values = config.values
    transports.get(values.transport)  # an unknown one is told before anything is started
    scenarios.check(config)
    access.check(values)
    sample_costs = instrumentation.measured_costs()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    begin = time.monotonic()
    geometry = _geometry(values)
    rings = [RingName(f"run-{os.getpid()}", str(broker)) for broker in range(values.brokers)]
    if values.addresses:  # the brokers run elsewhere, and nobody here sees into their rings
        rings = []
    _check_space(geometry.total_bytes, rings, values)
    with (
        _clean_up(rings),
        Fleet() as fleet,
        crew_of(values, geometry, rings, fleet) as crew,
    ):
        startup_seconds = time.monotonic() - begin
        watch = Watch(values, crew.monitors, on_progress)
        ceilings = Ceilings(values, crew, watch)
        ceilings.measure()
        failed = None
        if SCENARIOS[values.scenario].kills:
            measured, failed = failure.work(crew, watch)
        else:
            measured = phases.work(crew, watch)
        ceilings.measure()
        _stop(crew, watch)
        counted = _counted(crew, measured)
        system = measured.system
        stage_times = stages.collect(
            crew.monitors, values.publishers_per_broker, measured.of_publishers("stages")
        )
        through_sockets = sockets.collect(
            measured.of_publishers("sockets"), measured.of_brokers("sockets"), counted["batches"]
        )
        fleet.dismiss(crew.publishers)
        return build(
            config,
            started=started,
            startup_seconds=startup_seconds,
            elapsed_seconds=measured.publish_seconds,
            counters=counted,
            ceilings=ceilings.bytes_per_second,
            stages=stage_times,
            instrumentation=instrumentation.describe(
                values.sample_every,
                stage_times,
                system,
                sample_costs,
                over_network=through_sockets is not None,
            ),
            system=system,
            sockets=through_sockets,
            segment_bytes=geometry.total_bytes * len(rings),
            environment=environment.describe(),
            warnings=ceilings.warnings + ([_ELSEWHERE] if values.addresses else []),
            delivered=delivery.collect(values, measured, ceilings.bytes_per_second),
            paced=latency.collect(values, measured),
            failed=failed,
        )


def _counted(crew: Crew, measured: Measured) -> dict[str, int]:
    """The counters of all brokers, and of all their rings' waits."""
    counted = counters(crew.monitors) if crew.monitors else measured.as_acknowledged()
    counted["missed_wakeups"] += sum(
        monitor.publisher(row)["missed_wakeups"]
        for monitor in crew.monitors
        for row in range(crew.values.publishers_per_broker)
    )
    return counted


def _stop(crew: Crew, watch: Watch) -> None:
    """The brokers have released every slot and are gone when it returns."""
    watch.begin("stop")
    crew.fleet.dismiss(crew.subscribers)  # what they hold, nobody can release
    for broker in crew.brokers:
        broker.tell(do="stop")
    crew.fleet.gather(crew.brokers, "done", watch.deadline)
    crew.fleet.dismiss(crew.brokers)


def _geometry(values: RunConfig) -> Geometry:
    """The rings; where brokers run elsewhere, the memory that a publisher needs for a ceiling."""
    if values.addresses:
        return Geometry.plan(values.in_flight, values.batch_size, values.publishers_per_broker)
    return Geometry.plan(values.slots, values.effective_slot_size, values.max_publishers)


def _check_space(ring_bytes: int, rings: list[RingName], values: RunConfig) -> None:
    """Says what the whole run needs, before the first of its rings fits and the last does not."""
    needed = ring_bytes * len(rings)
    space = os.statvfs(SHM_DIRECTORY)
    if needed > space.f_bavail * space.f_frsize:
        raise not_enough_space(
            "the run",
            needed,
            f"{values.brokers} brokers with {values.slots} slots of "
            f"{format_size(values.effective_slot_size)} each",
        )


@contextmanager
def _clean_up(rings: list[RingName]) -> Iterator[None]:
    """Brokers unlink their rings; what a killed one left behind is ours to remove."""
    try:
        yield
    finally:
        for ring in rings:
            remove_dead(ring)
