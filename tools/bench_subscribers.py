"""How fast subscribers are, as ratios to what the machine can do, measured in the same run.

    python tools/bench_subscribers.py [--rounds 5] [--total 20GiB] [--only WORD]

- end to end with one reliable subscriber per broker that reads every byte, of copy-and-read;
- round trips of 64 bytes between two processes, of a bare ping-pong: spinning, and blocking;
- 1 KiB messages published one at a time and read one at a time;
- what 16 subscribers that do not touch the data cost the publisher, against one.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from bench_common import interleave, machine, spread, table
from bench_runs import REPORT, run

import embar_shm as es
from embar_shm import _core

SPIN_TRIPS, BLOCK_TRIPS = 50_000, 20_000
WARM_UP = 2_000  # round trips before the clock starts
SMALL = 64  # bytes of a message of a round trip
MESSAGE, MESSAGES = 1024, 4_000_000
# Without an end: who spins has a CPU of his own here.
WAITS: dict[str, dict[str, Any]] = {
    "spin": {"wait": "spin", "spin_us": 1_000_000},
    "block": {"wait": "block", "spin_us": 0},
}


class Child:
    """A forked process that says one line, the result of `work`, when it is told to go on."""

    def __init__(self, work: Callable[[Callable[[str], None], Callable[[], str]], None]) -> None:
        ours, theirs = os.pipe(), os.pipe()  # to it, from it
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(ours[1])
                os.close(theirs[0])
                hear, say = os.fdopen(ours[0]), os.fdopen(theirs[1], "w", buffering=1)
                work(lambda line: print(line, file=say), lambda: hear.readline().strip())
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(ours[0])
        os.close(theirs[1])
        self._to, self._from = os.fdopen(ours[1], "w", buffering=1), os.fdopen(theirs[0])

    def hear(self) -> str:
        line = self._from.readline().strip()
        if not line:
            raise SystemExit("a process of the benchmark failed")
        return line

    def say(self, line: str) -> None:
        print(line, file=self._to)

    def wait(self) -> None:
        """Returns when it has ended well."""
        self._to.close()
        self._from.close()
        if os.waitpid(self.pid, 0)[1]:
            raise SystemExit("a process of the benchmark failed")


# --- round trips ----------------------------------------------------------------------------------


def ping_pong(blocks: bool, trips: int) -> float:
    """us of a round trip over two bare words."""
    memory = mmap.mmap(-1, mmap.PAGESIZE)

    def answer(say: Callable[[str], None], _hear: Callable[[], str]) -> None:
        _core.ping_pong(memory, False, blocks, 1, WARM_UP + trips)
        say("done")

    child = Child(answer)
    _core.ping_pong(memory, True, blocks, 1, WARM_UP)
    ns = _core.ping_pong(memory, True, blocks, WARM_UP + 1, trips)
    child.hear()
    child.wait()
    return ns / trips / 1e3


def round_trip(wait: Literal["spin", "block"], trips: int) -> float:
    """us of a round trip between two processes, each with a broker that the other publishes to."""
    cluster = f"bench-{os.getpid()}"

    def player(name: str, other: str, serves: bool, meet: Callable[[str], None]) -> float:
        with es.Broker.create(
            f"{cluster}/{name}", slots=4, slot_size=4096, max_publishers=2, **WAITS[wait]
        ) as broker:
            meet("listening")
            with (
                broker.subscribe(timeout=30) as subscriber,
                es.Publisher.connect(
                    f"shm://{cluster}/{other}",
                    message_size=SMALL,
                    batch_size=SMALL,  # full with one message: it is committed at once
                    ack=0,
                    linger_ms=0,
                    sample_every=0,
                    connect_timeout=30,
                    **WAITS[wait],
                ) as publisher,
            ):
                publish, next_batch = publisher.publish, subscriber.next
                message, begin = bytes(SMALL), 0
                meet("connected")
                for n in range(WARM_UP + trips):
                    if n == WARM_UP:
                        begin = time.monotonic_ns()
                    if serves:
                        publish(message)
                    with next_batch():
                        pass
                    if not serves:
                        publish(message)
                took = time.monotonic_ns() - begin
                meet("done")  # until then the other may still read what was published last
                return took / trips / 1e3

    def answer(say: Callable[[str], None], hear: Callable[[], str]) -> None:
        def meet(word: str) -> None:
            say(word)
            hear()

        player("b", "a", False, meet)

    child = Child(answer)

    def meet(word: str) -> None:
        if child.hear() != word:
            raise SystemExit("the two sides of a round trip disagree")
        child.say(word)

    us = player("a", "b", True, meet)
    child.wait()
    return us


# --- one message at a time ------------------------------------------------------------------------


def take(subscriber: es.Subscriber) -> None:
    """All of them, one by one. A batch ends with its last message: no release()."""
    left = MESSAGES
    for batch in subscriber:
        for _message in batch.messages():
            left -= 1
        if not left:
            return


def one_at_a_time(batch_size: str) -> float:
    """Million messages/s, published and read one by one; the subscriber owns the ring."""
    name = f"bench-{os.getpid()}/0"

    def read(say: Callable[[str], None], _hear: Callable[[], str]) -> None:
        with (
            es.Broker.create(name, slots=8, slot_size=batch_size, max_publishers=2) as broker,
            broker.subscribe(timeout=30) as subscriber,
        ):
            say("listening")
            take(subscriber)
            say(str(time.monotonic_ns()))

    child = Child(read)
    child.hear()
    with es.Publisher.connect(f"shm://{name}", message_size=MESSAGE, connect_timeout=30) as out:
        publish, message = out.publish, os.urandom(MESSAGE)
        begin = time.monotonic_ns()
        for _ in range(MESSAGES):
            publish(message)
        out.flush()
        ended = int(child.hear())
    child.wait()
    return MESSAGES / (ended - begin) * 1e3


# --- whole runs -----------------------------------------------------------------------------------

END_TO_END = ["--scenario", "end-to-end"]
ONE_TO_ONE = ["--workload", "one-to-one"]
RUNS: Mapping[str, Sequence[str]] = {
    "end to end, report, many": [*END_TO_END, *REPORT, "--producer", "many"],
    "end to end, report, one": [*END_TO_END, *REPORT],
    "end to end, one to one": [*END_TO_END, *ONE_TO_ONE],
}
# The more batches a publisher may have in flight, the more of them a wake-up is for: 8 slots.
IDLE_WAYS: Mapping[str, Sequence[str]] = {
    "3 in flight": [],
    "7 in flight": ["--in-flight", "7"],
    "7 in flight, a message per call": ["--in-flight", "7", "--producer", "one"],
}
FEW, MANY = 1, 16


def idle(way: str, readers: int) -> list[str]:
    """A run whose subscribers do not touch the data."""
    return [
        *(*END_TO_END, *ONE_TO_ONE, "--consume", "nothing", "--no-ceiling"),
        *("--subscribers-per-broker", str(readers), *IDLE_WAYS[way]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--total", default="20GiB")
    parser.add_argument("--only", default="", help="measure only what has this word in its name")
    arguments = parser.parse_args()
    machine()
    candidates: dict[str, Callable[[], Any]] = {
        name: partial(run, [*options], arguments.total) for name, options in RUNS.items()
    }
    candidates |= {
        "round trip, spin: bare": partial(ping_pong, False, SPIN_TRIPS),
        "round trip, spin": partial(round_trip, "spin", SPIN_TRIPS),
        "round trip, block: bare": partial(ping_pong, True, BLOCK_TRIPS),
        "round trip, block": partial(round_trip, "block", BLOCK_TRIPS),
        "one at a time, 2 MiB": partial(one_at_a_time, "2MiB"),
        "one at a time, 256 KiB": partial(one_at_a_time, "256KiB"),
    }
    candidates |= {
        f"idle subscribers, {way}, {readers}": partial(run, idle(way, readers), arguments.total)
        for way in IDLE_WAYS
        for readers in (FEW, MANY)
    }
    chosen = {name: measure for name, measure in candidates.items() if arguments.only in name}
    found: dict[str, list[Any]] = interleave(arguments.rounds, chosen)
    report(found)


def report(found: Mapping[str, list[Any]]) -> None:
    rows = []
    for name in RUNS:
        if results := found.get(name):
            rates = [r["end_to_end"]["bytes_per_second"] / 1e9 for r in results]
            ceilings = [r["ceilings"]["copy_and_read"]["bytes_per_second"] / 1e9 for r in results]
            shares = [r["end_to_end"]["share_of_ceiling"] for r in results]
            rows.append([name, f"{spread(rates)} GB/s", f"{spread(ceilings)} GB/s",
                         spread(shares, digits=2), "at least 0.85"])  # fmt: skip
    for wait, goal in (("spin", 3), ("block", 1.5)):
        ours, bare = found.get(f"round trip, {wait}"), found.get(f"round trip, {wait}: bare")
        if ours and bare:
            ratios = [a / b for a, b in zip(ours, bare, strict=True)]
            rows.append([f"round trip of {SMALL} B, {wait}", f"{spread(ours, digits=2)} us",
                         f"{spread(bare, digits=2)} us", spread(ratios, digits=2),
                         f"at most {goal}"])  # fmt: skip
    rows += [
        [f"{name}, {MESSAGE} B", f"{spread(rates, digits=2)} million/s", "", "", "at least 5"]
        for name, rates in found.items()
        if name.startswith("one at a time")
    ]
    for way in IDLE_WAYS:
        few, many = (found.get(f"idle subscribers, {way}, {readers}") for readers in (FEW, MANY))
        if not few or not many:
            continue
        rate = [[r["throughput"]["bytes_per_second"] / 1e9 for r in results]
                for results in (few, many)]  # fmt: skip
        costs = [1 - b / a for a, b in zip(*rate, strict=True)]
        rows.append([f"{MANY} idle subscribers against {FEW}, {way}", f"{spread(rate[1])} GB/s",
                     f"{spread(rate[0])} GB/s", f"costs {statistics.median(costs):.0%}",
                     "at most 25 %"])  # fmt: skip
    table(["what", "reached", "yardstick", "ratio", "goal"], rows)


if __name__ == "__main__":
    main()
