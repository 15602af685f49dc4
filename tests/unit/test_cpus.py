"""The CPUs this process may use: the affinity mask, or less where a cgroup says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from embar_shm import cpus

MOUNTS = (
    "30 22 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    "40 30 0:40 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
)
Cgroups = Callable[[str | None, Mapping[str, str]], None]


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cgroups:
    """Eight CPUs, this content of /proc/self/cgroup, and these files of version 2, by group."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cpus, "_ROOT", tmp_path)

    def write(membership: str | None, limits: Mapping[str, str]) -> None:
        files = {f"sys/fs/cgroup/{group}/cpu.max": limit for group, limit in limits.items()}
        files["proc/self/mountinfo"] = MOUNTS
        if membership is not None:
            files["proc/self/cgroup"] = membership
        for path, content in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(content)

    return write


def test_the_affinity_mask_counts_where_there_are_no_cgroups(cgroups: Cgroups) -> None:
    cgroups(None, {})
    assert cpus.available_cpus() == 8


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),  # rounded down: a third process would be throttled
        ("50000 100000\n", 1),  # at least one
        ("1000000 100000\n", 8),  # a quota gives no more CPUs than there are
        ("100000 50000\n", 2),  # the period is not always 100 ms
    ],
)
def test_the_quota_of_the_own_cgroup_is_a_limit(
    cgroups: Cgroups, limit: str, expected: int
) -> None:
    cgroups("0::/user.slice/job\n", {"user.slice/job": limit})
    assert cpus.available_cpus() == expected


def test_the_smallest_quota_up_to_the_root_counts(cgroups: Cgroups) -> None:
    limits = {"a/b/c": "max 100000", "a/b": "600000 100000", "a": "300000 100000"}
    cgroups("0::/a/b/c\n", limits)
    assert cpus.available_cpus() == 3


def test_a_container_sees_its_own_cgroup_as_the_root(cgroups: Cgroups) -> None:
    cgroups("0::/\n", {".": "200000 100000"})
    assert cpus.available_cpus() == 2


def test_the_quota_of_a_sibling_does_not_count(cgroups: Cgroups) -> None:
    cgroups("0::/a/job\n", {"a/other": "100000 100000", "b": "100000 100000"})
    assert cpus.available_cpus() == 8


def test_quotas_of_both_versions_count(cgroups: Cgroups, tmp_path: Path) -> None:
    cgroups(
        "12:cpu,cpuacct:/old\n1:name=systemd:/init.scope\n0::/new\n",
        {"new": "500000 100000", "init.scope": "100000 100000"},
    )
    assert cpus.available_cpus() == 5
    old = tmp_path / "sys/fs/cgroup/cpu/old"
    old.mkdir(parents=True)
    (old / "cpu.cfs_period_us").write_text("100000\n")
    (old / "cpu.cfs_quota_us").write_text("-1\n")
    assert cpus.available_cpus() == 5
    (old / "cpu.cfs_quota_us").write_text("300000\n")
    assert cpus.available_cpus() == 3


def test_without_mounted_cgroups_the_affinity_mask_counts(cgroups: Cgroups, tmp_path: Path) -> None:
    cgroups("0::/job\n", {"job": "100000 100000"})
    (tmp_path / "proc/self/mountinfo").unlink()
    assert cpus.available_cpus() == 8


@pytest.mark.parametrize("content", ["", "max", "1 2 3", "100000 0"])
def test_a_file_that_is_no_quota_is_ignored(cgroups: Cgroups, content: str) -> None:
    cgroups("0::/a\n", {"a": content, ".": "400000 100000"})
    assert cpus.available_cpus() == 4


def test_this_machine_has_cpus_for_this_process() -> None:
    assert 1 <= cpus.available_cpus() <= len(os.sched_getaffinity(0))
