"""What bounds a run, in a few sentences with their numbers: rules over one result.

A rule of kind "bound" names what keeps a run from its ceiling; the first that fires, in the order
of `RULES`, is the verdict's `bound`. A rule of kind "note" adds what is worth knowing. A rule whose
evidence is missing stays silent, and no finding is without the numbers it rests on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypedDict

from embar_shm.bench import bounds, notes
from embar_shm.bench.breakdown import BrokerSide, Connections, PublisherSide
from embar_shm.bench.facts import Facts, Kind, Rule

__all__ = ["RULES", "Finding", "Verdict", "verdict"]

RULES: Final[tuple[Rule, ...]] = (*bounds.RULES, *notes.RULES)
"""In the order of precedence. `bounds.UNKNOWN` is asked when none of the bounds fired."""


class Finding(TypedDict):
    """What a rule found: a sentence, the numbers it rests on, and what to try next."""

    rule: str
    kind: Kind
    sentence: str
    evidence: dict[str, float]
    next: str


class Verdict(TypedDict):
    """See docs/result.md. A part that could not be worked out is None."""

    publisher: PublisherSide | None
    broker: BrokerSide | None
    connections: Connections | None
    bound: str | None
    findings: list[Finding]


def verdict(result: Mapping[str, Any]) -> Verdict:
    """The analysis of one result, from its JSON; what is missing there is missing here."""
    facts = Facts(result)
    found = _findings(bounds.RULES, facts)
    if any(finding["rule"] == bounds.AT_CEILING.name for finding in found):
        found = found[:1]  # nothing else keeps the run from there
    found = found or _findings([bounds.UNKNOWN], facts)
    bound = found[0]["rule"] if found else None
    return {
        "publisher": facts.publisher,
        "broker": facts.broker,
        "connections": facts.connections,
        "bound": bound,
        "findings": found + _findings(notes.RULES, facts),
    }


def _findings(rules: Iterable[Rule], facts: Facts) -> list[Finding]:
    answers = [(rule, rule.look(facts)) for rule in rules]
    return [
        {
            "rule": rule.name,
            "kind": rule.kind,
            "sentence": answer.sentence,
            "evidence": answer.evidence,
            "next": answer.next,
        }
        for rule, answer in answers
        if answer is not None
    ]
