"""How many CPUs this process may really use."""

from __future__ import annotations

import os

from embar_shm import cgroups

__all__ = ["available_cpus"]

_ROOT = ""  # before the paths of the files that tell


def available_cpus() -> int:
    """CPUs in the affinity mask, capped by the smallest CPU quota (rounded down, at least 1).

    Quotas are those of this process's control group and its parents. What cannot be read, or is
    not there, is no limit.
    """
    cpus = len(os.sched_getaffinity(0))
    try:
        groups = cgroups.folders(
            "cpu", _read(cgroups.MEMBERSHIP), cgroups.mounts(_read(cgroups.MOUNTS))
        )
    except OSError:
        return cpus
    quotas = [max(1, int(quota)) for quota, _ in cgroups.cpu_quotas(groups, _read)]
    return min([cpus, *quotas])


def _read(path: str) -> str:
    """Without pathlib, as all that every connection does: see `cgroups`."""
    with open(f"{_ROOT}{path}", errors="replace") as file:  # noqa: PTH123
        return file.read()
