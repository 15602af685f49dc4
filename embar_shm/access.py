"""Who may use a segment, and which segments a process trusts. SECURITY.md tells why.

The file of a segment has mode 0600, or 0660 and a group; nothing else is used. Everybody can make
files in /dev/shm, so a name says nothing about who made what is there: a process attaches to a
segment only if its owner is

- the process' own user, or root;
- a member of a group that the process was told to trust (``shm://demo/0?group=NAME``). Only members
  can give a file to a group, so mode 0660 and that group show it.

That /dev/shm is a tmpfs is not asked: who could mount something else there is root.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from pathlib import Path

from embar_shm.errors import AccessDenied, ConfigurationError, IncompatibleSegment, ResourceError

__all__ = [
    "NotOpenYet",
    "check_left_behind",
    "check_trusted",
    "differences",
    "give_to_group",
    "group_id",
    "group_name",
    "is_own",
    "let_in",
    "not_ours",
    "open_file",
]

_OWNER_ONLY = 0o600
_GROUP_TOO = 0o660
_MOST_ID = 2**32 - 2  # the one above it means "leave it as it is" to chown(2)

# Not blocking: neither on a FIFO, nor until the holder of a lease (fcntl(2)) lets go of it.
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFDIR: "a directory",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotOpenYet(AccessDenied):
    """It may be a segment that is still being made: its mode is the last thing to be set."""


# --- the broker's side ----------------------------------------------------------------------------


def group_id(group: str | int | None) -> int | None:
    """The number of a group that has this name, or else this number; None: no group.

    Raises `ConfigurationError`.
    """
    if group is None:
        return None
    if isinstance(group, str):
        try:
            return grp.getgrnam(group).gr_gid
        except (KeyError, ValueError):  # ValueError: a NUL, or a surrogate
            number = int(group) if group.isascii() and group.isdigit() and len(group) < 12 else -1
    else:
        number = group if isinstance(group, int) and not isinstance(group, bool) else -1
    if 0 <= number <= _MOST_ID:
        return number
    raise ConfigurationError(
        f"there is no group {group!r} on this machine",
        "`getent group` lists them; a number need not have a name",
    )


def group_name(gid: int) -> str:
    """The name of a group; its number, if it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def give_to_group(fd: int, gid: int) -> None:
    """Makes `gid` the file's group. Its mode is as before: the group may not open it yet.

    Raises `ConfigurationError` when this process is not a member of it.
    """
    try:
        os.fchown(fd, -1, gid)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EINVAL):  # EINVAL: not of this user namespace
            raise
        raise ConfigurationError(
            f"a segment cannot be given to the group {_group(gid)}: this process is "
            f"{_user(os.geteuid())} with the groups {_own_groups()}",
            "name one of these; or make the user a member of it (usermod -aG), which counts from "
            "the next login on",
        ) from error


def let_in(fd: int, group: int | None) -> None:
    """Lets a group use the file from now on, and nobody else but its user."""
    if group is None:
        os.fchmod(fd, _OWNER_ONLY)
        return
    if os.fstat(fd).st_gid != group:
        os.fchmod(fd, _OWNER_ONLY)  # not for a moment is it the old group's with the new one's mode
        give_to_group(fd, group)
    os.fchmod(fd, _GROUP_TOO)


def differences(fd: int, group: int | None) -> tuple[str, ...]:
    """In words, if it is not `group` that may use an existing segment of this user."""
    found = os.fstat(fd)
    has = found.st_gid if stat.S_IMODE(found.st_mode) == _GROUP_TOO else None
    if has == group:
        return ()
    was, wanted = ("its user only" if gid is None else group_name(gid) for gid in (has, group))
    return (f"group: the ring was for {was}, {wanted} was asked for; who has it open keeps it",)


def is_own(fd: int) -> bool:
    """Is it a file of this process' user? Only that user may become its broker.

    Not even root: the user can cut the file while root uses it, and may have written it.
    """
    return os.fstat(fd).st_uid == os.geteuid()


def check_left_behind(path: Path, fd: int) -> None:
    """May the segment of this user, left by a broker that died, be used again?

    Raises `AccessDenied` when others could have changed it, or brought back one that was removed:
    where fs.protected_hardlinks is 0, anybody can keep a link to it. Others' links stay in a folder
    with the sticky bit, so they are counted.
    """
    _check_mode(path, os.fstat(fd))
    names = os.fstat(fd).st_nlink
    if names > 1:
        raise AccessDenied(
            f"{path} has {names} names: somebody made links to it, and may have brought back a "
            "ring that was removed",
            "begin with a new one: embar-shm broker --replace-dead; and set fs.protected_hardlinks "
            "to 1 (sysctl)",
        )


