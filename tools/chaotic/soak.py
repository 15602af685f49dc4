"""The course of a soak: all at a steady rate, and looked at once a second.

Connections are cut and visitors come and go meanwhile: what a connection leaves behind shows as a
line that rises.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable

from chaotic import samples
from chaotic.crew import Crew, Life
from chaotic.judge import Judgement, judge, warm_up
from chaotic.links import Links
from chaotic.records import Kind, Record
from chaotic.rings import look_at_end, remains, remove
from chaotic.soak_work import WORK
from chaotic.workers import Spec

__all__ = ["Soak", "SoakFailed"]

_BROKERS = 2
_PATIENCE = 60.0  # seconds for everything to begin, or to end
_CUT_EVERY = 5.0  # seconds
_TICK = 0.05


class SoakFailed(Exception):
    """It cannot go on: somebody is gone, or does not come."""


class Soak:
    """`run`, and then look at `judgements` and `wrong`."""

    def __init__(self, cluster: str, rate: int) -> None:
        """`rate`: messages a second, of all publishers together."""
        self.wrong: list[str] = []
        self.judgements: list[Judgement] = []
        self.published = self.delivered = self.cuts = 0
        self._cluster = cluster
        self._rate = rate
        self._series: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        self._messages: Counter[str] = Counter()
        self._ports: dict[str, int] = {}
        self._tcp: list[str] = []
        self._ending = False
        self.crew = Crew(WORK, self._on_record, self._on_end)
        self.links: Links | None = None

    def run(self, seconds: float, progress: Callable[[str], None]) -> None:
        """`progress` is told a line a minute. Raises `SoakFailed`, and `ValueError` (too short)."""
        rings = [f"{self._cluster}/{n}" for n in range(_BROKERS)]
        for n, ring in enumerate(rings):
            self._start(f"broker {n}", ring)
        self._until(self._all_ready, "the brokers serve")
        self._tcp = [f"tcp://127.0.0.1:{self._ports[f'broker {n}']}" for n in range(_BROKERS)]
        self.links = Links(self._tcp)
        self._start_others(rings)
        self._until(self._all_ready, "everybody works")
        self._watch(seconds, [samples.RingProbe(ring) for ring in rings], progress)
        self.judgements = judge(self._series, warm_up(seconds))
        self.wrong += [judgement.wrong for judgement in self.judgements if judgement.wrong]
        self._end(rings)

    def close(self) -> None:
        """Kills those that are left, and removes their rings."""
        self.crew.close()
        if self.links is not None:
            self.links.kill()
        remove(self._cluster)

    def _start_others(self, rings: list[str]) -> None:
        assert self.links is not None
        shm = [f"shm://{ring}" for ring in rings]
        tcp = self.links.addresses
        for n in range(_BROKERS):
            self._start(f"subscriber {n} over shm", shm[n])
            self._start(f"subscriber {n} over tcp", tcp[n])
            self._start(f"subscriber {n} lossy", shm[n])
        self._until(self._all_ready, "subscribers are there, and miss nothing")
        each = max(1, self._rate // (2 * _BROKERS))
        for n in range(_BROKERS):
            self._start(f"publisher {2 * n + 1} over shm", shm[n], each)
            self._start(f"publisher {2 * n + 2} over tcp", tcp[n], each)
        self._start("visitor", ",".join([*shm, *self._tcp]))  # nobody cuts it off

    def _start(self, role: str, address: str, number: int = 0) -> None:
        self.crew.start(Spec(role, 1, 0, address, number))

    def _watch(
        self, seconds: float, probes: list[samples.RingProbe], progress: Callable[[str], None]
    ) -> None:
        begin = time.monotonic()
        second, next_cut = 0, _CUT_EVERY
        while second <= seconds:
            if (wait := begin + second - time.monotonic()) > 0:
                self._step(min(wait, _TICK))
                continue
            at = time.monotonic() - begin
            for name, value in self._sampled(probes):
                self._series[name].append((at, value))
            if at >= next_cut and self.links is not None:
                self.links.cut(self.cuts % _BROKERS, "reset")
                self.cuts += 1
                next_cut = at + _CUT_EVERY
            if second and second % 60 == 0:
                progress(f"{second // 60} min: {sum(p.messages() for p in probes)} messages")
            second += 1

    def _sampled(self, probes: list[samples.RingProbe]) -> list[tuple[str, float]]:
        found = []
        for role, life in self.crew.lives.items():
            found += [(f"{role}.{what}", value) for what, value in samples.of_process(life.pid)]
        for n, probe in enumerate(probes):
            found += [(f"ring {n}.{what}", value) for what, value in probe.sample()]
        found += [(f"/dev/shm.{what}", value) for what, value in samples.of_shm(self._cluster)]
        return found

    # --- the processes ----------------------------------------------------------------------------

    def _on_record(self, life: Life, record: Record) -> None:
        match record.kind:
            case Kind.READY:
                life.ready = True
                self._ports[life.role] = record.a
            case Kind.ACKED:
                self._messages[life.role] = record.c
            case Kind.WRONG:
                self.wrong.append(f"{life.role}: {record.text}")
            case Kind.ENDED:
                life.last = record.text

    def _on_end(self, life: Life) -> None:
        if life.code != 0 or not self._ending:
            raise SoakFailed(
                f"{life.role} ended with {life.code}: {life.last or 'no word'}\n{life.said()}"
            )

    def _all_ready(self) -> bool:
        return all(life.ready for life in self.crew.lives.values())

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise SoakFailed(f"{what}: not within {_PATIENCE:g} s")
            self._step(_TICK)

    def _step(self, timeout: float) -> None:
        self.crew.hear(timeout)

    def _end(self, rings: list[str]) -> None:
        """All leave in order; then it is counted."""
        self._ending = True
        for kind in ("visitor", "publisher", "subscriber"):
            self._ask(kind)
        self._until(
            lambda: not any(text for ring in rings for text in look_at_end(ring)),
            "all slots and rows are free: " + "; ".join(t for r in rings for t in look_at_end(r)),
        )
        self._ask("broker")
        if self.links is not None:
            self.links.stop()
            self.links = None
        self.wrong += [f"left behind: {what}" for what in remains(self._cluster)]
        for n in range(_BROKERS):
            sent = sum(self._messages[f"publisher {2 * n + k} over {how}"]
                       for k, how in ((1, "shm"), (2, "tcp")))  # fmt: skip
            self.published += sent
            for how in ("over shm", "over tcp", "lossy"):
                got = self._messages[f"subscriber {n} {how}"]
                self.delivered += got
                if got != sent:
                    self.wrong.append(f"subscriber {n} {how} has got {got} of {sent} messages")

    def _ask(self, kind: str) -> None:
        these = [life for role, life in self.crew.lives.items() if role.startswith(kind)]
        for life in these:
            life.ask()
        self._until(lambda: all(life.code is not None for life in these), f"every {kind} ends")
