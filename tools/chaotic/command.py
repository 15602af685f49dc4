"""The command line of tools/chaos."""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import sys
import time
from itertools import islice

from chaotic import own_shm, report
from chaotic.conductor import Conductor, Violation
from chaotic.plan import BROKERS, FAULTS, plan
from embar_shm import transports

__all__ = ["main", "parsed"]

_SHM_SIZE = "8m"
_RATE, _REST = 16.0, 10.0
_PORTS = range(20000, 32000, BROKERS)  # below those that the kernel gives to connections


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="tools/chaos",
        description="Kills, stops, cuts off and starves 12 publishers, 4 brokers and 4 subscribers "
        "(and a witness of each broker, which is never killed), and checks that nothing that was "
        "acknowledged is lost, doubled, reordered or damaged, and nobody hangs. Exit code 3 if so.",
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults are injected")
    parser.add_argument("--seed", type=int, help="the same seed, the same faults; default: random")
    parser.add_argument("--rate", type=float, default=_RATE, help="faults a second (%(default)s)")
    parser.add_argument(
        "--rest",
        type=float,
        default=_REST,
        help="the longest rest of a publisher after a burst, in ms: how busy all are (%(default)s)",
    )
    parser.add_argument("--plan", type=int, metavar="N", help="print the first N faults, and end")
    parser.add_argument("--json", action="store_true", help="the result as JSON, on stdout")
    parser.add_argument(
        "--shared", action="store_true", help="use the /dev/shm of this machine, and do not fill it"
    )
    parser.add_argument(
        "--spare",
        action="append",
        default=[],
        choices=FAULTS,
        metavar="KIND",
        help=f"leave out faults of a kind; may be repeated: {', '.join(FAULTS)}",
    )
    parser.add_argument(
        "--no-tcp",
        action="store_true",
        help="all over shared memory: what fails without a network?",
    )
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    if options.rate <= 0 or options.seconds < 0 or options.rest < 0:
        parser.error("--rate, --seconds and --rest are positive numbers")
    return options


def main(options: argparse.Namespace, no_mount: str) -> int:
    """Runs it. `no_mount`: why this /dev/shm is not its own; "" if it is."""
    if options.plan is not None:
        for fault in islice(
            (f for f in plan(options.seed, options.rate) if f.number), options.plan
        ):
            print(fault)
        return 0
    impossible = {"full": no_mount} if no_mount else {}
    impossible |= dict.fromkeys(options.spare, "it was to be left out")
    begin = time.monotonic()
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for scheme in ("shm", "tcp"):
        transports.get(scheme)  # before there are forks, which would each search for it
    conductor = Conductor(
        options.seed,
        options.rate,
        options.rest / 1e3,
        f"chaos-{os.getpid()}",
        impossible,
        _free_ports(),
        not options.no_tcp,
    )
    sound, interrupted = True, False
    try:
        conductor.run(options.seconds)
    except Violation:
        sound = False
        found = report.evidence(conductor)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        conductor.company.close()
    if interrupted:
        return 130
    result = report.result(conductor, options, time.monotonic() - begin)
    if not sound:
        result["evidence"] = found
    report.show(result, as_json=options.json)
    return 0 if sound else 3


def _free_ports() -> int:
    """The first of as many as there are brokers."""
    for first in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        if all(_is_free(first + n) for n in range(BROKERS)):
            return first
    raise SystemExit("no free TCP ports")


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def own(options: argparse.Namespace) -> str:
    """Why /dev/shm is not its own; "" when it is now."""
    if options.plan is not None or options.shared:
        return "the /dev/shm of this machine is not filled"
    return own_shm.mount_own(_SHM_SIZE)
