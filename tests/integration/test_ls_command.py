"""`embar-shm ls` on rings in every condition, and on what only looks like one."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import posix_ipc
import pytest
from rings import IDLE, Command, broker_in, killed_broker, removed

import embar_shm as es
from embar_shm import _core
from embar_shm.address import SHM_DIRECTORY, RingName
from embar_shm.inspection import files
from embar_shm.inspection.copies import Cut
from embar_shm.inspection.segments import STATES, OpenSegment, SegmentView, examine
from embar_shm.layout import Geometry
from embar_shm.segment import Segment
from embar_shm.testing import Child, wait_until

SMALL = Geometry.plan(slots=2, slot_bytes=4096, max_publishers=4)


def one(command: Command, name: RingName) -> dict[str, Any]:
    found = command.json("ls", str(name))
    assert found["schema"] == "embar-shm.ls/1"
    [segment] = found["segments"]
    return dict(segment)


def state(name: RingName) -> str:
    found = examine(files.SegmentFile.of(name))
    assert found is not None
    return found.state


def of_cluster(command: Command, cluster: str) -> list[dict[str, Any]]:
    listed = command.json("ls")["segments"]
    return [segment for segment in listed if f"embar.{cluster}." in segment["file"]]


@pytest.fixture
def left(name: RingName) -> Any:
    """A whole segment, the words of which a test changes; nobody is alive in it."""
    segment = Segment.create(name, SMALL)
    segment.close()
    yield segment
    segment.unlink()


def test_a_ring_in_use_is_listed_with_its_participants_and_what_they_hold(
    command: Command, make_broker: Callable[..., es.Broker], connect: Callable[..., es.Publisher]
) -> None:
    broker = make_broker("0").start()
    with es.Subscriber.connect(broker.address, name="slow one") as sub:
        pub = connect(broker, linger_ms=600_000)
        pub.publish(b"unread")
        pub.flush()
        pub.wait_acked(timeout=30)
        pub.publish(b"begun")
        found = one(command, broker.segment.name)
        assert (found["name"], found["state"], found["mode"]) == (broker.name, "serving", "0600")
        assert (found["uid"], found["size_bytes"]) == (os.getuid(), len(broker.segment.memory))
        assert 0 <= found["age_seconds"] < 600
        ring = found["ring"]
        assert ring["broker"] == {
            "alive": True,
            "pid": os.getpid(),
            "state": "serving",
            "epoch": 1,
        }
        assert ring["log"] == {
            "released": 0,
            "accepted": 1,
            "readable": 1,
            "unread": 1,
            "unaccepted": 0,
        }
        [publisher] = ring["publishers"]
        assert (publisher["index"], publisher["pid"]) == (0, os.getpid())
        assert publisher["alive"]
        assert not publisher["remote"]
        assert (publisher["committed_batches"], publisher["in_flight"]) == (1, 1)
        assert publisher["slots"] == 2
        [subscriber] = ring["subscribers"]
        assert (subscriber["name"], subscriber["mode"], subscriber["alive"]) == (
            "slow one",
            "reliable",
            True,
        )
        assert (subscriber["lag"], subscriber["holding"]) == (1, 1)
        assert [(h["slot"], h["owner"], h["use"], h["ticket"]) for h in ring["held"]] == [
            (0, "publisher 0", "in the log", 0),
            (1, "publisher 0", "filling", None),
        ]
        command("ls", broker.name)
        assert "0 publisher 0 in the log 0" in command.said
        assert "1 publisher 0 being filled -" in command.said
        with sub.next(timeout=30):
            pass
        assert one(command, broker.segment.name)["ring"]["log"]["unread"] == 0


def test_looking_changes_nothing_and_takes_no_memory(command: Command, left: Segment) -> None:
    """A mapped hole of a file becomes memory where one looks; a copy leaves it alone."""
    path = left.name.path
    os.ftruncate(sparse := os.open(path, os.O_RDWR), 4096)
    os.ftruncate(sparse, left.geometry.total_bytes)
    os.close(sparse)
    before = path.read_bytes(), path.stat()
    found = one(command, left.name)
    after = path.read_bytes(), path.stat()
    assert found["allocated_bytes"] < found["size_bytes"]
    assert found["allocated_bytes"] == after[1].st_blocks * 512
    assert (after[0], after[1].st_mtime_ns, after[1].st_blocks) == (
        before[0],
        before[1].st_mtime_ns,
        before[1].st_blocks,
    )


def test_what_a_killed_broker_leaves_is_recoverable_and_its_participants_are_dead(
    command: Command, name: RingName, run_child: Callable[..., Child]
) -> None:
    killed_broker(run_child, name, read=2, unread=3, unaccepted=1)
    found = one(command, name)
    assert found["state"] == "recoverable"
    ring = found["ring"]
    assert not ring["broker"]["alive"]
    log = ring["log"]
    assert (log["accepted"], log["readable"], log["unread"], log["unaccepted"]) == (5, 3, 3, 1)
    assert [row["alive"] for row in ring["publishers"] + ring["subscribers"]] == [False, False]
    assert [h["use"] for h in ring["held"]].count("committed") == 1
    command("ls")
    assert f"{name} recoverable" in command.said
    assert "0 + 1 dead" in command.said
    name.path.unlink()


def test_who_is_alive_is_the_kernels_word_not_the_pids(
    command: Command,
    name: RingName,
    make_broker: Callable[..., es.Broker],
    run_child: Callable[..., Child],
) -> None:
    broker = make_broker("0")  # nobody reaps: it does not serve
    child = run_child(IDLE, "publisher", broker.address)
    child.expect("ready")
    assert [p["alive"] for p in one(command, name)["ring"]["publishers"]] == [True]
    child.kill()
    row = broker.segment.monitor().publisher(0)
    assert row["pid"] == child.pid  # and another process may have that pid by now
    assert [p["alive"] for p in one(command, name)["ring"]["publishers"]] == [False]


STATES_WRITTEN = {0: "recoverable", 1: "recoverable", 2: "recoverable", 3: "stopped"}
STATES_WRITTEN |= {4: "quarantined", 77: "damaged"}


@pytest.mark.parametrize(("written", "expected"), STATES_WRITTEN.items())
def test_the_brokers_last_word_decides_what_a_left_segment_is(
    left: Segment, written: int, expected: str
) -> None:
    offset = _core.SEGMENT_HEADER_BYTES + 4 * 128
    left.memory[offset : offset + 4] = struct.pack("<I", written)
    assert state(left.name) == expected


def test_a_broker_that_is_about_to_serve_is_starting(name: RingName) -> None:
    segment = Segment.create(name, SMALL)
    try:
        assert state(name) == "starting"
    finally:
        segment.unlink()
        segment.close()


HEADERS = {
    "another magic": (0, b"whatever", "foreign", "magic"),
    "another version": (8, struct.pack("<I", 99), "other version", "layout version"),
    "another boot": (112, b"x" * 36, "other boot", "boot id"),
    "another name": (152, b"else/where\0", "damaged", "name"),
    "another size": (24, struct.pack("<Q", 1 << 60), "damaged", "size"),
    "no slots": (48, struct.pack("<I", 0), "damaged", "slots must be"),
    "control characters": (152, b"\x1b]0;owned\x07\0", "damaged", r"\x1b]0;owned\x07"),
}


@pytest.mark.parametrize(("offset", "value", "expected", "said"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_is_not_ours_says_why(
    command: Command, left: Segment, offset: int, value: bytes, expected: str, said: str
) -> None:
    left.memory[offset : offset + len(value)] = value
    found = one(command, left.name)
    assert (found["state"], found["ring"]) == (expected, None)
    assert said in found["detail"]
    command("ls")
    assert "\x1b" not in command.stdout
    assert f"{left.name}: {expected}: " in command.stdout


SIZES = {"nothing": (0, "creating"), "a byte": (1, "foreign"), "almost a header": (4095, "foreign")}
SIZES |= {"zeros": (4096, "creating"), "many zeros": (1 << 40, "creating")}  # sparse


@pytest.mark.parametrize(("size", "expected"), SIZES.values(), ids=SIZES)
def test_an_incomplete_segment_is_being_created_until_it_is_too_old_for_that(
    name: RingName, size: int, expected: str
) -> None:
    with removed(name.path) as path:
        path.touch()
        os.truncate(path, size)
        assert state(name) == expected
        os.utime(path, (0, 0))
        assert state(name) == ("unfinished" if expected == "creating" else expected)
        fd = os.open(path, os.O_RDWR)
        try:
            assert _core.try_lock(fd, _core.BROKER_LOCK)
            assert state(name) == expected  # somebody slow
        finally:
            os.close(fd)


def test_a_segment_that_somebody_cut_is_damaged(left: Segment) -> None:
    os.truncate(left.name.path, 100)
    assert state(left.name) == "damaged"


def test_garbage_is_foreign(name: RingName) -> None:
    with removed(name.path) as path:
        path.write_bytes(os.urandom(100_000))
        assert state(name) == "foreign"


def make_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a directory": (Path.mkdir, "a directory"),
    "a FIFO": (os.mkfifo, "a FIFO"),
    "a link": (make_link, "a symbolic link"),
}


@pytest.mark.parametrize(("make", "said"), KINDS.values(), ids=KINDS)
def test_what_is_no_file_is_listed_and_not_opened(
    command: Command, name: RingName, make: Callable[[Path], object], said: str
) -> None:
    with removed(name.path) as path:
        make(path)
        found = one(command, name)
        assert (found["state"], found["ring"]) == ("foreign", None)
        assert said in found["detail"]


def test_a_name_of_odd_bytes_cannot_reach_the_terminal(command: Command, cluster: str) -> None:
    odd = os.fsencode(SHM_DIRECTORY) + f"/embar.{cluster}.".encode() + b"\xff\x1b[31m\n\xe2\x80\xae"
    with removed(Path(os.fsdecode(odd))) as path:
        path.touch()
        [found] = of_cluster(command, cluster)
        assert (found["name"], found["state"]) == (None, "foreign")
        assert found["file"].endswith(r".\xff\x1b[31m\n\u202e")
        command("ls")
        assert f"embar.{cluster}" + r".\xff\x1b[31m\n\u202e: foreign: no ring has" in command.stdout
        assert not {"\x1b", "\u202e"} & set(command.stdout)


def test_a_segment_of_another_user_is_listed_with_what_stat_tells(
    command: Command, left: Segment, run_child: Callable[..., Child]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    other = run_child(
        """
        import dataclasses, json, os, sys
        from embar_shm.inspection import files
        from embar_shm.inspection.segments import examine

        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        print(json.dumps(examine(files.ring_named(sys.argv[1])).as_json()))
        """,
        left.name,
    )
    found = json.loads(other.read())
    assert (found["state"], found["ring"]) == ("closed to us", None)
    assert (found["uid"], found["user"], found["mode"]) == (0, "root", "0600")
    assert found["size_bytes"] == left.geometry.total_bytes
    assert "Permission denied" in found["detail"]


def test_a_segment_that_vanishes_while_it_is_listed_is_left_out(
    command: Command, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = files.SegmentFile.of(RingName(cluster, "gone"))
    found = files.segment_files()
    monkeypatch.setattr(files, "segment_files", lambda: [*found, gone])
    assert of_cluster(command, cluster) == []


def test_a_segment_that_is_cut_while_it_is_read_is_damaged(
    left: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading it through a mapping would be the end of this process (SIGBUS)."""
    copy = OpenSegment.words

    def cut_and_copy(self: OpenSegment) -> Any:
        os.truncate(left.name.path, 3 * 4096)
        return copy(self)

    monkeypatch.setattr(OpenSegment, "words", cut_and_copy)
    found = examine(files.SegmentFile.of(left.name))
    assert isinstance(found, SegmentView)
    assert (found.state, found.detail) == ("damaged", "it was truncated while it was looked at")
    with (
        OpenSegment(files.SegmentFile.of(left.name), os.open(left.name.path, os.O_RDONLY)) as cut,
        pytest.raises(Cut),
    ):
        cut.geometry = left.geometry
        cut.words()


