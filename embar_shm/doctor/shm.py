"""Rules on /dev/shm, where the rings are: its space, leftovers, and who removes files there."""

from __future__ import annotations

import os
import shlex
import stat
from dataclasses import dataclass
from typing import Final

from embar_shm import _core
from embar_shm.address import SHM_DIRECTORY, RingName
from embar_shm.doctor.limits import LIMITS, DefaultRun
from embar_shm.doctor.machine import Machine, Unreadable
from embar_shm.doctor.report import Finding, Rule, about, listing
from embar_shm.errors import ConfigurationError
from embar_shm.units import format_duration

__all__ = ["RULES", "Leftover"]

_SHM = str(SHM_DIRECTORY)
_MIB = 2**20
_GRACE = 1.0  # seconds from a segment's creation to its broker's lock, and some more
_FIRST_REGULAR_USER = 1000  # systemd-logind leaves the IPC objects of users below alone

# Where systemd looks for logind.conf and its drop-ins; an earlier folder wins.
_CONFIG_FOLDERS = ("/etc", "/run", "/usr/local/lib", "/usr/lib")


def _size(machine: Machine, run: DefaultRun) -> Finding:
    need = f"The default run needs {about(run.rings_bytes)} for its {run.brokers} rings"
    comfort = int(LIMITS["shm free"].bound("ok")) * run.rings_bytes
    if not machine.exists(_SHM):
        return Finding(
            "missing",
            "problem",
            f"{need}.",
            f"sudo mkdir -p {_SHM} && sudo mount -t tmpfs "
            f"-o mode=1777,size={_mib(comfort)}m tmpfs {_SHM}",
        )
    if not machine.access(machine.path(_SHM), os.R_OK | os.W_OK | os.X_OK):
        user = machine.user_name(machine.user())
        return Finding(
            f"not writable by {user}",
            "problem",
            f"{need}, and may not create them.",
            f"sudo chmod 1777 {_SHM}",
        )
    total, free = machine.space(machine.path(_SHM))
    if total == 0:  # mounted with size=0
        return Finding("no limit", "ok", f"{need}.")
    value = f"{about(free)} free of {about(total)}"
    verdict = LIMITS["shm free"].verdict(free / run.rings_bytes)
    if verdict != "ok":
        size = total - free + comfort
        return Finding(
            value,
            verdict,
            f"{need}{', and a second one would not fit' if verdict == 'note' else ''}. "
            f"In a container, start it with --shm-size={_mib(size)}m instead.",
            f"sudo mount -o remount,size={_mib(size)}m {_SHM}",
        )
    mount = machine.mount_at(_SHM)
    if mount is None or mount.kind != "tmpfs":
        kind = "no file system of its own" if mount is None else mount.kind
        return Finding(
            f"{value}, {kind}",
            "warning",
            f"{need}. It is not a tmpfs here: rings may be written to a disk.",
            f"sudo mount -t tmpfs -o mode=1777,size={_mib(comfort)}m tmpfs {_SHM}",
        )
    return Finding(value, verdict, f"{need}.")


