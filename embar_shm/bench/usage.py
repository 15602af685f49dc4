"""What a process used: CPU time, context switches, memory (getrusage(2))."""

from __future__ import annotations

import resource
from typing import TypedDict

__all__ = ["Usage", "total", "usage_now", "usage_since"]


class Usage(TypedDict):
    """Of one process or several; `max_rss_bytes` is a peak, the rest are sums."""

    cpu_seconds: float
    voluntary_switches: int
    involuntary_switches: int
    max_rss_bytes: int


def usage_now() -> Usage:
    """This process, since it started."""
    r = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_seconds": r.ru_utime + r.ru_stime,
        "voluntary_switches": r.ru_nvcsw,
        "involuntary_switches": r.ru_nivcsw,
        "max_rss_bytes": r.ru_maxrss * 1024,  # Linux counts in KiB
    }


def usage_since(before: Usage) -> Usage:
    """This process, since `before`; the peak of memory is the whole life's."""
    now = usage_now()
    return {
        "cpu_seconds": now["cpu_seconds"] - before["cpu_seconds"],
        "voluntary_switches": now["voluntary_switches"] - before["voluntary_switches"],
        "involuntary_switches": now["involuntary_switches"] - before["involuntary_switches"],
        "max_rss_bytes": now["max_rss_bytes"],
    }


def total(usages: list[Usage]) -> Usage:
    """Several processes together; the peak of memory is the largest process's."""
    return {
        "cpu_seconds": sum(u["cpu_seconds"] for u in usages),
        "voluntary_switches": sum(u["voluntary_switches"] for u in usages),
        "involuntary_switches": sum(u["involuntary_switches"] for u in usages),
        "max_rss_bytes": max((u["max_rss_bytes"] for u in usages), default=0),
    }
