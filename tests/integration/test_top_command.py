"""`embar-shm top` shows what rings do, once, as JSON, and live on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from command import COMMAND, clean_environment
from rings import Command, broker_in, killed_broker

import embar_shm as es
from embar_shm import _core
from embar_shm.address import RingName
from embar_shm.inspection import files
from embar_shm.inspection.sampling import Activity, RingRates, activity, sample
from embar_shm.testing import Child, wait_until


def rates(before: list[Any], after: list[Any]) -> RingRates:
    [ring] = activity(before, after).rings
    return ring


def looked(name: RingName) -> list[Any]:
    return sample([files.SegmentFile.of(name)])


def publish(pub: es.Publisher, batches: int) -> None:
    for _ in range(batches):
        pub.publish_many(b"x" * 640, 64)
        pub.flush()
    pub.wait_acked(timeout=30)


def test_counters_become_rates(
    make_broker: Callable[..., es.Broker], connect: Callable[..., es.Publisher]
) -> None:
    broker = make_broker("0").start()
    name = broker.segment.name
    with es.Subscriber.connect(broker.address, name="reader") as sub:
        pub = connect(broker, message_size=64, in_flight=4)
        publish(pub, 1)
        before = looked(name)
        publish(pub, 3)
        for _ in range(2):
            with sub.next(timeout=30):
                pass
        wait_until(lambda: broker.stats().in_flight == 2, "the broker has released what was read")
        after = looked(name)
        ring = rates(before, after)
        seconds = after[0].at - before[0].at
        assert ring.batches_per_second == pytest.approx(3 / seconds)
        assert ring.messages_per_second == pytest.approx(30 / seconds)
        assert ring.bytes_per_second == pytest.approx(1920 / seconds)
        assert (ring.refused_per_second, ring.lost_per_second) == (0, 0)
        assert (ring.broker_alive, ring.broker_pid, ring.state) == (True, os.getpid(), "serving")
        publisher, subscriber = ring.participants
        assert (publisher.kind, publisher.index, publisher.alive) == ("publisher", 0, True)
        assert publisher.batches_per_second == pytest.approx(3 / seconds)
        assert (subscriber.kind, subscriber.name) == ("subscriber", "reader")
        assert subscriber.batches_per_second == pytest.approx(2 / seconds)
        assert (subscriber.lag, subscriber.holding) == (2, 2)
        slowest = ring.slowest_subscriber
        assert slowest is not None
        assert (slowest.name, slowest.pid, slowest.lag) == ("reader", os.getpid(), 2)
        assert ring.slots_held == 2


def test_what_is_seen_for_the_first_time_has_no_rates(
    make_broker: Callable[..., es.Broker], connect: Callable[..., es.Publisher]
) -> None:
    broker = make_broker("0").start()
    name = broker.segment.name
    first = looked(name)
    assert rates([], first).batches_per_second is None
    assert activity([], first).interval_seconds is None
    connect(broker).publish(b"new here")
    ring = rates(first, looked(name))
    assert ring.batches_per_second is not None
    assert ring.participants[0].batches_per_second is None


def test_another_broker_or_participant_counts_anew(
    make_broker: Callable[..., es.Broker], connect: Callable[..., es.Publisher]
) -> None:
    broker = make_broker("0").start()
    name = broker.segment.name
    with es.Publisher.connect(broker.address) as pub:
        publish(pub, 5)
        before = looked(name)
    wait_until(lambda: broker.stats().publishers == 0, "the row is free")
    connect(broker)  # takes the same row
    [participant] = rates(before, looked(name)).participants
    assert participant.batches_per_second is None
    broker.close()
    make_broker("0").start()
    assert rates(before, looked(name)).batches_per_second is None


def test_losses_of_lossy_subscribers_are_rates_too(
    make_broker: Callable[..., es.Broker], connect: Callable[..., es.Publisher]
) -> None:
    broker = make_broker("0").start()
    with es.Subscriber.connect(broker.address, mode="lossy") as sub:
        before = looked(broker.segment.name)
        publish(connect(broker, message_size=64), 12)
        with sub.next(timeout=30) as batch:
            assert batch.gap > 0
        ring = rates(before, looked(broker.segment.name))
        assert ring.lost_per_second is not None
        assert ring.lost_per_second > 0


def test_a_dead_ring_is_shown_as_it_stands_still(
    command: Command, name: RingName, run_child: Callable[..., Child]
) -> None:
    killed_broker(run_child, name, unread=2)
    before = looked(name)
    ring = rates(before, looked(name))
    assert not ring.broker_alive
    assert ring.batches_per_second == 0
    assert [one.alive for one in ring.participants] == [False, False]
    command("top", str(name), "--interval", "0.01")
    assert f"{name} serving, dead 0 0 0.00 B/s 2 of 8" in command.said
    name.path.unlink()


def test_words_that_make_no_sense_do_not_hurt(
    command: Command, make_broker: Callable[..., es.Broker]
) -> None:
    broker = make_broker("0")
    memory, g = broker.segment.memory, broker.segment.geometry
    words = bytes(memory[4096 : g.slots_offset])
    for content in (b"\xff" * len(words), os.urandom(len(words))):
        memory[4096 : g.slots_offset] = content
        assert command("top", broker.name, "--interval", "0.01") == 0
        assert "\x1b" not in command.stdout
    memory[4096 : g.slots_offset] = words


def test_it_looks_and_touches_nothing(
    make_broker: Callable[..., es.Broker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a lock is taken, and no byte of a slot is read."""
    broker = make_broker("0")
    slots = broker.segment.geometry.slots_offset
    before = broker.segment.name.path.read_bytes()
    read: list[tuple[int, int]] = []
    preadv = os.preadv

    def watched(fd: int, buffers: Any, offset: int) -> int:
        read.append((offset, sum(len(b) for b in buffers)))
        return preadv(fd, buffers, offset)

    def refuse(*_: object) -> None:
        raise AssertionError("a lock was taken")

    monkeypatch.setattr(os, "preadv", watched)
    monkeypatch.setattr(_core, "try_lock", refuse)
    looked(broker.segment.name)
    monkeypatch.undo()
    assert read
    assert all(offset + size <= slots for offset, size in read)
    assert broker.segment.name.path.read_bytes() == before


