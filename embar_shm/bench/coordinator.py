"""Runs one workload: processes, ceilings, barrier, clock, integrity.

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
from embar_shm.address import SHM_DIRECTORY, RingName, split_address
from embar_shm.bench import access, environment, instrumentation, sockets, stages
from embar_shm.bench.ceilings import Ceilings
from embar_shm.bench.fleet import Fleet, Worker
from embar_shm.bench.result import Result, build
from embar_shm.bench.usage import MachineTime, machine_now, machine_since, total
from embar_shm.bench.watch import Progress, Watch, counters
from embar_shm.config import OF_TCP, LoadedConfig, RunConfig
from embar_shm.errors import ConfigurationError, RunFailed
from embar_shm.layout import Geometry
from embar_shm.segment import Segment, not_enough_space, remove_dead
from embar_shm.units import format_size

__all__ = ["run"]

_START_TIMEOUT = 60.0  # seconds all processes together may take until they are ready
_ELSEWHERE = (
    "the brokers run elsewhere: their stages, their CPU time and loopback TCP are not measured, "
    "and what was accepted is what they acknowledged"
)
_POLL = 0.001  # seconds between two looks at a counter at the end of a run with ack 0


def run(config: LoadedConfig, on_progress: Callable[[Progress], None]) -> Result:
    """Runs the workload and returns its result.

    Blocks until it is over. `on_progress` is called about ten times a second. Raises
    `ConfigurationError` for a transport that does not exist, `RunFailed` when a process dies or
    nothing moves for `timeout` seconds, `IntegrityError` when batches were lost or damaged, and
    what the processes raised. Leaves no process and no segment.
    """
    values = config.values
    transports.get(values.transport)  # an unknown one is told before anything is started
    _check_addresses(values)
    access.check(values)
    sample_costs = instrumentation.measured_costs()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    begin = time.monotonic()
    geometry = _geometry(values)
    rings = [RingName(f"run-{os.getpid()}", str(broker)) for broker in range(values.brokers)]
    if values.addresses:  # the brokers run elsewhere, and nobody here sees into their rings
        rings = []
    _check_space(geometry.total_bytes, rings, values)
    with _clean_up(rings), Fleet() as fleet:
        brokers, publishers = _start(values, geometry, rings, fleet)
        startup_seconds = time.monotonic() - begin
        with _monitors(rings) as monitors:
            watch = Watch(values, monitors, on_progress)
            ceilings = Ceilings(values, fleet, brokers, publishers, watch)
            ceilings.measure()
            measured = _publish(values, fleet, brokers, publishers, watch, monitors)
            ceilings.measure()
            _stop(fleet, brokers, watch)
            counted = counters(monitors) if monitors else measured.as_acknowledged()
            counted["missed_wakeups"] += sum(
                monitor.publisher(row)["missed_wakeups"]
                for monitor in monitors
                for row in range(values.publishers_per_broker)
            )
            system = measured.system
            stage_times = stages.collect(
                monitors, values.publishers_per_broker, measured.of_publishers("stages")
            )
            through_sockets = sockets.collect(
                measured.of_publishers("sockets"),
                measured.of_brokers("sockets"),
                counted["batches"],
            )
            fleet.dismiss(publishers)
            return build(
                config,
                started=started,
                startup_seconds=startup_seconds,
                elapsed_seconds=measured.elapsed_seconds,
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
            )


@dataclass(frozen=True, slots=True)
class _Measured:
    """What the measured part of a run gave."""

    elapsed_seconds: float  # from the barrier to the last acknowledgement
    machine: MachineTime | None  # CPU time of all programs of the machine meanwhile
    published: list[dict[str, Any]]  # what each publisher said
    brokers: list[dict[str, Any]]  # what each broker said

    @property
    def system(self) -> dict[str, Any]:
        """By role its usage, and what is known of the machine."""
        said = {"broker": self.brokers, "publisher": self.published}
        found: dict[str, Any] = {
            role: total([s["usage"] for s in of_role]) for role, of_role in said.items() if of_role
        }
        if self.machine is not None:
            found["machine"] = self.machine
        return found

    def of_publishers(self, field: str) -> list[Any]:
        return [p[field] for p in self.published]

    def of_brokers(self, field: str) -> list[Any]:
        return [b[field] for b in self.brokers]

    def as_acknowledged(self) -> dict[str, int]:
        """The counters of brokers that run elsewhere, as far as their publishers know."""
        stats = self.of_publishers("stats")
        return {
            "batches": sum(s["committed"] for s in stats),
            "messages": sum(s["messages"] for s in stats),
            "duplicated": 0,
            "out_of_order": 0,
            "corrupt": 0,
            "missed_wakeups": 0,
        }


def _start(
    values: RunConfig, geometry: Geometry, rings: list[RingName], fleet: Fleet
) -> tuple[list[Worker], list[Worker]]:
    """Starts all processes at once; returns when every publisher is connected to its broker.

    The list of brokers is empty when they run elsewhere.
    """
    brokers = [
        fleet.start(f"broker {ring.broker}", _broker_spec(values, ring, geometry)) for ring in rings
    ]
    publishers = [
        fleet.start(f"publisher {n} of broker {broker}", spec)
        for broker in range(values.brokers)
        for n, spec in enumerate(_publisher_specs(values, broker, geometry))
    ]
    ready_by = time.monotonic() + _START_TIMEOUT
    listening = fleet.gather(brokers, "listening", lambda: ready_by)
    addresses = values.addresses or [answer["address"] for answer in listening]
    for n, publisher in enumerate(publishers):
        publisher.tell(do="connect", address=addresses[n // values.publishers_per_broker])
    fleet.gather(publishers, "ready", lambda: ready_by)
    return brokers, publishers


def _publish(
    values: RunConfig,
    fleet: Fleet,
    brokers: list[Worker],
    publishers: list[Worker],
    watch: Watch,
    monitors: list[_core.Monitor],
) -> _Measured:
    """The measured part.

    Everything committed is accepted when it returns.
    """
    for broker in brokers:
        broker.tell(do="mark")
    watch.begin("publish")
    machine_before = machine_now()
    start_ns = time.monotonic_ns()
    for publisher in publishers:
        publisher.tell(do="publish")
    published = fleet.gather(publishers, "published", watch.deadline, watch.tick)
    machine = machine_since(machine_before)
    elapsed_seconds = (max(p["end_ns"] for p in published) - start_ns) / 1e9
    _await_accepted(monitors, values, watch)
    if not brokers:  # what they have is known when they have answered the goodbye
        for publisher in publishers:
            publisher.tell(do="close")
        fleet.gather(publishers, "closed", watch.deadline)
    for broker in brokers:
        broker.tell(do="usage")
    used = fleet.gather(brokers, "usage", watch.deadline)
    return _Measured(elapsed_seconds, machine, published, used)


def _stop(fleet: Fleet, brokers: list[Worker], watch: Watch) -> None:
    """The brokers have released every slot and are gone when it returns."""
    watch.begin("stop")
    for broker in brokers:
        broker.tell(do="stop")
    fleet.gather(brokers, "done", watch.deadline)
    fleet.dismiss(brokers)


def _broker_spec(values: RunConfig, ring: RingName, geometry: Geometry) -> dict[str, Any]:
    return {
        "role": "broker",
        "transport": values.transport,
        "ring": str(ring),
        "slots": values.slots,
        "slot_size": values.effective_slot_size,
        "slot_stride": geometry.slot_stride,
        "message_size": values.message_size,
        "batch_size": values.batch_size,
        "in_flight": values.in_flight,
        "max_publishers": values.max_publishers,
        "wait": values.wait,
        "spin_us": values.spin_us,
        "scheduling": values.broker_scheduling,
        "sample_every": values.sample_every,
        **_of_tcp(values),
    }


def _publisher_specs(
    values: RunConfig, broker: int, geometry: Geometry
) -> Iterator[dict[str, Any]]:
    for n in range(values.publishers_per_broker):
        number = broker * values.publishers_per_broker + n
        share, rest = divmod(values.total_messages, values.publishers)
        yield {
            "role": "publisher",
            "publisher_id": number,
            "messages": share + (number < rest),
            "message_size": values.message_size,
            "batch_size": values.batch_size,
            "slots": geometry.slots,
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
            **_of_tcp(values),
            # Brokers of the run's own have the certificate, and ask nobody for one.
            **({} if values.addresses else {"tls_cert": None, "tls_key": None}),
        }


def _of_tcp(values: RunConfig) -> dict[str, Any]:
    """What sockets are to be like; over shared memory nothing, and no file is looked at."""
    return {name: None if values.transport == "shm" else getattr(values, name) for name in OF_TCP}


def _await_accepted(monitors: list[_core.Monitor], values: RunConfig, watch: Watch) -> None:
    """With ack 0 the last batches may still be on their way to the broker.

    Over a network they are in nobody's ring then: only their number tells that all have come.
    """
    while monitors:
        now = counters(monitors)
        refused = now["duplicated"] + now["out_of_order"] + now["corrupt"]
        if now["head"] == now["tail"] and (refused or now["messages"] >= values.total_messages):
            return
        watch.tick()
        if time.monotonic() >= watch.deadline():
            raise RunFailed(
                f"the brokers have accepted {now['messages']} of {values.total_messages} messages, "
                "and nothing more comes"
            )
        time.sleep(_POLL)


def _check_addresses(values: RunConfig) -> None:
    """Brokers elsewhere are reached with the transport that is measured."""
    for address in values.addresses:
        scheme, _ = split_address(address)
        if scheme != values.transport:
            raise ConfigurationError(
                f"{address} is not an address of the transport {values.transport}",
                f"--transport {scheme}",
            )


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
