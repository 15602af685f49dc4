"""The models of the protocol in tools/model hold, and find every deliberate fault.

A reduced set of configurations, about 10 s; `tools/model/check.py --full` runs all of them.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CHECK = Path(__file__).parents[2] / "tools" / "model" / "check.py"
# Faults that this project must be able to find, whatever else the models know.
REQUIRED = {
    "reap by timeout",
    "reap without looking at the tickets",
    "no fence in the waiter",
    "no fence in the waker",
    "free the slot before the entry is recycled",
    "free the slot without a new generation",
    "do not finish a release at restart",
}


def load_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("model_check", CHECK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["model_check"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


check = load_check()


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("needs a C++ compiler")
    yield check.Checker(tmp_path_factory.mktemp("model"))


def explain(run: Any, outcome: Any) -> str:
    steps = "\n".join(f"  {step}" for step in outcome.trace)
    return f"{run.model}, {run.configuration} {run.mutant}: {outcome.verdict(run)[1]}\n{steps}"


def test_the_protocol_holds_whoever_is_killed_at_whatever_step(checker: Any) -> None:
    runs = [run for run in checker.runs() if run.reduced and not run.mutant]
    assert {run.model for run in runs} == {"ring", "sleep", "space"}
    for run in runs:
        outcome = checker.explore(run)
        assert outcome.verdict(run)[0], explain(run, outcome)
        assert outcome.states > 10_000  # it did explore


def test_every_deliberate_fault_is_found_and_breaks_the_property_it_should(checker: Any) -> None:
    runs = [run for run in checker.runs() if run.mutant]
    assert {run.mutant for run in runs} >= REQUIRED
    outcomes = [(run, checker.explore(run)) for run in runs]
    assert not [explain(run, o) for run, o in outcomes if not o.verdict(run)[0]]


def test_a_fault_is_shown_step_by_step_from_the_beginning(checker: Any) -> None:
    run = next(run for run in checker.runs() if run.mutant == "reap by timeout")
    trace = checker.explore(run).trace
    assert "broker: has not heard of a publisher for long" in trace
    assert trace[-1] == "broker: frees a slot of the dead"  # who lives
