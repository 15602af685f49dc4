"""What a process used, and where it used it."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from embar_shm.bench import usage
from embar_shm.bench.usage import (
    Usage,
    by_role,
    machine_now,
    machine_since,
    total,
    usage_now,
    usage_since,
)

ONE: Usage = {
    "cpu_seconds": 0.5,
    "user_seconds": 0.25,
    "kernel_seconds": 0.25,
    "voluntary_switches": 1,
    "involuntary_switches": 2,
    "max_rss_bytes": 3,
}


def at(monkeypatch: pytest.MonkeyPatch, user: float, kernel: float) -> None:
    """The kernel's answer from now on."""
    answer = SimpleNamespace(
        ru_utime=user, ru_stime=kernel, ru_nvcsw=10, ru_nivcsw=20, ru_maxrss=30
    )
    monkeypatch.setattr(resource, "getrusage", lambda _who: answer)


def test_cpu_time_is_user_and_kernel_time_since_the_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, user=1.0, kernel=0.5)
    before = usage_now()
    at(monkeypatch, user=3.0, kernel=0.75)
    assert usage_since(before) == {
        "cpu_seconds": 2.25,
        "user_seconds": 2.0,
        "kernel_seconds": 0.25,
        "voluntary_switches": 0,
        "involuntary_switches": 0,
        "max_rss_bytes": 30 * 1024,
    }


def test_a_processs_own_work_is_counted() -> None:
    before = usage_now()
    end = time.process_time() + 0.05
    while time.process_time() < end:
        sum(range(1000))
    used = usage_since(before)
    assert used["cpu_seconds"] > 0
    assert used["cpu_seconds"] == pytest.approx(used["user_seconds"] + used["kernel_seconds"])


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
    system = {"sockets": {"eagain": 3}, "publisher": ONE, "broker": None}
    assert by_role(system) == {"publisher": ONE}


STAT = """cpu  900 900 900 900 900 900 900 900 900 900
cpu0 10 20 30 4000 5000 6 7 8 9 9
cpu1 100 200 300 4000 5000 60 70 80 90 90
cpu2 1 1 1 1 1 1 1 1 1 1
intr 12 0 3
ctxt 99
"""


def machine(
    monkeypatch: pytest.MonkeyPatch, path: Path, stat: str, quota: int, affinity: set[int]
) -> None:
    path.write_text(stat)
    monkeypatch.setattr(usage, "_STAT", path)
    monkeypatch.setattr(usage, "available_cpus", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: affinity)


def test_a_cpu_is_busy_when_it_is_neither_idle_nor_waiting_for_a_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine(monkeypatch, tmp_path / "stat", STAT, 2, {0, 1})
    # user, nice, system, irq, softirq, steal; guest time is in user time already
    ticks = os.sysconf("SC_CLK_TCK")
    before = machine_now()
    assert before == pytest.approx(
        {"busy_seconds": (81 + 810) / ticks, "softirq_seconds": (7 + 70) / ticks}
    )
    later = STAT.replace("cpu1 100 200 300 4000 5000 60 70", "cpu1 101 200 300 4000 5000 60 75")
    usage._STAT.write_text(later)
    assert machine_since(before) == pytest.approx(
        {"busy_seconds": 6 / ticks, "softirq_seconds": 5 / ticks}
    )
    assert machine_since(None) is None


@pytest.mark.parametrize(
    ("stat", "quota", "affinity"),
    [(STAT, 1, {0, 1}), (STAT, 2, {0, 7}), ("", 2, {0, 1})],
    ids=["a quota", "a CPU that is not counted", "no lines"],
)
def test_what_says_nothing_about_a_run_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stat: str, quota: int, affinity: set[int]
) -> None:
    machine(monkeypatch, tmp_path / "stat", stat, quota, affinity)
    assert machine_now() is None
    assert machine_since({"busy_seconds": 1.0, "softirq_seconds": 0.0}) is None


def test_a_machine_that_does_not_show_it_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "_STAT", Path("/nowhere/stat"))
    assert machine_now() is None
