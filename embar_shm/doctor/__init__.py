"""What of this machine helps or hinders a run, and how to change it. Changes nothing itself.

Reading order: `report` names the nouns (rule, finding, check, report), `limits` has every threshold
in one table, `machine` is all that is read of the machine, `rules` lists the rules, and `sockets`,
`memory`, `shm`, `processors` and `system` hold them.
"""

from __future__ import annotations

from embar_shm.doctor.limits import DefaultRun
from embar_shm.doctor.machine import Machine, Unreadable
from embar_shm.doctor.report import SCHEMA, VERDICTS, Check, Finding, Report, Rule, Verdict
from embar_shm.doctor.rules import RULES, examine

__all__ = [
    "RULES",
    "SCHEMA",
    "VERDICTS",
    "Check",
    "DefaultRun",
    "Finding",
    "Machine",
    "Report",
    "Rule",
    "Unreadable",
    "Verdict",
    "examine",
]
