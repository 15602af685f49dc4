"""Shared memory: a publisher writes its batches straight into the slots of the broker's ring.

The address is the ring's name, "cluster/broker". The ring itself is what publishers connect to, so
listening needs nothing beyond `Broker.create`. Same machine and user only.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from embar_shm.address import RingName
from embar_shm.errors import ConfigurationError
from embar_shm.participants import take_row
from embar_shm.segment import Segment
from embar_shm.transports.base import (
    Listener,
    ListenOptions,
    PublisherLink,
    PublisherOptions,
    Transport,
)
from embar_shm.transports.ring import RingLink, batch_size_for

if TYPE_CHECKING:
    from embar_shm.broker import Broker

__all__ = ["ShmLink", "ShmTransport"]


class ShmTransport(Transport):
    """``shm://cluster/broker``."""

    scheme = "shm"

    def connect(self, address: str, options: PublisherOptions) -> PublisherLink:
        name = RingName.parse(address)
        segment = Segment.attach(name, timeout=options.connect_timeout)
        try:
            return ShmLink(segment, options)
        except BaseException:
            segment.close()
            raise

    def listen(
        self,
        broker: Broker,
        address: str | None = None,
        options: ListenOptions = ListenOptions(),  # noqa: ARG002, B008 - there is no network
    ) -> Listener:
        if address is not None and RingName.parse(address) != broker.segment.name:
            raise ConfigurationError(
                f"a ring cannot have a second name: {broker.name} cannot listen on shm://{address}"
            )
        return _RingListener(broker.address)


class _RingListener(Listener):
    def __init__(self, address: str) -> None:
        self._address = address

    @property
    def address(self) -> str:
        return self._address

    def stop(self) -> None:
        """The ring goes with its broker: there is nothing in between to stop."""


class ShmLink(RingLink):
    """A row of the broker's ring, held by its liveness lock."""

    def __init__(self, segment: Segment, options: PublisherOptions) -> None:
        slots = segment.geometry.slots
        in_flight = min(2, slots) if options.in_flight is None else options.in_flight
        if in_flight > slots:
            raise ConfigurationError(
                f"in_flight {in_flight} is more than the {slots} slots of the broker {segment.name}"
            )
        super().__init__(
            segment,
            options,
            batch_size=batch_size_for(options, segment.geometry.slot_bytes, segment.name),
            in_flight=in_flight,
            row=take_row(segment),
            lock_fd=segment.lock_fd,
            incarnation=time.time_ns(),
        )
        self._segment = segment

    def close(self) -> None:
        if self.is_closed:
            return
        try:
            self._flush_before_close()
        finally:
            self._close_core()
            self._segment.close()

    def after_fork_in_child(self) -> None:
        self._core.after_fork_in_child()
        self._segment.after_fork_in_child()
