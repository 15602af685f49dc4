"""Every threshold in one table, the run they are about, and the rule for socket buffers.

Socket buffers, as `embar_shm.socket_buffers` asks for them (measured: docs/performance.md):

- Over loopback the tcp transport requests LOOPBACK_BYTES, for batches of any size, and leaves the
  buffers to the kernel where net.core.rmem_max or wmem_max is less. The kernel doubles a request,
  because its bookkeeping shares the buffer: the limit is in bytes of payload.
- Between machines it requests nothing. The kernel grows buffers up to the third value of
  net.ipv4.tcp_rmem and tcp_wmem, half of which is payload. That half has to cover bandwidth x
  delay: what is on its way until the answer to it is back. `PATH_BYTES` is one such path. It is
  best not below a batch either, or no call sends one without waiting in its middle.

`tools/tune_kernel_buffers.sh` computes the same; a test keeps the two in agreement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from embar_shm.config.schema import RunConfig
from embar_shm.layout import Geometry
from embar_shm.socket_buffers import LOOPBACK_BYTES

__all__ = [
    "LIMITS",
    "PATH_BITS_PER_SECOND",
    "PATH_BYTES",
    "PATH_SECONDS",
    "DefaultRun",
    "Steps",
    "Verdict",
    "wanted_buffer",
]

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
    # Batches that LOOPBACK_BYTES hold whole gained nothing by it: no more than a note for them.
    "net.core": Steps("times LOOPBACK_BYTES", (("ok", 1),), "warning"),
    "net.core, small batches": Steps("times LOOPBACK_BYTES", (("ok", 1),), "note"),
    # Below it a path that is common in a data centre is not filled; the worse of the two counts.
    "net.ipv4, path": Steps("times PATH_BYTES of payload", (("ok", 1),), "warning"),
    # A path with less bandwidth x delay does not need it.
    "net.ipv4, batch": Steps("batches of payload", (("ok", 1),), "note"),
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

PATH_BITS_PER_SECOND: Final = 10e9
PATH_SECONDS: Final = 1e-3
PATH_BYTES: Final = int(PATH_BITS_PER_SECOND / 8 * PATH_SECONDS)
"""Bandwidth x delay of the path that autotuned buffers are judged by: 10 Gbit/s x 1 ms."""

_LARGEST: Final = 2**31 - 1  # the kernel takes no more for net.ipv4.tcp_rmem and tcp_wmem


def wanted_buffer(kind: Literal["net.core", "net.ipv4"], batch_bytes: int) -> int:
    """The smallest value in bytes of such a setting that is "ok"; of tcp_rmem the third one."""
    if kind == "net.core":
        return LOOPBACK_BYTES
    return min(_LARGEST, 2 * max(PATH_BYTES, batch_bytes))


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
