"""Runs the command line as a user does: as a process, with its exit code and what it prints."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from embar_shm.address import existing_rings

__all__ = ["COMMAND", "SMALL", "Outcome", "embar_shm", "leftovers_of", "started"]

COMMAND = [sys.executable, "-c", "from embar_shm.cli.main import main; main()"]
# A run that takes a fraction of a second: 2 brokers, 4 publishers, 4000 messages.
SMALL = [
    *("--brokers", "2", "--publishers-per-broker", "2", "--message-size", "256"),
    *("--batch-size", "16KiB", "--total-bytes", "1000KiB", "--no-ceiling"),
]
_TIMEOUT = 60.0


class Outcome:
    """A command that has ended."""

    def __init__(self, pid: int, code: int, stdout: str, stderr: str) -> None:
        self.pid, self.code, self.stdout, self.stderr = pid, code, stdout, stderr


def clean_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Ours without EMBAR_* variables, which would configure the run."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("EMBAR_")}
    return ours | (extra or {})


@contextmanager
def started(
    *arguments: str,
    environ: dict[str, str] | None = None,
    command: Sequence[str] = COMMAND,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """The command, running. Killed with its children at the end of the block, if need be."""
    process = subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(environ),
        cwd=cwd,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def embar_shm(
    *arguments: str,
    environ: dict[str, str] | None = None,
    command: Sequence[str] = COMMAND,
    cwd: Path | None = None,
) -> Outcome:
    """Runs the command to its end."""
    with started(*arguments, environ=environ, command=command, cwd=cwd) as process:
        stdout, stderr = process.communicate(timeout=_TIMEOUT)
    return Outcome(process.pid, process.returncode, stdout, stderr)


def leftovers_of(pid: int) -> list[str]:
    """Rings and worker processes of a run with this process id."""
    rings = [f"ring {ring}" for ring in existing_rings() if ring.cluster == f"run-{pid}"]
    workers = []
    for process in psutil.process_iter(["pid", "cmdline", "ppid"]):
        command = process.info["cmdline"] or []
        if "embar_shm.bench.worker" in command and process.info["ppid"] == pid:
            workers.append(f"process {process.info['pid']}")
    return rings + workers
