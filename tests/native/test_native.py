"""Runs ring_stress.cpp under ThreadSanitizer, and under AddressSanitizer with UBSan.

The program has a deadline of its own and prints the ring's state when it gets no further.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from sanitized import ENVIRONMENT, FLAGS, SANITIZERS

HERE = Path(__file__).parent
SOURCE = HERE / "ring_stress.cpp"
SECONDS = {
    "publishers": 3,
    "linger": 2,
    "serve": 2,
    "readers": 3,
    "lossy": 3,
    "commit": 2,
    "waiting": 0,
    "eventcount": 2,
}
# The copy of a lossy subscriber is a sequence lock: it reads what may be written meanwhile,
# and finds out. ThreadSanitizer calls that what it is, a race; AddressSanitizer looks on.
RACES_BY_DESIGN = {("threads", "lossy")}
RUNS = [(s, m) for s in SANITIZERS for m in SECONDS if (s, m) not in RACES_BY_DESIGN]
PATIENCE = 100  # the program gives up by itself before


def run(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@pytest.fixture(scope="module")
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the program, built with one sanitizer."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    binary = tmp_path_factory.mktemp("native") / "ring_stress"
    built = run([compiler, *FLAGS, *SANITIZERS[request.param], "-o", binary, SOURCE])
    if "cannot find -l" in built.stderr or "cannot find lib" in built.stderr:
        pytest.skip(f"g++ comes without its sanitizer of {request.param}")
    assert built.returncode == 0, built.stderr
    command = [str(binary)]
    if "unexpected memory mapping" in run([*command, "eventcount", "0"]).stderr:
        command = ["setarch", "-R", *command]  # more bits of address randomisation than it knows
    return command


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize(("program", "mode"), RUNS, indirect=["program"])
def test_threads_on_a_tiny_ring_lose_nothing_and_race_for_nothing(
    program: list[str], mode: str
) -> None:
    ran = run([*program, mode, str(SECONDS[mode])])
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Sanitizer" not in ran.stderr
