"""The verdict's rules on crafted results."""

from __future__ import annotations

import json
import math
import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from verdict_cases import CASES, SHM, TCP, Case, changed, without

from embar_shm.bench import bounds
from embar_shm.bench.facts import LIMITS, Rule
from embar_shm.bench.verdict import RULES, Finding, verdict

DOCUMENTATION = (Path(__file__).parents[2] / "docs" / "verdict.md").read_text()
EVERY_RULE = [*RULES, bounds.UNKNOWN]


def finding_of(result: dict[str, Any], rule: str) -> Finding | None:
    found = [f for f in verdict(result)["findings"] if f["rule"] == rule]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rule_fires_for_its_crafted_result_and_only_then(case: Case) -> None:
    found = finding_of(case.result, case.rule)
    assert (found is not None) == case.fires
    if found is None:
        return
    for said in case.said:
        assert said in found["sentence"]
    for name, value in case.evidence.items():
        assert found["evidence"][name] == pytest.approx(value), name
    assert case.next in found["next"]


@pytest.mark.parametrize(
    ("case", "missing"),
    [pytest.param(case, path, id=f"{case}-{path}") for case in CASES for path in case.needs],
)
def test_a_rule_without_its_evidence_is_silent(case: Case, missing: str) -> None:
    assert finding_of(without(case.result, missing), case.rule) is None
    assert finding_of(changed(case.result, {missing: None}), case.rule) is None


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.name)
def test_every_rule_has_a_case_in_which_it_fires_and_one_in_which_not(rule: Rule) -> None:
    cases = [case for case in CASES if case.rule == rule.name]
    assert {case.fires for case in cases} == {True, False}
    assert any(case.fires and case.said and case.evidence and case.needs for case in cases)


@pytest.mark.parametrize("case", [case for case in CASES if case.fires], ids=str)
def test_no_finding_is_without_numbers_and_a_next_step(case: Case) -> None:
    for found in verdict(case.result)["findings"]:
        assert found["evidence"]
        assert all(math.isfinite(number) for number in found["evidence"].values())
        assert re.search(r"\d", found["sentence"]), "the evidence is printed"
        assert found["sentence"].endswith(".")
        assert found["next"]


def test_the_first_bound_is_the_answer_and_notes_are_never_one() -> None:
    several = {
        "system.publisher.cpu_seconds": 3.8,  # publishers are busy
        "stages.publisher.wait_space.mean_us": 400.0,
    }
    found = verdict(changed(SHM, several))
    assert found["bound"] == "publishers are busy"
    assert [f["rule"] for f in found["findings"] if f["kind"] == "bound"] == [
        "publishers are busy",
        "waiting for space",
    ]
    assert verdict(SHM)["bound"] is None
    assert [f["kind"] for f in verdict(SHM)["findings"]] == ["note"]


def test_at_the_ceiling_nothing_else_is_a_bound() -> None:
    full = {
        "ceilings.memory_copy": {"bytes_per_second": 4e9, "share": 1.0},
        "environment.cpus_available": 3,
    }
    found = verdict(changed(SHM, full))
    bound = [f["rule"] for f in found["findings"] if f["kind"] == "bound"]
    assert bound == [found["bound"]] == ["at the ceiling"]


@pytest.mark.parametrize("base", [SHM, TCP], ids=["shm", "tcp"])
def test_whatever_a_result_lacks_is_missing_in_the_verdict_and_no_exception(
    base: dict[str, Any],
) -> None:
    optional = ["ceilings", "stages", "system", "environment", "parameters"]
    optional += [f"parameters.{name}" for name in base["parameters"]]
    optional += [f"stages.{name}" for name in base["stages"]]
    optional += [f"system.{role}.{name}" for role, u in base["system"].items() for name in u]
    for path in optional:
        if path.endswith(".cpu_seconds"):  # there from the first version on
            continue
        json.dumps(verdict(without(base, path)), allow_nan=False)
        json.dumps(verdict(changed(base, {path: None})), allow_nan=False)
    bare = {"throughput": SHM["throughput"]}
    assert verdict(bare) == {
        "publisher": None,
        "broker": None,
        "connections": None,
        "bound": None,
        "findings": [],
    }


def test_zeros_are_no_exception() -> None:
    nothing = dict.fromkeys(SHM["throughput"], 0)
    for base in (SHM, TCP):
        json.dumps(verdict(base | {"throughput": nothing}), allow_nan=False)
        for name in nothing:
            json.dumps(verdict(changed(base, {f"throughput.{name}": 0})), allow_nan=False)
        for usage in ("broker", "publisher"):
            zero = {f"system.{usage}.{name}": 0 for name in base["system"][usage]}
            json.dumps(verdict(changed(base, zero)), allow_nan=False)
        empty = {name: dict.fromkeys(stage, 0) for name, stage in base["stages"].items()}
        assert verdict(base | {"stages": empty})["publisher"] is None


def test_the_documentation_has_every_rule_in_order_and_every_threshold() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (bound|note) \|", DOCUMENTATION, re.MULTILINE)
    bounds_then_unknown = [*bounds.RULES, bounds.UNKNOWN]
    notes = [rule for rule in RULES if rule.kind == "note"]
    assert rows == [(rule.name, rule.kind) for rule in chain(bounds_then_unknown, notes)]
    for name, limit in LIMITS.items():
        assert f"| {name} | {limit.value:g} | {limit.why} |" in DOCUMENTATION
