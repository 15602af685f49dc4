"""`embar-shm fsck` finds what cannot be in a ring, and nothing else, dead or alive."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rings import Command, killed_broker, removed

import embar_shm as es
from embar_shm import _core
from embar_shm.address import RingName
from embar_shm.inspection import files, fsck
from embar_shm.inspection.copies import Words
from embar_shm.layout import Geometry
from embar_shm.segment import Segment
from embar_shm.testing import Child

SMALL = Geometry.plan(slots=2, slot_bytes=4096, max_publishers=4)
CONTROL = _core.SEGMENT_HEADER_BYTES
TAIL, HEAD, RELEASED, STATE = CONTROL, CONTROL + 128, CONTROL + 136, CONTROL + 512


def checked(command: Command, name: RingName, code: int = 0) -> dict[str, Any]:
    found = command.json("fsck", str(name), code=code)
    assert found["schema"] == "embar-shm.fsck/1"
    [one] = found["segments"]
    return dict(one)


def fields(one: dict[str, Any]) -> list[str]:
    assert all(finding["problem"] and finding["advice"] for finding in one["findings"])
    return [finding["field"] for finding in one["findings"]]


@pytest.fixture
def left(name: RingName) -> Any:
    """A whole segment in which nobody is alive."""
    segment = Segment.create(name, SMALL)
    segment.close()
    yield segment
    segment.unlink()


@pytest.fixture
def killed(name: RingName, run_child: Callable[..., Child]) -> Iterator[mmap.mmap]:
    """The ring of a killed broker with batches in every state, mapped for damaging it."""
    killed_broker(run_child, name, read=9, unread=2, unaccepted=2)
    with name.path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        yield memory
    name.path.unlink()


def test_a_sound_ring_is_sound_and_is_not_changed(command: Command, left: Segment) -> None:
    before = left.name.path.read_bytes(), left.name.path.stat()
    one = checked(command, left.name)
    assert (one["verdict"], one["findings"], one["looks"]) == ("sound", [], 1)
    after = left.name.path.read_bytes(), left.name.path.stat()
    assert (before[0], before[1].st_mtime_ns, before[1].st_blocks) == (
        after[0],
        after[1].st_mtime_ns,
        after[1].st_blocks,
    )


def test_what_a_killed_broker_leaves_is_sound(
    command: Command, name: RingName, killed: mmap.mmap
) -> None:
    assert checked(command, name)["state"] == "recoverable"
    command("fsck", str(name))
    assert f"sound {name}: every invariant holds" in command.stdout


def word(memory: mmap.mmap, offset: int) -> int:
    return int(struct.unpack_from("<Q", memory, offset)[0])


def geometry_of(memory: mmap.mmap) -> Geometry:
    header = _core.read_header(memory)
    return Geometry.plan(
        header["slots"], header["slot_bytes"], header["max_publishers"], header["max_subscribers"]
    )


def damage_head(memory: mmap.mmap) -> None:
    struct.pack_into("<Q", memory, HEAD, 1 << 40)


def damage_state(memory: mmap.mmap) -> None:
    struct.pack_into("<I", memory, STATE, 17)


def damage_ticket(memory: mmap.mmap) -> None:
    g = geometry_of(memory)
    entry = word(memory, RELEASED) % g.tickets
    memory[g.tickets_offset + 8 * entry] ^= 1  # its lap


def damage_slot_word(memory: mmap.mmap) -> None:
    g = geometry_of(memory)
    free = next(s for s in range(g.slots) if not word(memory, g.slot_words_offset + 128 * s) & 1)
    struct.pack_into("<Q", memory, g.slot_words_offset + 128 * free, (5 << 16) | (6 << 1) | 1)


def damage_batch(memory: mmap.mmap) -> None:
    g = geometry_of(memory)
    entry = word(memory, g.tickets_offset + 8 * (word(memory, RELEASED) % g.tickets))
    slot = entry >> 51 & 0xFFF
    memory[g.slots_offset + slot * g.slot_stride + 24] ^= 1  # its seq


def damage_publisher(memory: mmap.mmap) -> None:
    struct.pack_into("<I", memory, geometry_of(memory).publishers_offset, 9)


def damage_cursor(memory: mmap.mmap) -> None:
    struct.pack_into("<Q", memory, geometry_of(memory).subscribers_offset + 128, 1 << 50)


DAMAGE: dict[str, Callable[[mmap.mmap], None]] = {
    "control.released": damage_head,
    "control.state": damage_state,
    "tickets[": damage_ticket,
    "slot_words[": damage_slot_word,
    "slots[": damage_batch,
    "publishers[0].state": damage_publisher,
    "subscribers[0].cursor": damage_cursor,
}


@pytest.mark.parametrize(("field", "damage"), DAMAGE.items())
def test_a_word_that_cannot_be_is_found_with_its_value_and_what_to_do(
    command: Command,
    name: RingName,
    killed: mmap.mmap,
    field: str,
    damage: Callable[[mmap.mmap], None],
) -> None:
    damage(killed)
    one = checked(command, name, code=3)
    assert one["verdict"] == "damaged"
    assert any(found.startswith(field) for found in fields(one)), one
    assert one["looks"] > 1
    assert command("fsck", str(name)) == 3
    assert f"damaged {name}: " in command.stdout
    assert "try: " in command.stdout


HEADERS = {
    "header.magic": (0, b"whatever"),
    "header.size": (24, struct.pack("<Q", 1 << 60)),
    "header.geometry": (48, struct.pack("<I", 0)),
    "header.name": (152, b"\x1b[2Jelse/where\0"),
    "header.slots_offset": (96, struct.pack("<Q", 7)),
}


@pytest.mark.parametrize(("field", "written"), HEADERS.items())
def test_a_header_that_cannot_be_is_damage(
    command: Command, left: Segment, field: str, written: tuple[int, bytes]
) -> None:
    offset, value = written
    left.memory[offset : offset + len(value)] = value
    assert field in fields(checked(command, left.name, code=3))
    assert command("fsck", str(left.name)) == 3
    assert "\x1b" not in command.stdout


def test_a_truncated_segment_is_damage(
    command: Command, left: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = left.geometry.total_bytes
    os.truncate(left.name.path, size - 1)
    assert fields(checked(command, left.name, code=3)) == ["header.size"]
    os.truncate(left.name.path, size)
    copy = Words._copy

    def cut(self: Words, *arguments: int) -> None:
        if len(self.memory) == size:  # the copy that is checked
            os.truncate(left.name.path, 8192)
        copy(self, *arguments)

    monkeypatch.setattr(Words, "_copy", cut)
    assert fields(checked(command, left.name, code=3)) == ["file.size"]
    monkeypatch.undo()
    os.truncate(left.name.path, 100)
    assert fields(checked(command, left.name, code=3)) == ["file.size"]


def test_a_ring_that_a_broker_has_quarantined_tells_what_it_found(
    command: Command, name: RingName, killed: mmap.mmap
) -> None:
    damage_ticket(killed)
    with pytest.raises(es.CorruptSegment):
        es.Broker.open_or_recover(str(name))
    one = checked(command, name, code=3)
    assert one["state"] == "quarantined"
    assert "a broker found it damaged: tickets[" in one["detail"]
    damage_ticket(killed)  # somebody has put it right: quarantined it is, all the same
    [finding] = checked(command, name, code=3)["findings"]
    assert finding["field"] == "control.state"
    assert "quarantined" in finding["problem"]
    assert "tickets[" in finding["problem"]


# Looks at a ring at work, one after the other: (field, text, words).
LOOKS: dict[str, tuple[list[list[tuple[str, str, tuple[int, ...]]]], list[tuple[str, str]]]] = {
    "another field": ([[("a", "1", ()), ("b", "1", ())], [("c", "1", ())]], []),
    "other words": ([[("a", "1", ())], [("a", "2", ())]], []),
    "another row": ([[("a", "1", (5, 1))], [("a", "1", (5, 2))]], []),
    "all but the last": ([[("a", "1", ())]] * 5 + [[]], []),
    "the same": ([[("a", "1", ()), ("b", "1", ())], *[[("a", "1", ())]] * 5], [("a", "1")]),
    "the same words": ([[("a", f"5 of {n}", (5, 1))] for n in range(6)], [("a", "5 of 5")]),
}


@pytest.mark.parametrize(("looks", "told"), LOOKS.values(), ids=LOOKS)
def test_only_what_is_the_same_in_every_look_is_told(
    left: Segment, monkeypatch: pytest.MonkeyPatch, looks: Any, told: list[tuple[str, str]]
) -> None:
    each = iter(looks)
    monkeypatch.setattr(_core, "look_at_ring", lambda _memory: (next(each), []))
    monkeypatch.setattr(fsck, "_APART", 0.0)
    done = fsck.check(files.SegmentFile.of(left.name))
    assert done is not None
    assert [(finding.field, finding.problem) for finding in done.findings] == told
    assert done.looks == len(looks)


# The batches that the publisher of a slot had committed by each look, and the slot's word.
KEPT = {
    "it fills it": ([7] * 6, [1] * 6, False),
    "it has committed others": ([7, 8, 9, 10, 11, 12], [1] * 6, True),
    "before the first look": ([7, 8, 8, 8, 8, 8], [1] * 6, False),
    "it goes on in the last looks": ([7, 7, 7, 7, 8, 9], [1] * 6, False),
    "it was another time that it had it": ([7, 8, 9], [1, 1, 2], False),
}


@pytest.mark.parametrize(("committed", "words", "lost"), KEPT.values(), ids=KEPT)
def test_a_slot_is_lost_whose_publisher_commits_others_while_it_owns_it(
    left: Segment,
    monkeypatch: pytest.MonkeyPatch,
    committed: list[int],
    words: list[int],
    lost: bool,
) -> None:
    looks = iter([([], [(1, 0, w, 5, c)]) for c, w in zip(committed, words, strict=True)])
    monkeypatch.setattr(_core, "look_at_ring", lambda _memory: next(looks))
    monkeypatch.setattr(fsck, "_APART", 0.0)
    done = fsck.check(files.SegmentFile.of(left.name))
    assert done is not None
    assert [finding.field for finding in done.findings] == ["slot_words[1]"] * lost


def test_garbage_behind_the_header_is_survived(command: Command, left: Segment) -> None:
    end = left.geometry.total_bytes
    for content in (b"\xff" * (end - 4096), os.urandom(end - 4096)):
        left.memory[4096:end] = content
        assert checked(command, left.name, code=3)["verdict"] == "damaged"
    assert command("fsck", str(left.name)) == 3


def test_what_cannot_be_checked_is_exit_code_1(command: Command, left: Segment) -> None:
    left.memory[8:12] = struct.pack("<I", 99)
    one = checked(command, left.name, code=1)
    assert (one["verdict"], one["state"]) == ("not checked", "other version")
    left.name.path.unlink()
    os.mkfifo(left.name.path)
    assert checked(command, left.name, code=1)["verdict"] == "not checked"
    left.name.path.unlink()
    assert command("fsck", str(left.name)) == 1
    assert "there is no segment" in command.stderr


def test_what_is_being_created_is_empty(command: Command, name: RingName) -> None:
    with removed(name.path) as path:
        path.touch()
        assert checked(command, name)["verdict"] == "empty"


def test_all_means_all_and_needs_no_names(command: Command, left: Segment) -> None:
    found = command("fsck", "--all", "--json") in (0, 1, 3)  # others' rings, too
    assert found
    assert str(left.name) in command.stdout
    assert command("fsck") == 2
    assert command("fsck", "--all", str(left.name)) == 2
