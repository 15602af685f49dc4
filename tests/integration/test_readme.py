"""What the README shows, works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import COMMAND, clean_environment

from embar_shm.address import existing_rings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_embedding_example_runs_as_it_stands() -> None:
    (example,) = blocks("python")
    body = [line for line in example.splitlines() if line and not line.startswith("import")]
    assert len(body) <= 10, "a ten-line example"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "messages=1002" in done.stdout
    assert not [ring for ring in existing_rings() if ring.cluster == "demo"]


@pytest.mark.parametrize("line", blocks("sh")[-1].splitlines())
def test_the_commands_of_the_configuration_chapter_run(line: str, tmp_path: Path) -> None:
    command = line.partition("#")[0].strip()
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    shim = tmp_path / "embar-shm"
    shim.write_text(f"#!/bin/sh\nexec {COMMAND[0]} -c '{COMMAND[2]}' \"$@\"\n")
    shim.chmod(0o755)
    environ = clean_environment({"EMBAR_SHM": str(shim)})
    environ["PATH"] = f"{tmp_path}:{environ['PATH']}"
    if "run" in command or "compare" in command:  # the same commands, with less to send
        command = command.replace("--total 20GiB", "--total 200MiB")
        if "--total" not in command:
            command += " --total 200MiB"
    if "run_throughput" not in command:
        del environ["EMBAR_SHM"]  # the script's own; as a key of a run it would be a mistake
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr


def test_both_lines_that_newcomers_copy_are_marked_and_complete() -> None:
    for marker, end in [("main line", "embar-shm run --transport shm"), ("test line", "pytest")]:
        found = re.search(rf"<!-- {marker} -->\n```sh\n(.*)\n```", README)
        assert found
        line = found[1]
        assert line.startswith("python3 -m venv .venv && ")
        assert line.endswith(end)


def test_links_lead_to_files_of_the_repository() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
