"""What rings do per second: their counters, looked at twice.

Costs nobody anything: the counters are there in any case, and are read from a copy (`copies`)
without locks, and without touching a slot.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

from embar_shm import _core
from embar_shm.errors import IncompatibleSegment, ResourceError
from embar_shm.inspection.files import SegmentFile, segment_files
from embar_shm.inspection.ring import BROKER_STATES, view
from embar_shm.inspection.segments import OpenSegment, opened

__all__ = ["Activity", "ParticipantRates", "RingRates", "SlowReader", "activity", "sample"]

Kind: TypeAlias = Literal["publisher", "subscriber"]

_REFUSED: Final = ("duplicated", "out_of_order", "corrupt")


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters of one ring at one moment."""

    name: str
    at: float  # time.monotonic()
    identity: tuple[int, int]  # another log, or another broker, counts anew
    control: Mapping[str, int]
    rows: Mapping[tuple[Kind, int], Mapping[str, Any]]
    alive: Mapping[tuple[Kind, int], bool]
    broker_alive: bool
    held: int
    slots: int


@dataclass(frozen=True, slots=True)
class ParticipantRates:
    """What a publisher or subscriber does. Rates are null until it was seen twice."""

    kind: Kind
    index: int
    name: str  # of a subscriber
    pid: int
    alive: bool
    remote: bool
    batches_per_second: float | None  # committed, or read
    messages_per_second: float | None
    bytes_per_second: float | None
    waits_per_second: float | None  # of a publisher for a slot, of a subscriber for a batch
    lost_per_second: float | None  # batches that were overwritten; lossy subscribers only
    in_flight: int  # batches of a publisher that some subscriber has not passed
    lag: int  # batches that a subscriber has not read
    holding: int  # batches that cannot be released because of it
    missed_wakeups: int  # since it connected: must stay 0


@dataclass(frozen=True, slots=True)
class SlowReader:
    """The subscriber that is furthest behind."""

    index: int
    name: str
    pid: int
    lag: int
    holding: int
    stalled_seconds: float


@dataclass(frozen=True, slots=True)
class RingRates:
    """What a ring does. Rates are null until it was seen twice."""

    name: str
    broker_alive: bool
    broker_pid: int
    state: str  # the broker's last word
    batches_per_second: float | None  # accepted
    messages_per_second: float | None
    bytes_per_second: float | None  # of messages
    refused_per_second: float | None  # batches not accepted
    lost_per_second: float | None  # batches, summed over lossy subscribers
    waits_per_second: float | None  # of publishers for a slot
    sleeps_per_second: float | None  # of the broker
    wakes_per_second: float | None  # sent by the broker
    slots: int
    slots_held: int
    unaccepted: int  # batches committed, as far as `tail` tells
    slowest_subscriber: SlowReader | None
    missed_wakeups: int  # of all, since they began: must stay 0
    participants: tuple[ParticipantRates, ...]


@dataclass(frozen=True, slots=True)
class Activity:
    """All rings between two looks."""

    time_unix: float
    interval_seconds: float | None  # null: the first look
    rings: tuple[RingRates, ...]

    def as_json(self) -> dict[str, Any]:
        """The fields, by their names."""
        return asdict(self)


def sample(chosen: Sequence[SegmentFile] | None = None) -> list[Sample]:
    """Looks at these rings, or all, as far as they are rings that this process may read."""
    found = []
    for file in segment_files() if chosen is None else chosen:
        if file.ring is None:
            continue
        try:
            with opened(file) as segment:
                found.append(_sample(segment))
        except (FileNotFoundError, ResourceError, IncompatibleSegment):
            continue  # gone, another user's, or no ring: `ls` tells
    return found


def activity(before: Sequence[Sample], after: Sequence[Sample]) -> Activity:
    """What was done between two looks; `before` may be empty."""
    known = {one.name: one for one in before}
    rings = tuple(_rates(known.get(one.name), one) for one in after)
    moments = [one.at - known[one.name].at for one in after if one.name in known]
    return Activity(time.time(), max(moments, default=None), rings)


