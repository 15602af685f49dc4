"""What happens to open brokers, publishers and subscribers at fork, at exit and on SIGTERM.

- fork: the child's copies only raise; liveness and clean-up stay with the parent.
- exit of the interpreter: subscribers are closed, which could keep publishers waiting, then
  publishers (their last batch is committed), subscribers that serve a broker, and brokers (their
  segment is unlinked). A program that Ctrl-C ends does not wait for slow brokers there.
- SIGTERM, as long as a broker is open and the program has no handler of its own: ends
  `Broker.serve` in the main thread, which then returns; where the main thread is elsewhere, raises
  SystemExit(143) there, so that ``with`` blocks and exit handlers unlink. Only a main thread can
  install a handler: where all brokers are created in other threads, the program needs one.
- SIGTERM and SIGINT, whoever handles them, while a broker is created or closed: take effect when
  that is complete (`signals`). Only the wait for a thread that is in `Broker.serve` and does not
  come back is ended by a second one; the segment is unlinked all the same.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import traceback
import weakref
from contextlib import suppress
from types import FrameType
from typing import Any, ClassVar, Protocol

from embar_shm import signals

__all__ = ["Participant", "register_broker", "register_client", "unregister_broker"]


class Participant(Protocol):
    """An open broker, publisher or subscriber."""

    def close(self) -> None:
        """Gives everything back; may be called twice."""

    def after_fork_in_child(self) -> None:
        """Makes this copy of the object unusable."""


class _Client(Participant, Protocol):
    closes_at_exit: ClassVar[int]
    """Those with lower numbers come first."""

    def hurry(self) -> None:
        """close(), which follows, shall wait for nobody long."""


class _Broker(Participant, Protocol):
    def interrupt_serve(self) -> bool:
        """Ends serve() if the main thread is in it; False if it is not."""


_clients: weakref.WeakSet[_Client] = weakref.WeakSet()
_brokers: weakref.WeakSet[_Broker] = weakref.WeakSet()


def register_client(client: _Client) -> None:
    """Includes a publisher or subscriber in the rules above, while it is referenced."""
    _clients.add(client)


def register_broker(broker: _Broker) -> None:
    """Includes a broker in the rules above, until `unregister_broker`."""
    _brokers.add(broker)
    if (
        threading.current_thread() is threading.main_thread()
        and signals.handler_of(signal.SIGTERM) is signal.SIG_DFL
    ):
        signals.install(signal.SIGTERM, _on_sigterm)


def unregister_broker(broker: _Broker) -> None:
    """The broker is closed. The last one gives SIGTERM back."""
    _brokers.discard(broker)
    if (
        not _brokers
        and threading.current_thread() is threading.main_thread()
        and signals.handler_of(signal.SIGTERM) is _on_sigterm
    ):
        signals.install(signal.SIGTERM, signal.SIG_DFL)


def _on_sigterm(number: int, _frame: FrameType | None) -> Any:
    interrupted = [broker.interrupt_serve() for broker in list(_brokers)]
    if not any(interrupted):
        raise SystemExit(128 + number)


def _close_all() -> None:
    if getattr(sys, "last_type", None) is KeyboardInterrupt:  # the interpreter has printed it
        for client in list(_clients):
            client.hurry()
    with suppress(SystemExit), signals.deferred() as deferral:  # the program is ending already
        for client in sorted(_clients, key=lambda client: client.closes_at_exit):
            _clients.discard(client)  # one attempt: what it raises is told once
            try:
                with deferral.second_at_once():  # it may wait for a call of another thread
                    client.close()
            except BaseException:  # told on stderr; the others are closed all the same
                traceback.print_exc()
        for broker in list(_brokers):
            try:
                broker.close()
            except BaseException:
                traceback.print_exc()


def _after_fork_in_child() -> None:
    signals.forget()
    for participant in [*_clients, *_brokers]:
        participant.after_fork_in_child()
    _clients.clear()
    _brokers.clear()
    if signal.getsignal(signal.SIGTERM) is _on_sigterm:  # there is nothing to clean up here
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


# Twice, because a signal may arrive between two exit functions: its handler then runs, and raises,
# where the next one begins. The second call closes what the first did not come to.
atexit.register(_close_all)
atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork_in_child)
