"""The control groups of this process, of both versions, and the CPU quotas they set.

See cgroups(7). Everything here works on the content of files, so that a caller can read those of
another machine.

Paths are plain text here. pathlib interns the parts of each path, and whoever connects asks for the
quotas: a process to which thousands connect would fill the interpreter's table of interned strings
with dead entries, and have it made anew again and again, a megabyte each time, in the memory pool
of whichever thread it happens to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

__all__ = ["MEMBERSHIP", "MOUNTS", "Mount", "cpu_quotas", "folders", "mounts"]

MEMBERSHIP: Final = "/proc/self/cgroup"
MOUNTS: Final = "/proc/self/mountinfo"


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo, as far as it matters here."""

    root: str  # the folder of the file system that is mounted
    point: str
    kind: str
    options: str  # of the file system, not of the mount


def mounts(text: str) -> list[Mount]:
    """What is mounted where, from /proc/self/mountinfo; a later mount hides an earlier one."""
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        mount, file_system = before.split(), after.split()
        if len(mount) >= 6 and len(file_system) >= 3:
            root, point = _unescaped(mount[3]), _unescaped(mount[4])
            found.append(Mount(root, point, file_system[0], file_system[2]))
    return found


def folders(controller: str, membership: str, mounted: Iterable[Mount]) -> list[str]:
    """The groups from a process's own up to the root, as folders where `controller` may be.

    Those of version 2 first, then those of version 1. `membership`: its /proc/self/cgroup.
    """
    lines = [line.split(":", 2) for line in membership.splitlines()]
    memberships = [(line[1].split(","), line[2]) for line in lines if len(line) == 3]
    mounted = list(mounted)
    found: list[str] = []
    for names, group in sorted(memberships):  # version 2 has the name ""
        unified = names == [""]
        if not unified and controller not in names:
            continue
        for mount in mounted:
            if mount.kind != ("cgroup2" if unified else "cgroup"):
                continue
            if unified or controller in mount.options.split(","):
                found += _up_to(mount, group)
    return list(dict.fromkeys(found))


def cpu_quotas(groups: Iterable[str], read: Callable[[str], str]) -> list[tuple[float, str]]:
    """The quota of each group that has one, in CPUs, and the file that sets it.

    `read` gives a file's content or raises OSError. A group without such files, as the root of
    version 2 is, or with something else in them has no quota.
    """
    found = []
    for group in groups:
        for name, period_name in (("cpu.max", None), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            path = f"{group}/{name}"
            try:
                words = read(path).split()  # version 2 has both numbers in one file
                if period_name is not None:
                    words += read(f"{group}/{period_name}").split()
                quota, period = words
                if quota not in ("max", "-1"):
                    found.append((int(quota) / int(period), path))
                break
            except (OSError, ValueError, ZeroDivisionError):
                continue
    return found


def _unescaped(text: str) -> str:
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, letter)
    return text


def _up_to(mount: Mount, group: str) -> list[str]:
    """The folders of a group and its parents below the mount point."""
    inside = group
    if mount.root != "/" and (group == mount.root or group.startswith(mount.root + "/")):
        inside = group[len(mount.root) :]  # a container that mounts only its own part
    if ".." in inside.split("/"):
        inside = "/"  # outside of our cgroup namespace
    parts = [part for part in inside.split("/") if part not in ("", ".")]
    point = mount.point.rstrip("/")
    return ["/".join([point, *parts[:n]]) or "/" for n in range(len(parts), -1, -1)]