def _sample(segment: OpenSegment) -> Sample:
    words = segment.words()
    at = time.monotonic()
    monitor = words.monitor()
    control = monitor.control()
    seen = view(words, segment.fd)
    rows: dict[tuple[Kind, int], dict[str, Any]] = {}
    for p in seen.publishers:
        rows["publisher", p.index] = {**monitor.publisher(p.index), "in_flight": p.in_flight}
    for s in seen.subscribers:
        row = monitor.subscriber(s.index)
        rows["subscriber", s.index] = {**row, "lag": s.lag, "holding": s.holding}
    alive: dict[tuple[Kind, int], bool] = {("publisher", p.index): p.alive for p in seen.publishers}
    alive |= {("subscriber", s.index): s.alive for s in seen.subscribers}
    return Sample(
        name=str(segment.file.ring),
        at=at,
        identity=(_core.read_header(words.memory)["created_unix_ns"], control["epoch"]),
        control=control,
        rows=rows,
        alive=alive,
        broker_alive=seen.broker.alive,
        held=len(seen.held),
        slots=seen.slots,
    )


class _Rate:
    """Counts per second of one thing between two looks; None where there is no look before."""

    def __init__(
        self, before: Mapping[str, Any] | None, after: Mapping[str, Any], seconds: float
    ) -> None:
        self._before, self._after, self._seconds = before, after, seconds

    def of(self, *counters: str) -> float | None:
        if self._before is None or self._seconds <= 0:
            return None
        counted: int = sum(self._after[name] - self._before[name] for name in counters)
        return max(0, counted) / self._seconds


def _rates(before: Sample | None, after: Sample) -> RingRates:
    if before is not None and before.identity != after.identity:
        before = None
    seconds = after.at - before.at if before is not None else 0.0
    rows = before.rows if before is not None else {}
    control = after.control
    rate = _Rate(before.control if before is not None else None, control, seconds)
    participants = tuple(
        _participant(key, rows.get(key), row, after.alive[key], seconds)
        for key, row in after.rows.items()
    )
    return RingRates(
        name=after.name,
        broker_alive=after.broker_alive,
        broker_pid=control["broker_pid"],
        state=BROKER_STATES[control["state"]] if control["state"] < len(BROKER_STATES) else "?",
        batches_per_second=rate.of("batches"),
        messages_per_second=rate.of("messages"),
        bytes_per_second=rate.of("payload_bytes"),
        refused_per_second=rate.of(*_REFUSED),
        lost_per_second=_total([p.lost_per_second for p in participants], before),
        waits_per_second=_total(
            [p.waits_per_second for p in participants if p.kind == "publisher"], before
        ),
        sleeps_per_second=rate.of("sleeps"),
        wakes_per_second=rate.of("wakes_sent"),
        slots=after.slots,
        slots_held=after.held,
        unaccepted=max(0, control["tail"] - control["head"]),
        slowest_subscriber=_slowest(after),
        missed_wakeups=control["missed_wakeups"] + sum(p.missed_wakeups for p in participants),
        participants=participants,
    )


def _participant(
    key: tuple[Kind, int],
    before: Mapping[str, Any] | None,
    row: Mapping[str, Any],
    alive: bool,
    seconds: float,
) -> ParticipantRates:
    kind, index = key
    if before is not None and before["attached_ns"] != row["attached_ns"]:
        before = None  # somebody else had the row
    rate = _Rate(before, row, seconds)
    publishes = kind == "publisher"
    return ParticipantRates(
        kind=kind,
        index=index,
        name="" if publishes else row["name"],
        pid=row["pid"],
        alive=alive,
        remote=bool(row["remote"] if publishes else row["remote_incarnation"]),
        batches_per_second=rate.of("committed_seq" if publishes else "batches"),
        messages_per_second=rate.of("messages"),
        bytes_per_second=rate.of("payload_bytes"),
        waits_per_second=rate.of("space_waits" if publishes else "waits"),
        lost_per_second=None if publishes else rate.of("lost"),
        in_flight=row["in_flight"] if publishes else 0,
        lag=0 if publishes else row["lag"],
        holding=0 if publishes else row["holding"],
        missed_wakeups=row["missed_wakeups"],
    )


def _total(rates: Sequence[float | None], before: Sample | None) -> float | None:
    return None if before is None else sum(rate for rate in rates if rate is not None)


def _slowest(ring: Sample) -> SlowReader | None:
    readers = [row for (kind, _), row in ring.rows.items() if kind == "subscriber" and row["lag"]]
    if not readers:
        return None
    row = max(readers, key=lambda row: (row["lag"], row["stalled_ns"]))
    return SlowReader(
        index=row["index"],
        name=row["name"],
        pid=row["pid"],
        lag=row["lag"],
        holding=row["holding"],
        stalled_seconds=row["stalled_ns"] / 1e9,
    )
