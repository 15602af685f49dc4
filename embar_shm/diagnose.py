"""Turns what the native core found into an error that says who, what and what to do next.

The core calls these functions (see ``_native/bind_publisher.cpp``) with the publisher it happened
to; they return the exception, the core raises it.
"""

from __future__ import annotations

from typing import Any, Protocol

from embar_shm import _core
from embar_shm.errors import (
    BatchRefused,
    BrokerGone,
    BufferTypeError,
    ClosedError,
    CorruptSegment,
    EmbarError,
    MessageSizeError,
    MisuseError,
    NotEnoughSpace,
    WaitTimeout,
)
from embar_shm.layout import Geometry
from embar_shm.quarantine import quarantined
from embar_shm.readers import describe_slow
from embar_shm.segment import Segment
from embar_shm.transports.base import WouldWait

__all__ = [
    "RingContext",
    "buffer_error",
    "publisher_error",
    "publisher_timeout",
    "table_full",
    "would_wait",
]

_FAULTS = {
    1: "its header is damaged",
    2: "a batch before it is missing",
}
_HOLDERS_SHOWN = 8


class RingContext(Protocol):
    """The ring a publisher fills, or a subscriber reads: a `Segment`, or a `PrivateRing`."""

    @property
    def name(self) -> object:
        """What errors call it."""

    @property
    def geometry(self) -> Geometry:
        """Its sizes."""

    @property
    def advice(self) -> str:
        """What to look at when the broker, though not known to be gone, does not get on."""

    def monitor(self) -> _core.Monitor:
        """A look at its counters."""

    def describe_broker(self) -> str:
        """Who is waited for."""

    def explain_end(self) -> EmbarError | None:
        """Why nothing will be acknowledged any more, for the user; None: the broker has stopped."""


def publisher_error(core: Any, status: str, size: int) -> EmbarError:
    """The error for a status of the core, a PublisherCore or ReceiverCore.

    `size` is the size of the message it is about; for a broker that is gone, the number of messages
    that could not be committed any more. (The core's lock may be held: ask it for nothing.)
    """
    ring: RingContext = core.context
    name = ring.name
    match status:
        case "empty":
            return MessageSizeError(
                "a message must have at least one byte", "leave empty messages out"
            )
        case "too_large":
            framing = "" if core.message_size else f" (with {_core.FRAME_HEADER_BYTES} of framing)"
            return MessageSizeError(
                f"a message of {size} bytes{framing} does not fit into a batch of "
                f"{core.batch_bytes} bytes on {name}",
                "split it, or start the broker with a larger slot_size and connect with a larger "
                "batch_size",
            )
        case "wrong_size":
            return MessageSizeError(
                f"this publisher on {name} was connected with message_size={core.message_size}, "
                f"and got {size} bytes",
                "connect without message_size for messages of any size",
            )
        case "closed":
            return ClosedError(f"the publisher on {name} is closed", "connect a new one")
        case "forked":
            return ClosedError(
                f"the publisher on {name} belongs to the parent of this process",
                "connect a publisher of its own in each process, after the fork",
            )
        case "reserved":
            return MisuseError(
                f"a reservation on {name} is open",
                "leave its 'with' block before publishing, flushing or reserving again",
            )
        case "in_use":
            return MisuseError(
                f"a signal handler uses the publisher on {name} in the middle of another call",
                "set a flag in the handler, and act on it outside",
            )
        case "not_reserved":
            return MisuseError(f"this reservation on {name} has ended already")
        case "broker_stopped":
            if (why := ring.explain_end()) is not None:
                return type(why)(f"{why.message}{_missing(core, size)}", why.hint)
            return BrokerGone(f"the broker {name} has stopped{_missing(core, size)}", _RECONNECT)
        case "broker_gone":
            return BrokerGone(
                f"the broker {name} died (its lock on the ring is free), and no other has taken "
                f"its place{_missing(core, size)}",
                _RECONNECT,
            )
        case "quarantined":
            return quarantined(name, ring.monitor().damage)
        case "faulted":
            row = ring.monitor().publisher(core.index)
            fault = _FAULTS.get(row["fault"], f"fault {row['fault']}")
            return BatchRefused(
                f"the broker {name} refused batch {row['fault_seq']} of this publisher: {fault}",
                "some process wrote into memory that is not its own; connect again",
            )
        case "corrupt":
            return CorruptSegment(
                f"the tickets of the ring {name} make no sense",
                "some process wrote where it must not; stop everything that uses this ring",
            )
    return EmbarError(f"publisher on {name}: unexpected status {status!r}")


