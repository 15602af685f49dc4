"""What the verdict's rules work with: thresholds, the numbers of a result, and their nouns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from embar_shm.bench import breakdown
from embar_shm.bench.usage import Usage, by_role

__all__ = ["CEILINGS", "LIMITS", "Facts", "Found", "Kind", "Limit", "Rule", "limit"]

Kind = Literal["bound", "note"]


@dataclass(frozen=True, slots=True)
class Limit:
    """A threshold, and why it is not another number."""

    value: float
    why: str


LIMITS: Final[Mapping[str, Limit]] = {
    "at the ceiling": Limit(
        0.9, "share of the ceiling; the ceiling's own measurements differ by up to a tenth"
    ),
    "CPUs full": Limit(
        0.9, "of the CPU time there was; the rest goes to the beginning and end of a run"
    ),
    "CPUs idle": Limit(
        0.5, "of the CPU time there was, at most; with less left over, turns are turns on the CPUs"
    ),
    "above the ceiling": Limit(
        1.1, "share of the ceiling; more than its measurements differ by on a quiet machine"
    ),
    "others": Limit(
        0.2, "of the CPU time there was; the kernel's timer ticks tell no less in a run of 0.1 s"
    ),
    "thread full": Limit(
        0.9, "of a thread's wall time, for the same reason; a queue in front of it never empties"
    ),
    "waiting": Limit(
        0.3,
        "of a publisher's time; with that wait gone a run would be 1.4 times as fast, more than "
        "runs on a noisy machine differ",
    ),
    "main part": Limit(0.5, "more than everything else together"),
    "at once": Limit(1.2, "connections; what one at a time moves, plus the medians' error"),
    "sent again": Limit(
        0.2,
        "retransmits per MB: 1 of 3,500 Ethernet segments, enough to keep a connection over 1 ms "
        "near 100 MB/s; loopback, which loses nothing, had 0.06 with 64 publishers on 2 CPUs",
    ),
    "sent again in all": Limit(10, "retransmits; fewer are single events of a short run"),
    "rounds": Limit(3, "rounds of a comparison; a spread needs so many, unless all is clear"),
    "same": Limit(0.1, "difference between two transports; as much as runs of one of them differ"),
    "grew": Limit(0.1, "of a batch's time over the slower transport; less does not explain it"),
}
"""Every threshold of the rules."""


def limit(name: str) -> float:
    """The value of a threshold."""
    return LIMITS[name].value


CEILINGS: Final[Mapping[str, str]] = {
    "memory_copy": "memory copy",
    "tcp_loopback": "raw loopback TCP",
}


class Facts:
    """The numbers of one result that rules ask for; None stands for "not in this result"."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        self.result = result
        self.throughput: Mapping[str, float] = result["throughput"]
        self.publisher = breakdown.publisher_side(result)
        self.broker = breakdown.broker_side(result)
        self.connections = breakdown.connections(result)
        self.ceiling = breakdown.ceiling(result)
        self.usages: dict[str, Usage] = by_role(result.get("system") or {})
        self.sockets: Mapping[str, float] = (result.get("system") or {}).get("sockets") or {}
        self.cpu_share = breakdown.cpu_share(result)
        self.others_share = breakdown.others_share(result)
        self.machine_share = breakdown.machine_share(result)
        self.kernel_share = self._share_in_kernel()

    def of(self, name: str) -> Any:
        """A parameter's value, or None."""
        return breakdown.parameter(self.result, name)

    def sum_of(self, part: Literal["cpu_seconds", "user_seconds", "kernel_seconds"]) -> float:
        """CPU time of the known roles together."""
        return sum(usage[part] for usage in self.usages.values())

    @property
    def cpus(self) -> float:
        return float((self.result.get("environment") or {}).get("cpus_available") or 0)

    @property
    def processes(self) -> int:
        return int(self.of("brokers") or 0) + int(self.of("publishers") or 0)

    @property
    def cpus_are_full(self) -> bool:
        """Is it known that no CPU time was left? Then waits are turns, whatever they wait for."""
        return self.cpus_used >= limit("CPUs full")

    @property
    def cpus_used(self) -> float:
        """The share of the CPU time that is known to be used, by this run or anything else."""
        run = (self.cpu_share or 0.0) + (self.others_share or 0.0)
        return max(run, self.machine_share or 0.0)

    @property
    def over_sockets(self) -> bool:
        return breakdown.has_ingest(self.result)

    @property
    def is_encrypted(self) -> bool:
        """Is a good part of sending and receiving not the kernel's, but TLS?"""
        return bool(self.of("tls_cert") or self.of("tls_ca"))

    @property
    def brokers_are_elsewhere(self) -> bool:
        """Were the brokers there already? Then they may run on another machine."""
        return self.of("connect") is not None

    def _share_in_kernel(self) -> float | None:
        # The roles' sums are there, or (an old result) they are not: never for one role only.
        if any(usage.get("kernel_seconds") is None for usage in self.usages.values()):
            return None
        return breakdown.ratio(self.sum_of("kernel_seconds"), self.sum_of("cpu_seconds"))


@dataclass(frozen=True, slots=True)
class Found:
    """What a rule answers: a sentence, the numbers it rests on, and what to try next."""

    sentence: str
    evidence: dict[str, float]
    next: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One possible answer. `look` gives None when it does not apply or cannot be known."""

    name: str
    kind: Kind
    look: Callable[[Facts], Found | None]
