"""One round of each measurement of bench_recovery.py, over real processes.

Every function starts a broker and its participants as processes of their own, kills one of them,
and returns milliseconds. What publishers see they note themselves, at each acknowledgement; what
the ring does is read from its words every 0.2 ms. So what is measured includes the observer's own
delays, and the truth is never worse.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from embar_shm import _core
from embar_shm.address import RingName
from embar_shm.segment import Segment
from embar_shm.testing import Child

__all__ = ["dead_publisher", "dead_subscriber", "restarted_broker"]

OTHERS = 3  # publishers that go on
SLOT = 64 * 1024
BATCH = 4096  # bytes; one message
KEPT_OPEN = 5  # batches that the publisher which is killed has begun, and not committed
STEADY = 0.4  # seconds before a kill, and after it
LOOK_EVERY = 0.0002
LONGEST = 20.0  # seconds until a measurement has failed

# Publishes a batch, waits until it is acknowledged, notes when, and so on. Answers "FROM TO KILL"
# with the longest time between two acknowledgements that touches FROM to TO, and the time from KILL
# to the first one after it.
STEADY_PUBLISHER = """
import sys, threading, time
import embar_shm as es

pub = es.Publisher.connect(sys.argv[1], message_size=int(sys.argv[2]), batch_size=int(sys.argv[2]),
                           linger_ms=0, timeout=60, restart_timeout=60, connect_timeout=10)
message, acked, asked = bytes(int(sys.argv[2])), [time.monotonic()], threading.Event()

def publish():
    while not asked.is_set():
        pub.publish(message)
        pub.wait_acked()
        acked.append(time.monotonic())

worker = threading.Thread(target=publish)
worker.start()
print("publishing")
for question in sys.stdin:
    begin, end, kill = map(float, question.split())
    seen = acked[:]
    gaps = [b - a for a, b in zip(seen, seen[1:]) if b >= begin and a <= end]
    print(max(gaps), min(t for t in seen if t > kill) - kill)
asked.set()
worker.join()
"""

# Is about to be killed: some batches that it has begun, and one publisher at full speed.
BUSY_PUBLISHER = """
import sys
import embar_shm as es

address, size, slot, kept = sys.argv[1], *map(int, sys.argv[2:])
begun = [es.Publisher.connect(address, message_size=size, batch_size=slot, linger_ms=0, timeout=60)
         for _ in range(kept)]
busy = es.Publisher.connect(address, message_size=size, batch_size=size, linger_ms=0, timeout=60)
for pub in begun:
    pub.publish(bytes(size))
print("publishing")
while True:
    busy.publish(bytes(size))
"""

HOLDING_SUBSCRIBER = """
import sys
import embar_shm as es

sub = es.Subscriber.connect(sys.argv[1], timeout=60)
print("connected")
batch = sub.next()
print("holds")
sys.stdin.read()
"""

ONE_BATCH = """
import sys
import embar_shm as es

pub = es.Publisher.connect(sys.argv[1], message_size=int(sys.argv[2]), linger_ms=0)
pub.publish(bytes(int(sys.argv[2])))
pub.flush()
pub.wait_acked()
print("published")
sys.stdin.read()
"""

READING_SUBSCRIBER = """
import sys
import embar_shm as es

sub = es.Subscriber.connect(sys.argv[1], timeout=60)
print("connected")
for batch in sub:
    pass
