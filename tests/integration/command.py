"""Runs the command line as a user does: as a process, with its exit code and what it prints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from embar_shm.address import existing_rings

__all__ = [
    "COMMAND",
    "SMALL",
    "Outcome",
    "RunningBroker",
    "embar_shm",
    "leftovers_of",
    "running_broker",
    "started",
]

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


@dataclass(frozen=True)
class RunningBroker:
    """``embar-shm broker --json``, ready for publishers."""

    process: subprocess.Popen[str]
    addresses: list[str]

    @property
    def address(self) -> str:
        """The last one: what --listen was given, if it was."""
        return self.addresses[-1]

    def stop(self) -> dict[str, Any]:
        """Ends it as an operator does; its report."""
        self.process.send_signal(signal.SIGTERM)
        stdout, stderr = self.process.communicate(timeout=_TIMEOUT)
        assert self.process.returncode == 0, stderr
        report: dict[str, Any] = json.loads(stdout)
        return report


@contextmanager
def running_broker(
    name: str, *arguments: str, command: Sequence[str] = COMMAND
) -> Iterator[RunningBroker]:
    """A broker in a process of its own; ended with the block, if it was not before."""
    with started("broker", name, *arguments, "--json", command=command) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line, f"the broker did not start: {process.stderr.read()}"
        broker = RunningBroker(process, json.loads(line)["addresses"])
        try:
            yield broker
        finally:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=_TIMEOUT)


def leftovers_of(pid: int) -> list[str]:
    """Rings and worker processes of a run with this process id."""
    rings = [f"ring {ring}" for ring in existing_rings() if ring.cluster == f"run-{pid}"]
    workers = []
    for process in psutil.process_iter(["pid", "cmdline", "ppid"]):
        command = process.info["cmdline"] or []
        if "embar_shm.bench.worker" in command and process.info["ppid"] == pid:
            workers.append(f"process {process.info['pid']}")
    return rings + workers
