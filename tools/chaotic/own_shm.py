"""A /dev/shm of one's own, which can be filled without disturbing anybody."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

__all__ = ["PLACE", "Filler", "mount_own"]

PLACE = Path("/dev/shm")
_NEW_MOUNTS, _NEW_USER = 0x0002_0000, 0x1000_0000  # clone(2)
_RECURSIVE, _PRIVATE = 1 << 14, 1 << 18  # mount(2)


def mount_own(size: str) -> str:
    """Gives this process, and its children, a small tmpfs there; why not, or "" when it is done.

    Before any thread was started: as an ordinary user it takes a user namespace, too.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_NEW_MOUNTS) != 0:
        if libc.unshare(_NEW_MOUNTS | _NEW_USER) != 0:
            return f"no mount namespace: {os.strerror(ctypes.get_errno())}"
        try:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        except OSError as error:
            return f"no user namespace: {error}"
    if libc.mount(None, b"/", None, _RECURSIVE | _PRIVATE, None) != 0:
        return f"mounts cannot be made private: {os.strerror(ctypes.get_errno())}"
    options = f"size={size},mode=1777".encode()
    if libc.mount(b"chaos", bytes(PLACE), b"tmpfs", 0, options) != 0:
        return f"no tmpfs can be mounted: {os.strerror(ctypes.get_errno())}"
    return ""


class Filler:
    """Takes all that is free, from `fill` to `free`."""

    def __init__(self) -> None:
        self._path = PLACE / f"filler-{os.getpid()}"
        self._depth = 0

    def fill(self) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        fd = os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            space = os.statvfs(PLACE)
            want, at = space.f_bavail * space.f_frsize, 0
            while want >= space.f_frsize:  # others may take some of it meanwhile
                try:
                    os.posix_fallocate(fd, at, want)
                    at += want
                except OSError:
                    want //= 2
        finally:
            os.close(fd)

    def free(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._path.unlink()
