#!/usr/bin/env python3
"""How long it takes until others go on, when a participant is killed with SIGKILL.

    tools/bench_recovery.py [--rounds 20] [--json]

- a publisher that holds begun batches: until its slots are free, and whether others notice;
- a reliable subscriber: until nothing waits for it any more;
- a broker, under publishers, started anew at once with `embar-shm broker`: until the first accept.

All participants are processes; tools/recovery_rounds.py tells what is measured, and from where.
They publish as fast as they can, so they also wait for a CPU: `before the kill` is the longest gap
without any death. On a machine that others use, `nice -n -15 tools/bench_recovery.py` helps. Not
`chrt -f`: of real-time tasks that use all CPUs, the kernel takes 50 ms of each second away.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bench_common import interleave, machine_line, table
from recovery_rounds import dead_publisher, dead_subscriber, restarted_broker

from embar_shm.bench import environment

Round = dict[str, float]

MEASUREMENTS: dict[str, Callable[[], Round]] = {
    "publisher, slots are scarce": partial(dead_publisher, 8),
    "publisher, slots are plenty": partial(dead_publisher, 32),
    "subscriber that all wait for": partial(dead_subscriber, "held"),
    "subscriber that nobody waits for": partial(dead_subscriber, "idle"),
    "subscriber that reads along": partial(dead_subscriber, "read"),
    "broker, 8 slots of 2 MiB": partial(restarted_broker, 8),
    "broker, 64 slots of 2 MiB": partial(restarted_broker, 64),
}


@dataclass(frozen=True)
class Figure:
    """A row of the table."""

    measurement: str
    key: str
    what: str
    goal: float | None = None  # ms


FIGURES = [
    figure
    for name in ("publisher, slots are scarce", "publisher, slots are plenty")
    for figure in (
        Figure(name, "back", "all its slots are free", 100),
        Figure(name, "gap", "longest gap of another publisher", 50),
        Figure(name, "gap_before", "the same before the kill"),
    )
]
FIGURES += [
    Figure("subscriber that all wait for", "back", "first release beyond its cursor", 100),
    Figure("subscriber that all wait for", "first", "every publisher has gone on", 100),
    Figure("subscriber that nobody waits for", "back", "first release beyond its cursor", 100),
    Figure("subscriber that reads along", "gap", "longest gap of a publisher", 50),
    Figure("subscriber that reads along", "gap_before", "the same before the kill"),
]
FIGURES += [
    figure
    for name in ("broker, 8 slots of 2 MiB", "broker, 64 slots of 2 MiB")
    for figure in (
        Figure(name, "recover", "open_or_recover"),
        Figure(name, "accept", "from its begin to the first accept", 200),
        Figure(name, "accept_since_exec", "from exec to the first accept, to 10 ms", 200),
        Figure(name, "seen_since_exec", "from exec to the last publisher's first ack", 200),
        Figure(name, "gap", "longest gap of a publisher, from the kill"),
    )
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help="measure only what has this word in its name")
    parser.add_argument("--json", action="store_true", help="all values of all rounds, in ms")
    arguments = parser.parse_args()
    before = environment.describe()
    chosen = {name: take for name, take in MEASUREMENTS.items() if arguments.only in name}
    found = interleave(arguments.rounds, chosen)
    if arguments.json:
        result = {"schema": "embar-shm.bench-recovery/1", "machine": before, "rounds": found}
        json.dump(result, sys.stdout, indent=1)
        print()
        return
    print(machine_line(before) + "\n")
    report(found)


def report(found: dict[str, list[Round]]) -> None:
    rows = []
    for figure in FIGURES:
        if rounds := found.get(figure.measurement):
            values = [r[figure.key] for r in rounds]
            late = sum(v > figure.goal for v in values) if figure.goal else 0
            rows.append([
                figure.measurement,
                figure.what,
                f"{statistics.median(values):.1f}",
                f"{max(values):.1f}",
                "" if figure.goal is None else f"at most {figure.goal:g}",
                "" if figure.goal is None else f"{len(values) - late} of {len(values)}",
            ])  # fmt: skip
    table(["killed", "until", "ms, median", "ms, worst", "goal", "reached"], rows)


if __name__ == "__main__":
    main()
