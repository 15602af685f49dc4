"""Removing segments that are dead and drained, and nothing else.

Dead: the kernel says that nobody holds the broker's lock, nor any participant's. Drained:
everything that is committed is accepted, what is accepted is read, and nothing is damaged. The
broker's lock of the file is held while its name is removed, as in `left_behind`: no broker can take
the segment over meanwhile, and of several who clean, one wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import posix_ipc

from embar_shm import _core
from embar_shm.errors import ResourceError
from embar_shm.inspection.copies import Cut
from embar_shm.inspection.drained import batches, wanted
from embar_shm.inspection.files import SegmentFile
from embar_shm.inspection.segments import (
    OpenSegment,
    SegmentView,
    State,
    examine,
    examined,
    opened,
)
from embar_shm.shared_memory import unlink_segment

__all__ = ["Action", "Cleaned", "clean"]

Action: TypeAlias = Literal["removed", "would remove", "kept"]

_NAMED = 4  # participants; the others are counted
_UNTOUCHABLE: dict[State, str] = {
    "foreign": "it is no segment",
    "closed to us": "it is another user's",
    "creating": "it is being created just now",
}
_NEEDS_FORCE: dict[State, str] = {
    "quarantined": "it is quarantined: embar-shm fsck tells why",
    "damaged": "it is damaged, and what is in it cannot be told",
    "other version": "another version of embar-shm made it, and what is in it cannot be told",
    "other boot": "it is of another boot, and what is in it cannot be told",
}


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What became of a segment, and why."""

    segment: SegmentView
    action: Action
    why: str

    def as_json(self) -> dict[str, Any]:
        """Sizes in bytes; batches are null where nobody can know."""
        log = self.segment.ring and self.segment.ring.log
        return {
            "name": self.segment.name,
            "file": self.segment.file,
            "state": self.segment.state,
            "size_bytes": self.segment.size_bytes,
            "action": self.action,
            "why": self.why,
            "unread": log.unread if log else None,
            "unaccepted": log.unaccepted if log else None,
        }


def clean(file: SegmentFile, *, force: bool = False, dry_run: bool = False) -> Cleaned | None:
    """Removes a segment in which nobody is alive and nothing is left. None: it has vanished.

    `force` removes it with batches that nobody has read, and a quarantined or damaged one; never
    one with somebody alive, nor what is no segment. `dry_run` only tells. Does not block.
    """
    seen = examine(file)
    if seen is None:
        return None
    if seen.state in _UNTOUCHABLE:
        return Cleaned(seen, "kept", f"{_UNTOUCHABLE[seen.state]}: {seen.detail}")
    try:
        with opened(file, write=not dry_run) as segment:
            if not dry_run and not _core.try_lock(segment.fd, _core.BROKER_LOCK):
                return Cleaned(examined(segment), "kept", _alive(["the broker"]))
            return _judged(segment, force=force, dry_run=dry_run)
    except FileNotFoundError:
        return None
    except (ResourceError, Cut) as error:
        return Cleaned(seen, "kept", error.message)


def _judged(segment: OpenSegment, *, force: bool, dry_run: bool) -> Cleaned:
    """The broker's lock is ours, unless it is a dry run."""
    seen = examined(segment)
    why = _obstacle(segment, seen, force)
    if why is not None:
        return Cleaned(seen, "kept", why)
    log = seen.ring and seen.ring.log
    lost = f", with {batches(log.unread + log.unaccepted)}" if log and force else ""
    told = f"{seen.state}, nobody is alive in it{lost}"
    if dry_run:
        return Cleaned(seen, "would remove", told)
    if segment.file.ring is None:
        raise ValueError(f"{segment.file.path} is no ring's")
    if not segment.has_a_name:
        return Cleaned(seen, "kept", "it was replaced just now: another segment has its name")
    try:
        unlink_segment(segment.file.ring, segment.inode)
    except posix_ipc.PermissionsError:
        return Cleaned(
            seen, "kept", f"its name may be removed by {seen.user} only, or by root: try it as such"
        )
    return Cleaned(seen, "removed", told)


def _obstacle(segment: OpenSegment, seen: SegmentView, force: bool) -> str | None:
    """Why it has to stay, or None."""
    if seen.state in _UNTOUCHABLE:  # it became so since it was first looked at
        return f"{_UNTOUCHABLE[seen.state]}: {seen.detail}"
    if living := segment.living():
        pids = {name.partition(" (")[0]: name for name in seen.ring.living} if seen.ring else {}
        return _alive([pids.get(name, name) for name in living])
    if force:
        return None
    if seen.state in _NEEDS_FORCE:
        return f"{_NEEDS_FORCE[seen.state]}; --force removes it"
    return wanted(segment.words(headers=True), seen.ring) if seen.ring is not None else None


def _alive(living: list[str]) -> str:
    more = f" and {len(living) - _NAMED} more" if len(living) > _NAMED else ""
    shown = f"{', '.join(living[:_NAMED])}{more}"
    return f"{shown} {'is' if len(living) == 1 else 'are'} alive"
