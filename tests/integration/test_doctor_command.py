"""`embar-shm doctor`, as its user sees it, on the machine the tests run on."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from command import COMMAND, embar_shm

import embar_shm as es
from embar_shm.address import RingName
from embar_shm.layout import Geometry
from embar_shm.segment import Segment
from embar_shm.testing import wait_until


def examined(*arguments: str, command: list[str] = COMMAND) -> tuple[int, dict[str, Any]]:
    done = embar_shm("doctor", "--json", *arguments, command=command)
    assert done.stderr == ""
    report: dict[str, Any] = json.loads(done.stdout)
    return done.code, report


def check_of(report: dict[str, Any], name: str) -> dict[str, Any]:
    [check] = [check for check in report["checks"] if check["name"] == name]
    return dict(check)


def test_the_exit_code_tells_whether_the_default_run_is_possible_here() -> None:
    code, report = examined()
    assert report["schema"] == "embar-shm.doctor/1"
    possible = report["summary"]["default_run_possible"]
    assert possible == (report["summary"]["problem"] == 0)
    assert code == (0 if possible else 1)
    done = embar_shm("doctor")
    assert (done.code, done.stderr) == (code, "")
    assert f"The default run {'is possible' if possible else 'cannot work'} here." in done.stdout
    assert "net.core.rmem_max" in done.stdout
    for known in ("/dev/shm size", "memory", "CPUs", "kernel", "open files limit"):
        assert check_of(report, known)["verdict"] != "unknown", known


def test_the_batch_size_decides_what_the_sockets_need() -> None:
    _, small = examined("--batch-size", "1KiB")
    _, large = examined("--batch-size", "2GiB")
    assert small["run"]["rings_bytes"] < large["run"]["rings_bytes"]
    assert check_of(small, "net.ipv4.tcp_rmem")["verdict"] == "ok"
    assert check_of(large, "net.ipv4.tcp_rmem")["fix"].startswith("sudo sysctl -w ")


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("2M", "is ambiguous"),
        ("big", "is not a size"),
        ("-1", "is negative"),
        ("1", "slot_size must be 64 bytes to 2 GiB"),
        ("3GiB", "slot_size must be 64 bytes to 2 GiB"),
    ],
)
def test_a_batch_size_that_makes_no_sense_is_exit_code_2(size: str, said: str) -> None:
    done = embar_shm("doctor", f"--batch-size={size}")
    assert done.code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_living_brokers_segment_is_not_stale(make_broker: Callable[..., es.Broker]) -> None:
    broker = make_broker()
    ring = RingName.parse(broker.address.removeprefix("shm://"))
    wait_until(lambda: not _is_young(ring), "the segment is older than a creation may take")
    stale = check_of(examined()[1], "stale segments")
    assert ring.path.name not in stale["why"]
    assert str(ring.path) not in (stale["fix"] or "")
    assert "in use" in stale["value"]


def test_a_dead_brokers_segment_is_stale_and_the_command_removes_it_if_it_is_drained(
    cluster: str,
) -> None:
    ring = RingName(cluster, "0")
    Segment.create(ring, Geometry.plan(4, 4096, 8)).close()  # the lock goes, the name stays
    wait_until(lambda: not _is_young(ring), "the segment is older than a creation may take")
    stale = check_of(examined()[1], "stale segments")
    assert stale["verdict"] == "warning"
    program, command, *rings = stale["fix"].split()
    assert (program, command) == ("embar-shm", "clean")
    assert str(ring) in rings
    # Not the command itself: it would also remove what other tests are working on.
    assert embar_shm("clean", str(ring)).code == 0
    assert not ring.path.exists()
    assert str(ring) not in (check_of(examined()[1], "stale segments")["fix"] or "").split()


def test_looking_changes_nothing(make_broker: Callable[..., es.Broker]) -> None:
    ring = RingName.parse(make_broker().address.removeprefix("shm://"))
    before = (ring.path.stat(), ring.path.read_bytes()[:4096])
    examined()
    after = (ring.path.stat(), ring.path.read_bytes()[:4096])
    assert (after[0].st_mtime_ns, after[0].st_size, after[1]) == (
        before[0].st_mtime_ns,
        before[0].st_size,
        before[1],
    )


def test_a_small_shared_memory_is_a_problem_and_the_command_solves_it() -> None:
    script = 'mount -t tmpfs -o size=8m tmpfs /dev/shm && exec "$@"'
    inside = ["unshare", "-m", "sh", "-c", script, "sh"]
    probe = subprocess.run([*inside, "true"], capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"no mount namespace can be made here: {probe.stderr.strip()}")
    code, report = examined(command=[*inside, *COMMAND])
    assert code == 1
    size = check_of(report, "/dev/shm size")
    assert (size["verdict"], size["value"]) == ("problem", "8 MiB free of 8 MiB")
    assert report["summary"]["default_run_possible"] is False
    fix = size["fix"].removeprefix("sudo ")
    assert fix.startswith("mount -o remount,size=")
    solved = ["unshare", "-m", "sh", "-c", f'{script.split("&&")[0]}&& {fix} && exec "$@"', "sh"]
    _, report = examined(command=[*solved, *COMMAND])
    assert check_of(report, "/dev/shm size")["verdict"] == "ok"


def test_too_few_open_files_are_a_problem_and_the_command_solves_it() -> None:
    few = ["sh", "-c", 'ulimit -Sn 48; exec "$@"', "sh"]
    code, report = examined(command=[*few, *COMMAND])
    check = check_of(report, "open files limit")
    assert code == 1
    assert (check["value"], check["verdict"]) == ("48", "problem")
    if not check["fix"].startswith("ulimit"):
        pytest.skip("the hard limit is too low here for a command without privileges")
    more = ["sh", "-c", f'ulimit -Sn 48; {check["fix"]}; exec "$@"', "sh"]
    _, report = examined(command=[*more, *COMMAND])
    assert check_of(report, "open files limit")["verdict"] == "ok"


def test_the_command_explains_itself() -> None:
    text = embar_shm("doctor", "--help").stdout
    assert "--batch-size" in text
    assert "Default: 2 MiB." in " ".join(text.split())
    assert "Changes nothing itself" in text


def _is_young(ring: RingName) -> bool:
    return time.time() - ring.path.stat().st_mtime < 1.1
