"""The machine a result was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import psutil

import embar_shm
from embar_shm import _core
from embar_shm.cpus import available_cpus

__all__ = ["describe"]


def describe() -> dict[str, Any]:
    """Hardware, kernel and versions; sizes in bytes."""
    return {
        "embar_shm": embar_shm.__version__,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu_model": _cpu_model(),
        "cpus": os.cpu_count(),
        "cpus_available": available_cpus(),
        "last_level_cache_bytes": _core.last_level_cache(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average_1m": os.getloadavg()[0],
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or "unknown"
