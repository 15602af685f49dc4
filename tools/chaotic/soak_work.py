"""What the processes of a soak do, hour after hour: the same at a steady rate."""

from __future__ import annotations

import itertools
import time
from typing import Any

import embar_shm as es
from chaotic.records import Kind, Writer
from chaotic.workers import PATIENCE, Spec, Stop, Work
from embar_shm import _core

__all__ = ["GEOMETRY", "MESSAGE", "WORK"]

GEOMETRY: dict[str, Any] = {"slots": 16, "slot_size": 65536, "max_publishers": 16}
MESSAGE = 256  # bytes
_PER_BATCH = 16
_LOOK = 0.05  # seconds a subscriber waits before it looks whether it should end
_VISITS = 0.25  # seconds between two visits


def _publisher(spec: Spec, out: Writer) -> None:
    """`number` messages a second, in batches of `_PER_BATCH`."""
    stop = Stop()
    publisher_id = int(spec.role.split()[1])
    period = int(_PER_BATCH / spec.number * 1e9)
    block = bytearray(MESSAGE * _PER_BATCH)
    options: dict[str, Any] = {"timeout": PATIENCE, "connect_timeout": PATIENCE}
    with es.Publisher.connect(
        spec.address, message_size=MESSAGE, publisher_id=publisher_id, in_flight=4, **options
    ) as publisher:
        out.tell(Kind.READY)
        due, published = time.monotonic_ns(), 0
        while not stop.asked:
            _core.stamp(block, MESSAGE, publisher_id, published + 1)
            publisher.publish_many(block)
            publisher.flush()
            published += _PER_BATCH
            due = max(due + period, time.monotonic_ns() - 10 * period)  # what was missed is missed
            _core.wait_until(due, 0.0)
        publisher.wait_acked()
        out.tell(Kind.ACKED, publisher_id, publisher.stats().accepted, published)
    out.tell(Kind.ENDED, text="done")


def _subscriber(spec: Spec, out: Writer) -> None:
    """Checks every message."""
    stop, verifier = Stop(), _core.Verifier()
    lossy = spec.role.endswith("lossy")
    with es.Subscriber.connect(
        spec.address,
        mode="lossy" if lossy else "reliable",
        start="earliest",
        name=spec.role,
        connect_timeout=PATIENCE,
    ) as subscriber:
        out.tell(Kind.READY)
        while True:
            try:
                batch = subscriber.next(timeout=_LOOK)
            except es.WaitTimeout:
                if stop.asked:  # and everything that was there is read
                    break
                continue
            with batch:
                if batch.publisher_id:  # not a visitor's
                    verifier.check(batch, MESSAGE, batch.publisher_id, batch.ticket, batch.gap > 0)
    found = verifier.counts
    if verifier.first is not None:
        out.tell(Kind.WRONG, text=f"{verifier.first}; in all {found}")
    out.tell(Kind.ACKED, 0, 0, found["messages"] + found["overrun"])
    out.tell(Kind.ENDED, text="done")


def _visitor(spec: Spec, out: Writer) -> None:
    """Comes, publishes, reads, and leaves, over and over: each time everything must be given back.

    `address`: of the brokers, with commas in between.
    """
    stop = Stop()
    addresses = spec.address.split(",")
    out.tell(Kind.READY)
    for number in itertools.count():
        if stop.asked:
            break
        address = addresses[number % len(addresses)]
        with (
            es.Subscriber.connect(address, name="visitor", timeout=PATIENCE) as subscriber,
            es.Publisher.connect(address, publisher_id=0, timeout=PATIENCE) as publisher,
        ):
            publisher.publish(b"a visit")
            publisher.wait_acked()
            while True:
                with subscriber.next() as batch:
                    if batch.publisher_id == 0:
                        break
        time.sleep(_VISITS)
    out.tell(Kind.ENDED, text="done")


def _broker(spec: Spec, out: Writer) -> None:
    with es.Broker.create(spec.address, **GEOMETRY) as broker:
        listener = broker.listen("tcp://127.0.0.1:0")
        out.tell(Kind.READY, int(listener.address.rpartition(":")[2]))
        broker.serve()


WORK: Work = {
    "publisher": _publisher,
    "subscriber": _subscriber,
    "visitor": _visitor,
    "broker": _broker,
}