def publisher_timeout(core: _core.PublisherCore, what: str, seq: int, waited: float) -> EmbarError:
    """The error for a wait that reached its timeout; names who was waited for."""
    ring: RingContext = core.context
    name = ring.name
    control = ring.monitor().control()
    if what == "lock":
        return WaitTimeout(
            f"another thread has been using the publisher on {name} for {waited:.3g} s",
            "give each thread a publisher of its own",
        )
    if what == "ack":
        return WaitTimeout(
            f"batch {seq} on {name} was not acknowledged within {waited:.3g} s: "
            f"{ring.describe_broker()} has accepted up to {core.accepted_seq} of "
            f"{core.committed_seq} committed",
            ring.advice,
        )
    own = f"{core.in_flight} of {core.quota} allowed in flight"
    if slow := describe_slow(ring.monitor()):
        return WaitTimeout(
            f"no slot of {name} came free within {waited:.3g} s ({own}): {slow}",
            "a reliable subscriber holds back the slots that it has not released: look at the "
            "process named here, or let it subscribe with mode='lossy'",
        )
    return WaitTimeout(
        f"no slot of {name} came free within {waited:.3g} s ({own}; {_holders(ring)}); "
        f"{ring.describe_broker()} has released {control['released']} of "
        f"{max(control['tail'], control['head'])} batches",
        "look at the processes named here; more slots or a larger in_flight help only if they "
        "are alive and busy",
    )


def would_wait(what: str) -> EmbarError:
    """The error of a call that must not wait, and would have to."""
    return WouldWait(what)


def buffer_error(value: object, expected: str) -> EmbarError:
    """The error for an object that is not the buffer it should be."""
    kind = type(value).__name__
    details = [
        f"{name}={getattr(value, name)}"
        for name in ("shape", "dtype", "strides")
        if hasattr(value, name)
    ]
    found = f"{kind} ({', '.join(details)})" if details else kind
    return BufferTypeError(
        f"expected {expected}; got {found}",
        "numpy.ascontiguousarray() makes an array contiguous; str needs .encode()",
    )


def table_full(segment: Segment) -> EmbarError:
    """The error for a ring whose publishers table has no free row."""
    monitor = segment.monitor()
    rows = [monitor.publisher(i) for i in range(segment.geometry.max_publishers)]
    pids = sorted({row["pid"] for row in rows if row["state"] == "active"})
    if not pids:
        return NotEnoughSpace(
            f"all {len(rows)} places for publishers on {segment.name} are taken by processes that "
            "are connecting or leaving",
            "try again; if it stays like this, look for stopped processes",
        )
    shown = ", ".join(map(str, pids[:_HOLDERS_SHOWN])) + (", ..." if len(pids) > 8 else "")
    leaving = sum(row["state"] == "closed" for row in rows)
    also = f" ({leaving} of them left, and the broker has not noticed)" if leaving else ""
    return NotEnoughSpace(
        f"all {len(rows)} places for publishers on {segment.name} are taken{also}, by pids {shown}",
        "close publishers, or start the broker with a larger max_publishers",
    )


_RECONNECT = "connect to a new broker and publish again what was not acknowledged"


def _missing(core: Any, uncommitted: int) -> str:
    unacked = core.committed_seq - core.accepted_seq
    told = f"; {unacked} committed batches were not acknowledged" if unacked > 0 else ""
    return f"{told}; {uncommitted} messages were not committed" if uncommitted else told


def _holders(ring: RingContext) -> str:
    """Who holds which slot, and for how long."""
    monitor = ring.monitor()
    held = [(slot, owner, ns) for slot, owner, _, ns in monitor.slots() if owner >= 0]
    shown = [
        f"slot {slot}: {_owner(ring, owner)} for {ns / 1e9:.3g} s"
        for slot, owner, ns in held[:_HOLDERS_SHOWN]
    ]
    more = f", and {len(held) - _HOLDERS_SHOWN} more" if len(held) > _HOLDERS_SHOWN else ""
    total = ring.geometry.slots
    return f"{len(held)} of {total} slots are held: {', '.join(shown)}{more}" if held else (
        f"none of {total} slots is held"
    )  # fmt: skip


def _owner(ring: RingContext, owner: int) -> str:
    if owner < ring.geometry.max_publishers:
        return f"publisher {owner} (pid {ring.monitor().publisher(owner)['pid']})"
    if owner == _core.LOG_OWNER:
        return "the log (its publisher is gone)"
    return f"owner {owner}, which does not exist"
