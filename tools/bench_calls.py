"""Cost of one call: `publish` against an empty native call plus the bare copy, and `publish_many`.

    python tools/bench_calls.py [--rounds 9]

One publisher, one broker in a thread of the same process that sleeps most of the time (a batch is
2 MiB). The empty call is a native method that does nothing; the copy is what a publisher does with
the bytes, without Python, into the same ring.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable

from bench_common import interleave, machine, spread, table

import embar_shm as es
from embar_shm import _core

BATCH = 2 * 2**20


def per_call(function: Callable[[bytes], object], argument: bytes, calls: int) -> float:
    """ns of one iteration of a Python loop around the call."""
    begin = time.perf_counter_ns()
    for _ in itertools.repeat(None, calls):
        function(argument)
    return (time.perf_counter_ns() - begin) / calls


def one_at_a_time(broker: es.Broker, size: int, rounds: int) -> list[str]:
    message = os.urandom(size)
    calls = max(500_000, 2**30 // size // 2)
    with es.Publisher.connect(broker.address, message_size=size, wait="block") as publisher:
        empty = _core.EmptyCall().call
        geometry = broker.segment.geometry
        place = geometry.slots_offset + 7 * geometry.slot_stride + 4096
        batches = calls * size // BATCH

        def copy() -> float:  # into a slot that first-fit reuse leaves alone
            memory = broker.segment.memory
            took = _core.memory_copy(memory, [place], message, BATCH, batches, False)
            return took / (batches * (BATCH // size))

        found = interleave(
            rounds,
            {
                "publish": lambda: per_call(publisher.publish, message, calls),
                "empty": lambda: per_call(empty, message, calls),
                "copy": copy,
            },
        )
    ratios = [
        p / (e + c) for p, e, c in zip(found["publish"], found["empty"], found["copy"], strict=True)
    ]
    return [
        f"{size} B",
        spread(found["publish"]),
        spread(found["empty"]),
        spread(found["copy"]),
        spread(ratios, digits=2),
    ]


def many_at_a_time(broker: es.Broker, size: int, per_call_: int, rounds: int) -> list[str]:
    block = os.urandom(size) * per_call_
    total = 200_000_000
    calls = total // per_call_
    with es.Publisher.connect(broker.address, message_size=size, wait="block") as publisher:

        def rate() -> float:
            return per_call_ * 1e9 / per_call(publisher.publish_many, block, calls) / 1e6

        found = [rate() for _ in range(rounds)]
    return [
        f"{size} B",
        str(per_call_),
        spread(found, digits=0),
        f"{statistics.median(found) * size / 1e3:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    machine()
    with es.Broker.create(f"bench-{os.getpid()}/0", wait="block").start() as broker:
        print("ns per call, median (least to most):\n")
        table(
            ["message", "publish", "empty call", "copy", "publish / (empty + copy)"],
            [one_at_a_time(broker, size, rounds) for size in (1024, 64)],
        )
        print("publish_many, million messages/s, median (least to most):\n")
        table(
            ["message", "messages per call", "million messages/s", "GB/s"],
            [many_at_a_time(broker, 64, n, rounds) for n in (64, 1024, 32768)],
        )


if __name__ == "__main__":
    main()
