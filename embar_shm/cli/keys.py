"""Single keys from a terminal, while a command shows something there."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from types import TracebackType
from typing import Any, Self

__all__ = ["Keys"]


class Keys:
    """A context manager: keys come at once and are not shown. Without a terminal there are none.

    Ctrl-C still is a signal. The terminal is as it was when the block is left, however it is left.
    """

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno() if sys.stdin.isatty() else -1
        self._before: list[Any] | None = None

    def wait(self, seconds: float) -> str:
        """The next key, or "" when there was none for so long. A terminal that is gone: "q"."""
        deadline = time.monotonic() + seconds
        if self._fd < 0:
            time.sleep(seconds)
            return ""
        if not select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return ""
        return os.read(self._fd, 1).decode("latin-1") or "q"

    def __enter__(self) -> Self:
        if self._fd >= 0:
            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._before is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
