"""What a broker has done, and who is connected to it: the counters of its ring as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from embar_shm import _core
from embar_shm.readers import SubscriberStatus, subscribers

__all__ = ["BrokerStats"]


@dataclass(frozen=True, slots=True)
class BrokerStats:
    """Counters of one broker since it was created. Bytes are message bytes, without headers."""

    batches: int
    messages: int
    payload_bytes: int
    duplicated: int  # batches that were accepted before, and dropped
    out_of_order: int  # batches refused because one before them is missing
    corrupt: int  # batches refused because their header fails a check
    in_flight: int  # batches committed or accepted, whose slots are not free yet
    publishers: int  # rows in the participants table
    subscribers: tuple[SubscriberStatus, ...]  # who reads, how far, and who holds which slots
    reaped_publishers: int  # publishers that died without closing
    reaped_subscribers: int
    reaped_slots: int  # slots they owned, given back
    missed_wakeups: int  # sleeps that ran out although there was work: 0 unless somebody was killed

    @classmethod
    def of(cls, monitor: _core.Monitor) -> Self:
        """The counters now; costs the broker nothing."""
        c = monitor.control()
        return cls(
            batches=c["batches"],
            messages=c["messages"],
            payload_bytes=c["payload_bytes"],
            duplicated=c["duplicated"],
            out_of_order=c["out_of_order"],
            corrupt=c["corrupt"],
            in_flight=max(c["tail"], c["head"]) - c["released"],
            publishers=c["attached"],
            subscribers=subscribers(monitor),
            reaped_publishers=c["reaped_publishers"],
            reaped_subscribers=c["reaped_subscribers"],
            reaped_slots=c["reaped_slots"],
            missed_wakeups=c["missed_wakeups"],
        )
