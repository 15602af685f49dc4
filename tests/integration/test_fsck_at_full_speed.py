"""`embar-shm fsck` beside a ring at full speed: damage that stays is found, and nothing else."""

from __future__ import annotations

import mmap
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rings import broker_in

import embar_shm as es
from embar_shm import _core
from embar_shm.address import RingName
from embar_shm.inspection import files, fsck
from embar_shm.layout import Geometry
from embar_shm.testing import Child, wait_until

sys.path.append(str(Path(__file__).parents[1] / "faults"))
from programs import BUSY

TRIES = (
    50  # checks of a ring: where a busy publisher did nothing in one of them, its slot is no news
)
CONTROL = _core.SEGMENT_HEADER_BYTES
STATE = CONTROL + 512  # of the broker

# A publisher and subscribers of both modes that come, and go after some batches.
COMING = """
import sys
import embar_shm as es

while True:
    pub = es.Publisher.connect(sys.argv[1], message_size=1024, linger_ms=0)
    lossy = es.Subscriber.connect(sys.argv[1], mode="lossy")
    reliable = es.Subscriber.connect(sys.argv[1])
    for _ in range(5):
        pub.publish(bytes(1024))
    for _ in range(3):
        reliable.next().release()
    for one in (reliable, lossy, pub):
        one.close()
    print("gone")
"""


def check(name: RingName) -> fsck.Checked:
    done = fsck.check(files.SegmentFile.of(name))
    assert done is not None
    return done


def fields(done: fsck.Checked) -> set[str]:
    return {finding.field for finding in done.findings}


class Damage:
    """Words of a ring in use that are overwritten through its mapping, and put right again."""

    def __init__(self, memory: mmap.mmap, geometry: Geometry) -> None:
        self.memory = memory
        self.geometry = geometry
        self._before: list[tuple[int, bytes]] = []

    def write(self, offset: int, form: str, value: int) -> None:
        new = struct.pack(form, value)
        self._before.append((offset, self.memory[offset : offset + len(new)]))
        self.memory[offset : offset + len(new)] = new

    def row(self, kind: str, index: int, field: str, value: int) -> None:
        size, known = _core.structs()[f"{kind.title()}Entry"]
        [(offset, width)] = [(offset, width) for name, offset, width, _ in known if name == field]
        table = getattr(self.geometry, f"{kind}s_offset")
        self.write(table + index * size + offset, "<I" if width == 4 else "<Q", value)

    def slot(self, index: int, owner: int, *, owned: bool = True) -> None:
        offset = self.geometry.slot_words_offset + 128 * index
        word = int.from_bytes(self.memory[offset : offset + 8], "little")
        assert not word & 1, "somebody uses it: it would be put right soon"
        self.write(offset, "<Q", word | owner << 1 | owned)

    def undo(self) -> None:
        for offset, old in reversed(self._before):
            self.memory[offset : offset + len(old)] = old
        self._before.clear()


@contextmanager
def locked(broker: es.Broker, *locks: int) -> Iterator[None]:
    """Somebody alive in these rows: those of the dead are cleared within milliseconds."""
    fd = os.open(broker.segment.name.path, os.O_RDWR)
    try:
        assert all(_core.try_lock(fd, lock) for lock in locks)
        yield
    finally:
        os.close(fd)


