"""Ending a process that is alive, holds what others wait for, and does not get on.

Nothing is ever taken from a process that lives: it may be in the middle of a copy. So it is ended,
and the kernel's word awaited that it is gone (its lock is free); the broker then reaps its row, as
it does for whoever dies. In this order:

1. the process is found by the lock of its row (`holders`), not by a pid in shared memory;
2. a pidfd keeps it: no other process can get its pid, as far as signals are concerned;
3. that it holds the lock is looked at again: whoever it is by now, it is the right one;
4. SIGTERM, and after the grace SIGKILL; then its lock, then its row.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from embar_shm import _core
from embar_shm.errors import MisuseError, PeerError, ResourceError, WaitTimeout
from embar_shm.inspection.holders import Holder, holder, holders
from embar_shm.inspection.ring import RingView, view
from embar_shm.inspection.segments import OpenSegment
from embar_shm.inspection.text import printable

__all__ = ["Evicted", "Plan", "evict", "plan"]

_KILL_TIME: Final = 10.0  # seconds from SIGKILL to the end: the kernel frees its memory first
_LOCK_TIME: Final = 5.0  # seconds from its end to the end of its locks
_REAP_TIME: Final = 5.0  # seconds a broker may take to reap; it looks around every 100 ms at least
_POLL: Final = 0.005


@dataclass(frozen=True, slots=True)
class Plan:
    """Who would be ended, and what goes with it. For the user to agree to."""

    ring: str
    participant: str  # "publisher 3"
    pid: int
    command: str
    rows: tuple[str, ...]  # all that the process is in this ring
    other_segments: tuple[str, ...]  # that it has open, too
    slots: tuple[int, ...]  # owned by its publishers
    batches_held_back: int  # that no one can release because of its subscribers
    stopped: bool  # it stands still: only SIGKILL reaches it


@dataclass(frozen=True, slots=True)
class Evicted:
    """What became of it."""

    ring: str
    participant: str
    pid: int
    rows: tuple[str, ...]
    signals: tuple[str, ...]  # "SIGTERM", "SIGKILL"
    seconds: float  # from the first signal to the end of its lock
    broker_alive: bool
    reaped: bool  # its rows are free
    slots_returned: tuple[int, ...]
    slots_in_log: tuple[int, ...]  # with batches that it had committed: theirs until they are read
    batches_held_back: int  # that were, by its subscribers

    def as_json(self) -> dict[str, Any]:
        """The fields, by their names."""
        return asdict(self)


def plan(segment: OpenSegment, participant: str) -> Plan:
    """Finds the process of "publisher 3", "subscriber 0", "broker", a pid, or a subscriber's name.

    Raises `ResourceError` when there is no such participant, or its process cannot be seen from
    here, `PeerError` when it is dead already, `MisuseError` when it is not to be evicted.
    """
    ring = view(segment.words(), segment.fd)
    title = _title(ring, segment, participant.strip())
    found = _holder_of(segment, ring, title)
    rows = found.rows
    return Plan(
        ring=str(segment.file.ring),
        participant=title,
        pid=found.pid,
        command=found.command,
        rows=tuple(rows),
        other_segments=tuple(file.title for file in found.other_files(segment)),
        slots=tuple(slot for slot, _ in _slots_of(segment, rows)),
        batches_held_back=_held_back(ring, rows),
        stopped=found.is_stopped,
    )


def evict(segment: OpenSegment, agreed: Plan, grace: float) -> Evicted:
    """Ends the process, waits for the kernel's word, and for the broker to reap its rows.

    Blocks for `grace` seconds after SIGTERM, and a few more after SIGKILL. Raises `PeerError` when
    it is another process by now, `ResourceError` when it may not be signalled, `WaitTimeout` when
    it does not end.
    """
    before = _slots_of(segment, agreed.rows)
    occupants = _occupants(segment, agreed.rows)
    try:
        pidfd = os.pidfd_open(agreed.pid)
    except ProcessLookupError:
        raise PeerError(f"process {agreed.pid} has just ended by itself") from None
    try:
        found = holder(agreed.pid, segment)
        if found is None or tuple(found.rows) != agreed.rows:
            raise PeerError(
                f"process {agreed.pid} no longer is what it was: {', '.join(agreed.rows)} of "
                f"{agreed.ring}",
                f"look again: embar-shm ls {agreed.ring}",
            )
        begin = time.monotonic()
        signals = _end(pidfd, agreed, 0.0 if found.is_stopped else grace)
        _await_locks(segment, agreed, occupants)
        seconds = time.monotonic() - begin
    finally:
        os.close(pidfd)
    # The rows of a broker's process are of participants that come back: the next broker keeps them.
    reaped = (
        "broker" not in agreed.rows
        and segment.broker_is_alive
        and _waited(lambda: not occupants & _occupants(segment, agreed.rows), _REAP_TIME)
    )
    after = {slot: (owner, generation) for slot, owner, generation in _slot_words(segment)}
    return Evicted(
        ring=agreed.ring,
        participant=agreed.participant,
        pid=agreed.pid,
        rows=agreed.rows,
        signals=tuple(signals),
        seconds=seconds,
        broker_alive=segment.broker_is_alive,
        reaped=reaped,
        slots_returned=tuple(s for s, generation in before if after[s][1] != generation),
        slots_in_log=tuple(
            s for s, generation in before if after[s] == (_core.LOG_OWNER, generation)
        ),
        batches_held_back=agreed.batches_held_back,
    )


def _title(ring: RingView, segment: OpenSegment, text: str) -> str:
    """Which row a user means."""
    rows = [
        "broker",
        *(f"publisher {row.index}" for row in ring.publishers),
        *(f"subscriber {row.index}" for row in ring.subscribers),
    ]
    if text in rows:
        return text
    if text.isascii() and text.isdigit():
        found = holder(int(text), segment)
        if found is not None:
            return found.rows[0]
        told = [
            f"{kind} {row.index}"
            for kind, table in (("publisher", ring.publishers), ("subscriber", ring.subscribers))
            for row in table
            if row.pid == int(text)
        ]
        also = f" ({', '.join(told)} had that pid)" if told else ""
        raise ResourceError(
            f"no process {text} that this process may look at holds a lock of {segment.file.title}"
            f"{also}",
            _who_is_there(ring),
        )
    named = [f"subscriber {row.index}" for row in ring.subscribers if row.name == text]
    if len(named) == 1:
        return named[0]
    if named:
        raise ResourceError(
            f"{printable(text)!r} is the name of {', '.join(named)} of {segment.file.title}",
            "say which: 'subscriber N'",
        )
    raise ResourceError(
        f"nobody in {segment.file.title} is {printable(text)!r}", _who_is_there(ring)
    )


def _who_is_there(ring: RingView) -> str:
    broker = [f"broker (pid {ring.broker.pid})"] if ring.broker.alive else []
    return f"alive in it: {', '.join([*broker, *ring.living]) or 'nobody'}"


def _holder_of(segment: OpenSegment, ring: RingView, title: str) -> Holder:
    byte = _byte(title)
    if not _core.is_locked(segment.fd, byte):
        if title == "broker":
            raise PeerError(
                f"the broker of {segment.file.title} is dead already: nothing to evict",
                "start it again: it takes over what is in the ring",
            )
        raise PeerError(
            f"{title} of {segment.file.title} is dead already: nothing to evict",
            "the broker frees what it held by itself"
            if ring.broker.alive
            else "there is no broker; the next one frees what it held",
        )
    found = next((one for one in holders(segment) if one.holds(byte)), None)
    if found is None:
        raise ResourceError(
            f"{title} of {segment.file.title} is alive, but its process cannot be seen from here",
            "it is another user's, or in another container: try it as root, on the host",
        )
    if found.is_broker and title != "broker":
        raise MisuseError(
            f"{title} of {segment.file.title} lives in the broker's own process (pid {found.pid}): "
            "it comes over a network, or is the broker's own; ending it would end the broker",
            "end the program at the other end of the connection",
        )
    return found


def _end(pidfd: int, agreed: Plan, grace: float) -> list[str]:
    """SIGTERM, and SIGKILL after the grace; returns when the process has ended.

    A broker is killed at once, and the next one goes on with its ring: told to end, it would
    unlink it.
    """
    sent: list[str] = []
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)  # readable from its end on
    ways = ((signal.SIGTERM, grace), (signal.SIGKILL, _KILL_TIME))
    for number, patience in ways[1:] if "broker" in agreed.rows else ways:
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return sent
        except PermissionError:
            raise ResourceError(
                f"process {agreed.pid} ({agreed.participant} of {agreed.ring}) may not be ended by "
                f"user id {os.geteuid()}",
                "try it as its user, or as root",
            ) from None
        sent.append(number.name)
        if poll.poll(patience * 1000):
            return sent
    raise WaitTimeout(
        f"process {agreed.pid} did not end within {_KILL_TIME:g} s after SIGKILL",
        "it is in a call of the kernel that cannot be interrupted; nothing was freed",
    )


def _await_locks(segment: OpenSegment, agreed: Plan, occupants: set[tuple[str, int]]) -> None:
    still: list[str] = []

    def dropped() -> bool:
        # A row that was reaped can be taken, and locked, by another participant already.
        same = {row for row, _ in occupants & _occupants(segment, agreed.rows)}
        still[:] = [row for row in same if _core.is_locked(segment.fd, _byte(row))]
        return not still

    if _waited(dropped, _LOCK_TIME):
        return
    heirs = [one.pid for one in holders(segment) if any(one.holds(_byte(row)) for row in still)]
    raise PeerError(
        f"process {agreed.pid} has ended, but the lock of {', '.join(still)} of {agreed.ring} is "
        f"held by process {', '.join(map(str, heirs)) or 'one that cannot be seen from here'}",
        "it inherited the open file, as a child of that process: evict it, too",
    )


def _slot_words(segment: OpenSegment) -> list[tuple[int, int, int]]:
    monitor = segment.words().monitor()
    return [(slot, owner, generation) for slot, owner, generation, _ in monitor.slots()]


def _slots_of(segment: OpenSegment, rows: Iterable[str]) -> list[tuple[int, int]]:
    """(slot, generation) of what these rows own."""
    owners = {int(row.split()[1]) for row in rows if row.startswith("publisher ")}
    return [(s, generation) for s, owner, generation in _slot_words(segment) if owner in owners]


def _held_back(ring: RingView, rows: list[str]) -> int:
    return max(
        (row.holding for row in ring.subscribers if f"subscriber {row.index}" in rows), default=0
    )


def _occupants(segment: OpenSegment, rows: tuple[str, ...]) -> set[tuple[str, int]]:
    """Who has these rows: each with when it took it. A broker is known by its epoch."""
    monitor = segment.words().monitor()
    found = set()
    for row in rows:
        kind, _, index = row.partition(" ")
        if kind == "broker":
            found.add((row, monitor.control()["epoch"]))
            continue
        words = (monitor.publisher if kind == "publisher" else monitor.subscriber)(int(index))
        if words["state"] != "free":
            found.add((row, words["attached_ns"]))
    return found


def _byte(row: str) -> int:
    kind, _, index = row.partition(" ")
    if kind == "broker":
        return _core.BROKER_LOCK
    lock_of = _core.publisher_lock if kind == "publisher" else _core.subscriber_lock
    return lock_of(int(index))


def _waited(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True
