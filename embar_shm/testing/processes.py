"""Python programs in processes of their own, spoken to in lines, waited for with a deadline."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from embar_shm.testing.conditions import DEADLINE

__all__ = ["Child"]


class Child:
    """Runs `program` with `arguments` as ``sys.argv[1:]``; a context manager that kills it.

    It finds the modules that this process finds. `wrapper` is put before the interpreter's command.
    What it prints is read with `read` and `expect`, what it reads with `input()` comes from `tell`.
    """

    def __init__(self, program: str, *arguments: object, wrapper: Sequence[str] = ()) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe would fill up; see close()
        self._unread = b""
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            [
                *wrapper,
                sys.executable,
                "-u",
                "-P",
                "-c",
                textwrap.dedent(program),
                *map(str, arguments),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def errors(self) -> str:
        """What the program wrote to stderr so far."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def read(self, timeout: float = DEADLINE) -> str:
        """The next line the program prints, without its end.

        Raises `AssertionError` with the program's stderr when it ends, or prints nothing in time.
        """
        if self.process.stdout is None:
            raise AssertionError("the program's output is not a pipe")
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        while b"\n" not in self._unread:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise AssertionError(f"no line within {timeout:g} s; stderr: {self.errors}")
            some = os.read(self.process.stdout.fileno(), 65536)
            if not some:
                raise AssertionError(f"the program ended; stderr: {self.errors}")
            self._unread += some
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def expect(self, line: str) -> None:
        """Reads the next line, which must be this one."""
        found = self.read()
        if found != line:
            raise AssertionError(f"expected {line!r}, got {found!r}; stderr: {self.errors}")

    def tell(self, line: str = "") -> None:
        """Gives the program a line to read."""
        if self.process.stdin is None:
            raise AssertionError("the program's input is not a pipe")
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def wait(self, timeout: float = DEADLINE) -> int:
        """The exit code once the program has ended; -N if signal N ended it."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"the program still runs after {timeout:g} s; stderr: {self.errors}"
            ) from None

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        self.process.kill()
        self.wait()

    def close(self) -> None:
        """Kills the program, if it runs, and closes its pipes. Idempotent."""
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # a line nobody read
                    pipe.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
