"""A file, a pipe or a terminal, read in pieces as they come, until its end or a signal."""

from __future__ import annotations

import os
import select
import stat
import sys
from types import TracebackType
from typing import Self

from embar_shm.errors import ConfigurationError
from embar_shm.stopping import StopSignals

__all__ = ["Source"]


class Source:
    """A context manager. A signal ends it like the end of the input."""

    def __init__(self, path: str) -> None:
        """`path` "-" is stdin. Raises `ConfigurationError` for what cannot be read."""
        self.name = "stdin" if path == "-" else path
        self._owned = path != "-"
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if self._owned else _stdin()
            mode = os.fstat(self._fd).st_mode
        except OSError as error:
            raise ConfigurationError(
                f"{self.name} cannot be read: {error.strerror or error}"
            ) from error
        if stat.S_ISDIR(mode):
            self.close()
            raise ConfigurationError(f"{self.name} cannot be read: it is a directory")
        self._is_regular = stat.S_ISREG(mode)

    def size(self) -> int | None:
        """Bytes from here to the end of a regular file; None: nobody knows."""
        if not self._is_regular:
            return None
        return max(0, os.fstat(self._fd).st_size - os.lseek(self._fd, 0, os.SEEK_CUR))

    def read_into(self, space: memoryview, stop: StopSignals) -> int:
        """Fills some of `space`, or all of it; waits for input. 0: the end, or a signal.

        Raises `OSError`.
        """
        while self._wait(stop):
            try:
                return os.readv(self._fd, [space])
            except BlockingIOError:  # somebody else's pipe or terminal, in non-blocking mode
                continue
        return 0

    def close(self) -> None:
        """Idempotent; stdin stays open."""
        if self._owned and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _wait(self, stop: StopSignals) -> bool:
        """Waits until there is something to read, or its end; False: a signal came."""
        if not self._is_regular and stop.asked is None:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            poll.register(stop.fd, select.POLLIN)
            poll.poll()
        return stop.asked is None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _stdin() -> int:
    if sys.stdin is None:  # closed by whoever started us
        raise OSError("it is closed")
    return sys.stdin.fileno()
