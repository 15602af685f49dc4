"""Whole runs of `embar-shm run`, interleaved: shares of the ceiling, slots, one to one, start-up.

    python tools/bench_runs.py [--rounds 5] [--total 40GiB]

Each line is a configuration; the share of the memory-copy ceiling is measured inside each run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from bench_common import interleave, machine, spread, table

from embar_shm.bench.usage import by_role

REPORT = ["--workload", "report"]
CONFIGURATIONS = {
    "report, one at a time": REPORT,
    "report, many": [*REPORT, "--producer", "many"],
    "report, many, 64 slots": [*REPORT, "--producer", "many", "--slots", "64"],
    "report, one, 64 slots": [*REPORT, "--slots", "64"],
    "report, many, normal scheduling": [
        *REPORT, "--producer", "many", "--broker-scheduling", "normal",
    ],
    "one to one, a batch per call": ["--workload", "one-to-one"],
}  # fmt: skip


def run(options: list[str], total: str) -> dict[str, Any]:
    command = [sys.executable, "-c", "from embar_shm.cli.main import main; main()"]
    done = subprocess.run(
        [*command, "run", "--json", "--total", total, *options],
        check=True,
        stdout=subprocess.PIPE,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def rate(result: dict[str, Any]) -> float:
    return float(result["throughput"]["bytes_per_second"]) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--total", default="40GiB")
    arguments = parser.parse_args()
    machine()
    candidates: dict[str, Callable[[], dict[str, Any]]] = {
        name: partial(run, options, arguments.total) for name, options in CONFIGURATIONS.items()
    }
    found = interleave(arguments.rounds, candidates)
    rows = []
    for name, results in found.items():
        cpu = [
            sum(u["cpu_seconds"] for u in by_role(r["system"]).values())
            / r["throughput"]["batches"]
            * 1e6
            for r in results
        ]
        copies = [r["ceilings"]["memory_copy"] for r in results]
        rows.append([
            name,
            spread([rate(r) for r in results]),
            spread([c["bytes_per_second"] / 1e9 for c in copies], digits=0),
            spread([c["share"] for c in copies], digits=2),
            spread(cpu),
            spread([r["startup_seconds"] for r in results], digits=2),
            f"{results[0]['memory']['segment_bytes'] / 2**20:.0f}",
        ])  # fmt: skip
    table(
        ["run", "GB/s", "memory copy GB/s", "share", "CPU us per batch", "start-up s", "rings MiB"],
        rows,
    )
    for producer in ("one", "many"):
        few = found["report, one at a time" if producer == "one" else "report, many"]
        many = found[f"report, {producer}, 64 slots"]
        ratios = [rate(b) / rate(a) for a, b in zip(few, many, strict=True)]
        print(f"64 slots against 8, producer {producer}: {spread(ratios, digits=2)}")
    plain = [rate(r) for r in found["report, many, normal scheduling"]]
    batch = [rate(r) for r in found["report, many"]]
    ratios = [b / a for a, b in zip(plain, batch, strict=True)]
    print(f"broker_scheduling batch against normal: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
