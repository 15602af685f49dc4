"""tools/kill_everywhere: a death after each instruction that others can notice, and its own teeth.

Every instruction is for the tool; here victims die after those that changed the ring or called the
kernel (`--every effect`). What cannot be stepped here is skipped with the reason.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
PATIENCE = 280  # seconds
ENVIRONMENT = os.environ | {"VENV": sys.prefix}


def tool(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOOLS / "kill_everywhere", *arguments],
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def deaths(*arguments: str) -> list[dict[str, Any]]:
    """What the tool found, by operation."""
    ran = tool("--json", *arguments)
    try:
        result = json.loads(ran.stdout)
    except ValueError:
        raise AssertionError(ran.stdout + ran.stderr) from None
    if "unavailable" in result:
        pytest.skip(result["unavailable"])
    assert ran.returncode == (3 if any(one["failures"] for one in result["operations"]) else 0)
    return result["operations"]


def check_all_survive(operations: list[str], stride: int, least: int) -> None:
    found = deaths("--operation", *operations, "--every", "effect", "--stride", str(stride))
    assert [failure for one in found for failure in one["failures"]] == []
    assert [one["operation"] for one in found] == operations
    assert all(one["points"] >= least for one in found), found


@pytest.mark.timeout(PATIENCE)
def test_a_publisher_dies_at_every_store_and_nobody_else_notices() -> None:
    check_all_survive(["publish"], 1, 10)
    check_all_survive(["publish-variable", "reserve", "drop", "close"], 4, 2)


@pytest.mark.timeout(PATIENCE)
def test_a_subscriber_dies_at_every_store_and_holds_nothing_back() -> None:
    check_all_survive(["read", "read-release"], 1, 3)
    check_all_survive(["read-lossy", "unsubscribe"], 3, 1)


@pytest.mark.timeout(PATIENCE)
def test_a_client_dies_and_with_it_the_broker() -> None:
    check_all_survive(["publish-and-broker", "drop-and-broker", "read-and-broker"], 5, 1)


@pytest.mark.timeout(PATIENCE)
def test_a_broker_dies_at_every_store_and_another_one_goes_on() -> None:
    check_all_survive(["accept", "release"], 1, 10)
    check_all_survive(["admit", "retire", "serve", "reap-publisher", "reap-subscriber"], 7, 2)


@pytest.mark.timeout(PATIENCE)
def test_a_broker_dies_while_it_recovers_what_a_dead_one_left() -> None:
    check_all_survive(["recover-accept@6", "recover-release@2", "recover-reap-publisher@30"], 12, 1)


BROKEN = """
    import struct
    import sys

    from embar_shm import _core
    from killing.campaign import kill_everywhere
    from killing.operations import Publish
    from killing.stage import VICTIM
    from killing.tracer import Tracer, Unavailable


    class CommitsFirst(Publish):
        name = "commits-first"

        def operate(self, publisher, messages):
            publisher.publish(messages[0])
            core, segment = publisher._link._core, publisher._link._segment
            ring = _core.Ring(segment.memory)
            row = ring.publisher(core.index)
            slot, _, generation, _ = [s for s in ring.slots() if s[1] == core.index][-1]
            ring.commit(slot, generation)
            header = struct.pack(
                "<IHHQQQIIQQQQ48x",
                *(_core.BATCH_MAGIC, _core.BATCH_VERSION, 0, VICTIM, row["incarnation"], 2),
                *(1, len(messages[0]), len(messages[0]), len(messages[0]), 0, 0),
            )
            header += struct.pack("<Q", _core.header_check(header + bytes(8)))
            at = segment.geometry.slots_offset + slot * segment.geometry.slot_stride
            segment.memory[at : at + len(header)] = header


    class TakesForAnother(Publish):
        name = "takes-for-another"
        batches = 1

        def operate(self, publisher, messages):
            core, segment = publisher._link._core, publisher._link._segment
            _core.Ring(segment.memory).claim(1 - core.index)  # the bystander's row


    operation = {kind.name: kind for kind in (CommitsFirst, TakesForAnother)}[sys.argv[1]]()
    try:
        with Tracer.build() as tracer:
            found = kill_everywhere(tracer, operation, "effect")
    except Unavailable as reason:
        print("unavailable", reason)
    else:
        print(found.points, *(f"{one.point}: {one.problem}" for one in found.failures), sep="\\n")
"""


def broken(name: str) -> tuple[int, list[str]]:
    """Deaths and failures of a publisher that does what it must not."""
    ran = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(BROKEN), name],
        env=ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(TOOLS), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    if ran.stdout.startswith("unavailable"):
        pytest.skip(ran.stdout)
    points, *failures = ran.stdout.splitlines()
    return int(points), failures


@pytest.mark.timeout(PATIENCE)
def test_a_publisher_that_commits_before_it_has_written_is_found_out() -> None:
    points, failures = broken("commits-first")
    assert 0 < len(failures) < points  # before its commit it does nothing wrong
    assert all("corrupt" in failure for failure in failures)


@pytest.mark.timeout(PATIENCE)
def test_a_slot_that_nobody_will_free_is_found_out() -> None:
    points, failures = broken("takes-for-another")
    assert 0 < len(failures) <= points + 1
    assert all("slots should be taken" in failure for failure in failures)


def test_a_machine_that_has_no_compiler_is_told_so(tmp_path: Path) -> None:
    for command in ("bash", "dirname"):
        (tmp_path / command).symlink_to(shutil.which(command) or command)
    ran = tool("--operation", "publish", PATH=str(tmp_path))
    assert ran.returncode == 1
    assert "not possible here: no g++" in ran.stderr


def test_an_operation_that_does_not_exist_is_refused() -> None:
    ran = tool("--operation", "publishes")
    assert ran.returncode == 2
    assert "'publishes' is no operation" in ran.stderr
