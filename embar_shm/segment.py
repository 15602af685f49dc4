"""The life of a segment: created by one broker, attached by many, unlinked by its creator.

Creation takes these steps, in this order, so that whoever attaches finds either nothing, or a
segment that is still being made (magic 0, broker lock held), or a whole one:

1. ``shm_open`` with O_EXCL and mode 0600; its group, if it has one;
2. the broker's liveness lock (byte 0, see ``_native/liveness.hpp``);
3. ``posix_fallocate`` of the whole size: a bare ``ftruncate`` succeeds on a full tmpfs and then
   kills the process with SIGBUS at the first touch;
4. mapping and prefault;
5. header, and after all of it the magic;
6. mode 0660, if there is a group: its members find a whole segment, too.

Whose segments are trusted, and by whom: `embar_shm.access`.

A killed broker leaves its segment behind; `Segment.create` with `replace_dead` removes it once the
kernel says that neither the broker nor any publisher is left.

The liveness lock has an open file description of its own. The mapping's is another one: the mmap
module duplicates it into a descriptor that a forked child would keep, and with it the lock.
"""

from __future__ import annotations

import errno
import mmap
import os
import time

import posix_ipc

from embar_shm import _core, access
from embar_shm.address import SHM_DIRECTORY, RingAddress, RingName, existing_rings
from embar_shm.errors import (
    AccessDenied,
    BrokerExists,
    BrokerGone,
    EmbarError,
    IncompatibleSegment,
    NoSuchBroker,
    NotEnoughSpace,
    ResourceError,
)
from embar_shm.layout import Geometry, boot_id, validated
from embar_shm.liveness import liveness
from embar_shm.quarantine import QUARANTINED, quarantined
from embar_shm.units import format_size

__all__ = [
    "Segment",
    "map_checked",
    "not_enough_space",
    "open_segment",
    "prefault_memory",
    "remove_dead",
    "truncated",
    "unlink_segment",
    "why_taken",
]

_MADV_POPULATE_READ, _MADV_POPULATE_WRITE = 22, 23  # Linux 5.14; the mmap module has no names
_CREATION_GRACE = 10.0  # seconds a segment may take from shm_open to its magic
_CREATE_TRIES = 10  # a creation can lose against others' `replace_dead`, but not forever
_LOCK_GRACE = 0.2  # seconds it may take from shm_open to the broker's lock, and to its mode
_POLL = 0.002  # seconds between two looks at a segment that is being created


