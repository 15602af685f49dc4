"""A name that is taken already: by whom, and whether what is there may go."""

from __future__ import annotations

import os

from embar_shm import _core, access
from embar_shm.address import RingName
from embar_shm.errors import AccessDenied, IncompatibleSegment, NoSuchBroker, ResourceError
from embar_shm.quarantine import QUARANTINED, quarantined
from embar_shm.shared_memory import open_segment, unlink_segment

__all__ = ["remove_dead", "why_taken"]


def why_taken(name: RingName) -> tuple[str, str]:
    """Message and hint for a name that exists."""
    try:
        fd = open_segment(name)
    except NoSuchBroker as error:
        return f"the ring {name} did exist a moment ago: {error.message}", "try again"
    except (AccessDenied, IncompatibleSegment, ResourceError) as error:
        return f"the name of the ring {name} is taken: {error.message}", error.hint
    try:
        if not access.is_own(fd):
            message, hint = access.not_ours(name.path, fd)
            return f"the name of the ring {name} is taken: {message}", hint
        alive = _core.is_locked(fd, _core.BROKER_LOCK)
        damaged = _is_quarantined(fd)
    finally:
        os.close(fd)
    if damaged:
        why = quarantined(name, "its broker left it for whoever looks into it")
        return why.message, why.hint
    if alive:
        return (
            f"a broker of {name} is running; its segment is {name.path}",
            "choose another name, or stop that broker",
        )
    return (
        f"the ring {name} exists, left behind by a broker that is gone: {name.path}",
        "Broker.open_or_recover goes on with what is in it; Broker.create(..., replace_dead=True) "
        "replaces it when no publisher is left either",
    )


def _is_quarantined(fd: int) -> bool:
    offsets = {name: offset for name, offset, _, _ in _core.structs()["Control"][1]}
    state = os.pread(fd, 4, _core.SEGMENT_HEADER_BYTES + offsets["state"])
    return int.from_bytes(state, "little") == QUARANTINED


def remove_dead(name: RingName) -> None:
    """Unlinks a segment in which nobody is alive, if there is one. Leaves it alone otherwise.

    Also anything that is no segment, or may not be opened or removed by this process, and one that
    is quarantined.
    Holding the broker's lock of the old file while unlinking makes sure that of several
    processes doing this one wins, and that none unlinks the winner's new segment.
    """
    try:
        fd = open_segment(name)
    except (NoSuchBroker, AccessDenied, IncompatibleSegment):
        return
    try:
        if os.geteuid() not in (os.fstat(fd).st_uid, 0):
            return
        if not _core.try_lock(fd, _core.BROKER_LOCK) or _is_quarantined(fd):
            return
        rows = range(_core.MAX_PUBLISHERS)
        if any(_core.is_locked(fd, _core.publisher_lock(row)) for row in rows):
            return
        unlink_segment(name, os.fstat(fd).st_ino)
    finally:
        os.close(fd)
