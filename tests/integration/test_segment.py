"""A segment is made whole or not at all, checked by whoever attaches, and gone with its broker.

Nothing here fills or remounts the machine's own /dev/shm.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import signal
import stat
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import posix_ipc
import pytest

import embar_shm as es
from embar_shm import _core
from embar_shm import segment as segment_module
from embar_shm.address import SHM_DIRECTORY, RingName
from embar_shm.layout import Geometry, boot_id
from embar_shm.segment import Segment
from embar_shm.testing import Child, leftovers, wait_until

SMALL = Geometry.plan(slots=2, slot_bytes=4096, max_publishers=4)


@pytest.fixture
def name(cluster: str) -> RingName:
    return RingName(cluster, "0")


@pytest.fixture
def segment(name: RingName) -> Any:
    """A segment without a broker in it, but with the broker's lock."""
    made = Segment.create(name, SMALL)
    yield made
    made.unlink()
    made.close()


@pytest.fixture
def dead(name: RingName, run_child: Callable[..., Child]) -> RingName:
    """The ring of a broker that was killed."""
    broker = run_child(BROKER, name)
    broker.expect("ready")
    broker.kill()
    return name


@pytest.fixture
def removed_afterwards(name: RingName) -> Any:
    """For tests whose subject must not be the one to clean up."""
    yield name.path
    name.path.unlink(missing_ok=True)


BROKER = """
import sys
import embar_shm as es

with es.Broker.create(sys.argv[1], slots=2, slot_size=4096, max_publishers=4).start():
    print("ready")
    input()
"""


# --- creation -------------------------------------------------------------------------------------


def test_a_name_that_is_taken_is_refused_with_its_file(segment: Segment) -> None:
    with pytest.raises(es.BrokerExists, match="is running") as caught:
        Segment.create(segment.name, SMALL)
    assert str(segment.name.path) in str(caught.value)
    assert segment.name.path.exists()


def test_the_first_broker_goes_on_after_a_second_one_was_refused(
    make_broker: Callable[..., es.Broker], connect: Callable[..., es.Publisher]
) -> None:
    broker = make_broker("0").start()
    with pytest.raises(es.BrokerExists):
        make_broker("0")
    pub = connect(broker)
    pub.publish(b"x")
    pub.wait_acked()


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777], ids=oct)
def test_only_its_user_may_open_a_segment_whatever_the_umask(name: RingName, umask: int) -> None:
    before = os.umask(umask)
    try:
        segment = Segment.create(name, SMALL)
    finally:
        os.umask(before)
    try:
        assert stat.S_IMODE(name.path.stat().st_mode) == 0o600
    finally:
        segment.unlink()
        segment.close()


def test_all_memory_is_reserved_before_anybody_uses_it(segment: Segment) -> None:
    found = segment.name.path.stat()
    assert found.st_size == SMALL.total_bytes
    assert found.st_blocks * 512 >= SMALL.total_bytes


