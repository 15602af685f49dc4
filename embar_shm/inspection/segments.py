"""What each segment in /dev/shm is: in use, left behind, somebody else's, or no segment at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Self, TypeAlias

from embar_shm import _core
from embar_shm.errors import IncompatibleSegment, ResourceError
from embar_shm.inspection.copies import Cut, Words, header_page
from embar_shm.inspection.files import Facts, SegmentFile
from embar_shm.inspection.ring import RingView, view
from embar_shm.inspection.text import printable
from embar_shm.layout import Difference, Geometry, header_differences
from embar_shm.units import format_size

__all__ = [
    "STATES",
    "OpenSegment",
    "SegmentView",
    "State",
    "examine",
    "examined",
    "living",
    "opened",
]

State: TypeAlias = Literal[
    "starting",
    "serving",
    "stopping",
    "stopped",
    "quarantined",
    "recoverable",
    "creating",
    "unfinished",
    "damaged",
    "other version",
    "other boot",
    "foreign",
    "closed to us",
]

STATES: Final[dict[State, str]] = {
    "starting": "its broker is about to serve",
    "serving": "in use",
    "stopping": "its broker accepts what is committed, and will stop",
    "stopped": "its broker has stopped in order; what is in the log can be read still",
    "quarantined": "a broker found it damaged; embar-shm fsck tells more",
    "recoverable": "its broker died; a new one takes it over with all that is in it",
    "creating": "its broker is making it just now",
    "unfinished": "its creator died before it was complete; embar-shm clean removes it",
    "damaged": "its header makes no sense; embar-shm fsck tells more",
    "other version": "made by another version of embar-shm",
    "other boot": "made before this machine was started, or on another one",
    "foreign": "it only bears such a name; nothing here touches it",
    "closed to us": "it belongs to another user",
}
"""Every state, and what it means."""

_CREATION_GRACE: Final = 1.0  # seconds from shm_open(3) to the broker's lock, and some more


@dataclass(frozen=True, slots=True)
class SegmentView:
    """A segment as it is found. `ring` is known where its header makes sense to this version."""

    name: str | None  # "cluster/broker"; None: no ring can have that file's name
    file: str
    state: State
    detail: str  # in words, with what to do
    uid: int
    user: str
    mode: str  # as chmod(1) takes it
    size_bytes: int
    allocated_bytes: int  # memory that it takes
    age_seconds: float
    ring: RingView | None = None

    @property
    def title(self) -> str:
        """What to call it in a sentence."""
        return self.name or self.file

    def as_json(self) -> dict[str, Any]:
        """The fields, by their names."""
        return asdict(self)


class OpenSegment:
    """A segment that is open for looking: its header, and a descriptor to see its locks with."""

    def __init__(self, file: SegmentFile, fd: int) -> None:
        self.file = file
        self.fd = fd
        found = os.fstat(fd)
        self.facts = Facts(found)
        self.inode: int = found.st_ino
        self.device: int = found.st_dev
        self.header = header_page(fd)
        self.geometry: Geometry | None = None
        self.differences: list[Difference] = []
        if file.ring is not None:
            self.geometry, self.differences = header_differences(
                file.ring, self.header, self.facts.size
            )

    @property
    def has_magic(self) -> bool:
        """The last thing a creator writes; anything but zero counts."""
        return self.header[:8] != bytes(8)  # beyond the end of the file it is zero

    @property
    def broker_is_alive(self) -> bool:
        """Does somebody hold the broker's lock?"""
        return _core.is_locked(self.fd, _core.BROKER_LOCK)

    @property
    def has_a_name(self) -> bool:
        """Is it this file that the name leads to?"""
        try:
            found = self.file.path.lstat()
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == (self.device, self.inode)

    def words(self, *, headers: bool = False) -> Words:
        """A copy of the ring's words now. Raises `IncompatibleSegment`, `Cut` for one."""
        if self.geometry is None:
            differences = printable("; ".join(map(str, self.differences)))
            raise IncompatibleSegment(
                f"{self.file.title} cannot be looked into: {differences or 'its name is no ring'}",
                f"embar-shm ls {self.file.title} tells what it is",
            )
        return Words(self.fd, self.header, self.geometry, headers=headers)

    def living(self) -> list[str]:
        """Everybody who holds a lock, as `living`."""
        return living(self.fd)

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def living(fd: int) -> list[str]:
    """Everybody else who holds a lock, found without the tables: "the broker", "publisher 3"."""
    rows: tuple[tuple[str, Callable[[int], int], int], ...] = (
        ("publisher", _core.publisher_lock, _core.MAX_PUBLISHERS),
        ("subscriber", _core.subscriber_lock, _core.MAX_SUBSCRIBERS),
    )
    return [*(["the broker"] if _core.is_locked(fd, _core.BROKER_LOCK) else [])] + [
        f"{kind} {row}"
        for kind, lock_of, count in rows
        for row in range(count)
        if _core.is_locked(fd, lock_of(row))
    ]


