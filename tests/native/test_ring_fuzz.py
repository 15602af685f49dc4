"""Runs ring_fuzz.cpp for a moment. `tools/fuzz` runs it for as long as is wanted."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from sanitized import ENVIRONMENT, FLAGS, SANITIZERS

SOURCE = Path(__file__).with_name("ring_fuzz.cpp")
MUTATIONS = {"live": 100_000, "restart": 100_000, "threads": 10_000}
PATIENCE = 300  # for a compiler on a busy machine; the program gives up by itself before


def run(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    binary = tmp_path_factory.mktemp("native") / "ring_fuzz"
    flags = [*FLAGS, *SANITIZERS["addresses"], "-DEMBAR_FUZZING"]
    built = run([compiler, *flags, "-o", binary, SOURCE])
    if "cannot find -l" in built.stderr or "cannot find lib" in built.stderr:
        pytest.skip("g++ comes without its sanitizer of addresses")
    assert built.returncode == 0, built.stderr
    return binary


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize("mode", MUTATIONS)
def test_whatever_is_written_into_a_ring_its_users_end_with_an_error(
    program: Path, mode: str
) -> None:
    ran = run([program, mode, "1", str(MUTATIONS[mode])])
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Sanitizer" not in ran.stderr
    found = {line.split()[1] for line in ran.stdout.splitlines() if line.startswith("finding")}
    if mode != "threads":  # which word is noticed first depends on the moment there
        assert {
            "control.released",
            "control.tail",
            "publishers[].accepted_seq",
            "tickets[]",
        } <= found
