"""How many CPUs this process may really use."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["available_cpus"]

_CGROUP = Path("/sys/fs/cgroup")


def available_cpus() -> int:
    """CPUs in the affinity mask, capped by the cgroup v2 quota (rounded down, at least 1).

    The quota is the smallest of this cgroup's and its parents' ``cpu.max`` ("max 100000" or
    "150000 100000": microseconds per period), see the kernel's cgroup-v2 documentation.
    """
    cpus = len(os.sched_getaffinity(0))
    for limit in _quota_files():
        try:
            quota, period = limit.read_text().split()
        except (OSError, ValueError):  # no such controller here, or a root cgroup
            continue
        if quota != "max":
            cpus = min(cpus, max(1, int(quota) // int(period)))
    return cpus


def _quota_files() -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        if line.startswith("0::/"):  # the v2 hierarchy
            own = _CGROUP / line[len("0::/") :]
            within = [own, *own.parents]
            return [path / "cpu.max" for path in within if path.is_relative_to(_CGROUP)]
    return []
