"""`embar-shm clean` removes what is dead and drained, and leaves the rest with a reason."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from command import COMMAND
from rings import IDLE, Command, broker_in, killed_broker, removed

import embar_shm as es
from embar_shm import _core
from embar_shm.address import RingName
from embar_shm.inspection import cleaning, files
from embar_shm.inspection.segments import OpenSegment, SegmentView
from embar_shm.layout import Geometry
from embar_shm.segment import Segment
from embar_shm.testing import Child

SMALL = Geometry.plan(slots=2, slot_bytes=4096, max_publishers=4)
HEAD = _core.SEGMENT_HEADER_BYTES + 128  # the broker's words
STATE = _core.SEGMENT_HEADER_BYTES + 4 * 128


def cleaned(command: Command, name: RingName, *flags: str, code: int = 0) -> dict[str, Any]:
    found = command.json("clean", str(name), *flags, code=code)
    assert found["schema"] == "embar-shm.clean/1"
    [one] = found["segments"]
    assert (one["action"] == "kept") == bool(code)
    assert name.path.exists() == (one["action"] != "removed")
    return dict(one)


@pytest.fixture
def left(name: RingName) -> Any:
    """A whole segment in which nobody is alive."""
    segment = Segment.create(name, SMALL)
    segment.close()
    yield segment
    segment.unlink()


def test_a_drained_ring_of_a_killed_broker_is_removed(
    command: Command, name: RingName, run_child: Callable[..., Child]
) -> None:
    killed_broker(run_child, name, read=3)
    assert cleaned(command, name, "--dry-run")["action"] == "would remove"
    one = cleaned(command, name)
    assert (one["action"], one["state"], one["unread"]) == ("removed", "recoverable", 0)


def test_unread_batches_keep_a_ring_until_they_are_given_up(
    command: Command, name: RingName, run_child: Callable[..., Child]
) -> None:
    killed_broker(run_child, name, read=1, unread=2)
    one = cleaned(command, name, code=1)
    assert (one["unread"], one["unaccepted"]) == (2, 0)
    assert "it has 2 batches that nobody is known to have read" in one["why"]
    assert "with 2 batches" in cleaned(command, name, "--force")["why"]


def test_batches_that_are_not_accepted_keep_a_ring(
    command: Command, name: RingName, run_child: Callable[..., Child]
) -> None:
    killed_broker(run_child, name, unaccepted=1)
    assert "it has 1 batch not accepted: start the broker" in cleaned(command, name, code=1)["why"]
    cleaned(command, name, "--force")


def test_a_living_broker_keeps_its_ring_whatever_is_asked(
    command: Command, name: RingName, run_child: Callable[..., Child]
) -> None:
    with broker_in(run_child, name) as broker:
        assert cleaned(command, name, code=1)["why"] == "the broker is alive"
        assert cleaned(command, name, "--force", code=1)["state"] == "serving"
        assert cleaned(command, name, "--dry-run", code=1)["why"] == "the broker is alive"
        with es.Publisher.connect(f"shm://{name}") as pub:  # it was not disturbed
            pub.publish(b"still there")
            pub.flush()
            pub.wait_acked(timeout=30)
        broker.kill()
    cleaned(command, name, "--force")


@pytest.mark.parametrize("kind", ["publisher", "subscriber"])
def test_a_living_participant_keeps_a_dead_brokers_ring(
    command: Command, name: RingName, run_child: Callable[..., Child], kind: str
) -> None:
    broker = broker_in(run_child, name)
    peer = run_child(IDLE, kind, f"shm://{name}")
    peer.expect("ready")
    broker.kill()
    for flags in ((), ("--force",), ("--dry-run", "--force")):
        why = cleaned(command, name, *flags, code=1)["why"]
        assert why == f"{kind} 0 (pid {peer.pid}) is alive"
    peer.kill()
    cleaned(command, name)


def test_a_segment_whose_creator_died_is_removed_once_it_is_too_old(
    command: Command, name: RingName
) -> None:
    with removed(name.path) as path:
        path.touch()
        os.truncate(path, 8192)
        assert "it is being created just now" in cleaned(command, name, "--force", code=1)["why"]
        os.utime(path, (0, 0))
        assert cleaned(command, name)["state"] == "unfinished"


def test_somebody_alive_keeps_even_a_segment_that_makes_no_sense(
    command: Command, left: Segment
) -> None:
    left.memory[8:12] = struct.pack("<I", 99)  # of another version
    fd = os.open(left.name.path, os.O_RDWR)
    try:
        assert _core.try_lock(fd, _core.publisher_lock(7))
        why = cleaned(command, left.name, "--force", code=1)["why"]
        assert why == "publisher 7 is alive"
    finally:
        os.close(fd)
    assert "--force removes it" in cleaned(command, left.name, code=1)["why"]
    assert cleaned(command, left.name, "--force")["state"] == "other version"


DOUBTFUL = {
    "quarantined": (STATE, struct.pack("<I", 4)),
    "damaged": (48, struct.pack("<I", 0)),
    "other boot": (112, b"x" * 36),
}


@pytest.mark.parametrize(("state", "written"), DOUBTFUL.items())
def test_what_cannot_be_judged_needs_force(
    command: Command, left: Segment, state: str, written: tuple[int, bytes]
) -> None:
    offset, value = written
    left.memory[offset : offset + len(value)] = value
    one = cleaned(command, left.name, code=1)
    assert one["state"] == state
    assert one["why"].endswith("--force removes it")
    assert cleaned(command, left.name, "--dry-run", "--force")["action"] == "would remove"
    cleaned(command, left.name, "--force")


def test_a_ring_with_damaged_words_needs_force_however_empty_it_seems(
    command: Command, name: RingName, run_child: Callable[..., Child]
) -> None:
    killed_broker(run_child, name, unread=2)
    with name.path.open("r+b") as file:
        header = _core.read_header(file.read(_core.SEGMENT_HEADER_BYTES))
        g = Geometry.plan(
            *(header[k] for k in ("slots", "slot_bytes", "max_publishers", "max_subscribers"))
        )
        file.seek(HEAD)
        file.write(struct.pack("<Q", 0))
        file.seek(g.tickets_offset)
        file.write(bytes(8 * g.tickets))
    for flags in ((), ("--dry-run",)):
        one = cleaned(command, name, *flags, code=1)
        assert (one["unread"], one["unaccepted"]) == (0, 0)
        assert one["why"] == "it is damaged: embar-shm fsck tells more; --force removes it"
    cleaned(command, name, "--force")


def test_what_is_no_segment_is_never_removed(command: Command, name: RingName) -> None:
    with removed(name.path) as path:
        path.write_bytes(b"precious" * 1000)
        assert "it is no segment" in cleaned(command, name, "--force", code=1)["why"]
        path.write_bytes(b"short")
        assert "it is no segment" in cleaned(command, name, "--force", code=1)["why"]
        path.unlink()
        os.mkfifo(path)
        assert "it is a FIFO" in cleaned(command, name, "--force", code=1)["why"]


def test_a_segment_that_is_taken_over_meanwhile_is_left_to_its_new_broker(
    left: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the unlink somebody replaced the file: the inode tells."""
    judge = OpenSegment.living

    def replaced(self: OpenSegment) -> list[str]:
        found = judge(self)
        self.file.path.unlink()
        left.name.path.write_bytes(b"the new one")
        return found

    monkeypatch.setattr(OpenSegment, "living", replaced)
    done = cleaning.clean(files.SegmentFile.of(left.name))
    assert done is not None
    assert (done.action, "replaced just now" in done.why) == ("kept", True)
    assert left.name.path.read_bytes() == b"the new one"
    left.name.path.unlink()