def _mib(size: int) -> int:
    return -(-size // _MIB)


@dataclass(frozen=True, slots=True)
class Leftover:
    """A segment without a broker."""

    name: str
    size: int
    age: float
    user: str
    publishers: int  # still attached: waiting for a new broker, or hanging

    def __str__(self) -> str:
        attached = f", {self.publishers} publishers still attached" if self.publishers else ""
        age = format_duration(round(self.age))
        return f"{self.name} (user {self.user}, {about(self.size)}, {age} old{attached})"


def _stale(machine: Machine, _run: DefaultRun) -> Finding:
    if not machine.exists(_SHM):
        return Finding("none", "ok")
    stale: list[Leftover] = []
    closed: list[str] = []
    used = 0
    for name in machine.names(_SHM):
        if _ring_of(name) is None:
            continue
        try:
            leftover = _leftover(machine, name)
        except FileNotFoundError:
            continue  # gone since we looked
        except OSError:
            closed.append(name)
            continue
        if leftover is None:
            used += 1
        else:
            stale.append(leftover)
    in_use = f"{used} in use" if used else ""
    if stale:
        rings = [_ring_of(one.name) for one in stale if not one.publishers]
        size = about(sum(one.size for one in stale))
        return Finding(
            ", ".join(filter(None, [f"{len(stale)} stale with {size}", in_use])),
            "warning",
            f"Without a broker: {listing([str(one) for one in stale])}.",
            f"embar-shm clean {' '.join(map(str, rings))}" if rings else None,
        )
    if closed:
        raise Unreadable(f"{listing(closed)} may not be opened: other users' segments")
    return Finding(f"none{in_use and f' ({in_use})'}", "ok")


def _ring_of(name: str) -> RingName | None:
    """The ring whose segment would have this name."""
    prefix, *parts = name.split(".")
    try:
        return RingName.parse("/".join(parts)) if prefix == "embar" else None
    except ConfigurationError:
        return None


def _leftover(machine: Machine, name: str) -> Leftover | None:
    """None while a broker has it, or it has only just been created."""
    path = machine.path(f"{_SHM}/{name}")
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        age = max(0.0, machine.now() - found.st_mtime)  # writing through a mapping leaves it alone
        if not stat.S_ISREG(found.st_mode) or age < _GRACE:
            return None
        if machine.is_locked(fd, _core.BROKER_LOCK):
            return None
        publishers = sum(
            machine.is_locked(fd, _core.publisher_lock(row)) for row in range(_core.MAX_PUBLISHERS)
        )
        user = machine.user_name(found.st_uid)
        return Leftover(name, found.st_size, age, user, publishers)
    finally:
        os.close(fd)


def _remove_ipc(machine: Machine, _run: DefaultRun) -> Finding:
    if not machine.exists("/run/systemd/system"):
        raise Unreadable("systemd is not running here (in a container: the host's setting counts)")
    enabled, origin = _logind_boolean(machine, "RemoveIPC", default=True)
    if not enabled:
        return Finding(f"no ({origin})", "ok")
    uid = machine.user()
    user = machine.user_name(uid)
    if uid < _FIRST_REGULAR_USER:
        return Finding(f"yes ({origin})", "ok", f"It spares system users, such as {user}.")
    if machine.exists(f"/var/lib/systemd/linger/{user}"):
        return Finding(f"yes ({origin})", "ok", f"User {user} lingers: a logout ends nothing.")
    return Finding(
        f"yes ({origin})",
        "warning",
        f"It will happen to the rings of {user}: nobody can attach to them any more.",
        f"sudo loginctl enable-linger {shlex.quote(user)}",
    )


def _logind_boolean(machine: Machine, key: str, *, default: bool) -> tuple[bool, str]:
    """A setting of systemd-logind and the file that sets it.

    As systemd reads it: the first logind.conf found, then the drop-ins of all folders by name,
    where a file hides those of the same name in later folders; the last assignment counts.
    """
    files = [f"{folder}/systemd/logind.conf" for folder in _CONFIG_FOLDERS]
    read = [path for path in files if machine.exists(path)][:1]
    dropins: dict[str, str] = {}
    for folder in _CONFIG_FOLDERS:
        path = f"{folder}/systemd/logind.conf.d"
        if machine.exists(path):
            for name in machine.names(path):
                if name.endswith(".conf"):
                    dropins.setdefault(name, f"{path}/{name}")
    read += [dropins[name] for name in sorted(dropins)]
    value, origin = default, "the default"
    for path in read:
        section = ""
        for raw in machine.text(path).splitlines():
            line = raw.strip()
            if line.startswith("["):
                section = line
            name, equals, text = line.partition("=")
            if section != "[Login]" or not equals or name.strip() != key:
                continue
            word = text.strip().lower()
            if word in ("yes", "true", "on", "1", "y", "t"):
                value, origin = True, path
            elif word in ("no", "false", "off", "0", "n", "f"):
                value, origin = False, path
            # Anything else systemd ignores, with a line in its log.
    return value, origin


RULES: Final = (
    Rule(
        f"{_SHM} size",
        "Shared memory",
        "Rings are files in this memory file system; a ring that does not fit is not created.",
        _size,
    ),
    Rule(
        "stale segments",
        "Shared memory",
        "A broker that was killed leaves its ring behind, which keeps its memory until somebody "
        "removes it.",
        _stale,
    ),
    Rule(
        "RemoveIPC",
        "Shared memory",
        "With yes, systemd deletes a user's files in /dev/shm when the user's last login session "
        "ends, also under a running broker.",
        _remove_ipc,
    ),
)
