"""Shared memory: publishers write into the slots of the broker's ring, subscribers read there.

The address is the ring's name, "cluster/broker". The ring itself is what both connect to, so
listening needs nothing beyond `Broker.create`. Same machine only, and same user, or with
"cluster/broker?group=NAME" a member of that group (`embar_shm.access`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from embar_shm import _core, access
from embar_shm.address import RingAddress
from embar_shm.errors import BrokerRestarted, ConfigurationError
from embar_shm.participants import take_row, take_subscriber_row
from embar_shm.segment import Segment
from embar_shm.transports.base import (
    Listener,
    ListenOptions,
    Position,
    PublisherLink,
    PublisherOptions,
    SubscriberLink,
    SubscriberOptions,
    Transport,
)
from embar_shm.transports.reading import ReadingLink
from embar_shm.transports.ring import RingLink, batch_size_for

if TYPE_CHECKING:
    from embar_shm.broker import Broker

__all__ = ["ShmLink", "ShmSubscriberLink", "ShmTransport"]

_ADMISSION = 10.0  # seconds a broker gets to answer a subscriber that joins


class ShmTransport(Transport):
    """``shm://cluster/broker``."""

    scheme = "shm"

    def connect(self, address: str, options: PublisherOptions) -> PublisherLink:
        segment = _attach(address, options.connect_timeout)
        try:
            return ShmLink(segment, options)
        except BaseException:
            segment.close()
            raise

    def subscribe(
        self,
        address: str,
        options: SubscriberOptions,
        broker: _core.BrokerCore | None = None,
    ) -> SubscriberLink:
        """`broker`: the core of the ring's broker, if waiting for batches shall serve it."""
        segment = _attach(address, options.connect_timeout, read_only_slots=True)
        try:
            return ShmSubscriberLink(segment, options, broker)
        except BaseException:
            segment.close()
            raise

    def listen(
        self,
        broker: Broker,
        address: str | None = None,
        options: ListenOptions = ListenOptions(),  # noqa: ARG002, B008 - there is no network
    ) -> Listener:
        if address is not None and RingAddress.parse(address).ring != broker.segment.name:
            raise ConfigurationError(
                f"a ring cannot have a second name: {broker.name} cannot listen on shm://{address}"
            )
        return _RingListener(broker.address)


def _attach(address: str, timeout: float, *, read_only_slots: bool = False) -> Segment:
    where = RingAddress.parse(address)
    return Segment.attach(
        where.ring,
        timeout=timeout,
        read_only_slots=read_only_slots,
        group=access.group_id(where.group),
    )


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


class ShmSubscriberLink(ReadingLink):
    """A row of the ring's other table, held by its liveness lock, and a look at the slots."""

    def __init__(
        self, segment: Segment, options: SubscriberOptions, broker: _core.BrokerCore | None
    ) -> None:
        if isinstance(options.start, Position) and options.start.log != segment.log:
            raise BrokerRestarted(
                f"{options.start} is not of the log of {segment.name}, which is {segment.log}: the "
                "broker was started anew",
                "begin at 'earliest'",
            )
        super().__init__(
            segment,
            options,
            log=segment.log,
            memory=segment.memory,
            slots=segment.slots,
            row=take_subscriber_row(segment),
            lock_fd=segment.lock_fd,
            on_left=segment.close,
            broker=broker,
        )
        self._segment = segment
        self._serves = broker is not None
        try:
            self._core.join(max(_ADMISSION, options.connect_timeout))
        except BaseException:
            self._core.close()
            raise

    def close(self) -> None:
        super().close()
        if self._serves:
            self._core.settle()  # now it does not any more

    def after_fork_in_child(self) -> None:
        super().after_fork_in_child()
        self._segment.after_fork_in_child()
