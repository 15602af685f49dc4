"""`embar-shm compare`, as its user sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
from command import SMALL, Outcome, embar_shm, leftovers_of, started

from embar_shm.testing import wait_until

FIRST, SECOND = "shm", "tcp"  # any two do

# Installed for these tests: a transport that can fail.

PIGEON = """
from embar_shm.errors import NoSuchBroker
from embar_shm.transports.shm import ShmTransport

class Pigeon(ShmTransport):
    scheme = "pigeon"

    def connect(self, address, options):
        if options.message_size == 13:
            raise NoSuchBroker("pigeons do not carry 13 bytes")
        return super().connect(address, options)

    def listen(self, broker, address=None, *options):
        listener = super().listen(broker, address, *options)
        listener._address = f"pigeon://{broker.name}"
        return listener
"""


@pytest.fixture
def pigeons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which pigeons are installed, too, for the command and its workers."""
    site = tmp_path_factory.mktemp("site")
    info = site / "carrier_pigeon-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier-pigeon\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[embar_shm.transports]\npigeon = carrier_pigeon:Pigeon\n"
    )
    (site / "carrier_pigeon.py").write_text(PIGEON)
    return {"PYTHONPATH": str(site)}


def compared(environ: dict[str, str], *arguments: str, **options: Any) -> Outcome:
    return embar_shm(
        *("compare", "--transports", f"{FIRST},{SECOND}", *SMALL, *arguments),
        environ=environ,
        **options,
    )


def test_both_transports_are_printed_side_by_side_with_verdicts_and_an_answer(
    pigeons: dict[str, str],
) -> None:
    done = compared(pigeons, "--repeat", "1")
    assert done.code == 0, done.stderr
    assert done.stderr == "", "progress is for terminals"
    for said in (
        f"{FIRST}, {SECOND}",
        "flag --transports",
        "publisher.buffer_write",
        "process switches per batch",
        f"Verdict on {FIRST}, round 1",
        f"Verdict on {SECOND}, round 1",
        "Is it the code or the transport?",
    ):
        assert said in done.stdout
    assert leftovers_of(done.pid) == []


def test_the_comparison_is_printed_and_written_with_all_results(
    pigeons: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "comparison.json"
    done = compared(pigeons, "--repeat", "3", "--json", "--output", str(output))
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    assert json.loads(output.read_text()) == found
    assert found["schema"] == "embar-shm.comparison/1"
    assert found["transports"] == [FIRST, SECOND]
    for name in (FIRST, SECOND):
        assert len(found["results"][name]) == 3
        for result in found["results"][name]:
            assert result["schema"] == "embar-shm.result/1"
            assert result["parameters"]["transport"]["value"] == name
            assert result["integrity"]["accepted"] == 4000
    # A B A B A B: within a second's precision nothing of a later round began earlier.
    turns = [found["results"][name][n]["started"] for n in range(3) for name in (FIRST, SECOND)]
    assert turns == sorted(turns)
    assert len(found["ratios"][0]["per_round"]) == 3
    assert found["verdict"][0]["rule"]


def test_a_transport_that_something_else_sets_has_no_effect_and_that_is_said(
    pigeons: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("transport: pigeon\n")
    done = compared(pigeons, "--repeat", "1", "--json", "--config", "mine.yaml", cwd=tmp_path)
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    assert "transport pigeon (mine.yaml:1) has no effect here" in found["warnings"][0]
    assert found["transports"] == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--transports", "shm"], "two or more different transports"),
        (["--transports", "shm,shm"], "two or more different transports"),
        (["--transports", "shm,quantum"], "there is no transport 'quantum'"),
        (["--transports", "shm,"], "there is no transport ''"),
        (["--transport", "shm"], "No such option"),
        (["--repeat", "0"], "--repeat"),
        (["--slots", "0"], "flag --slots: 0 is below the minimum 1"),
        (["--output", "/nowhere/at/all.json"], "'/nowhere/at' does not exist"),
    ],
)
def test_bad_usage_is_exit_code_2_and_nothing_runs(
    arguments: list[str], said: str, pigeons: dict[str, str]
) -> None:
    done = compared(pigeons, *arguments)
    assert done.code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "Verdict" not in done.stdout


def test_a_round_that_fails_fails_the_comparison_and_writes_nothing(
    pigeons: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "comparison.json"
    output.write_text("an older one")
    pair = ["--transports", "shm,pigeon"]  # the first run of the first round succeeds
    done = compared(pigeons, *pair, "--message-size", "13", "--output", str(output))
    assert done.code == 1
    assert "pigeons do not carry 13 bytes" in done.stderr
    assert "Verdict" not in done.stdout
    assert output.read_text() == "an older one"
    assert list(tmp_path.iterdir()) == [output]
    assert leftovers_of(done.pid) == []


def test_a_comparison_whose_process_is_killed_fails_and_writes_nothing(
    pigeons: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "comparison.json"
    long = ["--brokers", "1", "--publishers-per-broker", "1", "--total-bytes", "100TiB"]
    with started(
        *("compare", "--transports", f"{FIRST},{SECOND}", *long, "--no-ceiling"),
        *("--output", str(output)),
        environ=pigeons,
    ) as process:
        wait_until(lambda: len(psutil.Process(process.pid).children()) == 2, "workers are there")
        psutil.Process(process.pid).children()[0].kill()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "broker" in stderr
    assert "Traceback" not in stderr
    assert not output.exists()
    assert leftovers_of(process.pid) == []
