"""A broker to which many come, and a program that connects again and again: nothing adds up."""

from __future__ import annotations

import gc
import itertools
import logging
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil
import pytest
from listening import FORGETFUL, Listening

import embar_shm as es
from embar_shm.testing import wait_until
from embar_shm.transports import tcp_listener
from embar_shm.transports.tcp_listener import Limits

Listen = Callable[..., Listening]
Visit = Callable[[Listening], None]

PACKAGE = str(Path(es.__file__).parent)


def subscribes_over_tcp(broker: Listening) -> None:
    with es.Subscriber.connect(broker.address, timeout=30):
        pass


def reads_over_tcp(broker: Listening) -> None:
    with (
        es.Subscriber.connect(broker.address, mode="lossy", timeout=30) as sub,
        es.Publisher.connect(broker.broker.address, timeout=30) as pub,
    ):
        pub.publish(b"a batch")
        pub.flush()
        sub.next().release()


def publishes_over_tcp(broker: Listening) -> None:
    with es.Publisher.connect(broker.address, timeout=30) as pub:
        pub.publish(b"a batch")
        pub.wait_acked()


def does_not_know_the_token(broker: Listening) -> None:
    with pytest.raises(es.AccessDenied):
        es.Subscriber.connect(broker.address, token="guess")


def asks_for_a_place_that_is_not_there(broker: Listening) -> None:
    with pytest.raises(es.PositionLost):
        es.Subscriber.connect(broker.address, start=10**9)


def speaks_another_protocol(broker: Listening) -> None:
    with broker.peer() as peer, suppress(OSError):
        peer.socket.sendall(b"GET / HTTP/1.1\r\n" * 20)
        while peer.socket.recv(4096):
            pass


def says_nothing(broker: Listening) -> None:
    with broker.peer():
        pass


def subscribes_here(broker: Listening) -> None:
    with es.Subscriber.connect(broker.broker.address, timeout=30):
        pass


def publishes_here(broker: Listening) -> None:
    with es.Publisher.connect(broker.broker.address, timeout=30) as pub:
        pub.publish(b"a batch")
        pub.wait_acked()


OVER_TCP = (
    subscribes_over_tcp,
    reads_over_tcp,
    publishes_over_tcp,
    asks_for_a_place_that_is_not_there,
    speaks_another_protocol,
    says_nothing,
)
HERE = (subscribes_here, publishes_here)


@contextmanager
def interned() -> Iterator[Counter[str]]:
    """What this thread, and those that begin now, intern meanwhile, by the line of ours that did.

    The import system's own, which keeps what it interns, is left out.
    """
    found: Counter[str] = Counter()

    def look(frame: FrameType, event: str, called: object) -> None:
        if event == "c_call" and called is sys.intern:
            stack = traceback.extract_stack(frame)
            ours = [one for one in stack if one.filename.startswith(PACKAGE)]
            if ours and not any("importlib" in one.filename for one in stack):
                found[f"{Path(ours[-1].filename).name}: {ours[-1].line}"] += 1

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]  # what its documentation says


# An interned string that dies leaves its place in the interpreter's table unusable. When all places
# are used up, the table is made anew: a megabyte, in the memory pool of the thread that happens to
# be there. With a few places for each connection, every pool of a broker had held it one day.
@pytest.mark.parametrize("visit", [*OVER_TCP, *HERE], ids=lambda visit: visit.__name__)
def test_a_connection_uses_up_no_place_in_the_table_of_interned_strings(
    listen: Listen, visit: Visit
) -> None:
    broker = listen()
    visit(broker)
    with interned() as found:
        visit(broker)
        broker.wait_until_idle()
    assert not found


def test_the_look_at_interned_strings_sees_those_of_a_new_path() -> None:
    with interned() as found:
        es.address.RingName("cluster", "never-seen-before").path.is_file()
    assert list(found) == ["address.py: return folder / name"]


@pytest.mark.parametrize(
    "visit", [*OVER_TCP, does_not_know_the_token, *HERE], ids=lambda visit: visit.__name__
)
def test_what_comes_and_goes_leaves_no_object_descriptor_or_thread(
    listen: Listen, monkeypatch: pytest.MonkeyPatch, visit: Visit
) -> None:
    monkeypatch.setattr(tcp_listener, "_REMEMBERED", 4)
    monkeypatch.setattr(logging.getLogger("embar_shm.tcp"), "disabled", True)  # pytest keeps it all
    token = "secret" if visit is does_not_know_the_token else None
    broker = listen(FORGETFUL, token=token)

    def no_more_open() -> bool:
        return process.num_fds() <= descriptors and threading.active_count() <= threads

    def objects_after(visits: int) -> tuple[int, int]:
        for _ in range(visits):
            visit(broker)
        wait_until(no_more_open, "descriptors and threads are as before")
        broker.wait_until_idle()
        gc.collect()
        return len(gc.get_objects()), sys.getallocatedblocks()

    process = psutil.Process()
    gc.collect()
    descriptors, threads = process.num_fds(), threading.active_count()
    objects_after(10)  # free lists and caches fill
    rounds = [objects_after(10) for _ in range(4)]
    growths = [
        [after[n] - before[n] for before, after in itertools.pairwise(rounds)] for n in (0, 1)
    ]
    assert min(growths[0]) <= 0
    # Native objects are seen here alone; and temporary names that the interpreter's cache of
    # attributes keeps, a few for each visit until it is full.
    assert min(growths[1]) < 3 * 10


def test_a_listener_that_was_stopped_goes_with_its_mapping(
    make_broker: Callable[..., es.Broker],
) -> None:
    broker = make_broker().start()

    def mappings() -> int:
        gc.collect()
        with Path("/proc/self/maps").open() as maps:
            return sum(str(broker.segment.name.path) in line for line in maps)

    broker.listen("tcp://127.0.0.1:0").stop()
    before = mappings()
    for _ in range(3):
        broker.listen("tcp://127.0.0.1:0").stop()
    assert mappings() == before


def test_of_publishers_that_are_forgotten_the_last_ones_are_remembered(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp_listener, "_REMEMBERED", 4)
    broker = listen(Limits())
    publishers = []
    for _ in range(9):
        with es.Publisher.connect(broker.address, timeout=30) as pub:
            pub.publish(b"a batch")
            pub.wait_acked()
            publishers += broker.listener._remotes
    broker.wait_until_idle()
    known = [broker.listener._last_seq_of(key) for key in publishers]
    assert known == [None] * 5 + [1] * 4
