"""Tests that do not disturb each other: cluster names of their own, and nothing left behind.

Rings are found by the clusters that `unique_cluster` named, processes by their parent. So tests of
several processes can run at a time, beside brokers that have nothing to do with them.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from embar_shm.address import RingName, existing_rings
from embar_shm.testing.conditions import wait_until

__all__ = ["LeftBehind", "isolated", "leftovers", "unique_cluster"]

_GRACE = 5.0  # seconds that what is on its way out may take
# Helpers of the standard library that live until their parent ends, by design.
_PERMANENT = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")

_named: list[str] = []  # every cluster `unique_cluster` gave out in this process


class LeftBehind(AssertionError):
    """A test left rings or processes behind. They are removed by now."""


def unique_cluster(prefix: str = "test") -> str:
    """A cluster name that nobody else on this machine has: "prefix-pid-random"."""
    cluster = f"{prefix}-{os.getpid()}-{secrets.token_hex(4)}"
    _named.append(cluster)
    return cluster


def leftovers(cluster: str) -> list[RingName]:
    """The rings of a cluster that exist now, dead or alive, in the order of their names."""
    return [ring for ring in existing_rings() if ring.cluster == cluster]


@contextmanager
def isolated(grace: float = _GRACE) -> Iterator[None]:
    """Checks that the block leaves nothing behind.

    Looks at the rings of all clusters that `unique_cluster` named within the block, at those of
    ``embar-shm run`` processes that have ended, and at child processes started within it. What does
    not go away within `grace` seconds is removed or killed; unless the block raised anyway,
    `LeftBehind` then tells what it was.
    """
    first = len(_named)
    before = {process.pid for process in _running_children()}
    dead_runs = _of_ended_runs()  # not ours: they were there before
    rings: list[RingName] = []
    processes: list[psutil.Process] = []

    def nothing_left() -> bool:
        rings[:] = [ring for cluster in _named[first:] for ring in leftovers(cluster)]
        rings.extend(ring for ring in _of_ended_runs() if ring not in dead_runs)
        processes[:] = [process for process in _running_children() if process.pid not in before]
        return not rings and not processes

    try:
        yield
    finally:
        try:
            wait_until(nothing_left, "clean-up", grace)
        except AssertionError:
            found = [f"ring {ring}" for ring in rings] + [_describe(one) for one in processes]
            _remove(rings, processes)
        else:
            found = []
    if found:
        raise LeftBehind(f"left behind: {', '.join(found)}")


def _of_ended_runs() -> list[RingName]:
    """Rings named as ``embar-shm run`` names them, "run-pid/number", without such a process."""
    found = []
    for ring in existing_rings():
        kind, _, pid = ring.cluster.partition("-")
        if kind == "run" and pid.isdigit() and not psutil.pid_exists(int(pid)):
            found.append(ring)
    return found


def _running_children() -> list[psutil.Process]:
    running = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue  # it ended; nobody has asked for its exit status yet
            if any(helper in " ".join(process.cmdline()) for helper in _PERMANENT):
                continue
        except psutil.NoSuchProcess:
            continue
        running.append(process)
    return running


def _describe(process: psutil.Process) -> str:
    try:
        command = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        command = "just ended"
    return f"process {process.pid} ({command[:80]!r})"


def _remove(rings: list[RingName], processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=_GRACE)
    for ring in rings:
        ring.path.unlink(missing_ok=True)
