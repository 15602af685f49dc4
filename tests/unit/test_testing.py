"""The tools that ship for testing notice what they are there to notice."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import embar_shm as es
from embar_shm import testing
from embar_shm.address import RingName
from embar_shm.layout import Geometry
from embar_shm.segment import Segment
from embar_shm.testing import (
    Child,
    LeftBehind,
    Log,
    isolated,
    leftovers,
    unique_cluster,
    wait_until,
)

SMALL = Geometry.plan(slots=2, slot_bytes=4096, max_publishers=1)


def leave_a_ring() -> RingName:
    name = RingName(unique_cluster(), "0")
    Segment.create(name, SMALL).close()
    return name


def test_cluster_names_are_unique_and_valid() -> None:
    names = [unique_cluster("some-test") for _ in range(100)]
    assert len(set(names)) == 100
    assert all(RingName.parse(f"{name}/0").cluster == name for name in names)


def test_leftovers_are_the_rings_of_one_cluster(make_broker: Callable[..., es.Broker]) -> None:
    broker = make_broker("a")
    make_broker("b")
    cluster = broker.segment.name.cluster
    assert leftovers(cluster) == [RingName(cluster, "a"), RingName(cluster, "b")]
    assert leftovers(unique_cluster()) == []


def test_a_ring_left_behind_is_named_and_removed() -> None:
    rings: list[RingName] = []
    with pytest.raises(LeftBehind) as caught, isolated(grace=0):
        rings.append(leave_a_ring())
    assert f"ring {rings[0]}" in str(caught.value)
    assert leftovers(rings[0].cluster) == []


def test_a_process_left_behind_is_named_and_killed() -> None:
    children: list[Child] = []
    with pytest.raises(LeftBehind) as caught, isolated(grace=0):
        children.append(Child("input()"))
    assert f"process {children[0].pid}" in str(caught.value)
    with children[0] as child:
        child.wait()


def test_the_error_of_the_block_is_the_one_that_is_told() -> None:
    rings: list[RingName] = []
    with pytest.raises(ZeroDivisionError), isolated(grace=0):
        rings.append(leave_a_ring())
        1 / 0  # noqa: B018 - it raises
    assert leftovers(rings[0].cluster) == []


def test_rings_and_processes_of_others_are_none_of_its_business(
    make_broker: Callable[..., es.Broker], run_child: Callable[..., Child]
) -> None:
    path = make_broker().segment.name.path
    child = run_child("input()")
    with isolated(grace=0):
        pass
    assert path.exists()
    assert child.process.poll() is None


def test_the_plugin_fails_a_test_that_leaves_something_behind(tmp_path: Path) -> None:
    module = tmp_path / "test_untidy.py"
    module.write_text(
        "import embar_shm as es\n"
        "from embar_shm.layout import Geometry\nfrom embar_shm.segment import Segment\n"
        "from embar_shm.address import RingName\n"
        "def test_tidy(cluster):\n"
        "    with es.Broker.create(f'{cluster}/0', slots=2, slot_size=4096):\n"
        "        pass\n"
        "def test_untidy(cluster):\n"
        "    Segment.create(RingName(cluster, '0'), Geometry.plan(2, 4096, 1)).close()\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "embar_shm.testing.plugin", str(module)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "2 passed, 1 error" in run.stdout, run.stdout + run.stderr
    assert "LeftBehind: left behind: ring " in run.stdout


def test_a_condition_that_does_not_come_true_is_named() -> None:
    with pytest.raises(AssertionError, match="rain: did not happen within"):
        wait_until(lambda: False, "rain", timeout=0)


def test_a_child_that_ends_early_shows_its_errors(run_child: Callable[..., Child]) -> None:
    child = run_child("raise SystemExit('it rains')")
    with pytest.raises(AssertionError, match="it rains"):
        child.read()


def test_a_child_hears_and_answers(run_child: Callable[..., Child]) -> None:
    child = run_child("import sys\nprint(sys.argv[1:])\nprint(input()[::-1])", "a", 1)
    child.expect("['a', '1']")
    child.tell("stressed")
    with pytest.raises(AssertionError, match="expected 'sweets', got 'desserts'"):
        child.expect("sweets")
    assert child.wait() == 0


def test_the_log_notices_a_damaged_frame(
    make_broker: Callable[..., es.Broker], connect: Callable[..., es.Publisher]
) -> None:
    broker = make_broker()
    pub = connect(broker)
    pub.publish(b"hello")
    pub.flush()
    start = broker.segment.geometry.slots_offset + 4096  # behind the page of the batch header
    assert broker.segment.memory[start : start + 16] == b"\5\0\0\0\0\0\0\0hello\0\0\0"
    broker.segment.memory[start + 15] = 1  # padding
    with pytest.raises(AssertionError, match="damaged"):
        Log.of(broker).take()


def test_pytest_is_imported_only_for_what_needs_it() -> None:
    program = (
        "import sys, embar_shm.testing as testing\n"
        "assert 'pytest' not in sys.modules\n"
        "testing.TransportContract\n"
        "assert 'pytest' in sys.modules\n"
    )
    with Child(program) as child:
        assert child.wait() == 0, child.errors
    with pytest.raises(AttributeError):
        testing.no_such_name  # noqa: B018 - it raises
