"""What a chaos run found, as a value, and printed."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import statistics
import sys
import time
from typing import Any

from chaotic.conductor import BOUND, Conductor
from chaotic.oracle import CHECKS
from chaotic.plan import FAULTS

__all__ = ["evidence", "result", "show"]

_LAST = 60  # lines of history
_DUMP = 1.0  # seconds that stuck processes get to write their stacks


def result(conductor: Conductor, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Everything that is told about a run."""
    oracle = conductor.oracle
    return {
        "schema": "embar-shm/chaos/1",
        "seed": options.seed,
        "command": _command(options),
        "seconds": round(seconds, 3),
        "faults": sum(conductor.injected.values()),
        "faults_by_kind": {kind: conductor.injected[kind] for kind in FAULTS},
        "spared": dict(conductor.spared),
        "checked": {name: oracle.checked[name] for name in CHECKS},
        "processes": conductor.company.crew.started,
        "typed_errors": dict(conductor.company.typed),
        "broker_restart_seconds": _spread(conductor.company.restarts),
        "calm_seconds": _spread([seconds for seconds, _ in conductor.calms]),
        "longest_calm": max(conductor.calms, default=None),
        "batches": oracle.batches,
        "messages": oracle.messages,
        "deliveries": oracle.deliveries,
        "violations": oracle.violations,
    }


def _command(options: argparse.Namespace) -> str:
    """What injects the same faults again."""
    parts = [f"tools/chaos --seconds {options.seconds:g} --seed {options.seed}"]
    parts += [f"--rate {options.rate:g} --rest {options.rest:g}"]
    parts += [f"--spare {shlex.quote(kind)}" for kind in options.spare]
    parts += ["--no-tcp"] * options.no_tcp + ["--shared"] * options.shared
    return " ".join(parts)


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {
        "count": len(values),
        "median": round(statistics.median(values), 4),
        "max": round(max(values), 4),
    }


def evidence(conductor: Conductor) -> dict[str, Any]:
    """What is known when a promise was broken: who was where, and what had happened before."""
    for life in conductor.company.crew.lives.values():
        life.signal(signal.SIGUSR2)  # all of them: who waits for whom is often the question
    time.sleep(_DUMP)
    return {
        "processes": list(conductor.describe()),
        "stacks": {role: life.said() for role, life in conductor.company.crew.lives.items()},
        "history": conductor.history[-_LAST:],
    }


def show(found: dict[str, Any], *, as_json: bool) -> None:
    """On stdout."""
    if as_json:
        json.dump(found, sys.stdout, indent=2)
        print()
        return
    print(f"seed {found['seed']}, {found['seconds']:.1f} s, {found['processes']} processes")
    print(f"\nfaults injected: {found['faults']}")
    for kind, number in found["faults_by_kind"].items():
        print(f"  {number:7}  {kind}")
    for why, number in sorted(found["spared"].items()):
        print(f"  {number:7}  not done: {why}")
    print("\nchecked")
    for name, what in CHECKS.items():
        print(f"  {found['checked'][name]:7}  {what}")
    for name, number in sorted(found["typed_errors"].items()):
        print(f"  {number:7}  processes ended by {name}, which was due")
    print()
    rate = found["batches"] / found["seconds"]
    print(
        f"throughput: {found['batches']} batches ({rate:.0f}/s), {found['messages']} messages, "
        f"{found['deliveries']} deliveries"
    )
    if restarts := found["broker_restart_seconds"]:
        print(
            f"brokers that took over a ring: {restarts['count']}, serving after "
            f"{restarts['median'] * 1e3:.0f} ms (median), {restarts['max'] * 1e3:.0f} ms (longest)"
        )
    if calms := found["calm_seconds"]:
        print(
            f"calms: {calms['count']}; all had got on after {calms['median']:.2f} s (median), "
            f"{calms['max']:.2f} s (longest, bound {BOUND:g} s; then: {found['longest_calm'][1]})"
        )
    if not found["violations"]:
        print("\nno violation: 0 lost, 0 duplicated, 0 reordered, 0 damaged, 0 hung")
        return
    print("\nVIOLATION")
    for text in found["violations"]:
        print(f"  {text}")
    told = found["evidence"]
    print("\nprocesses")
    for line in told["processes"]:
        print(f"  {line}")
    print("\nthe last faults")
    for line in told["history"]:
        print(f"  {line}")
    for role, text in told["stacks"].items():
        if text:
            print(f"\nstderr of {role}\n{text}")
    print(f"\nthe same faults again: {found['command']}")
