"""The CPUs this process may use: the affinity mask, or less where a cgroup says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from embar_shm import cpus

Cgroups = Callable[[str | None, Mapping[str, str]], None]


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cgroups:
    """Eight CPUs, this content of /proc/self/cgroup, and these cpu.max files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    root = tmp_path / "cgroup"
    root.mkdir()
    monkeypatch.setattr(cpus, "_CGROUP", root)
    own = tmp_path / "self-cgroup"
    monkeypatch.setattr(
        cpus, "Path", lambda path: own if path == "/proc/self/cgroup" else Path(path)
    )

    def write(membership: str | None, limits: Mapping[str, str]) -> None:
        if membership is not None:
            own.write_text(membership)
        for group, content in limits.items():
            (root / group).mkdir(parents=True, exist_ok=True)
            (root / group / "cpu.max").write_text(content)

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


def test_only_the_line_of_the_unified_hierarchy_is_read(cgroups: Cgroups) -> None:
    cgroups(
        "12:cpu,cpuacct:/old\n1:name=systemd:/init.scope\n0::/new\n",
        {"old": "100000 100000", "new": "300000 100000"},
    )
    assert cpus.available_cpus() == 3


def test_a_machine_with_only_old_cgroups_counts_its_affinity_mask(cgroups: Cgroups) -> None:
    cgroups("12:cpu,cpuacct:/old\n", {"old": "100000 100000"})
    assert cpus.available_cpus() == 8


@pytest.mark.parametrize("content", ["", "max", "1 2 3"])
def test_a_file_that_is_no_quota_is_ignored(cgroups: Cgroups, content: str) -> None:
    cgroups("0::/a\n", {"a": content, ".": "400000 100000"})
    assert cpus.available_cpus() == 4


def test_this_machine_has_cpus_for_this_process() -> None:
    assert 1 <= cpus.available_cpus() <= len(os.sched_getaffinity(0))
