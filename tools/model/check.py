#!/usr/bin/env python3
"""Checks the models of the protocol completely, and that every deliberate fault in them is found.

    tools/model/check.py                 the reduced configurations and all mutants, as the tests do
    tools/model/check.py --full          all configurations
    tools/model/check.py --trace NAME    how the mutant or configuration NAME breaks, step by step

Needs a C++ compiler (CXX, else g++). Exit code 0: every configuration holds, every mutant is caught
and breaks the property it should; 1: not so; 2: it could not be tried.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
MOST_STATES = 60_000_000  # about 9 GB; none of them comes near


@dataclass(frozen=True)
class Run:
    """One model in one configuration, as it is or with one mutant in it."""

    model: str
    configuration: str
    about: str = ""
    reduced: bool = True  # small enough to run always
    mutant: str = ""
    breaks: str = ""  # the property that the mutant must break; "": nothing may break


@dataclass(frozen=True)
class Outcome:
    """What was found. `states` is not the whole state space when a property broke."""

    states: int
    steps: int
    depth: int
    complete: bool
    property: str
    trace: tuple[str, ...]

    def verdict(self, run: Run) -> tuple[bool, str]:
        """Is it as it should be? And in words."""
        if not self.complete:
            return False, "NOT COMPLETE: too many states"
        if self.property == run.breaks:
            return True, f"caught: {self.property}" if run.mutant else "holds"
        if not run.mutant:
            return False, f"BROKEN: {self.property}"
        if not self.property:
            return False, "SURVIVED"
        return False, f"CAUGHT BY ANOTHER PROPERTY: {self.property}, not {run.breaks}"


class Checker:
    """The models, compiled."""

    def __init__(self, directory: Path) -> None:
        self._program = directory / "model"
        compiler = os.environ.get("CXX", "g++")
        options = ["-std=c++20", "-O2", "-o", str(self._program)]
        subprocess.run([compiler, *options, str(HERE / "main.cpp")], check=True)

    def runs(self) -> list[Run]:
        lines = self._ask("list").splitlines()
        return [Run(**json.loads(line)) for line in lines]

    def explore(self, run: Run) -> Outcome:
        answer = json.loads(
            self._ask("run", run.model, run.configuration, run.mutant, str(MOST_STATES))
        )
        return Outcome(**{**answer, "trace": tuple(answer["trace"])})

    def _ask(self, *arguments: str) -> str:
        program = [str(self._program), *arguments]
        return subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True).stdout


def check_all(checker: Checker, full: bool) -> Iterator[tuple[Run, Outcome]]:
    """Explores one after the other; with `full` those configurations, too, that take long."""
    for run in checker.runs():
        if full or run.reduced:
            yield run, checker.explore(run)


def print_table(outcomes: Iterator[tuple[Run, Outcome]]) -> bool:
    """Prints each as soon as it is known. => is all as it should be?"""
    good, states, caught, faults = True, 0, 0, 0
    print(f"{'model':6} {'configuration, or mutant':58} {'states':>10} {'depth':>5}  result")
    for run, outcome in outcomes:
        right, words = outcome.verdict(run)
        name = f"  mutant: {run.mutant}" if run.mutant else run.configuration
        print(
            f"{run.model:6} {name:58} {outcome.states:10,} {outcome.depth:5}  {words}", flush=True
        )
        if not right and outcome.trace and not run.mutant:
            print("\n".join(f"         {step}" for step in outcome.trace))
        good &= right
        states += outcome.states
        faults += bool(run.mutant)
        caught += bool(run.mutant) and right
    print(f"\n{states:,} states; {caught} of {faults} mutants caught")
    return good


def print_trace(checker: Checker, name: str) -> int:
    for run in checker.runs():
        if name != (run.mutant or run.configuration):
            continue
        outcome = checker.explore(run)
        print(f"{run.model}, {run.configuration}: {outcome.verdict(run)[1]}")
        print("\n".join(f"  {step}" for step in outcome.trace))
        return 0
    print(f"there is no mutant and no configuration {name!r}", file=sys.stderr)
    return 2


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="all configurations")
    parser.add_argument("--trace", metavar="NAME", help="show how this mutant breaks what it does")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        try:
            checker = Checker(Path(directory))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"the models cannot be compiled: {error}", file=sys.stderr)
            return 2
        if options.trace is not None:
            return print_trace(checker, options.trace)
        return 0 if print_table(check_all(checker, options.full)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