def test_the_magic_is_written_when_everything_else_is_there(
    name: RingName, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    publish = _core.publish_segment

    def look_first(memory: mmap.mmap) -> None:
        seen.append(_core.read_header(name.path.read_bytes()))
        publish(memory)

    monkeypatch.setattr(_core, "publish_segment", look_first)
    segment = Segment.create(name, SMALL)
    try:
        after = _core.read_header(name.path.read_bytes())
    finally:
        segment.unlink()
        segment.close()
    assert seen == [{**after, "magic": 0}]
    assert after["magic"] == _core.MAGIC


@pytest.mark.parametrize("step", ["reserve", "prefault_memory"])
def test_a_creation_that_fails_leaves_nothing(
    name: RingName, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(step)

    monkeypatch.setattr(segment_module, step, fail)
    descriptors = open_descriptors()
    with pytest.raises(RuntimeError, match=step):
        Segment.create(name, SMALL)
    monkeypatch.undo()
    assert leftovers(name.cluster) == []
    assert open_descriptors() == descriptors


@pytest.mark.parametrize(
    ("owner", "step"),
    [(os, "fchmod"), (_core, "try_lock")],
    ids=["before it is opened again", "before its lock is taken"],
)
def test_a_segment_that_is_removed_while_it_is_made_is_a_lost_race(
    name: RingName, monkeypatch: pytest.MonkeyPatch, owner: Any, step: str
) -> None:
    """Another creator with replace_dead finds the file before its lock is taken, and unlinks it."""
    go_on = getattr(owner, step)

    def remove_first(*arguments: Any) -> Any:
        name.path.unlink(missing_ok=True)
        return go_on(*arguments)

    monkeypatch.setattr(owner, step, remove_first)
    with pytest.raises(es.BrokerExists, match="at the same moment"):
        Segment.create(name, SMALL)


def test_a_segment_may_have_the_longest_name_there_is(cluster: str) -> None:
    name = RingName(cluster.ljust(64, "x"), "0".ljust(64, "x"))
    segment = Segment.create(name, SMALL)
    try:
        Segment.attach(name).close()
    finally:
        segment.unlink()
        segment.close()


# --- attaching ------------------------------------------------------------------------------------


def test_an_attached_segment_is_the_same_memory(segment: Segment) -> None:
    other = Segment.attach(segment.name)
    try:
        assert other.geometry == SMALL
        segment.memory[SMALL.slots_offset] = 42
        assert other.memory[SMALL.slots_offset] == 42
    finally:
        other.close()


def test_a_ring_that_does_not_exist_is_refused_with_those_that_do(
    segment: Segment, cluster: str
) -> None:
    with pytest.raises(es.NoSuchBroker, match=f"no broker {cluster}/1") as caught:
        Segment.attach(RingName(cluster, "1"))
    assert str(segment.name) in caught.value.hint


def test_attaching_waits_for_a_segment_to_appear(name: RingName) -> None:
    attaching = Attaching(name)
    segment = Segment.create(name, SMALL)
    try:
        attaching.succeeds()
    finally:
        segment.unlink()
        segment.close()


def test_whoever_waits_goes_on_waiting_when_a_creation_is_given_up(
    name: RingName, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, looks = _core.is_locked, []

    def note_the_look(fd: int, offset: int) -> bool:
        looks.append(look(fd, offset))
        return looks[-1]

    monkeypatch.setattr(_core, "is_locked", note_the_look)
    half = posix_ipc.SharedMemory(name.posix_name, posix_ipc.O_CREX, mode=0o600)
    half.close_fd()
    attaching = Attaching(name)
    wait_until(lambda: looks or attaching.ended, "the attaching thread looks")
    half.unlink()  # as a creator does for whom there is too little space
    segment = Segment.create(name, SMALL)
    try:
        attaching.succeeds()
    finally:
        segment.unlink()
        segment.close()


@pytest.mark.parametrize(
    ("owner", "step"),
    [(os, "fchmod"), (segment_module, "reserve"), (_core, "publish_segment")],
    ids=["before its lock is taken", "before it has a size", "before it has its magic"],
)
def test_attaching_waits_for_a_segment_that_is_being_made(
    name: RingName, monkeypatch: pytest.MonkeyPatch, owner: Any, step: str
) -> None:
    looks: list[bool] = []
    is_locked, go_on = _core.is_locked, getattr(owner, step)
    attaching: list[Attaching] = []

    def note_the_look(fd: int, offset: int) -> bool:
        looks.append(is_locked(fd, offset))
        return looks[-1]

    def be_seen_first(*arguments: Any) -> None:
        attaching.append(Attaching(name))
        # The second look shows that the first one was not held against it.
        wait_until(lambda: len(looks) >= 2 or attaching[0].ended, "the attaching thread looks")
        go_on(*arguments)

    monkeypatch.setattr(_core, "is_locked", note_the_look)
    monkeypatch.setattr(owner, step, be_seen_first)
    segment = Segment.create(name, SMALL)
    try:
        attaching[0].succeeds()
    finally:
        segment.unlink()
        segment.close()


def test_a_segment_whose_creator_does_not_finish_is_given_up(
    name: RingName, monkeypatch: pytest.MonkeyPatch, removed_afterwards: Path
) -> None:
    monkeypatch.setattr(segment_module, "_CREATION_GRACE", 0.05)
    made = posix_ipc.SharedMemory(name.posix_name, posix_ipc.O_CREX)
    try:
        assert _core.try_lock(made.fd, _core.BROKER_LOCK)
        with pytest.raises(es.IncompatibleSegment, match=r"within 0\.05 s"):
            Segment.attach(name)
    finally:
        made.close_fd()


def test_a_segment_whose_creator_was_killed_is_refused_and_can_be_replaced(
    name: RingName, run_child: Callable[..., Child], make_broker: Callable[..., es.Broker]
) -> None:
    creator = run_child(
        """
        import os, signal, sys
        import embar_shm as es
        from embar_shm import _core

        _core.publish_segment = lambda memory: os.kill(os.getpid(), signal.SIGKILL)
        es.Broker.create(sys.argv[1])
        """,
        name,
    )
    assert creator.wait() == -signal.SIGKILL
    with pytest.raises(es.IncompatibleSegment, match="no complete segment"):
        Segment.attach(name)
    make_broker(name.broker, replace_dead=True)
    Segment.attach(name).close()


def test_a_segment_left_by_its_broker_is_refused_with_the_way_out(dead: RingName) -> None:
    try:
        with pytest.raises(es.BrokerGone, match="is gone") as caught:
            Segment.attach(dead)
        assert str(dead.path) in str(caught.value)
        assert "Broker.open_or_recover" in caught.value.hint
    finally:
        dead.path.unlink()


def test_a_connection_that_is_refused_leaves_no_descriptor_behind(dead: RingName) -> None:
    try:
        descriptors = open_descriptors()
        for _ in range(3):
            with pytest.raises(es.BrokerGone):
                es.Publisher.connect(f"shm://{dead}")
        assert open_descriptors() == descriptors
    finally:
        dead.path.unlink()


# Where a field is in the header, how it is packed, a value that is wrong there.
FIELDS = {
    "magic": (0, "<Q", 0xDEAD),
    "layout version": (8, "<I", _core.LAYOUT_VERSION + 1),
    "header size": (12, "<I", 8192),
    "feature bits": (16, "<Q", 0x10),
    "total_bytes": (24, "<Q", SMALL.total_bytes + 4096),
    "slot_stride": (40, "<Q", SMALL.slot_stride + 4096),
    "tickets": (52, "<I", 64),
    "publishers_offset": (64, "<Q", SMALL.publishers_offset + 4096),
    "subscribers_offset": (72, "<Q", SMALL.subscribers_offset + 4096),
    "tickets_offset": (80, "<Q", SMALL.tickets_offset + 4096),
    "slot_words_offset": (88, "<Q", SMALL.slot_words_offset + 4096),
    "slots_offset": (96, "<Q", SMALL.slots_offset + 4096),
    "boot id": (112, "40s", b"00000000-0000-0000-0000-000000000000"),
    "name": (152, "128s", b"other/7"),
}


def ours(field: str, name: RingName) -> object:
    match field:
        case "magic":
            return f"{_core.MAGIC:#x}"
        case "layout version":
            return _core.LAYOUT_VERSION
        case "header size":
            return _core.SEGMENT_HEADER_BYTES
        case "feature bits":
            return f"{_core.FEATURES:#x}"
        case "boot id":
            return boot_id()
        case "name":
            return name
        case _:
            return getattr(SMALL, field)


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_differs_is_refused_with_both_values(segment: Segment, field: str) -> None:
    offset, layout, value = FIELDS[field]
    struct.pack_into(layout, segment.memory, offset, value)
    theirs = value.decode() if isinstance(value, bytes) else value
    shown = f"{theirs:#x}" if field in ("magic", "feature bits") else theirs
    with pytest.raises(es.IncompatibleSegment) as caught:
        Segment.attach(segment.name)
    expected = f"{field}: the segment has {shown}, this process expects {ours(field, segment.name)}"
    assert expected in str(caught.value)
    assert str(segment.name.path) in str(caught.value)


@pytest.mark.parametrize(
    ("offset", "layout", "value", "says"),
    [
        (32, "<Q", 16384, "slot_stride: the segment has 8192, this process expects 20480"),
        (32, "<Q", 1, "slot_size must be 64 bytes to 2 GiB; .*slot_bytes=1,"),
        (32, "<Q", 2**64 - 1, f"slot_size must be 64 bytes to 2 GiB; .*slot_bytes={2**64 - 1},"),
        (48, "<I", 3, "tickets: the segment has 2, this process expects 4"),
        (48, "<I", 0, "slots must be 1 to 4096; .*slots=0,"),
        (48, "<I", 2**32 - 1, f"slots must be 1 to 4096; .*slots={2**32 - 1},"),
        (56, "<I", 1000, "tickets_offset: the segment has"),
        (56, "<I", 0, "max_publishers must be 1 to 1000; .*max_publishers=0"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused_with_both_values(
    segment: Segment, offset: int, layout: str, value: int, says: str
) -> None:
    struct.pack_into(layout, segment.memory, offset, value)
    with pytest.raises(es.IncompatibleSegment, match=says):
        Segment.attach(segment.name)


def test_every_difference_is_told_at_once(segment: Segment) -> None:
    for field in ("boot id", "name", "slots_offset"):
        offset, layout, value = FIELDS[field]
        struct.pack_into(layout, segment.memory, offset, value)
    with pytest.raises(es.IncompatibleSegment) as caught:
        Segment.attach(segment.name)
    assert all(f"{field}: " in str(caught.value) for field in ("boot id", "name", "slots_offset"))


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (0, "no complete segment: 0 bytes"),
        (100, "truncated: it has 100 bytes, a header alone 4096"),
        (
            _core.SEGMENT_HEADER_BYTES,
            f"size: the header says {SMALL.total_bytes}, the file has 4096 bytes",
        ),
        (
            SMALL.total_bytes - 1,
            f"size: the header says {SMALL.total_bytes}, "
            f"the file has {SMALL.total_bytes - 1} bytes",
        ),
    ],
)
def test_a_truncated_segment_is_refused_with_both_sizes(
    segment: Segment, size: int, says: str
) -> None:
    segment.close()  # its broker is dead
    os.truncate(segment.name.path, size)
    with pytest.raises(es.IncompatibleSegment, match=says):
        Segment.attach(segment.name)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no complete segment: 0 bytes"),
        (b"hello", "truncated: it has 5 bytes, a header alone 4096"),
        (bytes(65536), "no complete segment: 65536 bytes"),
        (bytes(range(256)) * 256, "magic: the segment has 0x706050403020100, this process expects"),
    ],
    ids=["empty", "short", "zeros", "something else"],
)
def test_a_file_that_is_no_segment_is_refused(
    name: RingName, removed_afterwards: Path, content: bytes, says: str
) -> None:
    removed_afterwards.touch(0o600)
    removed_afterwards.write_bytes(content)
    with pytest.raises(es.IncompatibleSegment, match=says) as caught:
        Segment.attach(name)
    assert f"remove {name.path}" in caught.value.hint


# --- replacing the dead ---------------------------------------------------------------------------


def test_a_dead_brokers_ring_is_not_replaced_without_asking(dead: RingName) -> None:
    try:
        with pytest.raises(es.BrokerExists, match="left behind") as caught:
            es.Broker.create(str(dead))
        assert "replace_dead=True" in caught.value.hint
    finally:
        dead.path.unlink()


def test_a_dead_brokers_ring_is_replaced_on_request(
    dead: RingName, make_broker: Callable[..., es.Broker], connect: Callable[..., es.Publisher]
) -> None:
    before = dead.path.stat().st_ino
    broker = make_broker(dead.broker, replace_dead=True).start()
    assert dead.path.stat().st_ino != before
    pub = connect(broker)
    pub.publish(b"x")
    pub.wait_acked()


def test_a_living_brokers_ring_is_never_replaced(segment: Segment) -> None:
    with pytest.raises(es.BrokerExists, match="is running"):
        Segment.create(segment.name, SMALL, replace_dead=True)
    Segment.attach(segment.name).close()


def test_a_dead_brokers_ring_stays_while_a_publisher_uses_it(
    name: RingName, run_child: Callable[..., Child], make_broker: Callable[..., es.Broker]
) -> None:
    broker = run_child(BROKER, name)
    broker.expect("ready")
    pub = es.Publisher.connect(f"shm://{name}")
    broker.kill()
    with pytest.raises(es.BrokerExists) as caught:
        make_broker(name.broker, replace_dead=True)
    assert "no publisher is left" in caught.value.hint
    pub.close()
    make_broker(name.broker, replace_dead=True)


def test_replacing_what_does_not_exist_is_creating(
    name: RingName, make_broker: Callable[..., es.Broker]
) -> None:
    assert make_broker(name.broker, replace_dead=True).name == str(name)


def test_of_several_that_replace_a_dead_broker_one_wins(cluster: str) -> None:
    for number in range(50):
        name = RingName(cluster, str(number))
        Segment.create(name, SMALL).close()  # left behind
        winners, losers = race_to_replace(name, creators=4)
        try:
            assert [type(error) for error in losers] == [es.BrokerExists] * 3
            assert [segment.name for segment in winners] == [name]
            Segment.attach(name).close()
        finally:
            for segment in winners:
                segment.unlink()
                segment.close()
            name.path.unlink(missing_ok=True)


def race_to_replace(name: RingName, creators: int) -> tuple[list[Segment], list[BaseException]]:
    barrier = threading.Barrier(creators)
    winners: list[Segment] = []
    losers: list[BaseException] = []

    def replace() -> None:
        barrier.wait()
        try:
            winners.append(Segment.create(name, SMALL, replace_dead=True))
        except BaseException as error:
            losers.append(error)

    threads = [threading.Thread(target=replace) for _ in range(creators)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return winners, losers


# --- the end --------------------------------------------------------------------------------------


def test_a_closed_broker_has_removed_its_segment(make_broker: Callable[..., es.Broker]) -> None:
    broker = make_broker()
    path = broker.segment.name.path
    assert path.exists()
    broker.close()
    assert not path.exists()
    broker.close()


def test_a_segment_that_took_the_name_later_is_not_removed(
    make_broker: Callable[..., es.Broker],
) -> None:
    older = make_broker("0")
    older.segment.name.path.unlink()  # somebody cleans up by hand
    newer = make_broker("0")
    older.close()
    assert newer.segment.name.path.exists()
    Segment.attach(newer.segment.name).close()


def test_a_forked_child_neither_removes_the_segment_nor_keeps_its_broker_alive(
    name: RingName, run_child: Callable[..., Child], removed_afterwards: Path
) -> None:
    parent = run_child(
        """
        import os, signal, sys
        import embar_shm as es

        broker = es.Broker.create(sys.argv[1], slots=2, slot_size=4096)
        if os.fork() == 0:
            broker.close()
            print("child")
            sys.stdin.read()  # outlives its parent, which is killed
            os._exit(0)
        signal.pause()
        """,
        name,
    )
    parent.expect("child")
    assert name.path.exists()
    Segment.attach(name).close()
    parent.kill()
    with pytest.raises(es.BrokerGone):
        Segment.attach(name)


START = "broker = es.Broker.create(sys.argv[1], slots=2, slot_size=4096)"

# How a program with a broker ends: the program, the signal it gets, the exit code.
ENDINGS: dict[str, tuple[str, int | None, int]] = {
    "with block": (f"with {START[9:]}: print('ready')", None, 0),
    "exception in the with block": (
        f"with {START[9:]}:\n    print('ready')\n    raise RuntimeError",
        None,
        1,
    ),
    "exception, never closed": (f"{START}\nprint('ready')\nraise RuntimeError", None, 1),
    "exit, never closed": (f"{START}.start()\nprint('ready')", None, 0),
    "sys.exit while serving in the background": (
        f"with {START[9:]}.start():\n    print('ready')\n    sys.exit(7)",
        None,
        7,
    ),
    "exit, no longer referenced": (
        f"def create():\n    {START}\ncreate()\nprint('ready')",
        None,
        0,
    ),
    "exit with a reservation open": (
        f"{START}\n"
        "pub = es.Publisher.connect(broker.address)\n"
        "reservation = pub.reserve(8)\n"
        "view = reservation.__enter__()\n"
        "print('ready')",
        None,
        0,
    ),
    "SIGINT in serve": (
        f"with {START[9:]} as broker:\n    print('ready')\n    broker.serve()",
        signal.SIGINT,
        -signal.SIGINT,
    ),
    "SIGINT in serve, never closed": (
        f"{START}\nprint('ready')\nbroker.serve()",
        signal.SIGINT,
        -signal.SIGINT,
    ),
    "SIGINT elsewhere": (
        f"with {START[9:]}.start():\n    print('ready')\n    signal.pause()",
        signal.SIGINT,
        -signal.SIGINT,
    ),
    "SIGTERM in serve": (
        f"with {START[9:]} as broker:\n    print('ready')\n    broker.serve()",
        signal.SIGTERM,
        0,
    ),
    "SIGTERM in serve, never closed": (
        f"{START}\nprint('ready')\nbroker.serve()",
        signal.SIGTERM,
        0,
    ),
    "SIGTERM elsewhere": (
        f"with {START[9:]}.start():\n    print('ready')\n    signal.pause()",
        signal.SIGTERM,
        128 + signal.SIGTERM,
    ),
    "SIGTERM elsewhere, never closed": (
        f"{START}.start()\nprint('ready')\nsignal.pause()",
        signal.SIGTERM,
        128 + signal.SIGTERM,
    ),
    "SIGTERM while a publisher waits": (
        f"with {START[9:]} as broker, es.Publisher.connect(broker.address, timeout=None) as pub:\n"
        "    pub.publish(b'x')\n"
        "    print('ready')\n"
        "    pub.wait_acked()",
        signal.SIGTERM,
        128 + signal.SIGTERM,
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_segment_is_left_after(
    ending: str, name: RingName, run_child: Callable[..., Child], removed_afterwards: Path
) -> None:
    program, number, exit_code = ENDINGS[ending]
    child = run_child(f"import signal, sys\nimport embar_shm as es\n{program}\n", name)
    child.expect("ready")
    if "broker.serve()" in program:  # not before it is in there
        with es.Publisher.connect(f"shm://{name}") as pub:
            pub.publish(b"x")
            pub.wait_acked()
    if number is not None:
        child.signal(number)
    assert child.wait() == exit_code, child.errors
    assert leftovers(name.cluster) == []


def test_a_program_with_a_sigterm_handler_of_its_own_keeps_it(
    name: RingName, run_child: Callable[..., Child]
) -> None:
    child = run_child(
        """
        import signal, sys
        import embar_shm as es

        signal.signal(signal.SIGTERM, lambda number, frame: (print("mine"), broker.stop()))
        with es.Broker.create(sys.argv[1], slots=2, slot_size=4096) as broker:
            print("ready")
            broker.serve()
        """,
        name,
    )
    child.expect("ready")
    child.signal(signal.SIGTERM)
    child.expect("mine")
    assert child.wait() == 0


def test_sigterm_has_its_default_back_after_the_last_broker(
    make_broker: Callable[..., es.Broker],
) -> None:
    first, second = make_broker(), make_broker()
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    first.close()
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    second.close()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# --- a machine without memory ---------------------------------------------------------------------


SMALL_SHM = ["sh", "-c", 'mount -t tmpfs -o size=8m tmpfs "$0" && exec "$@"', str(SHM_DIRECTORY)]


@pytest.fixture
def small_shm() -> list[str]:
    """A command prefix: in a mount namespace of its own, with 8 MiB of shared memory."""
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    prefix = ["unshare", *as_root, "--mount", "--propagation", "private", *SMALL_SHM]
    try:
        tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("unshare(1) is not installed")
    if tried.returncode:
        pytest.skip(f"this process may not make mount namespaces: {tried.stderr.strip()}")
    return prefix


def test_a_ring_that_does_not_fit_is_refused_with_what_is_needed_and_free(
    name: RingName, run_child: Callable[..., Child], small_shm: list[str]
) -> None:
    child = run_child(
        """
        import json, os, sys
        import embar_shm as es

        try:
            es.Broker.create(sys.argv[1], slots=8, slot_size="2MiB")
        except es.NotEnoughSpace as error:
            print(json.dumps([error.message, error.hint, os.listdir(sys.argv[2])]))
        with es.Broker.create(sys.argv[1], slots=2, slot_size="2MiB").start() as broker:
            with es.Publisher.connect(broker.address) as pub:
                pub.publish(b"x")
                pub.wait_acked()
                print("a smaller one works")
        """,
        name,
        SHM_DIRECTORY,
        wrapper=small_shm,
    )
    message, hint, left = json.loads(child.read())
    needed = -(-Geometry.plan(8, 2 * 2**20, 64).total_bytes // 2**20)
    assert f"the ring {name} needs {needed} MiB" in message
    assert "8 slots of 2 MiB" in message
    assert "8 MiB free of 8 MiB" in message
    assert "fewer or smaller slots" in hint
    assert "--shm-size" in hint
    assert left == []
    child.expect("a smaller one works")
    assert child.wait() == 0


# --- helpers --------------------------------------------------------------------------------------


def open_descriptors() -> int:
    gc.collect()  # a mapping has one until it is collected
    return len(list(Path("/proc/self/fd").iterdir()))


class Attaching:
    """Attaches in a thread of its own."""

    def __init__(self, name: RingName) -> None:
        self._name = name
        self._segment: Segment | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._attach)
        self._thread.start()

    def _attach(self) -> None:
        try:
            self._segment = Segment.attach(self._name, timeout=30)
        except BaseException as error:
            self._error = error

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def succeeds(self) -> None:
        """Waits; raises what went wrong."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._segment is not None
        self._segment.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_a_creation_leaves_nothing(
    number: signal.Signals, name: RingName, run_child: Callable[..., Child]
) -> None:
    child = run_child(
        """
        import os, sys, embar_shm as es
        from embar_shm import segment
        prefault = segment.prefault_memory
        def kill_first(memory):
            os.kill(os.getpid(), int(sys.argv[2]))
            prefault(memory)
        segment.prefault_memory = kill_first
        print("ready")
        es.Broker.create(sys.argv[1], slots=2, slot_size=4096)
        """,
        name,
        int(number),
    )
    child.expect("ready")
    assert child.wait() != 0
    assert leftovers(name.cluster) == []