class Segment:
    """A mapped segment. `create` and `attach` make one; `close` gives it back."""

    @property
    def advice(self) -> str:
        """What to look at when the broker, though not given up, does not get on."""
        if self.lock_fd >= 0 and not _core.is_locked(self.lock_fd, _core.BROKER_LOCK):
            return "the broker died: start it again, and it goes on with what is in its ring"
        return "the broker is alive but does not get on: look at that process"

    def __init__(
        self,
        name: RingName,
        memory: mmap.mmap,
        geometry: Geometry,
        lock_fd: int,
        inode: int,
        slots: mmap.mmap | None = None,
    ) -> None:
        self.name = name
        self.memory = memory
        self.slots = slots
        """The slots alone, read-only, where `memory` ends before them; None: they are in it."""
        self.log: int = _core.read_header(memory)["created_unix_ns"]
        """Identifies the log: a broker that is started anew has another."""
        self.geometry = geometry
        self.group: int | None = None
        """Whose members its broker lets in; known to the broker only."""
        self.lock_fd: int = lock_fd
        self._inode = inode

    # --- making and finding -------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        name: RingName,
        geometry: Geometry,
        *,
        replace_dead: bool = False,
        group: int | None = None,
    ) -> Segment:
        """Creates the segment and holds the broker's lock on it.

        `replace_dead` removes a left-over whose broker and publishers are all gone. `group`: its
        members may use the segment, too.
        Raises `BrokerExists` when the name is taken, `NotEnoughSpace` when /dev/shm is too full,
        `ConfigurationError` when this process is not in the group.
        """
        for _ in range(_CREATE_TRIES):
            if replace_dead:
                remove_dead(name)
            try:
                return cls._create_now(name, geometry, group)
            except _LostRace as error:
                lost = error
        raise lost

    @classmethod
    def _create_now(cls, name: RingName, geometry: Geometry, group: int | None) -> Segment:
        try:
            made = posix_ipc.SharedMemory(name.posix_name, posix_ipc.O_CREX, mode=0o600)
        except posix_ipc.ExistentialError:
            raise BrokerExists(*why_taken(name)) from None
        except (OSError, posix_ipc.PermissionsError) as error:
            raise _resource_error(name, error) from error
        lock_fd = -1
        try:
            os.fchmod(made.fd, 0o600)  # whatever the umask removed
            if group is not None:
                access.give_to_group(made.fd, group)
            lock_fd = _lock_as_broker(name, os.fstat(made.fd).st_ino)
            _reserve(name, made.fd, geometry)
            memory = mmap.mmap(made.fd, geometry.total_bytes)
            prefault_memory(memory)
            _core.format_segment(
                memory,
                geometry.slots,
                geometry.slot_bytes,
                geometry.max_publishers,
                geometry.max_subscribers,
                str(name),
                boot_id(),
                time.time_ns(),
            )
            segment = cls(name, memory, geometry, lock_fd, os.fstat(made.fd).st_ino)
            _core.publish_segment(memory)
            if group is not None:
                segment.let_in(group)
        except BaseException:
            if lock_fd >= 0 or _core.try_lock(made.fd, _core.BROKER_LOCK):
                # Without the lock it is the remover's.
                unlink_segment(name, os.fstat(made.fd).st_ino)
            if lock_fd >= 0:
                liveness.close(lock_fd)
            raise
        finally:
            made.close_fd()
        return segment

    @classmethod
    def attach(
        cls,
        name: RingName,
        *,
        timeout: float = 0.0,
        prefault: bool = True,
        read_only_slots: bool = False,
        group: int | None = None,
    ) -> Segment:
        """Maps an existing segment after checking whose it is, and every field of its header.

        Waits up to `timeout` seconds for a broker to appear. Without `prefault` the memory is
        left untouched: for those who only look at the counters. `read_only_slots`: for subscribers,
        who cannot write into a batch then. `group`: one whose members this process trusts. Raises
        `NoSuchBroker`, `AccessDenied` when the segment is not for this process, or of a user it
        does not trust, `BrokerGone` when its broker left it behind, and `IncompatibleSegment` with
        both sides' values when this version cannot use it.
        """
        begin = time.monotonic()
        deadline = begin + timeout
        while True:
            try:
                return cls._attach_now(name, prefault, read_only_slots, group)
            except (NoSuchBroker, BrokerGone):  # perhaps it is just being started again
                if time.monotonic() >= deadline:
                    raise
            except access.NotOpenYet as error:  # without a group only its own user needs to wait
                grace = max(_LOCK_GRACE, timeout if group is not None else 0)
                if time.monotonic() >= begin + grace:
                    raise AccessDenied(error.message, error.hint) from None
            time.sleep(min(_POLL, max(0.0, deadline - time.monotonic())))

    @classmethod
    def _attach_now(
        cls, name: RingName, prefault: bool, read_only_slots: bool, group: int | None
    ) -> Segment:
        lock_fd = liveness.opened(lambda: open_segment(name))
        try:
            access.check_trusted(name.path, lock_fd, group)
            size = _await_creation(name, lock_fd)
            memory, slots, geometry = map_checked(
                name, lock_fd, size, read_only_slots=read_only_slots
            )
            monitor = _core.Monitor(memory)
            if monitor.control()["state"] == QUARANTINED:
                raise quarantined(name, monitor.damage)
            if not _core.is_locked(lock_fd, _core.BROKER_LOCK):
                raise BrokerGone(
                    f"the broker of {name} is gone; it left {name.path} behind",
                    "start the broker again: embar-shm broker, or Broker.open_or_recover, goes on "
                    "with what is in it",
                )
            if prefault:
                prefault_memory(memory)
                if slots is not None:
                    prefault_memory(slots, write=False)
        except BaseException:
            liveness.close(lock_fd)
            raise
        return cls(name, memory, geometry, lock_fd, os.fstat(lock_fd).st_ino, slots)

    @property
    def address(self) -> RingAddress:
        """Where those who may use it find it."""
        return RingAddress(self.name, None if self.group is None else access.group_name(self.group))

    def let_in(self, group: int | None) -> None:
        """Makes it, for its broker, what `group` may use; None: what its user may."""
        access.let_in(self.lock_fd, group)
        self.group = group

    # --- looking and giving back --------------------------------------------------------------

    def monitor(self) -> _core.Monitor:
        """A read-only look at the ring's counters."""
        return _core.Monitor(self.memory)

    def describe_broker(self) -> str:
        """Who is waited for."""
        return f"the broker (pid {self.monitor().control()['broker_pid']})"

    def explain_end(self) -> EmbarError | None:
        """The ring's own words tell: the broker has stopped."""
        return None

    def unlink(self) -> None:
        """Removes the name, if it still is this segment's. Who has it mapped keeps it."""
        unlink_segment(self.name, self._inode)

    def close(self) -> None:
        """Drops the liveness lock. The mapping goes with the last object that uses it."""
        if self.lock_fd >= 0:
            liveness.close(self.lock_fd)
            self.lock_fd = -1

    def after_fork_in_child(self) -> None:
        """The lock's descriptor is closed already: a child must not keep its parent alive."""
        self.lock_fd = -1


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


