"""What processes and rings use now."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from embar_shm import _core
from embar_shm.address import RingName, existing_rings

__all__ = ["RingProbe", "of_process", "of_shm"]

_KIB = 1024


def of_process(pid: int) -> Iterator[tuple[str, float]]:
    """Memory in bytes, open files, threads. Raises `FileNotFoundError` when it is gone."""
    proc = Path(f"/proc/{pid}")
    for line in (proc / "smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("Rss", "Pss"):
            yield name.lower(), float(value.split()[0]) * _KIB
    yield "fds", float(len(os.listdir(proc / "fd")))  # noqa: PTH208 - only how many
    yield "threads", float(len(os.listdir(proc / "task")))  # noqa: PTH208


def of_shm(cluster: str) -> Iterator[tuple[str, float]]:
    """What the rings of a cluster take in /dev/shm."""
    files = [ring.path for ring in existing_rings() if ring.cluster == cluster]
    yield "shm_files", float(len(files))
    yield "shm_bytes", float(sum(path.stat().st_blocks * 512 for path in files))


class RingProbe:
    """Looks at a ring from outside."""

    def __init__(self, name: str) -> None:
        fd = os.open(RingName.parse(name).path, os.O_RDWR)
        try:
            self._memory = mmap.mmap(fd, 0)
        finally:
            os.close(fd)
        self._monitor = _core.Monitor(self._memory)

    def sample(self) -> Iterator[tuple[str, float]]:
        """Slots and rows that somebody has, and what must stay 0."""
        monitor, control = self._monitor, self._monitor.control()
        yield "slots", float(sum(owner >= 0 for _, owner, *_ in monitor.slots()))
        rows = sum(monitor.publisher(n)["state"] != "free" for n in range(monitor.max_publishers))
        rows += sum(
            monitor.subscriber(n)["state"] != "free" for n in range(monitor.max_subscribers)
        )
        yield "rows", float(rows)
        for word in ("missed_wakeups", "corrupt", "duplicated", "out_of_order"):
            yield word, float(control[word])

    def messages(self) -> int:
        """Messages in the log so far."""
        return int(self._monitor.control()["messages"])
