"""The course of a chaos run: faults, calms, the end.

One thread, one loop: it hears what the processes tell, has it checked, and injects what the plan
says. After every few faults there is a *calm*: what was stopped goes on, brokers are back, and then
every process has to get on, and everything that was acknowledged to arrive, within a bound.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count

from chaotic.company import Company
from chaotic.faults import Faults
from chaotic.plan import CALM, plan
from chaotic.rings import look_at_end, remains

__all__ = ["BOUND", "Conductor", "Violation"]

BOUND = 30.0  # seconds within which all get on once faults pause
_TICK = 0.05  # seconds between two looks at the time, at most


class Violation(Exception):
    """Something was not as promised; what, the oracle knows."""


class Conductor:
    """A chaos run. `run`, and then look at its counters."""

    def __init__(
        self,
        seed: int,
        rate: float,
        rest: float,
        cluster: str,
        impossible: dict[str, str],
        port: int,
        tcp: bool = True,
    ) -> None:
        """`rate`: faults a second. `impossible`: kinds of faults that cannot be done here, and why.
        The others: see `Company`."""
        self.injected: Counter[str] = Counter()
        self.spared: Counter[str] = Counter()
        """Faults that were not done, by kind and why."""
        self.calms: list[tuple[float, str]] = []
        """Seconds from the beginning of a calm until all had got on, and who was the last."""
        self.history: list[str] = []
        self._impossible = impossible
        self._plan = plan(seed, rate)
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.company = Company(seed, rest, cluster, port, tcp, self._after)
        self.oracle = self.company.oracle
        self._faults = Faults(self.company, self._after)

    def run(self, seconds: float) -> None:
        """Raises `Violation` as soon as something is wrong."""
        self.company.begin()
        self._until(lambda: not self.company.absent(), "everybody is there", self._absent)
        self._inject(time.monotonic() + seconds)
        self._be_calm()
        self._end()

    def describe(self) -> Iterator[str]:
        """What is known of everybody, for a report of a violation."""
        for role, life in sorted(self.company.crew.lives.items()):
            progress = f", progress {self.company.progress(role)}" if life.takes_part else ""
            yield (
                f"{role}: pid {life.pid}, process {life.spec.life} in that role, for "
                f"{time.monotonic() - life.began:.3f} s, {'ready' if life.ready else 'not ready'}"
                f"{progress}"
            )

    # --- faults and calms -------------------------------------------------------------------------

    def _inject(self, end: float) -> None:
        base = time.monotonic()  # of the plan's times
        for fault in self._plan:
            while (now := time.monotonic()) < (due := min(end, base + fault.at)):
                self._step(due - now)
            if now >= end:
                return
            if fault.kind == CALM:
                self._be_calm()
                base += time.monotonic() - now
                continue
            why_not = self._impossible.get(fault.kind) or self._faults.inject(fault)
            if why_not:
                self.spared[f"{fault.kind}: {why_not}"] += 1
            else:
                self.injected[fault.kind] += 1
            self.history.append(f"{fault}{f'  not done: {why_not}' if why_not else ''}")

    def _be_calm(self) -> None:
        """Waits until everybody gets on."""
        began = time.monotonic()

        def disturbed() -> bool:
            return bool(self._timers or self.company.absent())

        self._until(lambda: not disturbed(), "everybody is there again", self._absent)
        roles, progress = self.company.roles, self.company.progress
        before = {role: progress(role) for role in roles}
        acknowledged = self.oracle.acknowledged()

        def waited_for() -> str:
            stuck = [role for role in roles if progress(role) == before[role]]
            return ", ".join([*stuck, *self.oracle.missing(acknowledged).values()])

        last = self._until(lambda: not waited_for(), "everybody gets on", waited_for)
        took = time.monotonic() - began
        self.history.append(f"calm: all have got on after {took:.3f} s; the last: {last}")
        self.calms.append((took, last))
        self.oracle.checked["progress"] += len(before)

    def _absent(self) -> str:
        return ", ".join(self.company.absent()) or "a fault that lasts"

    # --- the loop ---------------------------------------------------------------------------------

    def _until(self, condition: Callable[[], bool], what: str, who: Callable[[], str]) -> str:
        """Waits, and returns who was waited for last. Raises `Violation` after `BOUND`."""
        deadline = time.monotonic() + BOUND
        names = "nobody"
        while not condition():
            names = who()
            if time.monotonic() >= deadline:
                self.oracle.wrong(f"hung: {what}: not within {BOUND:g} s: {names}")
                raise Violation
            self._step(_TICK)
        return names

    def _step(self, timeout: float) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
        if self._timers:
            timeout = min(timeout, self._timers[0][0] - now)
        self.company.crew.hear(min(timeout, _TICK))
        if self.oracle.violations:
            raise Violation

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), action))

    # --- the end ----------------------------------------------------------------------------------

    def _end(self) -> None:
        """Everybody ends in order; then nothing may be left."""
        company = self.company
        company.ending = True
        self._ask("publisher")
        acknowledged = self.oracle.acknowledged()

        def missing() -> str:
            return "; ".join(self.oracle.missing(acknowledged).values())

        self._until(lambda: not missing(), "everything arrives", missing)
        self._ask("subscriber")
        self._ask("witness")

        def unsound() -> str:
            return "; ".join(text for ring in company.rings for text in look_at_end(ring))

        self._until(lambda: not unsound(), "the rings are free and sound", unsound)
        self.oracle.checked["rings"] += len(company.rings)
        self._ask("broker")
        if code := company.links.stop():
            self.oracle.wrong(f"the process of the links ended with {code}")
        for left in remains(company.cluster):
            self.oracle.wrong(f"left behind: {left}")
        self.oracle.checked["leftovers"] += 1
        self.oracle.finish()
        if self.oracle.violations:
            raise Violation

    def _ask(self, kind: str) -> None:
        """SIGTERM to all of a kind, who then end."""
        these = [life for life in self.company.crew.lives.values() if life.role.startswith(kind)]
        for life in these:
            life.ask()

        def still() -> str:
            return ", ".join(life.role for life in these if life.code is None)

        self._until(lambda: not still(), f"every {kind} ends", still)
