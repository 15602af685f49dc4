"""The command line of tools/soak."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import asdict

from chaotic.judge import TOLERANCES, Judgement
from chaotic.soak import Soak, SoakFailed
from embar_shm import transports

__all__ = ["main", "parsed"]

_SHOWN = ("rss", "pss", "fds", "threads", "slots", "rows", "shm_bytes")


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="tools/soak",
        description="Publishes and reads at a steady rate, over shared memory and TCP, with "
        "connections that are cut and visitors that come and go, and watches memory, files, "
        "threads, slots and counters. Exit code 3 if anything grows, or must be 0 and is not.",
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument(
        "--rate", type=int, default=8000, help="messages a second, all together (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="the result as JSON, on stdout")
    options = parser.parse_args(arguments)
    if options.minutes <= 0 or options.rate <= 0:
        parser.error("--minutes and --rate are positive numbers")
    return options


def main(options: argparse.Namespace) -> int:
    """Runs it."""
    for scheme in ("shm", "tcp"):
        transports.get(scheme)  # before there are forks, which would each search for it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    soak = Soak(f"soak-{os.getpid()}", options.rate)
    begin = time.monotonic()
    try:
        soak.run(options.minutes * 60, lambda line: print(line, file=sys.stderr, flush=True))
    except SoakFailed as error:
        soak.wrong.append(str(error))
    except ValueError as error:
        print(f"tools/soak: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        soak.close()
    _show(soak, time.monotonic() - begin, as_json=options.json)
    return 3 if soak.wrong else 0


def _show(soak: Soak, seconds: float, *, as_json: bool) -> None:
    if as_json:
        result = {
            "schema": "embar-shm/soak/1",
            "seconds": round(seconds, 3),
            "published": soak.published,
            "delivered": soak.delivered,
            "cuts": soak.cuts,
            "series": [asdict(judgement) for judgement in soak.judgements],
            "wrong": soak.wrong,
        }
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    print(
        f"{seconds:.0f} s, {soak.published} messages published, {soak.delivered} delivered, "
        f"{soak.cuts} connections cut\n"
    )
    print(f"{'':28}{'first':>14}{'last':>14}{'an hour':>14}")
    for one in soak.judgements:
        if one.name.rpartition(".")[2] in _SHOWN or one.wrong:
            print(f"{one.name:28}{_value(one, one.first)}{_value(one, one.last)}{_rate(one)}")
    zeros = sum(one.name.rpartition(".")[2] not in TOLERANCES for one in soak.judgements)
    print(f"\n{len(soak.judgements) - zeros} lines, {zeros} counters that must be 0")
    for text in soak.wrong:
        print(f"WRONG: {text}")
    if not soak.wrong:
        print("all flat; 0 lost, 0 duplicated, 0 damaged, 0 wake-ups missed")


def _value(one: Judgement, value: float) -> str:
    if one.name.endswith(("rss", "pss", "bytes")):
        return f"{value / 2**20:10.2f} MiB"
    return f"{value:14.0f}"


def _rate(one: Judgement) -> str:
    if one.name.endswith(("rss", "pss", "bytes")):
        return f"{one.per_hour / 2**20:+10.2f} MiB"
    return f"{one.per_hour:+14.1f}"
