"""What happens to open brokers and publishers at fork, at exit and on SIGTERM.

- fork: the child's copies only raise; liveness and clean-up stay with the parent.
- exit of the interpreter: publishers are closed (their last batch is committed), then brokers
  (their segment is unlinked).
- SIGTERM, as long as a broker is open and the program has no handler of its own: ends
  `Broker.serve` in the main thread, which then returns; where the main thread is elsewhere, raises
  SystemExit(143) there, so that ``with`` blocks and exit handlers unlink. Only a main thread can
  install a handler: where all brokers are created in other threads, the program needs one.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

__all__ = [
    "Participant",
    "register_broker",
    "register_publisher",
    "signals_held",
    "unregister_broker",
]


class Participant(Protocol):
    """An open broker or publisher."""

    def close(self) -> None:
        """Gives everything back; may be called twice."""

    def after_fork_in_child(self) -> None:
        """Makes this copy of the object unusable."""


class _Broker(Participant, Protocol):
    def interrupt_serve(self) -> bool:
        """Ends serve() if the main thread is in it; False if it is not."""


_publishers: weakref.WeakSet[Participant] = weakref.WeakSet()
_brokers: weakref.WeakSet[_Broker] = weakref.WeakSet()


def register_publisher(publisher: Participant) -> None:
    """Includes a publisher in the rules above, for as long as it is referenced."""
    _publishers.add(publisher)


def register_broker(broker: _Broker) -> None:
    """Includes a broker in the rules above, until `unregister_broker`."""
    _brokers.add(broker)
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    ):
        signal.signal(signal.SIGTERM, _on_sigterm)


@contextmanager
def signals_held() -> Iterator[None]:
    """Holds SIGTERM and SIGINT back in this thread, so that nothing half made is left behind."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unregister_broker(broker: _Broker) -> None:
    """The broker is closed. The last one gives SIGTERM back."""
    _brokers.discard(broker)
    if (
        not _brokers
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is _on_sigterm
    ):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _on_sigterm(number: int, _frame: FrameType | None) -> Any:
    interrupted = [broker.interrupt_serve() for broker in list(_brokers)]
    if not any(interrupted):
        raise SystemExit(128 + number)


def _close_all() -> None:
    for participant in [*_publishers, *_brokers]:
        try:
            participant.close()
        except Exception:  # told on stderr; the others are closed all the same
            traceback.print_exc()


def _after_fork_in_child() -> None:
    for participant in [*_publishers, *_brokers]:
        participant.after_fork_in_child()
    _publishers.clear()
    _brokers.clear()
    if signal.getsignal(signal.SIGTERM) is _on_sigterm:  # there is nothing to clean up here
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork_in_child)
