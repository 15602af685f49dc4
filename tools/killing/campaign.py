"""All points of an operation: one death after another, on several CPUs."""

from __future__ import annotations

import gc
import itertools
import os
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Literal

from embar_shm.testing.isolation import unique_cluster
from killing.operations import Operation
from killing.reading import Broken
from killing.stage import Stage
from killing.tracer import NEVER, Outcome, Tracer
from killing.victim import Victim, VictimFailed
from killing.words import changes

__all__ = ["UNITS", "Failure", "Found", "Point", "Unit", "kill_at", "kill_everywhere"]

Unit = Literal["instruction", "effect"]
UNITS: tuple[Unit, ...] = ("instruction", "effect")


@dataclass(frozen=True, slots=True)
class Point:
    """One death: where, and what was wrong afterwards."""

    number: int
    killed: bool
    """False: the operation was complete before; the victim was killed then."""
    instructions: int
    effects: int | None
    place: str
    changed: list[str]
    """Words of the ring that the operation had changed."""
    problem: str | None


@dataclass(frozen=True, slots=True)
class Failure:
    """A point after which something did not hold."""

    operation: str
    point: int
    instruction: int
    place: str
    changed: list[str]
    problem: str


@dataclass(slots=True)
class Found:
    """What the deaths in one operation showed."""

    operation: str
    unit: Unit
    points: int = 0
    """Deaths within the operation, each at another point."""
    length: int = 0
    """Points that it has, by the longest run."""
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    """On the clock."""

    def add(self, point: Point) -> None:
        """Counts a point of this operation."""
        self.points += point.killed
        self.length = max(self.length, point.number if point.killed else _reached(point, self.unit))
        if point.problem is not None:
            self.failures.append(
                Failure(
                    self.operation,
                    point.number,
                    point.instructions,
                    point.place,
                    point.changed,
                    point.problem,
                )
            )

    def extend(self, other: Found) -> None:
        """Includes what another operation of the same family showed."""
        self.points += other.points
        self.length += other.length
        self.failures += other.failures
        self.seconds += other.seconds

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def _reached(point: Point, unit: Unit) -> int:
    return point.instructions if unit == "instruction" else point.effects or 0


def kill_at(tracer: Tracer, operation: Operation, unit: Unit, number: int) -> Point:
    """Kills the victim there, and checks what that means for the others.

    Raises `VictimFailed` when the operation cannot be performed at all.
    """
    ring = f"{unique_cluster('kill')}/0"
    address = f"shm://{ring}"
    with (
        Victim(tracer, lambda cue: operation.perform(address, cue)) as victim,
        Stage(ring, operation.content) as stage,
    ):
        operation.prepare(stage, victim)
        before = stage.memory()
        ran = victim.run(
            instructions=number if unit == "instruction" else NEVER,
            effects=number if unit == "effect" else NEVER,
            ring=stage.path if unit == "effect" else None,
        )
        changed = changes(before, stage.memory())
        problem = None
        try:
            operation.after(stage)
            complete = operation.certain or ran.outcome is Outcome.FINISHED
            stage.check_afterwards(operation.batches, complete, operation.finish)
        except Broken as broken:
            problem = str(broken)
        except Exception:  # whatever the library raises where it should not
            problem = traceback.format_exc()
        stage.failed = problem is not None
    return Point(
        number,
        ran.outcome is Outcome.KILLED,
        ran.instructions,
        ran.effects if unit == "effect" else None,
        ran.place,
        changed,
        problem,
    )


def kill_everywhere(
    tracer: Tracer,
    operation: Operation,
    unit: Unit,
    *,
    numbers: Sequence[int] | None = None,
    stride: int = 1,
    jobs: int = 1,
    told: Callable[[Found], None] = lambda _: None,
) -> Found:
    """Kills at 0, `stride`, 2 x `stride`, ... until the operation completes; or at `numbers`.

    Each of `jobs` processes has a CPU of its own and takes every `jobs`-th of them. `told` is
    called after each death. Blocks until all are done; this process must have one thread only.
    """
    begin = time.monotonic()
    found = Found(operation.name, unit)
    workers = [
        _Worker(tracer, operation, unit, _every(numbers, stride, at, jobs), at)
        for at in range(jobs)
    ]
    try:
        with selectors.DefaultSelector() as selector:
            for worker in workers:
                selector.register(worker.results, selectors.EVENT_READ, worker)
            while selector.get_map():
                for key, _ in selector.select():
                    point = key.data.next_point()
                    if point is None:
                        selector.unregister(key.fileobj)
                        continue
                    found.add(point)
                    found.seconds = time.monotonic() - begin
                    told(found)
    finally:
        for worker in workers:
            worker.close()
    return found


def _every(numbers: Sequence[int] | None, stride: int, first: int, jobs: int) -> Iterator[int]:
    if numbers is None:
        return itertools.count(first * stride, jobs * stride)
    return iter(numbers[first::jobs])


class _Worker:
    """A process that lets victims die on one CPU."""

    def __init__(
        self, tracer: Tracer, operation: Operation, unit: Unit, numbers: Iterator[int], at: int
    ) -> None:
        self.results, theirs = Pipe(duplex=False)
        self._pid = os.fork()
        if self._pid == 0:
            self.results.close()
            _work(tracer, operation, unit, numbers, at, theirs)
        theirs.close()

    def next_point(self) -> Point | None:
        """The result that is there; None: there are no more. Raises what the worker raised."""
        try:
            result: Point | str | None = self.results.recv()
        except EOFError:
            raise RuntimeError(f"worker {self._pid} ended early") from None
        if isinstance(result, str):
            raise VictimFailed(result)
        return result

    def close(self) -> None:
        """It is gone, and its victim with it."""
        self.results.close()
        os.kill(self._pid, signal.SIGTERM)
        os.waitpid(self._pid, 0)


def _work(
    tracer: Tracer,
    operation: Operation,
    unit: Unit,
    numbers: Iterator[int],
    at: int,
    results: Connection,
) -> None:
    """Never returns: a copy of the caller has nothing to clean up."""
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what is open is closed
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpus[at % len(cpus)]})  # a step is three times as fast on one
        gc.freeze()  # what is here already is not looked at, and so not copied, in each victim
        for number in numbers:
            point = kill_at(tracer, operation, unit, number)
            results.send(point)
            if not point.killed:
                break
        results.send(None)
    except BaseException:
        results.send(traceback.format_exc())
    finally:
        os._exit(0)