def opened(file: SegmentFile, *, write: bool = False) -> OpenSegment:
    """Opens it. Raises as `SegmentFile.open` does."""
    fd = file.open(write=write)
    try:
        return OpenSegment(file, fd)
    except BaseException:
        os.close(fd)
        raise


def examine(file: SegmentFile) -> SegmentView | None:
    """What the file is. None: it has vanished. Never changes anything."""
    try:
        facts = file.facts()
        if file.ring is None:
            return _seen(file, facts, "foreign", "no ring has such a name")
        if not facts.is_regular:
            return _seen(file, facts, "foreign", f"it is {facts.kind}, no segment")
        try:
            segment = opened(file)
        except ResourceError as error:
            return _seen(file, facts, "closed to us", f"{error.message}; {error.hint}")
        with segment:
            return examined(segment)
    except FileNotFoundError:
        return None


def examined(segment: OpenSegment) -> SegmentView:
    """The same for one that is open already."""
    file, facts = segment.file, segment.facts
    if 0 < facts.size < _core.SEGMENT_HEADER_BYTES:  # a creator gives it its whole size in one step
        ours = int.from_bytes(segment.header[:8], "little") == _core.MAGIC
        return _seen(
            file,
            facts,
            "damaged" if ours else "foreign",
            f"it has {facts.size} bytes, a segment's header alone {_core.SEGMENT_HEADER_BYTES}",
        )
    if not segment.has_magic:
        if segment.broker_is_alive or facts.age < _CREATION_GRACE:
            return _seen(file, facts, "creating", STATES["creating"])
        return _seen(file, facts, "unfinished", STATES["unfinished"])
    if segment.geometry is None:
        state, detail = _unusable(segment)
        return _seen(file, facts, state, detail)
    try:
        words = segment.words()
        ring = view(words, segment.fd)
    except Cut:
        return _seen(file, facts, "damaged", "it was truncated while it was looked at")
    state = _state_of(ring)
    detail = STATES[state]
    if state == "quarantined":
        detail = f"a broker found it damaged: {words.monitor().damage}; embar-shm fsck tells more"
    if state == "stopped" and not ring.broker.alive:
        detail += ", and embar-shm clean removes it"
    created = _core.read_header(segment.header)["created_unix_ns"] / 1e9
    age = max(0.0, time.time() - created)
    return _seen(file, facts, state, detail, ring, age)


def _state_of(ring: RingView) -> State:
    states: dict[str, State] = {
        "starting": "starting",
        "serving": "serving",
        "stopping": "stopping",
        "stopped": "stopped",
        "quarantined": "quarantined",
    }
    state = states.get(ring.broker.state, "damaged")
    if not ring.broker.alive and state in ("starting", "serving", "stopping"):
        return "recoverable"
    return state


def _unusable(segment: OpenSegment) -> tuple[State, str]:
    """The state of a header that differs from ours, and how."""
    fields = {difference.field for difference in segment.differences}
    detail = printable("; ".join(map(str, segment.differences)))
    if "magic" in fields:
        return "foreign", f"{format_size(segment.facts.size)} of something else; {detail}"
    if "layout version" in fields:
        return "other version", detail
    if fields == {"boot id"}:
        return "other boot", detail
    return "damaged", detail


def _seen(
    file: SegmentFile,
    facts: Facts,
    state: State,
    detail: str,
    ring: RingView | None = None,
    age: float | None = None,
) -> SegmentView:
    return SegmentView(
        name=None if file.ring is None else str(file.ring),
        file=printable(str(file.path)),
        state=state,
        detail=detail,
        uid=facts.uid,
        user=facts.user,
        mode=facts.mode,
        size_bytes=facts.size,
        allocated_bytes=facts.allocated,
        age_seconds=facts.age if age is None else age,
        ring=ring,
    )
