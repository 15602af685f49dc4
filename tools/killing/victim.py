"""A forked process that does one thing, and does not survive it.

It is forked before its parent opens a ring, and gets there by turns: what it runs until `Cue.turn`,
then what the parent does in `Victim.turn`.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from embar_shm import _core
from killing.tracer import NEVER, Outcome, Ran, Tracer

__all__ = ["Cue", "Victim", "VictimFailed"]

_PATIENCE = 60  # seconds that a turn of either side may take


class VictimFailed(Exception):
    """The victim did not come to the instruction it was to be killed at; says why."""


class Cue:
    """The victim's end."""

    def __init__(self, tracer: Tracer, peer: socket.socket) -> None:
        self._tracer = tracer
        self._peer = peer

    def turn(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Lets the parent do its part, and waits until that is done.

        Does `meanwhile` until then, over and over.
        """
        self._peer.sendall(b".")
        if meanwhile is not None:
            while not select.select([self._peer], [], [], 0)[0]:
                meanwhile()
        if self._peer.recv(1) != b".":
            raise EOFError("the parent is gone")

    def ready(self) -> None:
        """What follows is what is interrupted."""
        self._tracer.stand_by(first=True)

    def done(self) -> None:
        """It is complete."""
        self._tracer.stand_by(first=False)


class Victim:
    """The parent's end. A context manager that leaves no process behind."""

    def __init__(self, tracer: Tracer, program: Callable[[Cue], None]) -> None:
        """Forks; `program` has to call `Cue.ready` and `Cue.done`."""
        self._tracer = tracer
        self._peer, theirs = socket.socketpair()
        self._peer.settimeout(_PATIENCE)
        theirs.settimeout(_PATIENCE)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _core.die_with_parent(parent, signal.SIGKILL)
            self._peer.close()
            _perform(program, Cue(tracer, theirs), theirs)
        theirs.close()
        self._gone = False

    def another(self, program: Callable[[Cue], None]) -> Victim:
        """One more, of the same tracer."""
        return Victim(self._tracer, program)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits until the victim calls `Cue.turn`; the block is the parent's part.

        Raises `VictimFailed`.
        """
        heard = self._peer.recv(1)
        if heard != b".":
            raise VictimFailed((heard + self._rest()).decode(errors="replace") or "it ended")
        yield
        self._peer.sendall(b".")

    def run(
        self,
        *,
        instructions: int = NEVER,
        effects: int = NEVER,
        ring: Path | None = None,
    ) -> Ran:
        """Its operation, up to the point where it is killed, or all of it; then it is killed, too.

        Raises `VictimFailed`.
        """
        status = self._tracer.meet(self.pid)
        if status is not None:
            self._gone = True
            raise VictimFailed(f"it ended with status {status:#x}: {self._last_words()}")
        ran = self._tracer.run(self.pid, instructions=instructions, effects=effects, ring=ring)
        self._gone = ran.outcome is Outcome.KILLED or (
            ran.outcome is Outcome.DIED and not os.WIFSTOPPED(ran.status)
        )
        self.close()
        if ran.outcome not in (Outcome.KILLED, Outcome.FINISHED):
            raise VictimFailed(f"{ran.why()}: {self._last_words()}")
        return ran

    def close(self) -> None:
        """It is gone, if it was not. Idempotent."""
        if self._gone:
            return
        self._gone = True
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        while os.WIFSTOPPED(os.waitpid(self.pid, 0)[1]):
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        self._peer.close()

    def _last_words(self) -> str:
        return self._rest().decode(errors="replace") or "it said nothing"

    def _rest(self) -> bytes:
        words = b""
        with suppress(TimeoutError):
            while more := self._peer.recv(65536):
                words += more
        return words


def _perform(program: Callable[[Cue], None], cue: Cue, peer: socket.socket) -> None:
    """Never returns: nothing of the parent's may be cleaned up here."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(2 * _PATIENCE)  # an operation that sleeps is an error, and would not end
        program(cue)
        peer.sendall(b"it went on after its operation")
    except BaseException:
        peer.sendall(traceback.format_exc().encode())
    finally:
        os._exit(1)
