"""The files in /dev/shm that are segments, or bear a name as if they were: found and opened.

Somebody else may have made them: a directory, a FIFO, a symbolic link, a name that is no text. And
they vanish while one looks. Nothing here follows a link, waits for a FIFO, or changes anything.
"""

from __future__ import annotations

import os
import pwd
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from embar_shm.address import SHM_DIRECTORY, RingAddress, RingName, existing_rings
from embar_shm.errors import ConfigurationError, NoSuchBroker, ResourceError
from embar_shm.inspection.text import printable

__all__ = [
    "Facts",
    "SegmentFile",
    "looked_at",
    "no_such_segment",
    "ring_named",
    "segment_files",
    "user_name",
]

_Seen = TypeVar("_Seen")
_PREFIX = "embar."
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """A file whose name begins like a segment's."""

    path: Path
    ring: RingName | None
    """The ring it would be; None: no ring has such a name."""

    @classmethod
    def of(cls, ring: RingName) -> SegmentFile:
        """The file of a ring, whether it exists or not."""
        return cls(ring.path, ring)

    @property
    def title(self) -> str:
        """What people call it; fit for a terminal."""
        return str(self.ring) if self.ring is not None else printable(self.path.name)

    def facts(self) -> Facts:
        """Raises `FileNotFoundError` when it has vanished."""
        return Facts(self.path.lstat())

    def open(self, *, write: bool = False) -> int:
        """A descriptor of its own, of a regular file; the caller closes it.

        `write` is needed for taking a lock. Raises `FileNotFoundError`, or `ResourceError` when it
        may not be opened, or is no file.
        """
        facts = self.facts()
        if not facts.is_regular:  # opening a device, for one, could do something
            raise ResourceError(f"{printable(str(self.path))} is {facts.kind}, no segment")
        try:
            fd = os.open(self.path, _WRITE if write else _READ)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ResourceError(
                f"{printable(str(self.path))} cannot be opened: {error.strerror}; it belongs to "
                f"{facts.user} (user id {facts.uid}) and has mode {facts.mode}",
                "try it as that user, or as root",
            ) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ResourceError(f"{printable(str(self.path))} was replaced just now", "try again")
        return fd


class Facts:
    """What stat(2) tells of a file, to everybody."""

    def __init__(self, found: os.stat_result) -> None:
        self.uid: int = found.st_uid
        self.user: str = user_name(found.st_uid)
        self.mode: str = f"{stat.S_IMODE(found.st_mode):04o}"
        self.size: int = found.st_size
        self.allocated: int = found.st_blocks * 512
        self.age: float = max(0.0, time.time() - found.st_mtime)
        """Seconds; since a segment got its size: writing through a mapping leaves it alone."""
        self.is_regular: bool = stat.S_ISREG(found.st_mode)
        self.kind: str = _kind(found.st_mode)


def segment_files() -> list[SegmentFile]:
    """All of this machine in the order of their names: rings, and what only bears such a name."""
    try:
        names = sorted(path.name for path in SHM_DIRECTORY.iterdir())
    except OSError as error:
        raise ResourceError(
            f"{SHM_DIRECTORY} cannot be listed: {error.strerror}", "embar-shm doctor tells more"
        ) from None
    return [
        SegmentFile(SHM_DIRECTORY / name, _ring_of(name))
        for name in names
        if name.startswith(_PREFIX)
    ]


def ring_named(text: str) -> SegmentFile:
    """The ring that a user names: "demo/0", or its address "shm://demo/0".

    Raises `ConfigurationError` for what is no name, `NoSuchBroker` when there is no such segment.
    """
    found = SegmentFile.of(RingAddress.parse(text.removeprefix("shm://")).ring)
    if not os.path.lexists(found.path):
        raise no_such_segment(found)
    return found


def looked_at(
    found: Iterable[SegmentFile], look: Callable[[SegmentFile], _Seen | None], *, named: bool
) -> list[_Seen]:
    """What `look` says of each. It says None of a file that has vanished, which is left out.

    Raises `NoSuchBroker` for that one when the user has `named` it.
    """
    seen = []
    for file in found:
        one = look(file)
        if one is not None:
            seen.append(one)
        elif named:
            raise no_such_segment(file)
    return seen


def no_such_segment(missing: SegmentFile) -> NoSuchBroker:
    """The error for a segment that is not there (any more)."""
    rings = ", ".join(map(str, existing_rings())) or "none"
    return NoSuchBroker(
        f"there is no segment {missing.title} on this machine",
        f"rings in {SHM_DIRECTORY}: {rings}",
    )


def user_name(uid: int) -> str:
    """The name of a user, or the number of one without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _ring_of(name: str) -> RingName | None:
    parts = name.removeprefix(_PREFIX).split(".")
    try:
        return RingName.parse("/".join(parts))
    except ConfigurationError:
        return None


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISREG, "a file"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((kind for is_it, kind in kinds if is_it(mode)), "no file")
