"""The tracer: `stepper.cpp`, compiled when it is needed, and what it has to know of a process."""

from __future__ import annotations

import ctypes
import enum
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from embar_shm import _core

__all__ = ["NEVER", "Outcome", "Ran", "Tracer", "Unavailable"]

_SOURCE = Path(__file__).with_name("stepper.cpp")
_FLAGS = ("-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
_MOST_STEPS = 2_000_000  # a minute
NEVER = 2**64 - 1  # a point that no operation comes to


class Unavailable(Exception):
    """Nothing can be stepped here; says why not."""


class Outcome(enum.Enum):
    """How a traced operation ended, in the numbers of `stepper.cpp`."""

    KILLED = 0
    FINISHED = 1
    DIED = 2
    REFUSED = 3
    ENDLESS = 4


class _Range(ctypes.Structure):
    _fields_ = (("begin", ctypes.c_uint64), ("end", ctypes.c_uint64))


class _Plan(ctypes.Structure):
    _fields_ = (
        ("native", ctypes.POINTER(_Range)),
        ("interpreter", ctypes.POINTER(_Range)),
        ("code", ctypes.POINTER(_Range)),
        ("natives", ctypes.c_int),
        ("interpreters", ctypes.c_int),
        ("codes", ctypes.c_int),
        ("instructions", ctypes.c_uint64),
        ("effects", ctypes.c_uint64),
        ("most_steps", ctypes.c_uint64),
        ("ring", ctypes.c_char_p),
    )


class _Report(ctypes.Structure):
    _fields_ = (
        ("instructions", ctypes.c_uint64),
        ("effects", ctypes.c_uint64),
        ("calls", ctypes.c_uint64),
        ("ip", ctypes.c_uint64),
        ("status", ctypes.c_int),
    )


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a traced operation."""

    outcome: Outcome
    instructions: int
    effects: int
    calls: int
    place: str
    """Of the instruction that was not executed any more: module and offset in its file."""
    status: int

    def why(self) -> str:
        """Of an operation that neither completed nor was killed by the tracer."""
        if self.outcome is Outcome.REFUSED:
            return f"ptrace refused: {os.strerror(self.status)}"
        if self.outcome is Outcome.ENDLESS:
            return f"it did not end within {_MOST_STEPS} instructions"
        if os.WIFEXITED(self.status):
            return f"it exited with code {os.WEXITSTATUS(self.status)}"
        number = os.WSTOPSIG(self.status) if os.WIFSTOPPED(self.status) else self.status & 0x7F
        return f"{signal.Signals(number).name} ended it at {self.place}"


class Tracer:
    """Steps processes that are forked from this one, whose mappings are the same.

    Use `Tracer.build`. One thread only: the one that forks.
    """

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library), use_errno=True)
        self._library.meet.restype = ctypes.c_bool
        self._mappings = _code_mappings()
        native = [m for m in self._mappings if m.path == str(Path(_core.__file__).resolve())]
        interpreter = [m for m in self._mappings if _is_interpreter(m.path)]
        if not native or not interpreter:
            raise Unavailable("the code of the native module or the interpreter is not mapped")
        self._native = _ranges(native)
        self._interpreter = _ranges(interpreter)
        self._code = _ranges([m for m in self._mappings if m.path != "[vsyscall]"])

    @classmethod
    @contextmanager
    def build(cls) -> Iterator[Tracer]:
        """Compiles the stepper, and tries it. Raises `Unavailable`."""
        if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
            raise Unavailable(
                f"{platform.machine()}: stepping breaks its atomics; x86-64 is needed"
            )
        compiler = shutil.which("g++")
        if compiler is None:
            raise Unavailable("no g++ on this machine")
        with tempfile.TemporaryDirectory(prefix="kill-everywhere-") as folder:
            library = Path(folder) / "stepper.so"
            subprocess.run([compiler, *_FLAGS, "-o", library, _SOURCE], check=True)
            tracer = cls(library)
            tracer._try()
            yield tracer

    def stand_by(self, first: bool) -> None:
        """In the process to be traced: stops until the tracer lets it go on."""
        if error := self._library.stand_by(int(first)):
            raise OSError(error, os.strerror(error))

    def meet(self, pid: int) -> int | None:
        """Waits until a child stands by; None. Its status for `waitpid`, if it ended instead."""
        status = ctypes.c_int()
        return None if self._library.meet(pid, ctypes.byref(status)) else status.value

    def run(
        self,
        pid: int,
        *,
        instructions: int = NEVER,
        effects: int = NEVER,
        ring: Path | None = None,
    ) -> Ran:
        """Lets a child that stands by go on, and kills it after so many instructions or effects.

        It is gone, with all its locks, when this returns `KILLED`; with another outcome it is the
        caller's to end. Without `ring`, the file whose bytes it changes, there are no effects.
        Blocks as long as the child does.
        """
        plan = _Plan(
            self._native,
            self._interpreter,
            self._code,
            len(self._native),
            len(self._interpreter),
            len(self._code),
            instructions,
            effects,
            _MOST_STEPS,
            None if ring is None else bytes(ring),
        )
        report = _Report()
        outcome = Outcome(self._library.run(pid, ctypes.byref(plan), ctypes.byref(report)))
        return Ran(
            outcome,
            report.instructions,
            report.effects,
            report.calls,
            self._place(report.ip),
            report.status,
        )

    def _place(self, ip: int) -> str:
        for mapping in self._mappings:
            if mapping.begin <= ip < mapping.end:
                offset = ip - mapping.begin + mapping.offset
                return f"{Path(mapping.path).name}+{offset:#x}"
        return f"{ip:#x}"

    def _try(self) -> None:
        """Is it permitted, and does it do what it should?"""
        pid = os.fork()
        if pid == 0:
            try:
                self.stand_by(first=True)
                _core.last_level_cache()
                self.stand_by(first=False)
            finally:
                os._exit(1)
        status = self.meet(pid)
        if status is not None:
            raise Unavailable("the kernel does not permit ptrace here")
        ran = self.run(pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if ran.outcome is not Outcome.FINISHED:
            raise Unavailable(f"a process cannot be stepped here: {ran.why()}")
        if ran.calls != 1 or ran.instructions == 0:
            raise Unavailable(f"stepping does not see native calls here: it saw {ran.calls}")


@dataclass(frozen=True, slots=True)
class _Mapping:
    begin: int
    end: int
    offset: int
    path: str


def _code_mappings() -> list[_Mapping]:
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, offset, _, _, *path = line.split(maxsplit=5)
        if "x" in access and path:
            begin, end = (int(number, 16) for number in span.split("-"))
            found.append(_Mapping(begin, end, int(offset, 16), path[0]))
    return found


def _is_interpreter(path: str) -> bool:
    return path == str(Path(sys.executable).resolve()) or Path(path).name.startswith("libpython")


def _ranges(mappings: list[_Mapping]) -> ctypes.Array[_Range]:
    return (_Range * len(mappings))(*(_Range(m.begin, m.end) for m in mappings))
