"""What a process used, and where it used it."""

from __future__ import annotations

import resource
import time
from types import SimpleNamespace

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
