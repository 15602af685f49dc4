"""A machine nobody has: crafted /proc, /sys and /etc, and crafted answers of the kernel."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from embar_shm import _core
from embar_shm.doctor import Check, Machine, examine

BATCH = 2 * 2**20
NOW = 1_700_000_000.0
INFINITE = resource.RLIM_INFINITY
CPU = "/sys/devices/system/cpu"
THP = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
PARANOID = "/proc/sys/kernel/perf_event_paranoid"
PTRACE = "/proc/sys/kernel/yama/ptrace_scope"


class Craft(Protocol):
    """Makes the healthy machine with other files (None: without that one) and other answers."""

    def __call__(self, files: Mapping[str, str | None] = ..., **answers: Any) -> Machine: ...


def mountinfo(shm: str = "tmpfs rw,huge=within_size", extra: str = "") -> str:
    kind, options = shm.split()
    return (
        "22 1 0:20 / / rw,relatime - ext4 /dev/root rw\n"
        f"25 24 0:23 / /dev/shm rw - {kind} {kind} {options}\n"
        "30 22 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n" + extra
    )


# A machine with which nothing is wrong.
HEALTHY: Mapping[str, str | None] = {
    "/proc/self/mountinfo": mountinfo(),
    "/proc/self/cgroup": "0::/user.slice/job\n",
    "/proc/self/status": "Name:\tpython\nCapEff:\t0000000000000000\n",
    "/proc/meminfo": "MemTotal: 33554432 kB\nMemAvailable: 16777216 kB\n",
    "/proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n",
    "/proc/loadavg": "0.50 0.40 0.30 1/200 4242\n",
    "/proc/sys/net/core/rmem_max": "4194304\n",
    "/proc/sys/net/core/wmem_max": "4194304\n",
    "/proc/sys/net/ipv4/tcp_rmem": "4096\t131072\t8388608\n",
    "/proc/sys/net/ipv4/tcp_wmem": "4096\t16384\t8388608\n",
    PARANOID: "1\n",
    PTRACE: "0\n",
    THP: "always within_size advise [never] deny force\n",
    f"{CPU}/online": "0-15\n",
    f"{CPU}/cpu0/cpufreq/scaling_governor": "performance\n",
    f"{CPU}/cpu0/cpufreq/scaling_driver": "acpi-cpufreq\n",
    "/sys/devices/system/node/has_memory": "0\n",
    "/sys/fs/cgroup/user.slice/job/cpu.max": "max 100000\n",
    "/sys/fs/cgroup/user.slice/job/memory.max": "max\n",
    "/etc/systemd/logind.conf": "[Login]\nRemoveIPC=no\n",
    "/run/systemd/system/here": "",
    "/dev/shm/other": "not ours",
}


def limits(**changes: tuple[int, int]) -> Callable[[int], tuple[int, int]]:
    values = {"NOFILE": (4096, 4096), "MEMLOCK": (INFINITE, INFINITE)} | changes
    return lambda which: values[
        {resource.RLIMIT_NOFILE: "NOFILE", resource.RLIMIT_MEMLOCK: "MEMLOCK"}[which]
    ]


@pytest.fixture
def craft(tmp_path: Path) -> Craft:
    def make(files: Mapping[str, str | None] = HEALTHY, **answers: Any) -> Machine:
        for path, content in {**HEALTHY, **files}.items():
            if content is not None:
                target = tmp_path / path.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(content)
                os.utime(target, (NOW - 7200, NOW - 7200))
        healthy: dict[str, Any] = {
            "kernel": lambda: ("Linux", "6.8.0-45-generic"),
            "space": lambda _: (2**34, 2**33),
            "access": lambda _path, _mode: True,
            "limit": limits(),
            "affinity": lambda: set(range(16)),
            "user": lambda: 1000,
            "user_name": lambda uid: {0: "root", 1000: "alice"}.get(uid, str(uid)),
            "is_locked": lambda _fd, offset: offset == _core.BROKER_LOCK,
            "now": lambda: NOW,
        }
        return Machine(root=tmp_path, **(healthy | answers))

    return make


def check_of(machine: Machine, name: str, batch: int = BATCH) -> Check:
    [check] = [check for check in examine(machine, batch).checks if check.name == name]
    return check
