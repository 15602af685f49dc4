"""The process of one producer, consumer or end: it obeys the harness, and says what happened."""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from embar_shm import _core
from peers.peer import Peer

__all__ = ["COUNT", "STOP", "mapped", "run"]

COUNT = struct.Struct("<q")  # a command: do so many
STOP = 0
_SHARED = "/dev/shm/"

Work: TypeAlias = Callable[[int], dict[str, Any]]


def run(peer: Peer, role: str, index: int, commands: int, reports: int, limit: float) -> NoReturn:
    """Takes over a process that was just forked. `limit` seconds later the kernel ends it."""
    parent = os.getppid()
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the harness hears it, and ends us
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # works in a loop of native code, too
        signal.setitimer(signal.ITIMER_REAL, limit)
        _core.die_with_parent(parent, signal.SIGTERM)
        with _role(peer, role, index) as work:
            _tell(reports, {"ready": True})
            while (count := COUNT.unpack(os.read(commands, COUNT.size))[0]) != STOP:
                cpu = time.process_time()
                try:
                    report = work(count)
                except Exception as error:  # told before it closes anything: others fail from that
                    _tell(reports, _explained(error))
                    raise
                report["cpu_seconds"] = time.process_time() - cpu
                _tell(reports, report)
        code = 0
    except BaseException as error:
        _tell(reports, _explained(error))  # of two the harness reads the first
    finally:
        os._exit(code)  # what the parent registered for its own end is not ours to do


def mapped(pid: int | str = "self") -> set[str]:
    """Files in shared memory that a process has mapped and that have a name still."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()  # it is gone
    names = {line[line.index(_SHARED) :] for line in lines if _SHARED in line}
    return {name for name in names if not name.endswith(" (deleted)")}


def _tell(reports: int, report: dict[str, Any]) -> None:
    report["mapped"] = sorted(mapped())
    line = json.dumps(report).encode() + b"\n"
    while line:
        line = line[os.write(reports, line) :]


def _explained(error: BaseException) -> dict[str, Any]:
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(where.filename).name}:{where.lineno}"
    return {"error": f"{type(error).__name__}: {error} ({place})"}


@contextmanager
def _role(peer: Peer, role: str, index: int) -> Iterator[Work]:
    if role == "consumer":
        with peer.consumer(index) as consume:
            yield lambda count: _timed(consume, count)
    elif role == "producer":
        with peer.producer(index) as produce:
            yield lambda count: _timed(produce, count)
    else:
        with peer.end(index) as (send, receive):

            def work(count: int) -> dict[str, Any]:
                if index == 0:
                    return _ping(send, receive, count)
                return _timed(lambda n: _echo(send, receive, n), count)

            yield work


def _timed(do: Callable[[int], int | None], count: int) -> dict[str, Any]:
    begin = time.monotonic_ns()
    size = do(count)
    return {"begin": begin, "end": time.monotonic_ns(), "messages": count, "bytes": size}


def _ping(send: Callable[[], object], receive: Callable[[], int], count: int) -> dict[str, Any]:
    clock, times, size = time.perf_counter_ns, [], 0
    first = time.monotonic_ns()
    for _ in range(count):
        begin = clock()
        send()
        size += receive()
        times.append(clock() - begin)
    last = time.monotonic_ns()
    return {"begin": first, "end": last, "messages": count, "bytes": size, "times": _spread(times)}


def _echo(send: Callable[[], object], receive: Callable[[], int], count: int) -> int:
    size = 0
    for _ in range(count):
        size += receive()
        send()
    return size


def _spread(times: list[int]) -> dict[str, float]:
    """Microseconds."""
    times.sort()
    last = len(times) - 1
    return {
        "mean_us": sum(times) / len(times) / 1e3,
        "p50_us": times[round(last * 0.5)] / 1e3,
        "p99_us": times[round(last * 0.99)] / 1e3,
        "max_us": times[last] / 1e3,
    }
