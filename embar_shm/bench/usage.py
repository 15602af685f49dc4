"""What a process used (getrusage(2)): CPU time, switches, memory; and what all used together."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypedDict

from embar_shm.cpus import available_cpus

__all__ = [
    "ROLES",
    "MachineTime",
    "Usage",
    "by_role",
    "machine_now",
    "machine_since",
    "total",
    "usage_now",
    "usage_since",
]

ROLES: Final = ("broker", "publisher")
"""Of every run whose brokers are not elsewhere."""
_STAT: Final = Path("/proc/stat")
_IDLE: Final = (
    3,
    4,
)  # the columns idle and iowait; guest time, from column 8 on, is user time, too
_SOFTIRQ: Final = 6
_COLUMNS: Final = 8


class Usage(TypedDict):
    """Of one process or several; `max_rss_bytes` is a peak, the rest are sums.

    `cpu_seconds` is `user_seconds` (its own code, Python's and ours) plus `kernel_seconds` (the
    kernel at work for it: system calls, page faults).
    """

    cpu_seconds: float
    user_seconds: float
    kernel_seconds: float
    voluntary_switches: int
    involuntary_switches: int
    max_rss_bytes: int


def usage_now() -> Usage:
    """This process, since it started."""
    r = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_seconds": r.ru_utime + r.ru_stime,
        "user_seconds": r.ru_utime,
        "kernel_seconds": r.ru_stime,
        "voluntary_switches": r.ru_nvcsw,
        "involuntary_switches": r.ru_nivcsw,
        "max_rss_bytes": r.ru_maxrss * 1024,  # Linux counts in KiB
    }


def usage_since(before: Usage) -> Usage:
    """This process, since `before`; the peak of memory is the whole life's."""
    now = usage_now()
    return {
        "cpu_seconds": now["cpu_seconds"] - before["cpu_seconds"],
        "user_seconds": now["user_seconds"] - before["user_seconds"],
        "kernel_seconds": now["kernel_seconds"] - before["kernel_seconds"],
        "voluntary_switches": now["voluntary_switches"] - before["voluntary_switches"],
        "involuntary_switches": now["involuntary_switches"] - before["involuntary_switches"],
        "max_rss_bytes": now["max_rss_bytes"],
    }


def total(usages: list[Usage]) -> Usage:
    """Several processes together; the peak of memory is the largest process's."""
    return {
        "cpu_seconds": sum(u["cpu_seconds"] for u in usages),
        "user_seconds": sum(u["user_seconds"] for u in usages),
        "kernel_seconds": sum(u["kernel_seconds"] for u in usages),
        "voluntary_switches": sum(u["voluntary_switches"] for u in usages),
        "involuntary_switches": sum(u["involuntary_switches"] for u in usages),
        "max_rss_bytes": max((u["max_rss_bytes"] for u in usages), default=0),
    }


def by_role(system: Mapping[str, Any]) -> dict[str, Usage]:
    """The usages in a result's `system`, which has more than those; a role may not be known.

    Both of `ROLES` and, where there are any, "subscriber".
    """
    return {role: system[role] for role in (*ROLES, "subscriber") if system.get(role)}


class MachineTime(TypedDict):
    """CPU time of the CPUs that this process may use, in the kernel's timer ticks.

    `busy_seconds` is that of all programs and of the kernel. `softirq_seconds` is the part in which
    the kernel moved packets, and did other work that it had put off, for whichever process.
    """

    busy_seconds: float
    softirq_seconds: float


def machine_now() -> MachineTime | None:
    """Since boot. None where it says nothing about a run: /proc/stat cannot be read, or a quota
    gives this process less than its CPUs."""
    allowed = os.sched_getaffinity(0)
    if available_cpus() < len(allowed):
        return None
    try:
        rows = [line.split() for line in _STAT.read_text().splitlines()]
    except OSError:
        return None
    names = {f"cpu{cpu}" for cpu in allowed}
    counted = [row[1 : _COLUMNS + 1] for row in rows if row and row[0] in names]
    if len(counted) < len(names):
        return None
    busy = [ticks for row in counted for n, ticks in enumerate(row) if n not in _IDLE]
    per_second = os.sysconf("SC_CLK_TCK")
    return {
        "busy_seconds": sum(map(int, busy)) / per_second,
        "softirq_seconds": sum(int(row[_SOFTIRQ]) for row in counted) / per_second,
    }


def machine_since(before: MachineTime | None) -> MachineTime | None:
    """Since `before`; None where one of both is."""
    now = machine_now()
    if before is None or now is None:
        return None
    return {
        "busy_seconds": now["busy_seconds"] - before["busy_seconds"],
        "softirq_seconds": now["softirq_seconds"] - before["softirq_seconds"],
    }
