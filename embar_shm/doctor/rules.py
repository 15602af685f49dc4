"""The list of all rules, and the loop that applies them."""

from __future__ import annotations

from typing import Final

from embar_shm.doctor import memory, processors, shm, sockets, system
from embar_shm.doctor.limits import DefaultRun
from embar_shm.doctor.machine import Machine, Unreadable
from embar_shm.doctor.report import Check, Finding, Report, Rule

__all__ = ["RULES", "examine"]

RULES: Final[tuple[Rule, ...]] = (
    *shm.RULES,
    *memory.RULES,
    *sockets.RULES,
    *processors.RULES,
    *system.RULES,
)
"""In the order in which they are reported."""


def examine(machine: Machine, batch_bytes: int) -> Report:
    """Applies every rule to a machine, for the default run with batches of this many bytes.

    What cannot be read becomes a check "unknown", never an error. Raises `ConfigurationError` for
    a batch size that no ring can have.
    """
    run = DefaultRun.with_batches_of(batch_bytes)
    return Report(run, tuple(_apply(rule, machine, run) for rule in RULES))


def _apply(rule: Rule, machine: Machine, run: DefaultRun) -> Check:
    try:
        found = rule.look(machine, run)
    except (Unreadable, OSError, ValueError, ArithmeticError) as error:
        found = Finding("unknown", "unknown", f"Not found out: {error}.")
    why = f"{rule.why} {found.detail}".strip()
    return Check(rule.name, rule.group, found.value, found.verdict, why, found.fix)
