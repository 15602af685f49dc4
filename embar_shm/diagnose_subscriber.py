"""The errors of subscribers: what was waited for, who is gone, what does not fit.

The native core calls `subscriber_error` and raises what it returns.
"""

from __future__ import annotations

from embar_shm import _core
from embar_shm.diagnose import RingContext
from embar_shm.errors import (
    BrokerGone,
    ClosedError,
    CorruptBatch,
    CorruptSegment,
    EmbarError,
    EndOfLog,
    MisuseError,
    NotEnoughSpace,
    PositionLost,
    WaitTimeout,
)
from embar_shm.private_ring import PrivateRing
from embar_shm.quarantine import quarantined
from embar_shm.segment import Segment

__all__ = ["bad_framing", "position_lost", "subscriber_error", "subscribers_full"]

_STRAY_WRITE = "some process wrote into memory that is not its own; look at its publisher"


def subscriber_error(core: _core.SubscriberCore, status: str, number: float) -> EmbarError:
    """The error for a status of the core; `number`: seconds waited, or a ticket."""
    ring: RingContext = core.context
    name = ring.name
    match status:
        case "timeout":
            return _timeout(core, ring, number)
        case "not_admitted":
            return WaitTimeout(
                f"{ring.describe_broker()} of {name} did not admit this subscriber within "
                f"{number:.3g} s",
                "subscribers are admitted by Broker.serve(): is it running?",
            )
        case "refused":
            asked = ring.monitor().subscriber(core.index)["start_ticket"]
            return position_lost(ring, asked)
        case "end":
            if (why := ring.explain_end()) is not None:
                return type(why)(why.message, why.hint)
            return EndOfLog(
                f"the broker {name} has stopped, and everything in its log was read",
                "connect to a new one, with start='earliest'",
            )
        case "stopped":
            return BrokerGone(
                f"the broker {name} stopped before it admitted this subscriber",
                "connect to a new one",
            )
        case "quarantined":
            return quarantined(name, ring.monitor().damage)
        case "gone":
            return BrokerGone(
                f"the broker {name} died (its lock on the ring is free), and no other has taken "
                f"its place; everything that it had accepted was read, up to ticket "
                f"{core.position}",
                "connect to a new one, with start='earliest'",
            )
        case "closed":
            return ClosedError(f"the subscriber on {name} is closed", "connect a new one")
        case "forked":
            return ClosedError(
                f"the subscriber on {name}, and its batches, belong to the parent of this process",
                "connect a subscriber of its own in each process, after the fork",
            )
        case "released":
            return ClosedError(
                f"this batch of {name} was released already",
                "copy what is needed for longer, or release it later",
            )
        case "in_use":
            return MisuseError(
                f"a signal handler uses the subscriber on {name} in the middle of another call",
                "set a flag in the handler, and act on it outside",
            )
        case "lock":
            return WaitTimeout(
                f"another thread has been reading from the subscriber on {name} for {number:.3g} s",
                "give each thread a subscriber of its own",
            )
        case "interrupted":
            return WaitTimeout(f"the wait of the subscriber on {name} was ended by interrupt()")
        case "damaged":
            return CorruptBatch(
                f"batch {number:.0f} of {name} was changed after the broker had accepted it: its "
                "header fails a check; it is left out",
                _STRAY_WRITE,
            )
        case "corrupt":
            return CorruptSegment(
                f"the tickets of the ring {name} make no sense",
                "some process wrote where it must not; stop everything that uses this ring",
            )
    return EmbarError(f"subscriber on {name}: unexpected status {status!r}")


def bad_framing(batch: _core.Batch, index: int, offset: int) -> EmbarError:
    """The error for a batch in which a message does not end where it says."""
    return CorruptBatch(
        f"message {index} of {batch!r}, at byte {offset} of its body, has a length that cannot be",
        _STRAY_WRITE,
    )


def subscribers_full(segment: Segment) -> EmbarError:
    """The error for a ring whose subscribers table has no free row."""
    monitor = segment.monitor()
    rows = [monitor.subscriber(i) for i in range(segment.geometry.max_subscribers)]
    pids = sorted({row["pid"] for row in rows if row["state"] != "free"})
    shown = ", ".join(map(str, pids[:8])) + (", ..." if len(pids) > 8 else "")
    return NotEnoughSpace(
        f"all {len(rows)} places for subscribers on {segment.name} are taken, by pids {shown}",
        "close subscribers, or start the broker with a larger max_subscribers",
    )


def _timeout(core: _core.SubscriberCore, ring: RingContext, waited: float) -> EmbarError:
    if (held := core.held) >= ring.geometry.slots:
        return WaitTimeout(
            f"no batch came on {ring.name} within {waited:.3g} s: this subscriber holds {held} "
            f"batches, all {ring.geometry.slots} slots",
            "release batches, and let go of their views; or start the broker with more slots, over "
            "tcp connect with a larger in_flight",
        )
    what = "sent nothing more"  # a private ring knows no more than that
    if not isinstance(ring, PrivateRing):
        control = ring.monitor().control()
        publishers = control["attached"]
        what = f"accepted {control['head']} batches, {publishers} publishers are connected"
    return WaitTimeout(
        f"no batch came on {ring.name} within {waited:.3g} s: {ring.describe_broker()} has {what}",
        "is anybody publishing, and flushing what it publishes?"
        if not held
        else f"this subscriber holds {held} batches (a loop variable holds one): publishers whose "
        "in_flight is not larger wait for them. Else, is anybody publishing, and flushing?",
    )


def position_lost(ring: RingContext, asked: int) -> PositionLost:
    """The error for a ticket that the log does not hold."""
    control = ring.monitor().control()
    oldest, newest = control["released"], control["head"]
    what = "was never written" if asked > newest else "is overwritten"
    holds = f"{oldest} to {newest - 1}" if newest > oldest else f"none; the next is {newest}"
    return PositionLost(
        f"ticket {asked} of {ring.name} {what}: the log holds tickets {holds}",
        "begin at 'earliest' or 'latest'; a broker with retain=N keeps the last N batches",
    )
