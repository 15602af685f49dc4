"""Taking over what a broker that died has left: its segment, with everything in it.

Who holds the broker's lock of a segment is its broker. It dies with its process, so of several that
want to be the next one the first gets it. What is in the ring is recovered natively
(``_native/log.hpp``), from whatever instruction the last one was killed at.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from embar_shm import _core, access
from embar_shm.address import RingName
from embar_shm.errors import AccessDenied, BrokerExists, BrokerGone, NoSuchBroker
from embar_shm.layout import Geometry
from embar_shm.left_behind import why_taken
from embar_shm.liveness import liveness
from embar_shm.segment import Segment
from embar_shm.shared_memory import (
    map_checked,
    open_segment,
    prefault_memory,
    truncated,
    unlink_segment,
)
from embar_shm.units import format_size

__all__ = ["Recovery", "differences", "is_drained", "take_over"]

_MOMENT = 0.2  # seconds that somebody else than a broker may hold its lock
_POLL = 0.002


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a broker found when it took over the ring of one that had died."""

    epoch: int  # how many brokers the ring has had, this one included
    accepted: int  # batches that are in the log
    unread: int  # of them still in the ring: not read by somebody, or retained
    unaccepted: int  # batches that were committed meanwhile, and are accepted from now on
    publishers: int  # that are connected, those on a network included
    subscribers: int
    redone: tuple[str, ...]  # steps that the last broker had begun, and this one has finished
    notes: tuple[str, ...]  # what is not as it was asked for
    began: float  # time.monotonic() when it began to take over
    seconds: float  # that this took

    @classmethod
    def of(
        cls, segment: Segment, found: Mapping[str, int], notes: tuple[str, ...], began: float
    ) -> Self:
        """`found`: by the core, which has just begun to serve."""
        monitor = segment.monitor()
        geometry = segment.geometry
        publishers = [monitor.publisher(row)["state"] for row in range(geometry.max_publishers)]
        subscribers = [monitor.subscriber(row)["state"] for row in range(geometry.max_subscribers)]
        redone = []
        if found["release"]:
            redone.append("a release")
        if found["acknowledgement"]:
            redone.append("an acknowledgement")
        if found["slots"]:
            redone.append(f"{found['slots']} batches that were being received")
        return cls(
            epoch=monitor.control()["epoch"],
            accepted=found["head"],
            unread=found["unread"],
            unaccepted=found["unaccepted"],
            publishers=publishers.count("active"),
            subscribers=subscribers.count("active") + subscribers.count("joining"),
            redone=tuple(redone),
            notes=notes,
            began=began,
            seconds=time.monotonic() - began,
        )


def take_over(name: RingName) -> Segment | None:
    """Maps the segment that a broker has left, and holds the broker's lock on it.

    None: there is none, or only one whose creator died before it was complete; that is removed. Or
    somebody has just replaced it: look again.
    Raises `BrokerExists` when its broker is alive or it is another user's, `AccessDenied` when it
    was opened to more than a group, `IncompatibleSegment` when this version cannot use it, and then
    leaves it alone. Does not block.
    """
    try:
        lock_fd = liveness.opened(lambda: open_segment(name))
    except NoSuchBroker:
        return None
    except AccessDenied as error:
        raise BrokerExists(*why_taken(name)) from error
    segment = None
    try:
        with suppress(NoSuchBroker, BrokerGone):  # it was removed just now, or replaced
            segment = _taken(name, lock_fd)
    finally:
        if segment is None:
            liveness.close(lock_fd)
    return segment


def _taken(name: RingName, lock_fd: int) -> Segment | None:
    """As `take_over`. `lock_fd` is the segment's, or the caller's to close."""
    if not access.is_own(lock_fd):  # whoever made it may still read and write what is in it
        raise BrokerExists(*why_taken(name))
    access.check_left_behind(name.path, lock_fd)
    if not _locked_soon(lock_fd):
        raise BrokerExists(*why_taken(name))
    found = os.fstat(lock_fd)
    if found.st_nlink == 0:  # somebody removed it while we were at it
        return None
    if 0 < found.st_size < _core.SEGMENT_HEADER_BYTES:
        raise truncated(name, found.st_size)
    # We hold the lock: nobody is making it any more. (With a magic of 0 and batches in it, it was
    # damaged later: that is no reason to throw them away.)
    magic, tail = (os.pread(lock_fd, 8, at) for at in (0, _core.SEGMENT_HEADER_BYTES))
    if not any(magic) and not any(tail):
        unlink_segment(name, found.st_ino)
        return None
    memory, _, geometry = map_checked(name, lock_fd, found.st_size)
    prefault_memory(memory)
    return Segment(name, memory, geometry, lock_fd, found.st_ino)


def _locked_soon(fd: int) -> bool:
    """Takes the broker's lock. Those who clean up hold it, too, for a moment."""
    give_up = time.monotonic() + _MOMENT
    while not _core.try_lock(fd, _core.BROKER_LOCK):
        if time.monotonic() >= give_up:
            return False
        time.sleep(_POLL)
    return True


def is_drained(segment: Segment) -> bool:
    """Is nobody connected to it, and nothing in it that somebody could want?

    That is more than `embar-shm clean` asks for: what is retained has been read, and stays all the
    same. The caller holds the broker's lock.
    """
    # Loaded where it is asked for: seldom, and a broker that starts again shall be quick.
    from embar_shm.inspection.copies import Words, header_page
    from embar_shm.inspection.drained import wanted
    from embar_shm.inspection.ring import view
    from embar_shm.inspection.segments import living

    fd = segment.lock_fd
    if living(fd):
        return False
    words = Words(fd, header_page(fd), segment.geometry, headers=True)
    ring = view(words, fd)
    return ring.log.readable == 0 and wanted(words, ring) is None


def differences(asked: Geometry, found: Geometry) -> tuple[str, ...]:
    """What of a ring is not as it was asked for, in words."""
    return tuple(
        f"{what}: the ring has {show(has)}, {show(wanted)} was asked for"
        for what, has, wanted, show in (
            ("slots", found.slots, asked.slots, str),
            ("slot_size", found.slot_bytes, asked.slot_bytes, format_size),
            ("max_publishers", found.max_publishers, asked.max_publishers, str),
            ("max_subscribers", found.max_subscribers, asked.max_subscribers, str),
        )
        if has != wanted
    )
