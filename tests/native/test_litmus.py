"""The pairs of litmus_pairs.hpp: with real threads under ThreadSanitizer, and in the model.

The model (tools/weak_memory) tries every execution that C++ allows, so that what is not found
there cannot happen, on any machine; real threads run the same code as the compiler made it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
HEADERS = ROOT / "embar_shm" / "_native"
ROUNDS = 3_000
PATIENCE = 250  # of CPU it takes a tenth; others may want the machine, too
# Their states are many: tools/weak_memory/run has the time.
LARGE = {"give-back-wakes", "join-wakes", "held-back-told", "retained-given-up"}

# An order made weaker, and the pair that must find it.
MUTANTS = [
    # The batch is not released to the broker.
    ("ring.hpp:Ring::commit:update:1:relaxed", "commit-accept"),
    # The broker does not acquire it.
    ("ring.hpp:Ring::look:load:1:relaxed", "commit-accept"),
    # The commit is no longer ordered before the look at `sleeping`.
    ("ring.hpp:Ring::commit:update:1:acq_rel", "commit-wakes"),
    # No store-load order where the waiter falls asleep, and where the waker looks.
    ("waiting.hpp:sleep_unless:store:1:release", "sleep-wake"),
    ("waiting.hpp:wake_if_sleeping:load:1:acquire", "sleep-wake"),
    # The next owner writes before the broker has read.
    ("ring.hpp:Ring::release:store:3:relaxed", "release-claim"),
    ("ring.hpp:Ring::try_claim:update:1:relaxed", "release-claim"),
    # A lossy copy is not ordered against the slot's next owner.
    ("ring.hpp:Ring::try_claim:fence:1:relaxed", "lossy-copy"),
    ("subscriber.hpp:Subscriber::take:fence:1:relaxed", "lossy-copy"),
    # The slot is written again before the subscriber has read.
    ("subscriber.hpp:Subscriber::advance:store:1:relaxed", "cursor-release"),
    # A subscriber that left has not read to the end.
    ("subscriber.hpp:Subscriber::leave:store:1:relaxed", "leave-release"),
    # A row is freed before its owner's last writes.
    ("publisher_row.hpp:PublisherRow::leave:store:1:relaxed", "leave-reap"),
]


def compiler() -> str:
    found = shutil.which("g++")
    if found is None:
        pytest.skip("no g++ on this machine")
    return found


def run(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def built(binary: Path, source: Path, *flags: str) -> Path:
    command = [compiler(), "-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{HEADERS}", *flags]
    made = run([*command, "-o", binary, source])
    if "cannot find -l" in made.stderr or "cannot find lib" in made.stderr:
        pytest.skip("g++ comes without ThreadSanitizer")
    assert made.returncode == 0, made.stderr
    return binary


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = tmp_path_factory.mktemp("model") / "check"
    return built(binary, ROOT / "tools" / "weak_memory" / "check.cpp", "-O1")


@pytest.mark.timeout(2 * PATIENCE)
def test_real_threads_race_for_nothing_and_see_nothing_forbidden(tmp_path: Path) -> None:
    flags = ("-O1", "-g", "-pthread", "-fsanitize=thread", "-Wno-tsan")  # it knows no fences
    command = [str(built(tmp_path / "litmus", HERE / "litmus.cpp", *flags)), str(ROUNDS)]
    ran = run(command)
    if "unexpected memory mapping" in ran.stderr:
        ran = run(["setarch", "-R", *command])  # more bits of address randomisation than it knows
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.timeout(2 * PATIENCE)
def test_the_model_knows_what_is_allowed_and_what_is_not(model: Path) -> None:
    ran = run([model, "classics"])
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.timeout(2 * PATIENCE)
def test_nothing_forbidden_can_happen_in_the_model(model: Path) -> None:
    names = [line.split()[0] for line in run([model, "list"]).stdout.splitlines()]
    assert set(names) > LARGE
    ran = run([model, "pairs", *(n for n in names if n not in LARGE)])
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.timeout(2 * PATIENCE)
def test_an_order_that_is_made_weaker_is_found_in_the_model(model: Path) -> None:
    ran = run([model, "mutants", *(word for mutant in MUTANTS for word in mutant)])
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count(": found by ") == len(MUTANTS)
