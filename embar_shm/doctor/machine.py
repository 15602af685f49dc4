"""All that the doctor reads of a machine: files below a root, and a few questions to the kernel.

Both can be replaced, so that tests examine machines nobody has.
"""

from __future__ import annotations

import os
import platform
import pwd
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from embar_shm import _core, cgroups
from embar_shm.cgroups import Mount

__all__ = ["Machine", "Unreadable"]


class Unreadable(Exception):
    """Something cannot be found out; the text is the reason, in words for the report."""


def _space(path: Path) -> tuple[int, int]:
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@dataclass(frozen=True)
class Machine:
    """A machine to examine: this one, unless a test says otherwise.

    Paths in calls are absolute, as on the machine; `root` is put before them.
    """

    root: Path = Path("/")
    kernel: Callable[[], tuple[str, str]] = lambda: (platform.system(), platform.release())
    space: Callable[[Path], tuple[int, int]] = _space  # (total, available) in bytes
    access: Callable[[Path, int], bool] = os.access
    limit: Callable[[int], tuple[int, int]] = resource.getrlimit
    affinity: Callable[[], set[int]] = lambda: os.sched_getaffinity(0)
    user: Callable[[], int] = os.geteuid
    user_name: Callable[[int], str] = _user_name
    is_locked: Callable[[int, int], bool] = _core.is_locked
    now: Callable[[], float] = time.time

    def path(self, path: str) -> Path:
        """Where a path of the machine is for this process."""
        return self.root / path.lstrip("/")

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.path(path))

    def text(self, path: str) -> str:
        """A file's content without surrounding blanks. Raises `Unreadable`."""
        try:
            return self.path(path).read_text(errors="replace").strip()
        except OSError as error:
            raise Unreadable(f"{path} {self._reason(error)}") from None

    def integers(self, path: str, count: int) -> list[int]:
        """A file's content, which must be this many whole numbers. Raises `Unreadable`."""
        content = self.text(path)
        try:
            numbers = [int(word) for word in content.split()]
        except ValueError:
            numbers = []
        if len(numbers) != count:
            expected = "a number" if count == 1 else f"{count} numbers"
            raise Unreadable(f"{path} holds {content[:40]!r}, not {expected}")
        return numbers

    def names(self, path: str) -> list[str]:
        """The names in a folder, sorted. Raises `Unreadable`."""
        try:
            return sorted(entry.name for entry in self.path(path).iterdir())
        except OSError as error:
            raise Unreadable(f"{path} {self._reason(error)}") from None

    def fields(self, path: str) -> dict[str, str]:
        """A file of "name: value" lines, such as /proc/meminfo. Raises `Unreadable`."""
        pairs = (line.partition(":") for line in self.text(path).splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}

    def mounts(self) -> list[Mount]:
        """What is mounted where; a later mount hides an earlier one. Raises `Unreadable`."""
        return cgroups.mounts(self.text(cgroups.MOUNTS))

    def mount_at(self, point: str) -> Mount | None:
        """What one sees at a mount point; None when nothing is mounted there."""
        return next((mount for mount in reversed(self.mounts()) if mount.point == point), None)

    def cgroup_folders(self, controller: str) -> list[str]:
        """This process's control groups from its own up to the root, where `controller` may be.

        Those of version 2 first, then those of version 1. Raises `Unreadable`.
        """
        return cgroups.folders(controller, self.text(cgroups.MEMBERSHIP), self.mounts())

    def has_capability(self, number: int) -> bool:
        """Does this process have a capability(7)? No, when that cannot be found out."""
        try:
            return bool(int(self.fields("/proc/self/status").get("CapEff", "0"), 16) >> number & 1)
        except (Unreadable, ValueError):
            return False

    def _reason(self, error: OSError) -> str:
        match error:
            case FileNotFoundError() | NotADirectoryError():
                return "does not exist here"
            case PermissionError():
                return f"may not be read by user {self.user_name(self.user())}"
        return f"cannot be read: {error.strerror or error}"
