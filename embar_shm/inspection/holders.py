"""Which process holds a row of a ring: found by its lock, in /proc/PID/fdinfo (Linux 4.1).

The kernel lists there the locks of each open file of a process. Who has the lock of a row open is
the one whose end gives it up. No pid in shared memory has to be believed: it could be another
process's by now, a number of another PID namespace, or a lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from embar_shm import _core
from embar_shm.inspection.files import SegmentFile, segment_files
from embar_shm.inspection.segments import OpenSegment
from embar_shm.inspection.text import printable

__all__ = ["Holder", "holder", "holders"]

_PROC: Final = Path("/proc")
_LAST_BYTE: Final = 2**63 - 1
_COMMAND_SHOWN: Final = 100  # characters


@dataclass(frozen=True, slots=True)
class Holder:
    """A process, and the bytes of a segment's file that it holds locked, as ranges."""

    pid: int
    ranges: tuple[tuple[int, int], ...]

    def holds(self, byte: int) -> bool:
        """Is this byte among them?"""
        return any(first <= byte <= last for first, last in self.ranges)

    @property
    def is_broker(self) -> bool:
        """It is the broker's process, whose other rows are of participants on a network."""
        return self.holds(_core.BROKER_LOCK)

    @property
    def rows(self) -> list[str]:
        """What it is in this ring: "broker", "publisher 3", "subscriber 0"."""
        found = ["broker"] if self.is_broker else []
        for kind, lock_of, count in (
            ("publisher", _core.publisher_lock, _core.MAX_PUBLISHERS),
            ("subscriber", _core.subscriber_lock, _core.MAX_SUBSCRIBERS),
        ):
            found += [f"{kind} {row}" for row in range(count) if self.holds(lock_of(row))]
        return found

    @property
    def command(self) -> str:
        """Its command line, cut; empty when it has ended."""
        with suppress(psutil.Error):
            text = printable(" ".join(psutil.Process(self.pid).cmdline()))
            return text if len(text) <= _COMMAND_SHOWN else f"{text[:_COMMAND_SHOWN]}..."
        return ""

    @property
    def is_stopped(self) -> bool:
        """Does it stand still (SIGSTOP, a debugger), so that no signal but SIGKILL reaches it?"""
        with suppress(psutil.Error):
            status = psutil.Process(self.pid).status()
            return bool(status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP))
        return False

    def other_files(self, segment: OpenSegment) -> list[SegmentFile]:
        """Other segments that it has open."""
        links: set[Path] = set()
        with suppress(OSError):
            for fd in (_PROC / str(self.pid) / "fd").iterdir():
                with suppress(OSError):
                    links.add(fd.readlink())
        return [file for file in segment_files() if file.path in links and file != segment.file]


def holders(segment: OpenSegment) -> list[Holder]:
    """All processes that hold locks of the segment, as far as this process may look."""
    pids = sorted(int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())
    found = (holder(pid, segment) for pid in pids)
    return [one for one in found if one is not None]


def holder(pid: int, segment: OpenSegment) -> Holder | None:
    """What a process holds; None: nothing, or it may not be looked at."""
    ranges: list[tuple[int, int]] = []
    with suppress(OSError):  # it has ended, or is another user's
        for fd in (_PROC / str(pid) / "fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                target = fd.stat()
                if (target.st_dev, target.st_ino) == (segment.device, segment.inode):
                    ranges += _locks(_PROC / str(pid) / "fdinfo" / fd.name)
    return Holder(pid, tuple(sorted(ranges))) if ranges else None


def _locks(path: Path) -> Iterator[tuple[int, int]]:
    """The line "lock: 1: OFDLCK ADVISORY WRITE -1 00:1b:113197 0 0" is a lock on bytes 0 to 0."""
    for line in path.read_text().splitlines():
        key, *words = line.split()
        if key == "lock:" and "OFDLCK" in words and "WRITE" in words and "->" not in words:
            first, last = words[-2:]
            yield int(first), _LAST_BYTE if last == "EOF" else int(last)
