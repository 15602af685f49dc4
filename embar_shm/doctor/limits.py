"""Every threshold in one table, the run they are about, and the rule for socket buffers.

Socket buffers: a batch travels through the kernel's buffers in one piece only if they hold it, and
sender and receiver work at the same time only if a second one fits behind it. So the goal is two
batches of payload in each direction.

- SO_RCVBUF and SO_SNDBUF: the kernel cuts the wish at net.core.rmem_max or wmem_max and then
  doubles it, because its bookkeeping shares the buffer. ``*_max`` of 2 batches gives 4 batches of
  buffer: 2 batches of payload.
- Sockets that set nothing grow by themselves up to the third value of net.ipv4.tcp_rmem or
  tcp_wmem. That one is not doubled: it takes 4 batches for the same 2 of payload.

`tools/tune_kernel_buffers.sh` computes the same; a test keeps the two in agreement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from embar_shm.config import RunConfig
from embar_shm.layout import Geometry

__all__ = ["LARGEST_BUFFER", "LIMITS", "DefaultRun", "Steps", "Verdict", "buffer_bound"]

Verdict = Literal["ok", "note", "warning", "problem", "unknown"]


@dataclass(frozen=True, slots=True)
class Steps:
    """Bounds of one quantity, best verdict first; what passes none of them is `otherwise`."""

    unit: str
    bounds: tuple[tuple[Verdict, float], ...]
    otherwise: Verdict
    at_most: bool = False
    """Is less better? Then a bound is passed by a value up to it, else by one from it on."""

    def verdict(self, value: float) -> Verdict:
        for verdict, bound in self.bounds:
            if value <= bound if self.at_most else value >= bound:
                return verdict
        return self.otherwise

    def bound(self, verdict: Verdict) -> float:
        """The bound of a verdict; KeyError when it has none."""
        return dict(self.bounds)[verdict]


_RUN = "times the rings of the default run"

LIMITS: Final[Mapping[str, Steps]] = {
    # The socket rule of this module.
    "net.core": Steps("batches", (("ok", 2), ("note", 1)), "warning"),
    # Never a warning: the tcp transport sets its buffers, and a buffer that was set does not grow.
    "net.ipv4": Steps("batches", (("ok", 4), ("note", 2)), "note"),
    # Twice: a second run, or a deeper ring, beside the first.
    "shm free": Steps(_RUN, (("ok", 2), ("note", 1)), "problem"),
    "memory for rings": Steps(_RUN, (("ok", 1),), "problem"),
    "memory": Steps("times rings and processes of the default run", (("ok", 1),), "warning"),
    "locked memory": Steps(_RUN, (("ok", 1),), "note"),
    "swap used": Steps("share of all swap", (("note", 0.1),), "warning", at_most=True),
    # The default run starts 16 processes and fails below 64 open files (tried: 48 fails, 64 works).
    "cpus": Steps("CPUs", (("ok", 16), ("note", 2)), "warning"),
    "cpu quota": Steps("times the usable CPUs", (("ok", 1),), "warning"),
    "numa nodes": Steps("nodes with memory", (("ok", 1),), "note", at_most=True),
    "load": Steps("load average per CPU", (("ok", 0.25), ("note", 1)), "warning", at_most=True),
    "open files": Steps("files", (("ok", 1024), ("note", 256), ("warning", 64)), "problem"),
    # 3.15 has the locks that tell who is alive, 5.14 has MADV_POPULATE_WRITE.
    "kernel": Steps("1000 * major + minor", (("ok", 5014), ("note", 3015)), "problem"),
    "perf_event_paranoid": Steps("level", (("ok", 1),), "note", at_most=True),
    "ptrace_scope": Steps("level", (("ok", 0),), "note", at_most=True),
}
"""Thresholds by quantity; a rule asks this table and has no numbers of its own."""

LARGEST_BUFFER: Final[Mapping[str, int]] = {
    "net.core": (2**31 - 1) // 2,  # setsockopt() cuts at INT_MAX / 2, because it doubles
    "net.ipv4": 2**31 - 1,
}
"""No larger value has an effect, whatever the batch size."""


def buffer_bound(kind: str, verdict: Verdict, batch_bytes: int) -> int:
    """The smallest value in bytes of a "net.core" or "net.ipv4" setting that has this verdict."""
    return min(LARGEST_BUFFER[kind], int(LIMITS[kind].bound(verdict)) * batch_bytes)


@dataclass(frozen=True, slots=True)
class DefaultRun:
    """What ``embar-shm run`` without options asks of a machine, for one batch size."""

    batch_bytes: int
    brokers: int
    publishers: int
    slots: int
    rings_bytes: int
    """Shared memory of all rings together."""

    PROCESS_BYTES = 32 * 2**20  # an interpreter with numpy: 38 MiB resident, a part of it shared

    @classmethod
    def with_batches_of(cls, batch_bytes: int) -> DefaultRun:
        """Raises `ConfigurationError` for a batch that no ring can hold."""
        run = RunConfig()
        ring = Geometry.plan(run.slots, batch_bytes, run.max_publishers)
        return cls(
            batch_bytes=batch_bytes,
            brokers=run.brokers,
            publishers=run.publishers,
            slots=run.slots,
            rings_bytes=run.brokers * ring.total_bytes,
        )

    @property
    def processes(self) -> int:
        """Brokers and publishers; the command itself only waits."""
        return self.brokers + self.publishers

    @property
    def memory_bytes(self) -> int:
        """Rings and processes together, roughly."""
        return self.rings_bytes + (self.processes + 1) * self.PROCESS_BYTES
