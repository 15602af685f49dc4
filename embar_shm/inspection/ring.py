"""Who takes part in a ring, what is in its log, and who holds which slot.

Whoever holds the lock of its row is alive; a pid is only what the participant said of itself, in
its own PID namespace, and serves to find it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from embar_shm import _core
from embar_shm.inspection.copies import Words

__all__ = [
    "BROKER_STATES",
    "BrokerView",
    "HeldSlot",
    "LogView",
    "PublisherView",
    "RingView",
    "SubscriberView",
    "view",
]

BROKER_STATES: Final = ("starting", "serving", "stopping", "stopped", "quarantined")
"""By the number in the broker's words (layout.hpp, BrokerState)."""

Use: TypeAlias = Literal["filling", "committed", "in the log", "unknown"]

_GENERATION_MASK: Final = (1 << 18) - 1  # of a slot's generation, a ticket entry has 18 bits


@dataclass(frozen=True, slots=True)
class BrokerView:
    """The broker, or what is known of the last one."""

    alive: bool  # it holds its lock
    pid: int
    state: str  # what it wrote last
    epoch: int  # brokers that this segment has had


@dataclass(frozen=True, slots=True)
class PublisherView:
    """A row of the publishers table that is not free."""

    index: int
    pid: int  # of the broker's process, if it is remote
    alive: bool
    remote: bool  # it comes over a network
    state: str  # "active", "closed": left in order, the broker has not looked yet
    attached_seconds: float
    committed_batches: int
    accepted_batches: int
    in_flight: int  # batches committed that some subscriber has not passed
    quota: int  # the most it may have in flight
    slots: int  # that it owns now


@dataclass(frozen=True, slots=True)
class SubscriberView:
    """A row of the subscribers table that is not free."""

    index: int
    name: str
    pid: int
    alive: bool
    remote: bool
    state: str  # "active", "joining", "refused", "closed"
    mode: str  # "reliable", "lossy"
    attached_seconds: float
    lag: int  # batches in the log that it has not read
    holding: int  # batches that cannot be released because of it; lossy: 0
    stalled_seconds: float  # for how long it has not passed the oldest of them
    read_batches: int
    lost_batches: int  # overwritten before it read them; lossy only


@dataclass(frozen=True, slots=True)
class HeldSlot:
    """A slot that is not free."""

    slot: int
    owner: str  # "publisher 3", "the log": its publisher is gone
    publisher: int | None
    held_seconds: float
    use: Use  # "filling": no ticket refers to it; "committed": the broker has not accepted it
    ticket: int | None


@dataclass(frozen=True, slots=True)
class LogView:
    """What is committed and not released."""

    released: int  # tickets released so far
    accepted: int  # tickets accepted so far
    readable: int  # batches accepted, and in the ring still
    unread: int  # of them, that a subscriber holds back, or nobody is known to have read
    unaccepted: int  # batches committed that the broker has not accepted


@dataclass(frozen=True, slots=True)
class RingView:
    """All of it. Ages and counts are of one moment, give or take some microseconds."""

    broker: BrokerView
    log: LogView
    slots: int
    slot_bytes: int
    publishers: tuple[PublisherView, ...]
    subscribers: tuple[SubscriberView, ...]
    held: tuple[HeldSlot, ...]

    @property
    def living(self) -> tuple[str, ...]:
        """Those that hold their locks, without the broker: "publisher 3 (pid 42)"."""
        return tuple(
            f"{kind} {row.index} (pid {row.pid})"
            for kind, rows in (("publisher", self.publishers), ("subscriber", self.subscribers))
            for row in rows
            if row.alive
        )


def view(words: Words, fd: int) -> RingView:
    """Interprets a copy. `fd`: the open segment, whose locks are looked at and not taken."""
    monitor = words.monitor()
    now = time.monotonic_ns()
    control = monitor.control()
    tickets = monitor.log()
    held = tuple(_held(words, monitor, tickets, control["head"]))
    publishers = tuple(_publishers(monitor, fd, now, held))
    subscribers = tuple(_subscribers(monitor, fd, now, control["head"]))
    return RingView(
        broker=BrokerView(
            alive=_core.is_locked(fd, _core.BROKER_LOCK),
            pid=control["broker_pid"],
            state=_broker_state(control["state"]),
            epoch=control["epoch"],
        ),
        log=_log(control, tickets, subscribers, monitor),
        slots=words.geometry.slots,
        slot_bytes=words.geometry.slot_bytes,
        publishers=publishers,
        subscribers=subscribers,
        held=held,
    )


