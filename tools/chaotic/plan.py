"""Who takes part in a chaos run, and what goes wrong for whom: a pure function of the seed.

The sequence of faults is the same wherever it runs; how far it gets, and what the processes are
doing when one meets them, is not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

__all__ = [
    "BROKERS",
    "CALM",
    "FAULTS",
    "LINKS",
    "PUBLISHERS",
    "SUBSCRIBERS",
    "Fault",
    "broker_of",
    "link_of",
    "mode_of",
    "plan",
]

BROKERS, PUBLISHERS, SUBSCRIBERS = 4, 12, 4
LINKS = BROKERS + 2  # those of the brokers' TCP publishers, of a subscriber, of a witness
_TCP_PUBLISHERS = range(2 * BROKERS, PUBLISHERS)  # a third of them, one at each broker
_TCP_SUBSCRIBER, _TCP_WITNESS = 1, 3
_LOSSY_SUBSCRIBER = 2

CALM = "calm"  # no fault: all must get on now
_CALM_EVERY = 40

# How often each kind of fault is chosen, of the sum; and the longest it lasts, in seconds.
FAULTS: dict[str, tuple[int, float]] = {
    "kill publisher": (14, 0.0),
    "kill subscriber": (7, 0.0),
    "kill broker": (5, 0.5),  # until it is started again
    "stop": (26, 0.5),
    "term publisher": (7, 0.0),
    "term subscriber": (4, 0.0),
    "term broker": (2, 0.3),
    "cut": (14, 0.0),
    "hold": (5, 0.4),
    "refuse": (3, 0.4),
    "full": (3, 0.4),
    "clock": (6, 0.0),
    "starve": (4, 0.5),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    number: int  # from 1; 0: calm
    at: float  # seconds since the first one, calms not counted
    kind: str
    whom: str  # a role, or a link; "" where nobody in particular is meant
    seconds: float = 0.0  # how long it lasts
    how: str = ""

    def __str__(self) -> str:
        lasts = f" for {self.seconds * 1e3:.0f} ms" if self.seconds else ""
        how = f" ({self.how})" if self.how else ""
        return f"{self.number:5} {self.at:8.3f} s  {self.kind} {self.whom}{how}{lasts}"


def broker_of(role: str) -> int:
    """The number of the broker that a role has to do with."""
    return int(role.split()[1]) % BROKERS


def link_of(role: str) -> int | None:
    """The link by which a role reaches its broker; None: shared memory."""
    kind, number = role.split()
    if kind == "publisher" and int(number) in _TCP_PUBLISHERS:
        return int(number) % BROKERS
    if kind == "subscriber" and int(number) == _TCP_SUBSCRIBER:
        return BROKERS
    if kind == "witness" and int(number) == _TCP_WITNESS:
        return BROKERS + 1
    return None


def mode_of(role: str) -> str:
    """How a subscriber subscribes."""
    return "lossy" if role == f"subscriber {_LOSSY_SUBSCRIBER}" else "reliable"


def broker_of_link(link: int) -> int:
    """The number of the broker behind a link."""
    return link if link < BROKERS else (_TCP_SUBSCRIBER, _TCP_WITNESS)[link - BROKERS]


def plan(seed: int, rate: float) -> Iterator[Fault]:
    """The faults of a seed, without an end; `rate`: how many a second on average."""
    chance = random.Random(seed)  # noqa: S311 - it is to be repeated
    kinds, weights = list(FAULTS), [weight for weight, _ in FAULTS.values()]
    at = 0.0
    for number in count(1):
        at += chance.expovariate(rate)
        [kind] = chance.choices(kinds, weights)
        longest = FAULTS[kind][1]
        # Mostly short ones: those end while others begin.
        seconds = round(longest * chance.random() ** 2, 4) if longest else 0.0
        yield Fault(number, round(at, 4), kind, _whom(kind, chance), seconds, _how(kind, chance))
        if number % _CALM_EVERY == 0:
            yield Fault(0, round(at, 4), CALM, "")


def _whom(kind: str, chance: random.Random) -> str:
    match kind:
        case "kill publisher" | "term publisher":
            return f"publisher {chance.randrange(PUBLISHERS)}"
        case "kill subscriber" | "term subscriber":
            return f"subscriber {chance.randrange(SUBSCRIBERS)}"
        case "kill broker" | "term broker":
            return f"broker {chance.randrange(BROKERS)}"
        case "cut" | "hold" | "refuse":
            return f"link {chance.randrange(LINKS)}"
        case "full":
            return ""
    everybody = [f"publisher {n}" for n in range(PUBLISHERS)]
    everybody += [f"{what} {n}" for what in ("broker", "subscriber", "witness") for n in range(4)]
    return chance.choice(everybody)


def _how(kind: str, chance: random.Random) -> str:
    """Of a cut: at once, or after so many bytes of the next connection; and who is told how."""
    if kind != "cut":
        return ""
    told = chance.choice(["reset", "closed", "client only"])
    if chance.random() < 0.5:
        return told
    direction = chance.choice(["up", "down"])
    return f"{told}, the next one after {chance.randrange(4000)} bytes {direction}"
