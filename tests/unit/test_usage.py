"""What a process used, and where it used it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from embar_shm.bench.usage import Usage, by_role, total, usage_now, usage_since

ONE: Usage = {
    "cpu_seconds": 0.5,
    "user_seconds": 0.25,
    "kernel_seconds": 0.25,
    "voluntary_switches": 1,
    "involuntary_switches": 2,
    "max_rss_bytes": 3,
}


def _burn(work: Callable[[], object], seconds: float = 0.2) -> Usage:
    """What this process used while it called `work` for so much CPU time."""
    before = usage_now()
    end = time.process_time() + seconds
    while time.process_time() < end:
        work()
    return usage_since(before)


def test_cpu_time_is_user_and_kernel_time() -> None:
    used = _burn(lambda: sum(range(1000)))
    assert used["cpu_seconds"] > 0
    assert used["cpu_seconds"] == pytest.approx(used["user_seconds"] + used["kernel_seconds"])


def test_own_code_is_user_time_and_system_calls_are_kernel_time() -> None:
    with open("/dev/zero", "rb", buffering=0) as zeros:  # noqa: PTH123
        computing = _burn(lambda: sum(range(100_000)))
        calling = _burn(lambda: os.pread(zeros.fileno(), 2**22, 0))
    assert computing["user_seconds"] > computing["kernel_seconds"]
    assert calling["kernel_seconds"] > calling["user_seconds"]


def test_processes_add_up_except_for_the_largest_peak_of_memory() -> None:
    other: Usage = {**ONE, "max_rss_bytes": 2}
    assert total([ONE, other]) == {
        "cpu_seconds": 1.0,
        "user_seconds": 0.5,
        "kernel_seconds": 0.5,
        "voluntary_switches": 2,
        "involuntary_switches": 4,
        "max_rss_bytes": 3,
    }


def test_only_roles_are_taken_from_a_results_system() -> None:
    system = {"sockets": {"eagain": 3}, "publisher": ONE}
    assert by_role(system) == {"publisher": ONE}
