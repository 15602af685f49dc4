"""SIGTERM and SIGINT wait while something is done that must not stay half done.

Python runs signal handlers in the main thread, between any two steps of its code; what they raise
(KeyboardInterrupt, SystemExit) abandons those steps. Blocking the signal does not help: another
thread may take it, and the handler then runs in the main thread all the same. So while `deferred`
lasts, the handlers themselves are replaced by one that only remembers. At its end they are put
back, and those of the signals that arrived are called: that is when they take effect.

Other threads are never interrupted by a handler; for them `deferred` does nothing.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, TypeAlias

__all__ = ["Deferral", "deferred", "forget", "handler_of", "install"]

Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Deferral:
    """What arrived, and the handlers the program has installed. Use `deferred`."""

    def __init__(self) -> None:
        self.handlers: dict[int, Handler] = {}
        self._arrived: dict[int, tuple[Handler, FrameType | None]] = {}
        self._urgent = False
        self._over = False

    @contextmanager
    def second_at_once(self) -> Iterator[None]:
        """In this block the second signal of a kind is not held back: for a wait without end."""
        before, self._urgent = self._urgent, True
        try:
            yield
        finally:
            self._urgent = before

    def begin(self) -> None:
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler) or handler is signal.SIG_DFL:
                self.handlers[number] = handler
                signal.signal(number, self._on_signal)

    def end(self) -> None:
        """Puts the handlers back, then calls those of the signals that arrived."""
        self._over = True
        with ExitStack() as stack:  # all of it, whatever a handler raises
            for number, (handler, frame) in self._arrived.items():
                stack.callback(_take_effect, number, handler, frame)
            for number, handler in self.handlers.items():
                stack.callback(self._put_back, number, handler)

    def forget(self) -> None:
        """What arrived, arrived elsewhere."""
        self._arrived.clear()

    def _put_back(self, number: int, handler: Handler) -> None:
        if signal.getsignal(number) == self._on_signal:
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        handler = self.handlers[number]
        if self._over or (self._urgent and number in self._arrived):
            if not callable(handler):
                signal.signal(number, handler)
            _take_effect(number, handler, frame)
        else:
            self._arrived.setdefault(number, (handler, frame))


def _take_effect(number: int, handler: Handler, frame: FrameType | None) -> None:
    """`handler` is the one the signal would have met when it arrived."""
    if callable(handler):
        handler(number, frame)
    else:
        signal.raise_signal(number)  # the default action, or a handler installed meanwhile


_current: Deferral | None = None  # the main thread's


@contextmanager
def deferred() -> Iterator[Deferral]:
    """Holds SIGTERM and SIGINT back until the block ends; then raises what their handlers raise.

    Signals that are ignored, or handled outside Python, are left alone. Within another such block
    it is part of that one.
    """
    global _current
    if threading.current_thread() is not threading.main_thread():
        yield Deferral()
    elif _current is not None:
        yield _current
    else:
        deferral = Deferral()
        try:
            _current = deferral
            deferral.begin()
            yield deferral
        finally:
            _current = None
            deferral.end()


def handler_of(number: int) -> Handler:
    """The program's handler of a signal, also while it is held back."""
    if _current is not None and number in _current.handlers:
        return _current.handlers[number]
    return signal.getsignal(number)


def install(number: int, handler: Handler) -> None:
    """Makes it the program's handler of a signal. In the main thread only."""
    if _current is not None and number in _current.handlers:
        _current.handlers[number] = handler
    else:
        signal.signal(number, handler)


def forget() -> None:
    """In a forked child: the handlers are back, and the signals were the parent's."""
    global _current
    if _current is not None:
        deferral, _current = _current, None
        deferral.forget()
        deferral.end()
