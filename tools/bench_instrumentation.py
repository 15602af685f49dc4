"""What stage times cost: the same work with `sample_every` 0, 1, 8, 64, 256, 1024, interleaved.

    python tools/bench_instrumentation.py [--rounds 9]

First single calls of `publish` in one process: small differences show, because each round is made
of many short turns. Then whole runs. Both compare what was used beyond the same without stage times
in the same round with what `embar_shm.bench.instrumentation` computes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from bench_common import interleave, machine, spread, table

import embar_shm as es
from embar_shm.bench.instrumentation import WORK, measured_costs

PERIODS = (0, 1, 8, 64, 256, 1024)
MESSAGES = (1024, 64)  # bytes
TURNS = 40  # of each period in a round
CALLS = 100_000  # in a turn: some milliseconds
REPORT = ["--workload", "report", "--no-ceiling"]
RUNS = {
    "one, 1 KiB": [*REPORT, "--total", "40GiB"],
    "one, 64 B": [*REPORT, "--message-size", "64", "--total", "4GiB"],
    "many, 1 KiB": [*REPORT, "--producer", "many", "--total", "60GiB"],
}


def per_call(publish: Callable[[bytes], object], message: bytes) -> float:
    """CPU ns of this thread for one iteration of a Python loop around the call."""
    begin = time.thread_time_ns()
    for _ in itertools.repeat(None, CALLS):
        publish(message)
    return (time.thread_time_ns() - begin) / CALLS


def calls(size: int, rounds: int, costs: dict[str, float]) -> list[list[str]]:
    """One publisher per period, one broker each, in this process."""
    message = os.urandom(size)
    with ExitStack() as stack:
        candidates: dict[int, Callable[[bytes], object]] = {}
        for every in PERIODS:
            name = f"bench-{os.getpid()}/{every}"
            broker = es.Broker.create(name, wait="block", stage_times=every > 0).start()
            stack.enter_context(broker)
            publisher = es.Publisher.connect(
                broker.address, message_size=size, wait="block", sample_every=every
            )
            candidates[every] = stack.enter_context(publisher).publish

        def one_round() -> dict[int, float]:
            turns = interleave(
                TURNS, {str(e): partial(per_call, p, message) for e, p in candidates.items()}
            )
            return {every: statistics.median(turns[str(every)]) for every in PERIODS}

        found = [one_round() for _ in range(rounds)]
    sample_ns = sum(costs[kind] * n for kind, n in WORK["publisher.buffer_write"].items())
    return [
        [
            f"{size} B",
            str(every),
            spread([times[every] for times in found], digits=2),
            spread([times[every] - times[0] for times in found], digits=2),
            f"{sample_ns / every if every else 0:.2f}",
            spread([100 * (1 - times[0] / times[every]) for times in found], " %"),
        ]
        for every in PERIODS
    ]


def run(options: list[str], every: int) -> dict[str, Any]:
    command = [sys.executable, "-c", "from embar_shm.cli.main import main; main()"]
    done = subprocess.run(
        [*command, "run", "--json", "--sample-every", str(every), *options],
        check=True,
        stdout=subprocess.PIPE,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def cpu_ns(result: dict[str, Any]) -> float:
    """CPU time of all processes, per message."""
    used = sum(usage["cpu_seconds"] for usage in result["system"].values())
    return float(used * 1e9 / result["throughput"]["messages"])


def runs(name: str, options: list[str], rounds: int) -> list[list[str]]:
    found = interleave(rounds, {str(every): partial(run, options, every) for every in PERIODS})
    rows = []
    for every, results in found.items():
        cpu = [cpu_ns(r) for r in results]
        beyond = [
            100 * (1 - cpu_ns(off) / with_) for with_, off in zip(cpu, found["0"], strict=True)
        ]
        computed = [100 * r["instrumentation"]["overhead_share"] for r in results]
        rows.append([
            name,
            every,
            spread(cpu, digits=2),
            spread(beyond, " %"),
            f"{statistics.median(computed):.2f} %",
        ])  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    machine()
    costs = measured_costs()
    print(f"reading the clock {costs['clock']:.1f} ns, recording {costs['record']:.1f} ns\n")
    table(
        ["message", "sample_every", "ns per publish", "beyond 0", "computed", "share beyond 0"],
        [row for size in MESSAGES for row in calls(size, rounds, costs)],
    )
    table(
        [
            "run",
            "sample_every",
            "CPU ns per message",
            "share beyond 0",
            "overhead_share",
        ],
        [row for name, options in RUNS.items() for row in runs(name, options, rounds)],
    )


if __name__ == "__main__":
    main()
