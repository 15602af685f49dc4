"""A broker that listens on TCP, to be looked at while tests do things to it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from wire import Peer

import embar_shm as es
from embar_shm.testing import wait_until
from embar_shm.transports.tcp_listener import Limits, TcpListener

__all__ = ["FORGETFUL", "Listening", "serving"]

# A publisher that is gone is forgotten at once, so that a test can see that it is.
FORGETFUL = Limits(forget_after=0.01, housekeeping=0.01)


@dataclass(frozen=True)
class Listening:
    """A broker, and its listener."""

    broker: es.Broker
    listener: TcpListener

    @property
    def address(self) -> str:
        return self.listener.address

    def peer(self) -> Peer:
        """A connection that says nothing by itself."""
        return Peer.connect(self.address)

    def held_slots(self) -> int:
        return sum(owner >= 0 for _, owner, *_ in self.broker.segment.monitor().slots())

    def check_that_it_serves(self, **options: Any) -> None:
        """A publisher that behaves gets its batch into the log."""
        before = self.broker.stats().batches
        with es.Publisher.connect(self.address, **options) as publisher:
            publisher.publish(b"served")
            publisher.wait_acked()
        assert self.broker.stats().batches > before

    def wait_until_idle(self) -> None:
        """Nobody is connected: all slots and rows must become free, and threads end."""
        stats = self.broker.stats
        wait_until(lambda: self.held_slots() == 0, f"{self.held_slots()} slots become free")
        wait_until(lambda: stats().publishers == 0, f"{stats().publishers} rows become free")
        wait_until(lambda: not serving(), f"{serving()} end")
        assert stats().in_flight == 0
        assert stats().corrupt == stats().out_of_order == stats().duplicated == 0

    @property
    def threads(self) -> list[str]:
        return serving()


def serving() -> list[str]:
    """The threads of connections: their names tell of the other side only."""
    found = [thread.name for thread in threading.enumerate()]
    return [name for name in found if name.startswith("serve ") or name in ("acks", "feed")]