def test_of_two_who_clean_one_wins(left: Segment) -> None:
    fd = os.open(left.name.path, os.O_RDWR)
    try:
        assert _core.try_lock(fd, _core.BROKER_LOCK)
        done = cleaning.clean(files.SegmentFile.of(left.name), force=True)
        assert done is not None
        assert (done.action, done.why) == ("kept", "the broker is alive")
    finally:
        os.close(fd)
    left.unlink()
    assert cleaning.clean(files.SegmentFile.of(left.name)) is None  # vanished


@pytest.mark.parametrize("flags", [(), ("--dry-run",), ("--json",)])
def test_a_named_segment_that_somebody_else_removes_meanwhile_is_told_after_the_others(
    command: Command, left: Segment, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    other = RingName(left.name.cluster, "other")
    found = cleaning.examine

    def gone(file: files.SegmentFile) -> SegmentView | None:
        if file.ring == other:
            other.path.unlink()
        return found(file)

    other.path.touch()
    monkeypatch.setattr(cleaning, "examine", gone)
    assert command("clean", str(other), str(left.name), *flags) == 1
    assert f"there is no segment {other} on this machine" in command.stderr
    assert str(left.name) in command.stdout
    assert left.name.path.exists() == ("--dry-run" in flags)


def test_without_names_all_that_is_dead_goes_and_the_rest_says_why(cluster: str) -> None:
    """In a /dev/shm of its own: other tests have dead segments, too."""
    script = """
import os, sys
from embar_shm.address import RingName
from embar_shm.layout import Geometry
from embar_shm.segment import Segment

small = Geometry.plan(2, 4096, 4)
names = [RingName(sys.argv[1], broker) for broker in ("dead", "alive", "odd")]
segments = [Segment.create(name, small) for name in names[:2]]
segments[0].close()
names[2].path.write_bytes(b"precious" * 1000)
sys.argv[1:] = ["clean"]
from embar_shm.cli.main import main
try:
    main()
finally:
    print(*sorted(path.name for path in names[0].path.parent.iterdir()))
"""
    mounted = 'mount -t tmpfs -o size=8m tmpfs /dev/shm && exec "$@"'
    inside = ["unshare", "-m", "sh", "-c", mounted, "sh"]
    probe = subprocess.run([*inside, "true"], capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"no mount namespace can be made here: {probe.stderr.strip()}")
    done = subprocess.run(
        [*inside, COMMAND[0], "-P", "-c", script, cluster],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert (done.returncode, done.stderr) == (0, "")
    *said, total, left_over = done.stdout.splitlines()
    assert said == [
        f"kept {cluster}/alive: the broker is alive",
        f"removed {cluster}/dead: recoverable, nobody is alive in it",
        said[2],
    ]
    assert said[2].startswith(f"kept {cluster}/odd: it is no segment")
    assert total.startswith("1 segment removed, ")
    assert left_over == f"embar.{cluster}.alive embar.{cluster}.odd"


def test_to_give_up_batches_one_has_to_name_the_segment(command: Command) -> None:
    assert command("clean", "--force") == 2
    assert "--force needs the names" in command.stderr
