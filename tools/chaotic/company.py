"""Who takes part in a chaos run: a process in each role, and a successor when one ends.

The witness of a log has to be there before the first publisher, else the log's beginning could be
released before anybody saw it. So a broker is *open* for publishers once its witness has joined.
One that was told to end is not open any more, and its publishers' link refuses connections. A
broker that was killed stays open: its log goes on.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from chaotic.crew import Crew, Life
from chaotic.links import Links
from chaotic.oracle import Oracle
from chaotic.plan import (
    BROKERS,
    LINKS,
    PUBLISHERS,
    SUBSCRIBERS,
    broker_of,
    broker_of_link,
    link_of,
)
from chaotic.records import Kind, Record
from chaotic.rings import remove
from chaotic.workers import FAILED, WORK, Spec

__all__ = ["BrokerState", "Company"]

_DUE_WHEN_CLOSED = ("BrokerGone", "BrokerRestarted", "EndOfLog", "NoSuchBroker")


@dataclass(slots=True)
class BrokerState:
    """What the conductor knows of a broker."""

    log: int | None = None  # while it serves
    witnessed: int | None = None  # the log its witness has joined
    open: bool = False  # for publishers
    closing: bool = False  # it was told to end
    closings: int = 0
    pause: float = 0.0  # seconds from its end to its successor


class Company:
    """All processes, and what becomes of them."""

    def __init__(
        self,
        seed: int,
        rest: float,
        cluster: str,
        port: int,
        tcp: bool,
        after: Callable[[float, Callable[[], None]], None],
    ) -> None:
        """`rest`: the longest a publisher pauses, in seconds. `port`: the first of four that are
        free. Without `tcp` all use shared memory. `after` does something so many seconds later."""
        self.oracle = Oracle()
        self.typed: Counter[str] = Counter()
        """Errors of the library that were due, by class."""
        self.restarts: list[float] = []
        """Seconds from the start of a broker that takes over a ring until it serves."""
        self.ending = False
        """Nobody gets a successor any more."""
        self.brokers = [BrokerState() for _ in range(BROKERS)]
        self.roles = [f"publisher {n}" for n in range(PUBLISHERS)]
        self.roles += [f"subscriber {n}" for n in range(SUBSCRIBERS)]
        self.roles += [f"witness {n}" for n in range(BROKERS)]
        self.cluster = cluster
        self.rings = [f"{cluster}/{n}" for n in range(BROKERS)]
        self._seed = seed
        self._rest = rest
        self._after = after
        self._tcp = tcp
        self._ports = [port + n for n in range(BROKERS)]
        self._lives: Counter[str] = Counter()
        self._acks: Counter[str] = Counter()
        targets = [f"tcp://127.0.0.1:{self._ports[broker_of_link(n)]}" for n in range(LINKS)]
        self.links = Links(targets)  # before the crew: it must not have the crew's pipes
        self.crew = Crew(WORK, self._on_record, self._on_end)

    def begin(self) -> None:
        """Starts everybody; publishers when there is somebody to see what they publish."""
        for number in range(BROKERS):
            self.links.begin("refuse", number)
            self._start_broker(number)
        for role in self.roles[PUBLISHERS:]:
            self._start(role)

    def close(self) -> None:
        """Kills those that are left, and removes their rings."""
        self.crew.close()
        self.links.kill()
        remove(self.cluster)

    def absent(self) -> list[str]:
        """The roles in which nobody does anything now."""
        closed = [f"broker {n}" for n, broker in enumerate(self.brokers) if not broker.open]
        found = self.crew.lives
        missing = [r for r in self.roles if (life := found.get(r)) is None or not life.ready]
        return closed + missing

    def progress(self, role: str) -> int:
        """Grows whenever a publisher was acknowledged something, or a subscriber got something."""
        if role.startswith("publisher"):
            return self._acks[role]
        return self.oracle.progress_of(role)

    def other(self, role: str, ring: str = "", number: int = 0) -> None:
        """Starts somebody who is no part of it; see `workers`."""
        self._lives[role] += 1
        self.crew.start(Spec(role, self._lives[role], self._seed, ring, number))

    def close_broker(self, number: int, pause: float) -> None:
        """Tells a broker that serves to end in order."""
        broker = self.brokers[number]
        broker.pause, broker.closing, broker.open = pause, True, False
        broker.closings += 1
        # Who has not published yet could begin in the next log, before its witness is there.
        self.links.begin("refuse", number)
        for role, life in list(self.crew.lives.items()):
            if role.startswith("publisher") and broker_of(role) == number and not life.ready:
                life.kill()
        self.crew.lives[f"broker {number}"].ask()

    # --- starting ---------------------------------------------------------------------------------

    def _start(self, role: str) -> None:
        """In `role`, unless somebody is there, or it is not the time."""
        number = broker_of(role)
        broker, publishes = self.brokers[number], role.startswith("publisher")
        if role in self.crew.lives or self.ending or broker.closing:
            return
        if publishes and not broker.open:
            return
        self._lives[role] += 1
        link = self._link_of(role)
        life = self.crew.start(
            Spec(
                role,
                self._lives[role],
                self._seed,
                f"shm://{self.rings[number]}" if link is None else self.links.addresses[link],
                (int(role.split()[1]) + 1 << 32) + self._lives[role] if publishes else 0,
                self.oracle.place_of(role),
                rest=self._rest,
            )
        )
        life.closings = broker.closings

    def _link_of(self, role: str) -> int | None:
        return link_of(role) if self._tcp else None

    def _start_all(self, number: int) -> None:
        for role in self.roles:
            if broker_of(role) == number:
                self._start(role)

    def _start_broker(self, number: int) -> None:
        role = f"broker {number}"
        self._lives[role] += 1
        ring, port = self.rings[number], self._ports[number]
        self.crew.start(Spec(role, self._lives[role], self._seed, ring, port))

    def _open(self, number: int) -> None:
        """For publishers, if everybody is there who has to be."""
        broker = self.brokers[number]
        if broker.open or broker.closing or broker.log is None or broker.log != broker.witnessed:
            return
        broker.open = True
        self.links.end("refuse", number)
        self._start_all(number)

    # --- what they tell ---------------------------------------------------------------------------

    def _on_record(self, life: Life, record: Record) -> None:
        number = broker_of(life.role) if life.takes_part else 0
        match record.kind:
            case Kind.READY:
                life.ready = True
                if life.role.startswith("broker"):
                    self.brokers[number].log = record.a
                    if record.d:
                        self.restarts.append(record.c / 1e9)
                    self._open(number)
            case Kind.INTENT | Kind.ACKED:
                self.oracle.published(record)
                self._acks[life.role] += record.kind is Kind.ACKED
            case Kind.JOINED:
                life.ready = True
                self.oracle.joined(life.role, number, record)
                if life.role.startswith("witness"):
                    self.brokers[number].witnessed = record.a
                    self._open(number)
            case Kind.DELIVERED:
                self.oracle.delivered(life.role, record)
            case Kind.GAP:
                self.oracle.missed(life.role, record)
            case Kind.WRONG:
                self.oracle.wrong(f"{life.role}: {record.text}")
            case Kind.ENDED:
                life.last = record.text

    # --- how they end -----------------------------------------------------------------------------

    def _on_end(self, life: Life) -> None:
        if life.role == "intruder":
            if not life.last.startswith("NotEnoughSpace"):
                self._unexpected(life)
            self.typed["NotEnoughSpace"] += 1
        elif life.role.startswith("broker"):
            self._broker_ended(life)
        elif life.takes_part:
            if (link := self._link_of(life.role)) is not None:
                # Its kernel would say so. One whose client alone was cut off stays open at the
                # broker, and no keep-alive ends it: the proxy answers that.
                self.links.cut(link, "reset")
            self._judge(life)
            self._start(life.role)

    def _judge(self, life: Life) -> None:
        """Was this the end of a publisher or subscriber that was to be expected?"""
        if life.was_killed or (life.asked and life.code == -signal.SIGTERM and not life.ready):
            return  # it had no handler yet
        self.oracle.checked["ends"] += 1
        if life.asked and life.code == 0 and life.last == "done":
            return
        error = life.last.partition(":")[0]
        closed = self.brokers[broker_of(life.role)].closings > life.closings
        remote = self._link_of(life.role) is not None
        cut_off = remote and not life.ready and error == "ConnectionLost"
        if life.code == FAILED and (cut_off or (closed and error in _DUE_WHEN_CLOSED)):
            self.typed[error] += 1
        else:
            self._unexpected(life)

    def _broker_ended(self, life: Life) -> None:
        number = broker_of(life.role)
        broker = self.brokers[number]
        in_order = life.asked and life.code in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
        self.oracle.checked["ends"] += life.asked
        if not in_order and not life.was_killed:
            self._unexpected(life)
        broker.log, broker.closing = None, False

        def succeed() -> None:
            self._start_broker(number)
            self._start_all(number)

        if not self.ending:
            self._after(broker.pause, succeed)

    def _unexpected(self, life: Life) -> None:
        self.oracle.wrong(
            f"{life.role} (process {life.spec.life} in that role) ended with {life.code} after "
            f"{time.monotonic() - life.began:.3f} s: {life.last or 'without a word'}\n{life.said()}"
        )
