"""The same workloads over all peers, interleaved: peer after peer, round after round.

    python tools/peers/run.py [--rounds 5] [--only NAME ...] [--output result.json]
    python tools/peers/run.py --render result.json

README.md here tells what is measured, and how.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

# As `python tools/peers/run.py` this folder would come first: `peers` and `bench_common` are found
# from its parent, and nothing in here hides what is installed.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench_common import interleave  # noqa: E402

from embar_shm.bench import environment  # noqa: E402
from peers.catalogue import PEERS, describe  # noqa: E402
from peers.harness import MeasurementFailed, Sizing, measure  # noqa: E402
from peers.peer import Peer  # noqa: E402
from peers.report import render  # noqa: E402
from peers.workloads import BATCH, WORKLOADS, Workload, workloads  # noqa: E402

SCHEMA = 1
_FAILURES = 2  # of a peer in a workload, then it is left alone: each may take --limit


def main() -> int:
    arguments = _arguments()
    if arguments.render:
        print(render(json.loads(arguments.render.read_text())), end="")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: nothing stays behind
    result = _run(arguments)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(render(result), end="")
    return 1 if _failed(result) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=_positive, default=5)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(PEERS), default=[],
                        help="peers: " + ", ".join(PEERS))  # fmt: skip
    parser.add_argument("--workload", nargs="+", metavar="NAME", choices=WORKLOADS, default=[],
                        help="workloads: " + ", ".join(WORKLOADS))  # fmt: skip
    parser.add_argument("--seconds", type=float, default=0.5, help="of a measurement, about")
    parser.add_argument("--count", type=_positive,
                        help="messages of each producer, instead of --seconds")  # fmt: skip
    parser.add_argument("--batch-size", type=_positive, default=BATCH,
                        help="bytes of a large batch, a multiple of 8")  # fmt: skip
    parser.add_argument("--limit", type=float, default=60.0,
                        help="seconds after which a measurement has failed")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the JSON")
    parser.add_argument("--render", type=Path, metavar="FILE",
                        help="print the tables of an earlier run; measure nothing")  # fmt: skip
    arguments = parser.parse_args()
    if arguments.batch_size % 8:
        parser.error(f"--batch-size {arguments.batch_size} is not a multiple of 8")
    return arguments


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    chosen = {name: PEERS[name] for name in arguments.only or PEERS}
    sizing = Sizing(arguments.seconds, arguments.count, arguments.limit)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": environment.describe(),
        "rounds": arguments.rounds,
        "sizing": asdict(sizing),
        "peers": {name: describe(kind) for name, kind in chosen.items()},
        "workloads": {},
    }
    for name, peer in result["peers"].items():
        _say(f"{name} {peer['version'] or ''}: {peer['unavailable'] or 'takes part'}")
    here = {name: chosen[name] for name in chosen if not result["peers"][name]["unavailable"]}
    for work in workloads(arguments.batch_size):
        if arguments.workload and work.name not in arguments.workload:
            continue
        able = {name: kind for name, kind in here.items() if kind.cannot(work) is None}
        candidates: dict[str, Callable[[], dict[str, Any]]] = {
            name: partial(_attempt, kind, work, sizing, []) for name, kind in able.items()
        }
        rounds = interleave(arguments.rounds, candidates)
        result["workloads"][work.name] = {
            **asdict(work),
            "results": {
                name: {
                    "cannot": kind.cannot(work),
                    "settings": kind.settings(work) if name in able else None,
                    "rounds": rounds.get(name, []),
                }
                for name, kind in here.items()
            },
        }
    return result


def _attempt(
    kind: type[Peer], work: Workload, sizing: Sizing, failures: list[str]
) -> dict[str, Any]:
    """One measurement; `failures` are those of this peer in this workload so far."""
    if len(failures) >= _FAILURES:
        return {"failed": failures[-1]}
    _say(f"{work.title}: {kind.name}")
    try:
        return measure(kind, work, sizing)
    except MeasurementFailed as error:
        _say(f"{work.title}: {kind.name} failed: {error}")
        failures.append(str(error))
        return {"failed": str(error)}


def _failed(result: dict[str, Any]) -> bool:
    return any(
        "failed" in each
        for work in result["workloads"].values()
        for found in work["results"].values()
        for each in found["rounds"]
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)
