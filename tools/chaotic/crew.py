"""The processes of a chaos run: one life after another in each role, and what became of each."""

from __future__ import annotations

import fcntl
import os
import selectors
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from chaotic import workers
from chaotic.records import Reader, Record
from chaotic.workers import SIGNALS, Spec, Work
from embar_shm import _core

__all__ = ["Crew", "Life"]

_PIPE = 1 << 20  # bytes: nobody should wait for the conductor


@dataclass(slots=True)
class Life:
    """One process."""

    spec: Spec
    pid: int
    reader: Reader
    errors: IO[bytes]
    began: float = field(default_factory=time.monotonic)
    ready: bool = False
    killed: bool = False  # SIGKILL was sent
    asked: bool = False  # SIGTERM was sent
    code: int | None = None  # how it ended; None: it lives
    last: str = ""  # the text of its ENDED
    closings: int = 0  # of its broker, when it began

    @property
    def role(self) -> str:
        return self.spec.role

    @property
    def takes_part(self) -> bool:
        """Is it more than a means to inject a fault?"""
        return not self.role.startswith(("hog", "intruder"))

    @property
    def was_killed(self) -> bool:
        """Was SIGKILL its end?"""
        return self.killed and self.code == -signal.SIGKILL

    def kill(self) -> None:
        """SIGKILL."""
        self.killed = True
        self.signal(signal.SIGKILL)

    def ask(self) -> None:
        """SIGTERM."""
        self.asked = True
        self.signal(signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Its number is its own until `Crew` has taken its exit code."""
        if self.code is None:
            os.kill(self.pid, number)

    def said(self) -> str:
        """The end of what it wrote to stderr."""
        size = self.errors.seek(0, os.SEEK_END)
        self.errors.seek(max(0, size - 4000))
        return self.errors.read().decode(errors="replace")


class Crew:
    """Forks processes, hears them, and buries them."""

    def __init__(
        self,
        work: Work,
        on_record: Callable[[Life, Record], None],
        on_end: Callable[[Life], None],
    ) -> None:
        self._work = work
        self._on_record = on_record
        self._on_end = on_end
        self._selector = selectors.DefaultSelector()
        self._me = os.getpid()
        self.lives: dict[str, Life] = {}
        """Those that live, by role."""
        self.started = 0

    def start(self, spec: Spec) -> Life:
        """A new process in a role that nobody has."""
        ours, theirs = os.pipe()
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when it is buried
        # A signal that comes early must not meet the handlers of this process.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        pid = os.fork()
        if pid == 0:
            code = 6
            try:
                self._in_child(theirs, errors.fileno())
                code = workers.run(self._work, spec, theirs, errors.fileno())
            finally:
                os._exit(code)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.close(theirs)
        os.set_blocking(ours, False)
        with suppress(OSError):  # not permitted: the usual size does
            fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, _PIPE)
        life = Life(spec, pid, Reader(ours), errors)
        self.lives[spec.role] = life
        self._selector.register(ours, selectors.EVENT_READ, life)
        self.started += 1
        return life

    def hear(self, timeout: float) -> None:
        """Takes what is told within `timeout` seconds, or as soon as something is."""
        for key, _ in self._selector.select(max(0.0, timeout)):
            life: Life = key.data
            for record in life.reader.read():
                self._on_record(life, record)
            if life.reader.ended:
                self._bury(life)

    def end_all(self) -> None:
        """Kills all that are left, hearing nothing more."""
        for life in list(self.lives.values()):
            life.signal(signal.SIGKILL)
            self._bury(life, tell=False)

    def close(self) -> None:
        """Kills all that are left."""
        self.end_all()
        self._selector.close()

    def _bury(self, life: Life, tell: bool = True) -> None:
        _, status = os.waitpid(life.pid, 0)
        life.code = os.waitstatus_to_exitcode(status)
        self._selector.unregister(life.reader.fd)
        os.close(life.reader.fd)
        if self.lives.get(life.role) is life:
            del self.lives[life.role]
        if tell:
            self._on_end(life)
        life.errors.close()

    def _in_child(self, keep: int, errors: int) -> None:
        """Nothing of the conductor's, or of others, is open here."""
        _core.die_with_parent(self._me, signal.SIGKILL)
        self._selector.close()
        low = 3
        for fd in sorted((keep, errors)):
            os.closerange(low, fd)
            low = fd + 1
        os.closerange(low, _most_descriptors())


def _most_descriptors() -> int:
    return min(os.sysconf("SC_OPEN_MAX"), 1 << 16)
