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

import mmap
import os
import time

import posix_ipc

from embar_shm import _core, access
from embar_shm.address import RingAddress, RingName
from embar_shm.errors import (
    AccessDenied,
    BrokerExists,
    BrokerGone,
    EmbarError,
    IncompatibleSegment,
    NoSuchBroker,
)
from embar_shm.layout import Geometry, boot_id
from embar_shm.left_behind import remove_dead, why_taken
from embar_shm.liveness import liveness
from embar_shm.quarantine import QUARANTINED, quarantined
from embar_shm.shared_memory import (
    cannot_create,
    map_checked,
    open_segment,
    prefault_memory,
    reserve,
    truncated,
    unlink_segment,
)

__all__ = ["Segment"]

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
            raise cannot_create(name, error) from error
        lock_fd = -1
        try:
            os.fchmod(made.fd, 0o600)  # whatever the umask removed
            if group is not None:
                access.give_to_group(made.fd, group)
            lock_fd = _lock_as_broker(name, os.fstat(made.fd).st_ino)
            reserve(name, made.fd, geometry)
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