def test_words_of_the_tables_that_cannot_be_are_found_at_full_speed(
    make_broker: Callable[..., es.Broker], run_child: Callable[..., Child]
) -> None:
    broker = make_broker("0", slots=32).start()
    name, monitor = broker.segment.name, broker.segment.monitor()
    damage = Damage(broker.segment.memory, broker.segment.geometry)
    with (
        es.Publisher.connect(broker.address, linger_ms=0) as idle,  # row 0
        es.Subscriber.connect(broker.address, mode="lossy"),  # rows 0, 1 of the other table
        es.Subscriber.connect(broker.address, mode="lossy"),
        locked(broker, _core.publisher_lock(5), _core.subscriber_lock(5)),
    ):
        for _ in range(4):
            idle.publish(b"one")
            idle.flush()
        idle.wait_acked(timeout=30)
        run_child(BUSY, broker.address).expect("publishing")  # row 1
        states = [monitor.publisher(row)["state"] for row in (0, 1, 2)]
        assert states == ["active", "active", "free"]
        assert check(name).findings == ()

        damage.row("publisher", 0, "committed_seq", 1)
        damage.row("publisher", 4, "fault", 9)
        damage.row("publisher", 5, "state", 77)
        damage.row("subscriber", 0, "cursor", 1 << 50)
        damage.row("subscriber", 1, "mode", 5)
        damage.row("subscriber", 5, "state", 9)
        damage.slot(24, 3, owned=False)
        damage.slot(25, 700)  # there is no such row
        damage.slot(26, _core.LOG_OWNER)
        damage.slot(27, 3)  # not connected
        damage.slot(28, 0)  # two of one publisher, which fills none
        damage.slot(29, 0)
        damage.slot(30, 1)  # of the busy one, which knows nothing of it
        wrong = {
            "publishers[0].accepted_seq",
            "publishers[4].fault",
            "publishers[5].state",
            "subscribers[0].cursor",
            "subscribers[1].mode",
            "subscribers[5].state",
            *(f"slot_words[{slot}]" for slot in (24, 25, 26, 27, 29, 30)),
        }
        for _ in range(TRIES):
            found = check(name)
            assert fields(found) <= wrong
            if fields(found) == wrong:
                break
        assert fields(found) == wrong
        assert found.verdict == "damaged"
        told = {finding.field: finding.problem for finding in found.findings}
        assert "publisher 1 has committed others since" in told["slot_words[30]"]
        assert "owner 700" in told["slot_words[25]"]
        damage.undo()
        assert check(name).findings == ()
        seen = broker.stats().batches
        wait_until(lambda: broker.stats().batches > seen, "the ring is in use, and was")


def test_a_geometry_that_cannot_be_is_found_at_full_speed(
    make_broker: Callable[..., es.Broker], run_child: Callable[..., Child]
) -> None:
    broker = make_broker("0").start()
    name = broker.segment.name
    run_child(BUSY, broker.address).expect("publishing")
    damage = Damage(broker.segment.memory, broker.segment.geometry)
    offsets = {name: offset for name, offset, *_ in _core.structs()["SegmentHeader"][1]}
    for field in ("slots", "max_publishers", "slots_offset"):
        damage.write(offsets[field], "<I", 7)
        assert check(name).verdict == "damaged", field
        damage.undo()
        assert check(name).verdict == "sound"


@pytest.mark.parametrize(
    ("field", "hit"),
    [
        ("control.state", lambda damage: damage.write(STATE, "<I", 17)),
        ("tickets[0]", lambda damage: damage.write(damage.geometry.tickets_offset, "<Q", 1 << 31)),
    ],
)
def test_damage_of_the_log_stops_a_ring_at_full_speed_and_is_found(
    name: RingName, run_child: Callable[..., Child], field: str, hit: Callable[[Damage], None]
) -> None:
    broker_in(run_child, name)
    run_child(BUSY, f"shm://{name}").expect("publishing")
    with name.path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        header = _core.read_header(memory)
        damage = Damage(memory, Geometry.plan(header["slots"], header["slot_bytes"], 8))
        for _ in range(TRIES):
            hit(damage)
            found = check(name)
            if found.findings:  # else somebody was about to write there
                break
    assert found.verdict == "damaged"
    assert any(f.field == field or f" {field}: " in f.problem for f in found.findings), found
    name.path.unlink()


def test_a_sound_ring_at_full_speed_is_sound_however_often_one_looks_and_whoever_comes_and_goes(
    make_broker: Callable[..., es.Broker],
    run_child: Callable[..., Child],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fsck, "_APART", 0.0)  # the harder for it
    broker = make_broker("0", slots=8).start()
    name = broker.segment.name
    busy, coming = run_child(BUSY, broker.address), run_child(COMING, broker.address)
    busy.expect("publishing")
    for _ in range(4):
        coming.expect("gone")
        for _ in range(50):
            done = check(name)
            assert (done.verdict, done.findings) == ("sound", ()), done
    seen = broker.stats().batches
    wait_until(lambda: broker.stats().batches > seen, "the ring is in use")