def test_json_is_a_line_for_each_interval(
    command: Command, make_broker: Callable[..., es.Broker]
) -> None:
    broker = make_broker("0").start()
    assert command("top", broker.name, "--json", "--count", "3", "--interval", "0.01") == 0
    lines = [json.loads(line) for line in command.stdout.splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert line["schema"] == "embar-shm.top/1"
        assert line["interval_seconds"] >= 0.01
        assert [ring["name"] for ring in line["rings"]] == [broker.name]
    assert command("top", broker.name, "--json", "--interval", "0.01") == 0
    assert len(command.stdout.splitlines()) == 1


def test_a_ring_that_vanishes_is_left_out(
    command: Command, make_broker: Callable[..., es.Broker]
) -> None:
    broker = make_broker("0")
    before = looked(broker.segment.name)
    broker.close()
    assert activity(before, looked(broker.segment.name)).rings == ()
    assert command("top", broker.name) == 1
    assert "there is no segment" in command.stderr


def test_without_rings_it_says_so(command: Command, name: RingName) -> None:
    name.path.write_bytes(b"precious" * 1000)
    assert command("top", str(name), "--interval", "0.01") == 0
    assert "There are no rings to look at" in command.stdout
    name.path.unlink()


def test_options_that_make_no_sense_are_refused(command: Command) -> None:
    for arguments in (["--once", "--count", "2"], ["--interval", "0"], ["--count", "0"]):
        assert command("top", *arguments) == 2


WITH_TERMINAL = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C there is a signal
from embar_shm.cli.main import main
main()
"""


class Terminal:
    """What a user sees, and types."""

    def __init__(self, *arguments: str) -> None:
        self.fd, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 160, 0, 0))
        self.settings = termios.tcgetattr(self._theirs)
        self.process = subprocess.Popen(
            [COMMAND[0], "-c", WITH_TERMINAL, *arguments],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env=clean_environment({"TERM": "xterm", "COLUMNS": "160", "LINES": "30"}),
            start_new_session=True,
        )
        self.output = ""
        os.set_blocking(self.fd, False)

    def read(self) -> str:
        with suppress(OSError):  # nothing to read, or nobody there any more
            self.output += os.read(self.fd, 65536).decode(errors="replace")
        return self.output

    def shows(self, text: str) -> None:
        try:
            wait_until(lambda: text in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.read()), text)
        except AssertionError as error:
            raise AssertionError(f"{error}; the terminal shows {self.output[-2000:]!r}") from None

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def ended(self) -> int:
        wait_until(lambda: self.read() and self.process.poll() is not None, "it ends")
        self.read()
        assert "\x1b[?1049l" in self.output, "the screen of before is back"
        assert termios.tcgetattr(self._theirs) == self.settings, "and so are the settings"
        return int(self.process.returncode)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)
        os.close(self._theirs)


@contextmanager
def watching(*arguments: str) -> Iterator[Terminal]:
    terminal = Terminal("top", *arguments)
    try:
        yield terminal
    finally:
        terminal.close()


ENDS: dict[str, tuple[Callable[[Terminal], None], int]] = {
    "q": (lambda terminal: terminal.type("xq"), 0),
    "Ctrl-C": (lambda terminal: terminal.type("\x03"), 130),
    "SIGTERM": (lambda terminal: terminal.process.terminate(), 143),
}


@pytest.mark.parametrize(("end", "code"), ENDS.values(), ids=ENDS)
def test_the_live_view_ends_cleanly(
    make_broker: Callable[..., es.Broker],
    connect: Callable[..., es.Publisher],
    end: Callable[[Terminal], None],
    code: int,
) -> None:
    broker = make_broker("0").start()
    pub = connect(broker, message_size=64)
    with watching(broker.name, "--interval", "0.05") as terminal:
        terminal.shows(broker.name)
        terminal.shows("publisher 0")
        publish(pub, 1)
        terminal.shows(", over ")  # drawn again, with rates
        end(terminal)
        assert terminal.ended() == code


def test_a_broker_that_is_killed_is_seen_in_the_live_view(
    name: RingName, run_child: Callable[..., Child]
) -> None:
    broker = broker_in(run_child, name)
    with watching(str(name), "--interval", "0.05") as terminal:
        terminal.shows("serving")
        broker.signal(signal.SIGKILL)
        terminal.shows("serving, dead")
        terminal.type("q")
        assert terminal.ended() == 0
    name.path.unlink()


def test_an_activity_says_over_what_time(make_broker: Callable[..., es.Broker]) -> None:
    name = make_broker("0").segment.name
    before, begin = looked(name), time.time()
    found = activity(before, looked(name))
    assert isinstance(found, Activity)
    assert found.time_unix >= begin
    assert found.interval_seconds is not None
    assert found.interval_seconds > 0
