"""The files that segments are: opened, given their memory, mapped, removed."""

from __future__ import annotations

import errno
import mmap
import os

import posix_ipc

from embar_shm import _core, access
from embar_shm.address import SHM_DIRECTORY, RingName, existing_rings
from embar_shm.errors import (
    BrokerGone,
    IncompatibleSegment,
    NoSuchBroker,
    NotEnoughSpace,
    ResourceError,
)
from embar_shm.layout import Geometry, validated
from embar_shm.units import format_size

__all__ = [
    "cannot_create",
    "map_checked",
    "not_enough_space",
    "open_segment",
    "prefault_memory",
    "reserve",
    "truncated",
    "unlink_segment",
]

_MADV_POPULATE_READ, _MADV_POPULATE_WRITE = 22, 23  # Linux 5.14; the mmap module has no names


def map_checked(
    name: RingName, lock_fd: int, size: int, *, read_only_slots: bool = False
) -> tuple[mmap.mmap, mmap.mmap | None, Geometry]:
    """Maps the file of `lock_fd`, through another description, after checking its header.

    The slots are the second value, where they are mapped apart (`read_only_slots`). Raises
    `NoSuchBroker` and `BrokerGone` when the name is gone, or another file's by now, and
    `IncompatibleSegment`.
    """
    mapped = open_segment(name)
    try:
        if os.fstat(mapped).st_ino != os.fstat(lock_fd).st_ino:
            raise BrokerGone(f"the broker of {name} was replaced just now", "connect again")
        with mmap.mmap(mapped, min(size, mmap.PAGESIZE), prot=mmap.PROT_READ) as header:
            geometry = validated(name, header, size)
        return *_mapped(mapped, geometry, read_only_slots), geometry
    finally:
        os.close(mapped)


def _mapped(
    fd: int, geometry: Geometry, read_only_slots: bool
) -> tuple[mmap.mmap, mmap.mmap | None]:
    """The whole segment, or the words before the slots, and the slots to look at."""
    if not read_only_slots:
        return mmap.mmap(fd, geometry.total_bytes), None
    slots = mmap.mmap(
        fd,
        geometry.total_bytes - geometry.slots_offset,
        prot=mmap.PROT_READ,
        offset=geometry.slots_offset,
    )
    return mmap.mmap(fd, geometry.slots_offset), slots


def unlink_segment(name: RingName, inode: int) -> None:
    """Removes the name, if it (still) belongs to this file. The caller holds the file's lock."""
    try:
        if name.path.lstat().st_ino == inode:
            posix_ipc.unlink_shared_memory(name.posix_name)
    except (FileNotFoundError, posix_ipc.ExistentialError):
        pass  # somebody removed it by hand: that is what we want, too


def open_segment(name: RingName) -> int:
    """An open file description of its own, of whomever it is. The caller closes it."""
    try:
        return access.open_file(name.path)
    except FileNotFoundError:
        rings = ", ".join(map(str, existing_rings())) or "none"
        raise NoSuchBroker(
            f"there is no broker {name} on this machine",
            f"start it, or correct the address; rings in {SHM_DIRECTORY}: {rings}",
        ) from None


def truncated(name: RingName, size: int) -> IncompatibleSegment:
    """The error for a file that is no segment, nor one that is being made."""
    return IncompatibleSegment(
        f"{name.path} is truncated: it has {size} bytes, a header alone "
        f"{_core.SEGMENT_HEADER_BYTES}",
        f"it is not ours, or somebody cut it; if nobody uses it, remove {name.path}",
    )


def reserve(name: RingName, fd: int, geometry: Geometry) -> None:
    """Takes all the memory at once. Raises `NotEnoughSpace`, `ResourceError`."""
    try:
        os.posix_fallocate(fd, 0, geometry.total_bytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
            raise cannot_create(name, error) from error
        raise not_enough_space(
            f"the ring {name}",
            geometry.total_bytes,
            f"{geometry.slots} slots of {format_size(geometry.slot_bytes)}",
        ) from None


def not_enough_space(what: str, needed: int, why: str) -> NotEnoughSpace:
    """The error for too little shared memory: how much is needed, and how to get it."""
    space = os.statvfs(SHM_DIRECTORY)
    return NotEnoughSpace(
        f"{what} needs {-(-needed // 2**20)} MiB of shared memory ({why}), {SHM_DIRECTORY} has "
        f"{space.f_bavail * space.f_frsize // 2**20} MiB free of "
        f"{space.f_blocks * space.f_frsize // 2**20} MiB",
        "use fewer or smaller slots, or raise the limit: 'mount -o remount,size=SIZE "
        f"{SHM_DIRECTORY}' as root, or --shm-size=SIZE for a container",
    )


def prefault_memory(memory: mmap.mmap, *, write: bool = True) -> None:
    """Fills the page table now: a first touch later would be measured as somebody's slow copy."""
    try:
        memory.madvise(_MADV_POPULATE_WRITE if write else _MADV_POPULATE_READ)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel before 5.14
            raise
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page]


def cannot_create(name: RingName, error: Exception) -> ResourceError:
    """The error when the system refuses a segment for another reason."""
    return ResourceError(f"the segment of {name} cannot be created: {error}")
