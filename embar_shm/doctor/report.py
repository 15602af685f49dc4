"""The nouns: a rule looks at the machine and makes a finding; a check is a finding for a reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from embar_shm.doctor.limits import DefaultRun, Verdict
from embar_shm.doctor.machine import Machine

__all__ = [
    "SCHEMA",
    "VERDICTS",
    "Check",
    "Finding",
    "Group",
    "Report",
    "Rule",
    "Verdict",
    "about",
    "listing",
]

SCHEMA: Final = "embar-shm.doctor/1"

VERDICTS: Final[Mapping[Verdict, str]] = {
    "ok": "nothing to do",
    "note": "works; worth knowing before believing a number",
    "warning": "works, but costs speed or risks data",
    "problem": "the default run cannot work",
    "unknown": "could not be found out; the reason is given",
}
"""Every verdict and what it means."""

Group = Literal["Shared memory", "TCP sockets (for --transport tcp)", "Processors", "System"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found on one machine."""

    value: str
    verdict: Verdict
    detail: str = ""
    """A sentence on this machine's value, after the rule's general `why`."""
    fix: str | None = None
    """The command that changes it, to be pasted into a shell."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing to look at. `look` may raise `Unreadable`, OSError or ValueError: "unknown"."""

    name: str
    group: Group
    why: str
    """Why it matters, for somebody who has never seen this project."""
    look: Callable[[Machine, DefaultRun], Finding]


@dataclass(frozen=True, slots=True)
class Check:
    """A rule and its finding: one line of the report."""

    name: str
    group: Group
    value: str
    verdict: Verdict
    why: str
    fix: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of one machine, for one batch size."""

    run: DefaultRun
    checks: tuple[Check, ...]

    @property
    def summary(self) -> dict[Verdict, int]:
        """How many checks have which verdict; every verdict is there."""
        return {
            verdict: sum(check.verdict == verdict for check in self.checks) for verdict in VERDICTS
        }

    @property
    def default_run_possible(self) -> bool:
        """Is there no "problem"?"""
        return self.summary["problem"] == 0

    def as_json(self) -> dict[str, Any]:
        """Schema "embar-shm.doctor/1"; sizes in bytes."""
        return {
            "schema": SCHEMA,
            "run": {
                "brokers": self.run.brokers,
                "publishers": self.run.publishers,
                "slots": self.run.slots,
                "batch_bytes": self.run.batch_bytes,
                "rings_bytes": self.run.rings_bytes,
            },
            "checks": [
                {
                    "name": check.name,
                    "group": check.group,
                    "value": check.value,
                    "verdict": check.verdict,
                    "why": check.why,
                    "fix": check.fix,
                }
                for check in self.checks
            ],
            "summary": {**self.summary, "default_run_possible": self.default_run_possible},
        }


def about(size: float) -> str:
    """A size rounded for people: "23.5 GiB", "64.3 MiB", "512 B"."""
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}".replace(".0 ", " ")
    return f"{size:.0f} B"


def listing(items: list[str], shown: int = 5) -> str:
    """The first items, and how many more there are."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more
