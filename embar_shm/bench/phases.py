"""The measured part of a run: its phases, in rounds where the log must hold what is read later.

The clock of a phase runs from the moment the coordinator opens the barrier to the moment the last
of its processes has done its part. Publishers have done it with their last acknowledgement (ack 0:
their last commit), subscribers with their last batch. All processes of a machine share the clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from embar_shm.bench import specs
from embar_shm.bench.crew import Crew
from embar_shm.bench.fleet import Worker
from embar_shm.bench.scenarios import SCENARIOS, Role, batch_messages, round_batches
from embar_shm.bench.usage import MachineTime, machine_now, machine_since, total
from embar_shm.bench.watch import Watch, counters
from embar_shm.config.schema import RunConfig
from embar_shm.errors import RunFailed

__all__ = ["Measured", "begin", "end", "work"]

_POLL = 0.001  # seconds between two looks at a counter at the end of a run with ack 0


@dataclass
class Measured:
    """What the measured part of a run gave. Times of all rounds are added up."""

    machine_before: MachineTime | None
    publish_seconds: float = 0.0  # from the barrier to the last acknowledgement
    read_seconds: float = 0.0  # of phases with subscribers: from the barrier to the last batch
    seconds: float = 0.0  # of all phases: to their last batch read, or else acknowledged
    rounds: int = 0
    machine: MachineTime | None = None  # CPU time of all programs of the machine meanwhile
    published: list[dict[str, Any]] = field(default_factory=list)  # what each publisher said last
    read: list[dict[str, Any]] = field(default_factory=list)  # what each subscriber said last
    brokers: list[dict[str, Any]] = field(default_factory=list)  # what each broker said

    @property
    def system(self) -> dict[str, Any]:
        """By role its usage, and what is known of the machine."""
        said = {"broker": self.brokers, "publisher": self.published, "subscriber": self.read}
        found: dict[str, Any] = {
            role: total([s["usage"] for s in of_role]) for role, of_role in said.items() if of_role
        }
        if self.machine is not None:
            found["machine"] = self.machine
        return found

    def of_publishers(self, field_name: str) -> list[Any]:
        """Of each connection that a publisher had."""
        return [c[field_name] for p in self.published for c in p["connections"]]

    def of_brokers(self, field_name: str) -> list[Any]:
        return [b[field_name] for b in self.brokers]

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


def work(crew: Crew, watch: Watch) -> Measured:
    """Does the scenario's phases. Everything committed is accepted when it returns."""
    measured = begin(crew)
    scenario = SCENARIOS[crew.values.scenario]
    done = 0
    for share in _rounds(crew.values):
        done += sum(share)
        measured.rounds += 1
        for phase in scenario.phases:
            _phase(crew, watch, phase, share, done, measured)
    end(crew, watch, measured)
    return measured


def begin(crew: Crew) -> Measured:
    """What was used before does not count."""
    for broker in crew.brokers:
        broker.tell(do="mark")
    return Measured(machine_now())


def end(crew: Crew, watch: Watch, measured: Measured) -> None:
    """Asks the brokers what they used."""
    measured.machine = machine_since(measured.machine_before)
    if not crew.brokers:  # what they have is known when they have answered the goodbye
        for publisher in crew.publishers:
            publisher.tell(do="close")
        crew.fleet.gather(crew.publishers, "closed", watch.deadline)
    for broker in crew.brokers:
        broker.tell(do="usage")
    measured.brokers = crew.fleet.gather(crew.brokers, "usage", watch.deadline)


def _rounds(values: RunConfig) -> Iterator[list[int]]:
    """How many messages each publisher sends in each round."""
    left = specs.shares(values)
    afterwards = SCENARIOS[values.scenario].reads_afterwards
    most = round_batches(values) * batch_messages(values) if afterwards else max(left)
    while any(left):
        share = [min(messages, most) for messages in left]
        left = [messages - now for messages, now in zip(left, share, strict=True)]
        yield share


def _phase(
    crew: Crew,
    watch: Watch,
    roles: Sequence[Role],
    share: list[int],
    done: int,
    measured: Measured,
) -> None:
    """One phase of one round; `done`: messages published at its end, from the beginning."""
    reads = "subscriber" in roles and bool(crew.subscribers)
    publishes = "publisher" in roles
    if reads and not publishes and measured.rounds == 1:
        crew.connect_subscribers()
    watch.begin("publish" if publishes else "read")
    readers = crew.subscribers if reads else []
    if reads and publishes:
        _tell_readers(crew, share, None)
    start_ns = time.monotonic_ns()
    if reads and not publishes:
        _tell_readers(crew, share, [_end_of_log(crew, b) for b in range(crew.values.brokers)])
    writers = crew.publishers if publishes else []
    for publisher, messages in zip(writers, share, strict=False):
        publisher.tell(do="publish", messages=messages)
    if crew.values.subscribe_mode == "lossy" and publishes:
        ended = _ended(crew, watch, writers)
        _await_accepted(crew, watch, done)
        for broker in range(crew.values.brokers):
            for reader in crew.subscribers_of(broker) if reads else []:
                reader.tell(do="until", ticket=_end_of_log(crew, broker))
        ended += _ended(crew, watch, readers)
    else:
        ended = _ended(crew, watch, [*writers, *readers])
        _await_accepted(crew, watch, done)
    published, read = ended[: len(writers)], ended[len(writers) :]
    if publishes:
        measured.published = published
        measured.publish_seconds += _seconds(start_ns, published)
    if reads:
        measured.read = read
        measured.read_seconds += _seconds(start_ns, read)
    measured.seconds += _seconds(start_ns, read or published)  # who reads has it last


def _tell_readers(crew: Crew, share: list[int], ends: Sequence[int] | None) -> None:
    each = crew.values.publishers_per_broker
    for broker in range(crew.values.brokers):
        messages = sum(share[broker * each :][:each])
        for reader in crew.subscribers_of(broker):
            if crew.values.subscribe_mode == "lossy":
                reader.tell(do="read-to", ticket=ends[broker] if ends else None)
            else:
                reader.tell(do="read", messages=messages)


def _ended(crew: Crew, watch: Watch, workers: list[Worker]) -> list[dict[str, Any]]:
    return crew.fleet.gather(workers, "ended", watch.deadline, watch.tick)


def _seconds(start_ns: int, ended: list[dict[str, Any]]) -> float:
    return float(max(e["end_ns"] for e in ended) - start_ns) / 1e9


def _end_of_log(crew: Crew, broker: int) -> int:
    """The ticket that the next batch will have; meaningful when nobody publishes."""
    return int(crew.monitors[broker].control()["head"])


def _await_accepted(crew: Crew, watch: Watch, messages: int) -> None:
    """With ack 0 the last batches may still be on their way to the broker.

    Over a network they are in nobody's ring then: only their number tells that all have come.
    """
    while crew.monitors:
        now = counters(crew.monitors)
        refused = now["duplicated"] + now["out_of_order"] + now["corrupt"]
        if now["head"] == now["tail"] and (refused or now["messages"] >= messages):
            return
        watch.tick()
        if time.monotonic() >= watch.deadline():
            raise RunFailed(
                f"the brokers have accepted {now['messages']} of {messages} messages, and nothing "
                "more comes"
            )
        time.sleep(_POLL)
