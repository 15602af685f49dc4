"""What is left of rings: looked at from outside."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

from embar_shm import _core
from embar_shm.address import RingName, existing_rings

__all__ = ["look_at_end", "remains", "remove"]


def look_at_end(name: str) -> Iterator[str]:
    """What is not as it should be in a ring that nobody uses any more, whose broker serves."""
    fd = os.open(RingName.parse(name).path, os.O_RDWR)
    try:
        with mmap.mmap(fd, 0) as memory:
            yield from _findings(name, memory)
    finally:
        os.close(fd)


def _findings(name: str, memory: mmap.mmap) -> Iterator[str]:
    monitor = _core.Monitor(memory)
    control = monitor.control()
    if control["tail"] > control["head"] or control["released"] != control["head"]:
        words = ", ".join(f"{word} {control[word]}" for word in ("tail", "head", "released"))
        yield f"{name}: batches are left: {words}"
    for word in ("corrupt", "out_of_order"):
        if control[word]:
            yield f"{name}: {word} is {control[word]}"
    for slot, owner, generation, held_ns in monitor.slots():
        if owner >= 0:
            yield f"{name}: slot {slot}, generation {generation}, is owned by {owner} for {held_ns}"
    for row in range(monitor.max_publishers):
        if (state := monitor.publisher(row)["state"]) != "free":
            yield f"{name}: the row of publisher {row} is {state}"
    for row in range(monitor.max_subscribers):
        if (state := monitor.subscriber(row)["state"]) != "free":
            yield f"{name}: the row of subscriber {row} is {state}"
    for field, what in _core.check_ring(memory):
        yield f"{name}: {field}: {what}"


def remove(cluster: str) -> None:
    """Rings of brokers that were killed because a run was given up."""
    for ring in existing_rings():
        if ring.cluster == cluster:
            ring.path.unlink(missing_ok=True)


def remains(cluster: str) -> Iterator[str]:
    """Rings and child processes that are still there."""
    for ring in existing_rings():
        if ring.cluster == cluster:
            yield f"ring {ring}"
    try:
        pid, _ = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return
    yield f"process {pid}" if pid else "a process"
