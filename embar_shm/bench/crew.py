"""The processes of one run by their roles: which belong to which broker, and how they start."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from embar_shm import _core
from embar_shm.address import RingName
from embar_shm.bench import specs
from embar_shm.bench.fleet import Fleet, Worker
from embar_shm.bench.scenarios import SCENARIOS, consumed
from embar_shm.bench.yardsticks import CopyAndReadShape, CopyAndReadSide
from embar_shm.config.schema import RunConfig
from embar_shm.layout import Geometry
from embar_shm.segment import Segment

__all__ = ["Crew", "reads_along", "started"]

_START_TIMEOUT = 60.0  # seconds all processes together may take until they are ready


@dataclass
class Crew:
    """Everybody who works in a run. The list of brokers is empty when they run elsewhere."""

    values: RunConfig
    geometry: Geometry
    rings: list[RingName]
    fleet: Fleet
    brokers: list[Worker]
    publishers: list[Worker]
    subscribers: list[Worker]
    addresses: list[str]
    monitors: list[_core.Monitor] = field(default_factory=list)
    """Of the brokers' rings, also of one whose broker was killed."""
    _segments: ExitStack = field(default_factory=ExitStack)

    def publishers_of(self, broker: int) -> list[Worker]:
        each = self.values.publishers_per_broker
        return self.publishers[broker * each :][:each]

    def subscribers_of(self, broker: int) -> list[Worker]:
        each = self.values.effective_subscribers_per_broker
        return self.subscribers[broker * each :][:each]

    def connect_subscribers(self, brokers: Sequence[int] | None = None) -> None:
        """Returns when those of these brokers (None: all) are connected."""
        chosen = range(self.values.brokers) if brokers is None else brokers
        connecting = [(s, self.addresses[b]) for b in chosen for s in self.subscribers_of(b)]
        for subscriber, address in connecting:
            subscriber.tell(do="connect", address=address)
        self.fleet.gather([s for s, _ in connecting], "ready", _in_a_while())

    @contextmanager
    def monitored(self) -> Iterator[None]:
        """The rings' counters can be seen until the end of the block."""
        with self._segments:
            for ring in self.rings:
                self.monitor(ring)
            yield

    def monitor(self, ring: RingName) -> _core.Monitor:
        """Another ring's counters, from now on."""
        segment = Segment.attach(ring, prefault=False)
        self._segments.callback(segment.close)
        self.monitors.append(segment.monitor())
        return self.monitors[-1]


@contextmanager
def started(
    values: RunConfig, geometry: Geometry, rings: list[RingName], fleet: Fleet
) -> Iterator[Crew]:
    """Starts all processes at once; everybody is connected to his broker when the block begins.

    Subscribers that read afterwards are not connected yet.
    """
    brokers = [
        fleet.start(f"broker {ring.broker}", specs.broker(values, ring, geometry)) for ring in rings
    ]
    publishers, subscribers = [], []
    with ExitStack() as given:
        for broker in range(values.brokers):
            shape = _copy_and_read(values)
            shared = given.enter_context(CopyAndReadSide.memory(shape)) if shape else None
            fds = [shared["fd"]] if shared else []
            for n, spec in enumerate(specs.publishers(values, broker, geometry)):
                label = f"publisher {n} of broker {broker}"
                publishers.append(fleet.start(label, {**spec, "copy_and_read": shared}, fds))
            for spec in specs.subscribers(values, broker):
                name: str = spec["name"]
                subscribers.append(fleet.start(name, {**spec, "copy_and_read": shared}, fds))
        # The processes have the memory; our own descriptors are not needed any more.
    ready = _in_a_while()
    listening = fleet.gather(brokers, "listening", ready)
    addresses = values.addresses or [answer["address"] for answer in listening]
    crew = Crew(values, geometry, rings, fleet, brokers, publishers, subscribers, addresses)
    for n, publisher in enumerate(publishers):
        address = addresses[n // values.publishers_per_broker]
        publisher.tell(do="connect", address=address, first=1)
    if not SCENARIOS[values.scenario].reads_afterwards:
        crew.connect_subscribers()
    fleet.gather(publishers, "ready", ready)
    with crew.monitored():
        yield crew


def reads_along(values: RunConfig) -> bool:
    """Do subscribers read every byte while others are published, and is that what is measured?"""
    scenario = SCENARIOS[values.scenario]
    return (
        scenario.counts_end_to_end
        and not scenario.reads_afterwards
        and values.subscribe_mode == "reliable"
        and consumed(values) != "nothing"
    )


def _copy_and_read(values: RunConfig) -> CopyAndReadShape | None:
    """One broker's part of the ceiling; None: it is not measured."""
    if not (values.ceiling and reads_along(values)):
        return None
    return {
        "fd": -1,
        "writers": values.publishers_per_broker,
        "places": min(values.in_flight, values.slots),
        "readers": values.effective_subscribers_per_broker,
        "batch_bytes": values.batch_size // values.message_size * values.message_size,
        "wait": values.wait,
        "spin_us": float(values.spin_us),
    }


def _in_a_while() -> Callable[[], float]:
    by = time.monotonic() + _START_TIMEOUT
    return lambda: by