# --- the side of those who attach -----------------------------------------------------------------


def open_file(path: Path) -> int:
    """An open file description of what is there, to read and write, if it is a regular file.

    Does not block and follows no links. Trusts nobody: see `check_trusted` and `is_own`.
    Raises FileNotFoundError, `AccessDenied`, `IncompatibleSegment` for anything else than a file,
    and `ResourceError`.
    """
    try:
        fd = os.open(path, _FLAGS)
    except FileNotFoundError:
        raise
    except OSError as error:
        found = path.lstat()
        _check_kind(path, found)
        if isinstance(error, PermissionError):
            raise _closed(path, found) from error
        raise ResourceError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        _check_kind(path, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_trusted(path: Path, fd: int, group: int | None = None) -> None:
    """May this process use the segment in `fd`? `group`: one whose members it trusts.

    Raises `AccessDenied`, and its subclass `NotOpenYet` if that may be different in a moment.
    """
    found = os.fstat(fd)
    _check_mode(path, found)
    if found.st_uid in (os.geteuid(), 0):
        return
    mode = stat.S_IMODE(found.st_mode)
    whose = f"{path} belongs to {_user(found.st_uid)}"
    if group is not None and mode != _GROUP_TOO:
        raise NotOpenYet(
            f"{whose}, who alone may use it (mode {mode:04o})",
            f"start its broker with --group {group_name(group)}",
        )
    if group == found.st_gid:
        return
    raise AccessDenied(
        f"{whose}, which is neither this process' user ({_user(os.geteuid())}) nor root: whoever "
        "that is could read what is written into it, and have written what is read",
        "run both sides as the same user"
        if mode != _GROUP_TOO
        else f"if you trust everybody in the group {_group(found.st_gid)}, add "
        f"?group={group_name(found.st_gid)} to the address",
    )


# --- what is wrong --------------------------------------------------------------------------------


def _check_kind(path: Path, found: os.stat_result) -> None:
    if stat.S_ISREG(found.st_mode):
        return
    raise IncompatibleSegment(
        f"{path} is {_KINDS.get(stat.S_IFMT(found.st_mode), 'no file')} of "
        f"{_user(found.st_uid)}, not the file of a ring",
        "it is not ours: find out who made it, and remove it, or choose another name",
    )


def _check_mode(path: Path, found: os.stat_result) -> None:
    """Is it open to its user, or a group, and to nobody else?"""
    mode = stat.S_IMODE(found.st_mode)
    if mode & stat.S_IWOTH:
        what = "others could write into it"
    elif mode & stat.S_IROTH:
        what = "others could read it"
    elif mode & ~_GROUP_TOO or (mode & stat.S_IRWXG and mode != _GROUP_TOO):
        what = "no broker has set that"
    else:
        return
    raise AccessDenied(
        f"{path} of {_user(found.st_uid)} has mode {mode:04o}: {what}",
        f"a segment has mode {_OWNER_ONLY:04o}, or {_GROUP_TOO:04o} and a group: start its broker "
        "with --group, and --replace-dead, instead of changing the mode",
    )


def _closed(path: Path, found: os.stat_result) -> AccessDenied:
    """The error for a file that the kernel does not let us open."""
    mode = stat.S_IMODE(found.st_mode)
    us = f"this process is {_user(os.geteuid())}"
    if found.st_uid == os.geteuid():
        return NotOpenYet(f"{path} has mode {mode:04o}: its own user may not open it")
    if mode == _GROUP_TOO:
        return AccessDenied(
            f"{path} is for {_user(found.st_uid)} and the group {_group(found.st_gid)}; "
            f"{us} with the groups {_own_groups()}",
            "make the user a member of the group (usermod -aG), which counts from the next login "
            "on; or run both sides as the same user",
        )
    return NotOpenYet(
        f"{path} belongs to {_user(found.st_uid)}, who alone may use it; {us}",
        "run both sides as the same user, or start the broker with --group and a group of both",
    )


def not_ours(path: Path, fd: int) -> tuple[str, str]:
    """Message and hint for a segment of another user whose name a broker wants."""
    return (
        f"{path} belongs to {_user(os.fstat(fd).st_uid)}, and this process is "
        f"{_user(os.geteuid())}",
        "run the broker as that user, or choose another name; only that user and root can remove "
        "it",
    )


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return f"user {uid}"


def _group(gid: int) -> str:
    name = group_name(gid)
    return name if name == str(gid) else f"{name} ({gid})"


def _own_groups() -> str:
    return ", ".join(_group(gid) for gid in sorted({os.getegid(), *os.getgroups()}))