def _await_creation(name: RingName, fd: int) -> int:
    """Waits while the segment is being made; its final size in bytes."""
    begin = locked = time.monotonic()
    while True:
        status = os.fstat(fd)
        size = status.st_size
        complete = size >= _core.SEGMENT_HEADER_BYTES and os.pread(fd, 8, 0) != bytes(8)
        if complete:
            return size
        if status.st_nlink == 0:  # /dev/shm was too full for it: its creator has given it up
            raise NoSuchBroker(
                f"there is no broker {name} on this machine: one that was starting has given up",
                "its own error says why; start it again",
            )
        if 0 < size < _core.SEGMENT_HEADER_BYTES:  # it gets its whole size in one step
            raise truncated(name, size)
        now = time.monotonic()
        if _core.is_locked(fd, _core.BROKER_LOCK):
            locked = now
        elif now - locked >= _LOCK_GRACE:
            raise IncompatibleSegment(
                f"{name.path} is no complete segment: {size} bytes, and no magic; "
                f"a header has {_core.SEGMENT_HEADER_BYTES} bytes",
                f"its creator died, or it is not ours; if nobody uses it, remove {name.path}",
            )
        if now - begin >= _CREATION_GRACE:
            raise IncompatibleSegment(
                f"{name.path} did not become ready within {_CREATION_GRACE:g} s",
                "its broker holds the lock but does not finish: look at that process",
            )
        time.sleep(_POLL)


def _lock_as_broker(name: RingName, inode: int) -> int:
    """Takes the broker's lock of the segment just made; its open file description.

    Once the lock is held, `remove_dead` of others leaves the name alone: look at it after that.
    """
    try:
        fd = liveness.opened(lambda: open_segment(name))
        try:
            if _core.try_lock(fd, _core.BROKER_LOCK) and name.path.lstat().st_ino == inode:
                return fd
        except BaseException:
            liveness.close(fd)
            raise
        liveness.close(fd)
    except (NoSuchBroker, FileNotFoundError):
        pass  # removed, as if it had been left behind
    raise _LostRace(f"somebody else became the broker of {name} at the same moment", "try again")


class _LostRace(BrokerExists):
    """Another creator with `replace_dead` took our segment for a left-over before it was locked."""


def _reserve(name: RingName, fd: int, geometry: Geometry) -> None:
    try:
        os.posix_fallocate(fd, 0, geometry.total_bytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
            raise _resource_error(name, error) from error
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


def _resource_error(name: RingName, error: Exception) -> ResourceError:
    return ResourceError(f"the segment of {name} cannot be created: {error}")


def why_taken(name: RingName) -> tuple[str, str]:
    """Message and hint for a name that exists."""
    try:
        fd = open_segment(name)
    except NoSuchBroker as error:
        return f"the ring {name} did exist a moment ago: {error.message}", "try again"
    except (AccessDenied, IncompatibleSegment, ResourceError) as error:
        return f"the name of the ring {name} is taken: {error.message}", error.hint
    try:
        if not access.is_own(fd):
            message, hint = access.not_ours(name.path, fd)
            return f"the name of the ring {name} is taken: {message}", hint
        alive = _core.is_locked(fd, _core.BROKER_LOCK)
        damaged = _is_quarantined(fd)
    finally:
        os.close(fd)
    if damaged:
        why = quarantined(name, "its broker left it for whoever looks into it")
        return why.message, why.hint
    if alive:
        return (
            f"a broker of {name} is running; its segment is {name.path}",
            "choose another name, or stop that broker",
        )
    return (
        f"the ring {name} exists, left behind by a broker that is gone: {name.path}",
        "Broker.open_or_recover goes on with what is in it; Broker.create(..., replace_dead=True) "
        "replaces it when no publisher is left either",
    )


def _is_quarantined(fd: int) -> bool:
    offsets = {name: offset for name, offset, _, _ in _core.structs()["Control"][1]}
    state = os.pread(fd, 4, _core.SEGMENT_HEADER_BYTES + offsets["state"])
    return int.from_bytes(state, "little") == QUARANTINED


def remove_dead(name: RingName) -> None:
    """Unlinks a segment in which nobody is alive, if there is one. Leaves it alone otherwise.

    Also anything that is no segment, or may not be opened or removed by this process, and one that
    is quarantined.
    Holding the broker's lock of the old file while unlinking makes sure that of several
    processes doing this one wins, and that none unlinks the winner's new segment.
    """
    try:
        fd = open_segment(name)
    except (NoSuchBroker, AccessDenied, IncompatibleSegment):
        return
    try:
        if os.geteuid() not in (os.fstat(fd).st_uid, 0):
            return
        if not _core.try_lock(fd, _core.BROKER_LOCK) or _is_quarantined(fd):
            return
        rows = range(_core.MAX_PUBLISHERS)
        if any(_core.is_locked(fd, _core.publisher_lock(row)) for row in rows):
            return
        unlink_segment(name, os.fstat(fd).st_ino)
    finally:
        os.close(fd)