def _broker_state(number: int) -> str:
    return BROKER_STATES[number] if number < len(BROKER_STATES) else f"{number}, which is none"


def _publishers(
    monitor: _core.Monitor, fd: int, now: int, held: tuple[HeldSlot, ...]
) -> Iterator[PublisherView]:
    for index in range(monitor.max_publishers):
        row = monitor.publisher(index)
        if row["state"] == "free":
            continue
        yield PublisherView(
            index=index,
            pid=row["pid"],
            alive=_core.is_locked(fd, _core.publisher_lock(index)),
            remote=bool(row["remote"]),
            state=row["state"],
            attached_seconds=_since(row["attached_ns"], now),
            committed_batches=row["committed_seq"],
            accepted_batches=row["accepted_seq"],
            in_flight=max(0, row["committed_seq"] - row["released_batches"]),
            quota=row["quota"],
            slots=sum(slot.publisher == index for slot in held),
        )


def _subscribers(monitor: _core.Monitor, fd: int, now: int, head: int) -> Iterator[SubscriberView]:
    for index in range(monitor.max_subscribers):
        row = monitor.subscriber(index)
        if row["state"] == "free":
            continue
        reads = row["state"] == "active"
        gate = reads and row["mode"] == "reliable"
        yield SubscriberView(
            index=index,
            name=row["name"],
            pid=row["pid"],
            alive=_core.is_locked(fd, _core.subscriber_lock(index)),
            remote=bool(row["remote_id"] or row["remote_incarnation"]),
            state=row["state"],
            mode=row["mode"],
            attached_seconds=_since(row["attached_ns"], now),
            lag=max(0, head - row["next"]) if reads else 0,
            holding=max(0, head - row["cursor"]) if gate else 0,
            stalled_seconds=row["stalled_ns"] / 1e9 if gate else 0.0,
            read_batches=row["batches"],
            lost_batches=row["lost"],
        )


def _held(
    words: Words,
    monitor: _core.Monitor,
    tickets: list[tuple[int, int, int, bool]],
    head: int,
) -> Iterator[HeldSlot]:
    ticket_of = {(slot, generation): ticket for ticket, slot, generation, _ in tickets}
    for slot, owner, generation, held_ns in monitor.slots():
        if owner < 0:
            continue
        ticket = ticket_of.get((slot, generation & _GENERATION_MASK))
        row = owner if owner < words.geometry.max_publishers else None
        use: Use = "in the log"
        if ticket is None:
            use = "filling" if row is not None else "unknown"
        elif ticket >= head:
            use = "committed"
        yield HeldSlot(slot, _owner(owner, row), row, held_ns / 1e9, use, ticket)


def _owner(owner: int, row: int | None) -> str:
    if row is not None:
        return f"publisher {row}"
    return "the log" if owner == _core.LOG_OWNER else f"owner {owner}, which does not exist"


def _log(
    control: dict[str, int],
    tickets: list[tuple[int, int, int, bool]],
    subscribers: tuple[SubscriberView, ...],
    monitor: _core.Monitor,
) -> LogView:
    head = control["head"]
    places: dict[str, list[int]] = {"reliable": [], "lossy": []}
    for reader in subscribers:
        if reader.state == "active":
            row = monitor.subscriber(reader.index)
            place = row["cursor" if reader.mode == "reliable" else "next"]
            places[reader.mode].append(place)
    # What every reliable subscriber has passed is read. Without one, what some lossy one has; and
    # without any, nothing: who read it may have left, but nobody can know.
    passed = min(places["reliable"], default=max(places["lossy"], default=control["released"]))
    readable = [ticket for ticket, _, _, refused in tickets if ticket < head and not refused]
    return LogView(
        released=control["released"],
        accepted=head,
        readable=len(readable),
        unread=sum(ticket >= passed for ticket in readable),
        unaccepted=sum(ticket >= head for ticket, *_ in tickets),
    )


def _since(then: int, now: int) -> float:
    return max(0, now - then) / 1e9
