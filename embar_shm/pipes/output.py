"""A file or a pipe that is written to in large pieces."""

from __future__ import annotations

import os
import select
import stat
import sys
from types import TracebackType
from typing import Self

from embar_shm.errors import ConfigurationError

__all__ = ["Output"]

_PIECE = 1024 * 1024  # bytes collected before they are written


class Output:
    """A context manager. What was not flushed when it closes is dropped: a pipe may be stuck."""

    def __init__(self, path: str) -> None:
        """`path` "-" is stdout; a file is emptied. Raises `ConfigurationError`."""
        self.name = "stdout" if path == "-" else path
        self._owned = path != "-"
        try:
            self._fd = _created(path) if self._owned else _stdout()
            mode = os.fstat(self._fd).st_mode
        except OSError as error:
            raise ConfigurationError(
                f"{self.name} cannot be written: {error.strerror or error}"
            ) from error
        self.is_pipe = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Takes the bytes; they need not stay. Blocks when they are written. Raises `OSError`."""
        self._size += len(data)
        if len(data) >= _PIECE:
            self._write_parts()
            self._write_all(data)
            self._size = 0
        else:
            self._parts.append(bytes(data))
            if self._size >= _PIECE:
                self.flush()

    def flush(self) -> None:
        """Writes everything it has taken. Blocks; raises `OSError`."""
        self._write_parts()
        self._size = 0

    def reader_is_gone(self) -> bool:
        """Of a pipe: would writing to it fail?"""
        if not self.is_pipe:
            return False
        poll = select.poll()
        poll.register(self._fd, 0)  # errors only, which need not be asked for
        return bool(poll.poll(0))

    def close(self) -> None:
        """Idempotent; stdout stays open."""
        self._parts.clear()
        if self._owned and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write_parts(self) -> None:
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._write_all(data)

    def _write_all(self, data: bytes | memoryview) -> None:
        with memoryview(data) as view:
            written = 0
            while written < len(view):
                try:
                    written += os.write(self._fd, view[written:])
                except BlockingIOError:  # somebody else's pipe or terminal, in non-blocking mode
                    poll = select.poll()
                    poll.register(self._fd, select.POLLOUT)
                    poll.poll()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _created(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)


def _stdout() -> int:
    if sys.stdout is None:  # closed by whoever started us
        raise OSError("it is closed")
    return sys.stdout.fileno()