def test_words_of_a_ring_that_make_no_sense_do_not_hurt(command: Command, left: Segment) -> None:
    """Every word behind the header, overwritten: whatever is told, it is told."""
    end = left.geometry.slots_offset
    size = end - 4096
    for content in (b"\xff" * size, b"\x01" * size, os.urandom(size)):
        left.memory[4096:end] = content
        assert command("ls", str(left.name)) == 0
        assert not set(command.stdout) & {"\x1b", "\x07"}
        assert one(command, left.name)["state"] in STATES


def test_a_name_that_is_none_and_one_that_is_not_there_are_told_apart(
    command: Command, name: RingName
) -> None:
    assert command("ls", "no name") == 2
    assert "is not the name of a ring" in command.stderr
    assert command("ls", f"shm://{name}") == 1
    assert f"there is no segment {name} on this machine" in command.stderr


def test_a_broker_of_another_process_is_found_alive(
    command: Command, name: RingName, run_child: Callable[..., Child]
) -> None:
    child = broker_in(run_child, name)
    wait_until(lambda: state(name) == "serving", "it serves")
    assert one(command, name)["ring"]["broker"]["pid"] == child.pid
    child.kill()
    assert state(name) == "recoverable"
    posix_ipc.unlink_shared_memory(name.posix_name)
