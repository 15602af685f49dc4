"""The processes of a run: started together, watched together, and never left behind.

A `Fleet` is a context manager. However its block ends, every process is gone afterwards: first
they are told (their stdin closes, brokers then unlink their rings), then terminated, then killed.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, Self, cast

from embar_shm import errors
from embar_shm.errors import EmbarError, RunFailed

__all__ = ["Fleet", "Worker"]

_TICK = 0.1  # seconds between two calls of `on_tick`, if nobody wants another time
_GRACE = 5.0  # seconds a process gets to end by itself, and again after SIGTERM
_STDERR_SHOWN = 2000  # characters


class Worker:
    """One process, and the JSON lines to and from it."""

    def __init__(self, label: str, spec: dict[str, Any], fds: Sequence[int] = ()) -> None:
        self.label = label
        self.role: str = spec["role"]
        # A file, not a pipe: nobody has to read it while the process runs. Closed by dispose().
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._pending = b""
        self._inbox: list[dict[str, Any]] = []  # heard, and not asked for yet
        self._process = subprocess.Popen(
            # -P: the installed package, not a folder of the same name where the command runs
            [sys.executable, "-P", "-m", "embar_shm.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            process_group=0,  # Ctrl-C is for the coordinator
            pass_fds=fds,
        )
        self._stdin = cast(IO[bytes], self._process.stdin)
        self._stdout = cast(IO[bytes], self._process.stdout)
        self.tell(**spec, parent=os.getpid())

    def __str__(self) -> str:
        return f"{self.label} (pid {self._process.pid})"

    def fileno(self) -> int:
        """Readable when the process said something, or ended."""
        return self._stdout.fileno()

    def tell(self, **message: Any) -> None:
        """Sends one message."""
        try:
            self._stdin.write(json.dumps(message).encode() + b"\n")
            self._stdin.flush()
        except BrokenPipeError:
            raise self._death() from None

    def hear(self) -> None:
        """Reads what it has said, for `take`; raises when that is an error, or the end."""
        data = os.read(self.fileno(), 65536)
        if not data:
            raise self._death()
        *lines, self._pending = (self._pending + data).split(b"\n")
        for message in map(json.loads, lines):
            if message["event"] == "error":
                raise _error_of(self, message)
            self._inbox.append(message)

    def take(self, event: str) -> dict[str, Any] | None:
        """The oldest message of this kind that was heard and not taken; None: there is none."""
        for n, message in enumerate(self._inbox):
            if message["event"] == event:
                return self._inbox.pop(n)
        return None

    def close_stdin(self) -> None:
        """Tells the process to end."""
        with suppress(BrokenPipeError):  # it has ended already, and does not read the rest
            self._stdin.close()

    def end(self, deadline: float) -> bool:
        """Waits for its end until `deadline` (time.monotonic)."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def dispose(self) -> None:
        self._stdout.close()
        self._stderr.close()

    def _death(self) -> RunFailed:
        self.end(time.monotonic() + _GRACE)
        code = self._process.poll()
        how = (
            "closed its output"
            if code is None
            else f"was killed by signal {-code}"
            if code < 0
            else f"ended with exit code {code}"
        )
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip()[-_STDERR_SHOWN:]
        return RunFailed(
            f"{self} {how} in the middle of the run" + (f"; it said:\n{said}" if said else ""),
            "nothing was recorded; run again, or look for what killed it (dmesg, ulimit -a)",
        )


def _error_of(worker: Worker, message: dict[str, Any]) -> EmbarError:
    """The worker's error as if it had been raised here, with its name in front."""
    kind = getattr(errors, message["kind"], RunFailed)
    error: EmbarError = kind(f"{worker}: {message['message']}", message["hint"])
    return error


class Fleet:
    """All processes of a run."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []

    def start(self, label: str, spec: dict[str, Any], fds: Sequence[int] = ()) -> Worker:
        """Starts one. `fds`: files of ours that it has, too, under the same numbers."""
        worker = Worker(label, spec, fds)
        self._workers.append(worker)
        return worker

    def gather(
        self,
        workers: Iterable[Worker],
        event: str,
        deadline: Callable[[], float],
        on_tick: Callable[[], None] = lambda: None,
        tick: float = _TICK,
    ) -> list[dict[str, Any]]:
        """Waits until each of `workers` has sent `event`; what they sent, in the same order.

        Watches all processes of the fleet: the death or error of one that still is to answer, or
        was not asked, ends the wait. What else they say is kept. `on_tick` is called at
        least every `tick` seconds; `deadline` is asked each time (time.monotonic).
        """
        wanted = list(workers)
        answers: dict[Worker, dict[str, Any]] = {}

        def all_answered() -> bool:
            for worker in wanted:
                if worker not in answers and (message := worker.take(event)) is not None:
                    answers[worker] = message
            return len(answers) == len(wanted)

        def silent() -> str:
            missing = ", ".join(str(w) for w in wanted if w not in answers)
            return f"{event!r} from {missing}"

        # Who has answered may end.
        self._wait(all_answered, answers, silent, deadline, on_tick, tick)
        return [answers[worker] for worker in wanted]

    def wait(
        self,
        condition: Callable[[], bool],
        what: str,
        deadline: Callable[[], float],
        on_tick: Callable[[], None] = lambda: None,
        tick: float = _TICK,
    ) -> None:
        """Waits until `condition`, which is looked at every `tick` seconds.

        Watches all processes meanwhile, like `gather`, and keeps what they say for it.
        """
        self._wait(condition, (), lambda: what, deadline, on_tick, tick)

    def _wait(
        self,
        condition: Callable[[], bool],
        may_end: Container[Worker],
        what: Callable[[], str],
        deadline: Callable[[], float],
        on_tick: Callable[[], None],
        tick: float,
    ) -> None:
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker, selectors.EVENT_READ, worker)
            while not condition():
                for worker in [key.data for key in selector.get_map().values()]:
                    if worker in may_end:
                        selector.unregister(worker)
                for key, _ in selector.select(tick):
                    key.data.hear()
                on_tick()
                if time.monotonic() >= deadline():
                    raise RunFailed(
                        f"no progress while waiting for {what()}",
                        "look at these processes; --timeout sets how long a run may stand still",
                    )

    def kill(self, worker: Worker) -> None:
        """SIGKILL; its end is no failure. Returns when it is gone."""
        self._workers.remove(worker)
        worker.kill()
        worker.end(time.monotonic() + _GRACE)
        worker.dispose()

    def dismiss(self, workers: Iterable[Worker]) -> None:
        """Lets workers that have done their part end, and stops watching them."""
        leaving = list(workers)
        for worker in leaving:
            worker.close_stdin()
        self._workers = [worker for worker in self._workers if worker not in leaving]
        self._end(leaving)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.close_stdin()
            if kind is not None and worker.role != "broker":
                worker.terminate()  # it may work for long, and has nothing to put in order
        self._end(self._workers)

    def _end(self, workers: list[Worker]) -> None:
        left = self._still_running(workers)
        for worker in left:
            worker.terminate()
        left = self._still_running(left)
        for worker in left:
            worker.kill()
        self._still_running(left)
        for worker in workers:
            worker.dispose()

    @staticmethod
    def _still_running(workers: list[Worker]) -> list[Worker]:
        deadline = time.monotonic() + _GRACE
        return [worker for worker in workers if not worker.end(deadline)]