"""


class BrokerProcess:
    """`embar-shm broker NAME --json`."""

    def __init__(self, name: str, *flags: str) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [str(Path(sys.executable).with_name("embar-shm")), "broker", name, "--json", *flags],
            stdout=subprocess.PIPE,
        )

    def line(self) -> dict[str, Any]:
        """The next object that it prints."""
        assert self.process.stdout
        text = self.process.stdout.readline()
        if not text:
            raise SystemExit("the broker ended")
        found: dict[str, Any] = json.loads(text)
        return found

    def kill(self) -> float:
        """=> when. Returns when it is gone."""
        now = time.monotonic()
        self.process.kill()
        self.process.wait()
        return now

    def end(self) -> None:
        """In order."""
        self.process.terminate()
        if self.process.wait(LONGEST) != 0:
            raise SystemExit("the broker failed at its end")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


_numbers = itertools.count()


def _fresh_name() -> str:
    return f"bench-recovery-{os.getpid()}/{next(_numbers)}"


@contextmanager
def _attached(name: str) -> Iterator[_core.Monitor]:
    segment = Segment.attach(RingName.parse(name))
    try:
        yield segment.monitor()
    finally:
        segment.close()


def _until(condition: Callable[[], bool], what: str) -> float:
    """=> when it held."""
    give_up = time.monotonic() + LONGEST
    while not condition():
        if time.monotonic() > give_up:
            raise SystemExit(f"{what}: not within {LONGEST:g} s")
        time.sleep(LOOK_EVERY)
    return time.monotonic()


def _steady(stack: ExitStack, name: str, count: int, batch: int = BATCH) -> list[Child]:
    found = [
        stack.enter_context(Child(STEADY_PUBLISHER, f"shm://{name}", batch)) for _ in range(count)
    ]
    for child in found:
        child.expect("publishing")
    return found


def _ask(children: Sequence[Child], begin: float, end: float, kill: float) -> dict[str, float]:
    """The longest gap of any of them, and the longest time to the first acknowledgement, in ms."""
    gaps, firsts = [], []
    for child in children:
        child.tell(f"{begin!r} {end!r} {kill!r}")
        gap, first = map(float, child.read().split())
        gaps.append(gap)
        firsts.append(first)
    return {"gap": 1e3 * max(gaps), "first": 1e3 * max(firsts)}


def _check(monitor: _core.Monitor) -> None:
    """Nothing was refused, repeated or slept through."""
    control = monitor.control()
    wrong = {
        word: control[word]
        for word in ("duplicated", "out_of_order", "corrupt", "missed_wakeups")
        if control[word]
    }
    if wrong:
        raise SystemExit(f"the ring is not as it should be: {wrong}")


def dead_publisher(slots: int) -> dict[str, float]:
    """A publisher with half-filled slots is killed, while others publish."""
    name = _fresh_name()
    with ExitStack() as stack:
        broker = stack.enter_context(
            BrokerProcess(name, "--slots", str(slots), "--slot-size", str(SLOT))
        )
        broker.line()
        monitor = stack.enter_context(_attached(name))
        victim = stack.enter_context(Child(BUSY_PUBLISHER, f"shm://{name}", BATCH, SLOT, KEPT_OPEN))
        victim.expect("publishing")
        others = _steady(stack, name, OTHERS)
        rows = {
            row
            for row in range(monitor.max_publishers)
            if monitor.publisher(row)["pid"] == victim.pid
        }
        begin = time.monotonic()
        time.sleep(STEADY)
        held = {row for _, row, _, _ in monitor.slots() if row in rows}
        if len(rows) != KEPT_OPEN + 1 or len(held) < KEPT_OPEN:
            raise SystemExit("the publisher to be killed does not hold what it should")
        killed = time.monotonic()
        victim.signal(signal.SIGKILL)
        back = _until(
            lambda: not any(row in rows for _, row, _, _ in monitor.slots()), "slots come back"
        )
        time.sleep(STEADY)
        found = {
            "back": 1e3 * (back - killed),
            "gap": _ask(others, killed, killed + STEADY, killed)["gap"],
            "gap_before": _ask(others, begin, killed, killed)["gap"],
        }
        _check(monitor)
        for child in others:
            child.close()
        broker.end()
        return found


def dead_subscriber(what: str) -> dict[str, float]:
    """A reliable subscriber is killed: "held" while it keeps a batch for which all have to wait,
    "idle" while it keeps the only one and nobody waits, "read" while it reads as fast as it can."""
    name = _fresh_name()
    with ExitStack() as stack:
        broker = stack.enter_context(BrokerProcess(name, "--slots", "8", "--slot-size", str(SLOT)))
        broker.line()
        monitor = stack.enter_context(_attached(name))
        program = READING_SUBSCRIBER if what == "read" else HOLDING_SUBSCRIBER
        victim = stack.enter_context(Child(program, f"shm://{name}"))
        victim.expect("connected")
        if what == "idle":
            once = stack.enter_context(Child(ONE_BATCH, f"shm://{name}", BATCH))
            once.expect("published")
        others = [] if what == "idle" else _steady(stack, name, OTHERS)
        begin = time.monotonic()
        if what != "read":
            victim.expect("holds")
        time.sleep(
            3 * STEADY
        )  # until all others wait, or the broker looks as seldom as it ever does
        cursor = monitor.subscriber(0)["cursor"]
        held = monitor.control()["released"] <= cursor
        killed = time.monotonic()
        victim.signal(signal.SIGKILL)
        found = {}
        if what != "read":
            if not held:
                raise SystemExit("the subscriber to be killed does not hold what it should")
            back = _until(lambda: monitor.control()["released"] > cursor, "the gate opens")
            found["back"] = 1e3 * (back - killed)
        time.sleep(STEADY)
        if what == "held":
            found["first"] = _ask(others, killed, killed, killed)["first"]
        if what == "read":
            found["gap"] = _ask(others, killed, killed + STEADY, killed)["gap"]
            found["gap_before"] = _ask(others, begin, killed, killed)["gap"]
        _check(monitor)
        for child in others:
            child.close()
        broker.end()
        return found


def restarted_broker(slots: int) -> dict[str, float]:
    """A broker is killed under publishers, and started anew at once, as `embar-shm broker`."""
    name = _fresh_name()
    flags = ("--slots", str(slots))
    with ExitStack() as stack:
        first = stack.enter_context(BrokerProcess(name, *flags))
        first.line()
        others = _steady(stack, name, OTHERS)
        time.sleep(STEADY)
        killed = first.kill()
        second = stack.enter_context(BrokerProcess(name, *flags))
        recovered, accepted = second.line()["recovered"], second.line()["first_accept"]
        time.sleep(STEADY)
        seen = _ask(others, killed, killed + STEADY, second.started)
        with _attached(name) as monitor:
            _check(monitor)
        for child in others:
            child.close()
        second.end()
        return {
            "recover": 1e3 * recovered["seconds"],
            "accept": 1e3 * accepted["seconds"],
            "accept_since_exec": 1e3 * accepted["since_process_start"],
            "seen_since_exec": seen["first"],
            "gap": seen["gap"],
        }
