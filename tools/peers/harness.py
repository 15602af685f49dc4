"""Starts the processes of one measurement, tells them what to do, and ends them.

Consumers first, then producers, or both ends of the round trips at once. When all are ready they
do a few phases: of one message each, then of more and more until a phase takes long enough to
tell how many fill the time, and then the phase that counts. Every wait ends at the deadline.
Whatever happens, all processes are gone afterwards, and what they left in shared memory, too.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from embar_shm import signals
from embar_shm.cpus import available_cpus
from peers import worker
from peers.peer import Peer
from peers.workloads import Workload

__all__ = ["MeasurementFailed", "Sizing", "measure"]

_GROWTH = 10  # times the messages of the phase before, at most
_TRIES = 4  # phases that were to take the whole time, at most
_GRACE = 2.0  # seconds between asking a process to end and making it
_SHARED = Path("/dev/shm")
_numbers = itertools.count()


class MeasurementFailed(Exception):
    """A peer did not do what the workload asks for; the text says what happened instead."""


@dataclass(frozen=True)
class Sizing:
    """How much a measurement does, and how long it may take."""

    seconds: float = 0.5  # of the phase that counts, about
    count: int | None = None  # messages of each producer in it, instead of `seconds`
    limit: float = 60.0  # seconds for everything


@dataclass
class _Worker:
    role: str
    index: int
    pid: int
    commands: int
    reports: int
    text: bytes = b""
    mapped: set[str] = field(default_factory=set)
    ended: bool = False

    def __str__(self) -> str:
        return f"{self.role} {self.index}"


def measure(kind: type[Peer], work: Workload, sizing: Sizing) -> dict[str, Any]:
    """One measurement, in processes of its own. Raises `MeasurementFailed`."""
    tag = f"peers-{os.getpid()}-{next(_numbers)}"
    with tempfile.TemporaryDirectory(prefix=f"{tag}-") as directory:
        peer = kind(work, Path(directory), tag)
        try:
            peer.prepare()
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise MeasurementFailed(f"it could not be set up: {what}") from error
        try:
            with _Processes(peer, tag, sizing.limit) as processes:
                return _Measurement(work, sizing, processes).run()
        finally:
            peer.clean()


class _Processes:
    """The workers of a measurement. Leaving it ends them all."""

    def __init__(self, peer: Peer, tag: str, limit: float) -> None:
        self._peer = peer
        self._tag = tag
        self._limit = limit
        self._deadline = time.monotonic() + limit
        self._ours = worker.mapped()  # they inherit it
        self._all: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with signals.deferred():  # a second Ctrl-C waits until the first has done its work
            self._end_all()
            self._remove_leftovers()

    def start(self, role: str, count: int) -> list[_Worker]:
        return [self._fork(role, index) for index in range(count)]

    def wait(self, workers: list[_Worker]) -> list[dict[str, Any]]:
        """One report of each. Raises `MeasurementFailed` when a worker has none, or no time."""
        found: dict[int, dict[str, Any]] = {}
        while len(found) < len(workers):
            poll = select.poll()
            for each in workers:
                if each.pid not in found:
                    poll.register(each.reports, select.POLLIN)
            left = self._deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                late = ", ".join(str(each) for each in workers if each.pid not in found)
                raise MeasurementFailed(f"not done after {self._limit:g} s: {late}")
            # In their order: who breaks a connection is read before who only notices.
            for each in workers:
                if each.pid not in found and (report := self._read(each)) is not None:
                    found[each.pid] = report
        return [found[each.pid] for each in workers]

    def tell(self, workers: list[_Worker], count: int) -> None:
        for each in workers:
            with suppress(BrokenPipeError):  # it is gone, and the next wait() says why
                os.write(each.commands, worker.COUNT.pack(count))

    def finish(self) -> None:
        """Ends the workers in order. Raises `MeasurementFailed` when one of them cannot."""
        self.tell(self._all, worker.STOP)
        for each in self._all:
            while not self._reap(each):
                if time.monotonic() > self._deadline:
                    raise MeasurementFailed(f"{each} did its work, and did not end")
                time.sleep(0.002)

    def _fork(self, role: str, index: int) -> _Worker:
        with signals.deferred():  # a worker that exists is one that is known
            commands, tell = os.pipe()
            reports, report = os.pipe()
            pid = os.fork()
            if pid == 0:
                for other in self._all:
                    os.close(other.commands)
                    os.close(other.reports)
                os.close(tell)
                os.close(reports)
                worker.run(self._peer, role, index, commands, report, self._limit + 10)
            os.close(commands)
            os.close(report)
            os.set_blocking(reports, False)
            started = _Worker(role, index, pid, tell, reports)
            self._all.append(started)
            return started

    def _read(self, each: _Worker) -> dict[str, Any] | None:
        with suppress(BlockingIOError):
            while b"\n" not in each.text:
                part = os.read(each.reports, 65536)
                if not part:
                    _, status = os.waitpid(each.pid, 0)
                    each.ended = True
                    raise MeasurementFailed(f"{each} {_how_it_ended(status)}")
                each.text += part
        line, newline, rest = each.text.partition(b"\n")
        if not newline:
            return None
        each.text = rest
        report: dict[str, Any] = json.loads(line)
        each.mapped |= set(report.pop("mapped"))
        if "error" in report:
            raise MeasurementFailed(f"{each}: {report['error']}")
        return report

    def _reap(self, each: _Worker) -> bool:
        if each.ended:
            return True
        pid, status = os.waitpid(each.pid, os.WNOHANG)
        each.ended = pid != 0
        if each.ended and status:
            raise MeasurementFailed(f"{each} {_how_it_ended(status)} after its work was done")
        return each.ended

    def _end_all(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            alive = [each for each in self._all if not each.ended]
            for each in alive:
                each.mapped |= worker.mapped(each.pid)
                os.kill(each.pid, number)
            deadline = time.monotonic() + _GRACE
            while alive and (number == signal.SIGKILL or time.monotonic() < deadline):
                for each in alive:
                    each.ended = os.waitpid(each.pid, os.WNOHANG)[0] != 0
                alive = [each for each in alive if not each.ended]
                time.sleep(0.002)
        for each in self._all:
            os.close(each.commands)
            os.close(each.reports)

    def _remove_leftovers(self) -> None:
        """What the workers had mapped, or is named after this measurement, and exists still.

        Some peers leave such files even when they end in order, all of them when they are killed.
        """
        names = set().union(*(each.mapped for each in self._all)) - self._ours
        for path in [*map(Path, names), *_SHARED.glob(f"*{self._tag}[_-]*")]:
            path.unlink(missing_ok=True)


class _Measurement:
    def __init__(self, work: Workload, sizing: Sizing, processes: _Processes) -> None:
        self._work = work
        self._sizing = sizing
        self._processes = processes

    def run(self) -> dict[str, Any]:
        if self._work.kind == "trips":
            self._takers, self._givers = [], self._processes.start("end", 2)
        else:
            self._takers = self._processes.start("consumer", self._work.consumers)
            self._processes.wait(self._takers)
            self._givers = self._processes.start("producer", self._work.producers)
        self._processes.wait(self._givers)
        found = self._counts()
        self._processes.finish()
        return found

    def _counts(self) -> dict[str, Any]:
        """The phase that counts: of the given size, or of one that takes about the given time.

        The rate of the phase before tells how many messages that needs. What is new takes longer,
        once, so a phase that was over far too early does not count.
        """
        found = self._phase(1)
        if self._sizing.count is not None:
            return self._phase(self._sizing.count)
        count, tries = 1, 0
        while True:
            needed = self._sizing.seconds / found["seconds"]
            count = max(count + 1, round(count * min(needed, _GROWTH)))
            found = self._phase(count)
            tries += needed <= _GROWTH  # it was to take that time
            if tries and (tries == _TRIES or found["seconds"] > self._sizing.seconds / 2):
                return found

    def _phase(self, count: int) -> dict[str, Any]:
        """`count` messages of each producer. Raises `MeasurementFailed` unless all arrived."""
        work = self._work
        began, busy = time.monotonic(), _busy_seconds()
        self._processes.tell(self._takers, count * work.each)
        self._processes.tell(self._givers, count)
        reports = self._processes.wait(self._takers + self._givers)
        there_were = (time.monotonic() - began) * available_cpus()
        cpu_seconds = sum(each["cpu_seconds"] for each in reports)
        others = max(0.0, _busy_seconds() - busy - cpu_seconds)
        if work.kind == "trips":
            receivers, last = reports, reports[0]["end"]
            begin = reports[0]["begin"]
        else:
            receivers = reports[: len(self._takers)]
            begin = min(each["begin"] for each in reports[len(self._takers) :])
            last = max(each["end"] for each in receivers)
        for each in receivers:
            if each["bytes"] != each["messages"] * work.size:
                raise MeasurementFailed(
                    f"{each['messages']} messages of {work.size} bytes had {each['bytes']} bytes"
                )
        found = {
            "seconds": (last - begin) / 1e9,
            "messages": count * work.producers,
            "received": [each["messages"] for each in receivers],
            "bytes": sum(each["bytes"] for each in receivers),
            "cpu_seconds": cpu_seconds,
            "others_share": others / there_were,  # of the CPUs, by other programs
        }
        times: dict[str, float] = reports[0].get("times", {})
        return found | times


def _busy_seconds() -> float:
    """CPU time of everybody on this machine, in steps of 10 ms."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _how_it_ended(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
