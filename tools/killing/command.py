"""The command line of `tools/kill_everywhere`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from killing.campaign import UNITS, Found, Unit, kill_everywhere
from killing.catalogue import NAMES, about, operations
from killing.tracer import Tracer, Unavailable

__all__ = ["main"]

_FAILED, _USAGE, _BROKEN = 1, 2, 3  # exit codes, as everywhere


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs it; the exit code."""
    options = _parser().parse_args(arguments)
    if options.list:
        for name in NAMES:
            print(f"{name:24} {about(name)}")
        return 0
    names = NAMES if "all" in options.operation else options.operation
    found: list[Found] = []
    try:
        with Tracer.build() as tracer:
            for name in names:
                found.append(_kill(tracer, name, options))
                if not options.json:
                    _print(found[-1])
    except Unavailable as reason:
        if options.json:
            print(json.dumps({"unavailable": str(reason)}))
        else:
            print(f"kill_everywhere: not possible here: {reason}", file=sys.stderr)
        return _FAILED
    failures = sum(len(one.failures) for one in found)
    points = sum(one.points for one in found)
    if options.json:
        print(json.dumps({"points": points, "operations": [one.as_dict() for one in found]}))
    else:
        print(f"{points:,} deaths in {len(found)} operations: {failures} failures")
    return _BROKEN if failures else 0


def _kill(tracer: Tracer, name: str, options: argparse.Namespace) -> Found:
    found = Found(name, options.every)
    for operation in operations(name, tracer):
        found.extend(
            kill_everywhere(
                tracer,
                operation,
                options.every,
                numbers=options.point,
                stride=options.stride,
                jobs=options.jobs,
                told=_progress if sys.stderr.isatty() else lambda _: None,
            )
        )
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kill_everywhere",
        description="Kills a participant of a small ring after instruction 0, 1, 2, ... of an "
        "operation, each time a new one, until it completes; and checks after each death that the "
        "others lose nothing. Exit code 3 when something did not hold, 1 when it is not possible "
        "here (x86-64, g++ and ptrace are needed).",
    )
    parser.add_argument(
        "--operation",
        nargs="+",
        default=["all"],
        type=_name,
        metavar="NAME",
        help="one or several of those that --list tells; default: all",
    )
    parser.add_argument(
        "--every",
        choices=UNITS,
        default="instruction",
        help="kill after each instruction in the native module, or only after those with an "
        "effect: they changed the ring's bytes or called the kernel (default: instruction)",
    )
    parser.add_argument("--stride", type=_positive, default=1, help="only every N-th point")
    parser.add_argument("--point", type=_count, nargs="+", help="these points only")
    parser.add_argument(
        "--jobs", type=_positive, default=1, help=f"processes, of {os.cpu_count()} CPUs"
    )
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    parser.add_argument("--list", action="store_true", help="the operations, and no more")
    return parser


def _name(text: str) -> str:
    if text != "all" and text.partition("@")[0] not in NAMES:
        raise argparse.ArgumentTypeError(f"{text!r} is no operation; --list tells which there are")
    return text


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def _progress(found: Found) -> None:
    print(f"\r{_line(found)}", end="", file=sys.stderr, flush=True)


def _line(found: Found) -> str:
    return (
        f"{found.operation:22} {found.points:7,} deaths in {found.length:7,} {found.unit}s: "
        f"{len(found.failures)} failures, {found.seconds:.1f} s"
    )


def _print(found: Found) -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    print(_line(found), flush=True)
    for failure in found.failures:
        print(
            f"  {failure.operation}, {found.unit} {failure.point} "
            f"(instruction {failure.instruction}, {failure.place}): {failure.problem}\n"
            f"    changed: {', '.join(failure.changed) or 'nothing'}\n"
            f"    again: {reproduction(failure.operation, found.unit, failure.point)}",
            flush=True,
        )


def reproduction(operation: str, unit: Unit, point: int) -> str:
    """The command that tries this point alone."""
    return f"tools/kill_everywhere --operation {operation} --every {unit} --point {point}"
