"""A machine of its own for a reader of the documents: /dev/shm and network of nobody else.

So that what the documents show runs as it stands, with its ring names, ports and addresses, next to
other tests and other readers. Namespaces end with the process that keeps them: nothing has to be
removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from doc_blocks import ROOT

__all__ = ["Program", "Sandbox", "sandbox"]

ADDRESS = "192.0.2.1"  # of the machine; the documents use it (RFC 5737)
_SETUP = (
    "mount -t tmpfs -o size=1g tmpfs /dev/shm && ip link set lo up && "
    f"ip address add {ADDRESS}/32 dev lo && echo there && exec cat"
)
# What takes minutes is done with less to send and fewer processes: by beginning of the command.
_LESS = {
    "*--connect": "--total 24MiB",
    "run": "--total 24MiB --brokers 1 --publishers-per-broker 2",
    "compare": "--total 24MiB --brokers 1 --publishers-per-broker 1 --repeat 1",
}


class Program:
    """A block that was started. What it prints goes to a file, as to a terminal: both streams."""

    def __init__(self, command: list[str], output: Path, environ: dict[str, str]) -> None:
        self._output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environ,
                start_new_session=True,  # as a terminal does: Ctrl-C is for the whole group
            )

    @property
    def output(self) -> str:
        """What it printed so far."""
        return self._output.read_text()

    def signal(self, number: int) -> None:
        """To the program and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def wait(self, timeout: float) -> int:
        """The exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {timeout:g} s:\n{self.output}") from None


class Sandbox:
    """Runs programs in `folder`, where `python` and `embar-shm` are those of this test run."""

    def __init__(self, enter: list[str], folder: Path, outputs: Path) -> None:
        self._enter = enter
        self._outputs = outputs
        self.folder = folder
        self._started: list[Program] = []

    def start(self, *command: str) -> Program:
        """Starts a command."""
        output = self._outputs / f"{len(self._started)}.txt"
        inside = [*self._enter, "env", "-C", str(self.folder), *command]
        program = Program(inside, output, self._environ())
        self._started.append(program)
        return program

    def rings(self) -> list[str]:
        """What is in /dev/shm."""
        listed = self.start("ls", "/dev/shm")
        assert listed.wait(30) == 0, listed.output
        return listed.output.split()

    def end(self) -> None:
        """Kills what still runs."""
        for program in self._started:
            program.signal(signal.SIGKILL)
            program.wait(30)

    def _environ(self) -> dict[str, str]:
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("EMBAR_", "PYTEST_"))}
        path = [str(self._outputs / "bin"), str(Path(sys.executable).parent), ours["PATH"]]
        return ours | {
            "PATH": os.pathsep.join(path),
            "HOME": str(self._outputs),
            "PYTHONUNBUFFERED": "1",  # a terminal shows each line at once
            "PYTHONWARNINGS": "error",
        }


@contextmanager
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    """Skips the test, with the reason, where no namespaces can be made."""
    missing = [tool for tool in ("unshare", "nsenter", "mount", "ip") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (util-linux, mount, iproute2)")
    flags = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    folder, outputs = tmp_path / "here", tmp_path / "outputs"
    folder.mkdir()
    (outputs / "bin").mkdir(parents=True)
    (folder / "tools").symlink_to(ROOT / "tools")
    _write_command(outputs / "bin" / "embar-shm")
    with subprocess.Popen(
        ["unshare", *flags, "--mount", "--net", "sh", "-c", _SETUP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as keeper:
        assert keeper.stdout is not None
        assert keeper.stderr is not None
        try:
            if keeper.stdout.readline() != b"there\n":
                pytest.skip(f"no namespaces can be made here: {keeper.stderr.read().decode()}")
            user = ["--user", "--preserve-credentials"] if flags else []
            enter = ["nsenter", f"--target={keeper.pid}", *user, "--mount", "--net", "--"]
            made = Sandbox(enter, folder, outputs)
            try:
                yield made
            finally:
                made.end()
        finally:
            keeper.kill()


def _write_command(path: Path) -> None:
    """`embar-shm` of this interpreter."""
    program = "from embar_shm.cli.main import main; main()"
    less = "".join(f'{beginning}*) set -- "$@" {flags};;\n' for beginning, flags in _LESS.items())
    path.write_text(
        f'#!/bin/sh\ncase "$*" in\n{less}esac\nexec {sys.executable} -P -c \'{program}\' "$@"\n'
    )
    path.chmod(0o755)
