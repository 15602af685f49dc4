"""SIGINT and SIGTERM as a wish: what is under way is brought to its end, and then the program ends.

Use it where Python's way, an exception between any two steps, would lose what a step had in hand.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["StopSignals"]


class StopSignals:
    """A context manager for the main thread. In its block the first signal only sets `asked`.

    The second one does what the first does elsewhere: KeyboardInterrupt, or SystemExit(143).
    """

    def __init__(self, on_ask: Callable[[], None] = lambda: None, *, patient: bool = False) -> None:
        """`on_ask` is called by the signal handler, once: it ends what cannot watch `fd`.

        `patient`: the second signal, and each after it, does nothing.
        """
        self.asked: int | None = None
        """The number of the signal, once there was one."""
        self._on_ask = on_ask
        self._patient = patient
        self._before: dict[int, Any] = {}
        self._read_end = self._write_end = -1

    @property
    def fd(self) -> int:
        """Readable from the first signal on."""
        return self._read_end

    def wait(self, seconds: float) -> bool:
        """Sleeps so long; True, at once, when a signal came."""
        poll = select.poll()
        poll.register(self._read_end, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000))

    def take_effect(self) -> None:
        """Raises what the signal would have raised elsewhere; nothing when there was none."""
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        if self.asked is not None:
            raise SystemExit(128 + self.asked)

    def __enter__(self) -> Self:
        self._read_end, self._write_end = os.pipe()
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._write_end)
        os.close(self._read_end)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.asked is not None:
            if not self._patient:
                self.asked = number
                self.take_effect()
            return
        self.asked = number
        with suppress(OSError):  # the block is just being left
            os.write(self._write_end, b"\0")
        self._on_ask()
