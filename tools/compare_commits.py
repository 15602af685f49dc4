#!/usr/bin/env python3
"""What a change costs: `embar-shm run` of two installed versions in turn, and the ratios.

    tools/compare_commits.py OLD NEW [--rounds 15] [--total 20GiB] [--only WORD]

OLD and NEW are `embar-shm` executables, each of a virtual environment with one version. They run in
turn, and take turns in being the first of a pair, so that a machine which gets faster or slower
does that to both. A ratio is of the two runs of one pair, NEW / OLD. Printed are the median of the
ratios and the interval in which the true median lies with 95 % confidence, by their ranks and
without any assumption about them. CPU time per batch varies less than throughput where others use
the machine, too.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
from collections.abc import Sequence
from typing import Any

from bench_common import machine, spread, table
from bench_runs import rate

from embar_shm.bench.usage import by_role

WORK: dict[str, Sequence[str]] = {
    "12 publishers, 4 brokers, many": ["--producer", "many"],
    "12 publishers, 4 brokers, one": ["--producer", "one"],
    "one to one": ["--workload", "one-to-one"],
    "one to one, subscribed": ["--scenario", "end-to-end", "--workload", "one-to-one"],
}
CONFIDENCE = 0.95


def run(executable: str, options: Sequence[str], total: str) -> dict[str, Any]:
    command = [executable, "run", "--transport", "shm", "--json", "--no-ceiling", "--total", total]
    done = subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def cpu_per_batch(result: dict[str, Any]) -> float:
    """us, of all processes of the run."""
    used = sum(usage["cpu_seconds"] for usage in by_role(result["system"]).values())
    return used / float(result["throughput"]["batches"]) * 1e6


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """In which the median of the distribution lies: the k-th least to the k-th most.

    None: there are too few of them to tell.
    """
    n, below = len(values), 0.0
    for k in range(n // 2):
        below += math.comb(n, k) / 2**n  # the probability that at most k of n are below the median
        if below > (1 - CONFIDENCE) / 2:
            return (sorted(values)[k - 1], sorted(values)[n - k]) if k else None
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", help="an embar-shm executable")
    parser.add_argument("new", help="another")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--total", default="20GiB")
    parser.add_argument("--only", default="", help="measure only what has this word in its name")
    arguments = parser.parse_args()
    machine()
    sides = (arguments.old, arguments.new)
    rows = []
    for name, options in WORK.items():
        if arguments.only not in name:
            continue
        found: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
        for n in range(arguments.rounds):
            for side in (0, 1) if n % 2 == 0 else (1, 0):
                found[side].append(run(sides[side], options, arguments.total))
        for what, measure in (("GB/s", rate), ("CPU us per batch", cpu_per_batch)):
            old, new = ([measure(result) for result in results] for results in found)
            ratios = [b / a for a, b in zip(old, new, strict=True)]
            ends = interval(ratios)
            rows.append([
                name,
                what,
                spread(old),
                spread(new),
                f"{statistics.median(ratios):.3f}",
                f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "too few rounds",
            ])  # fmt: skip
    table(["run", "figure", "old", "new", "ratio, median", "95 % of it"], rows)


if __name__ == "__main__":
    main()
