"""Type checkers read this file, nobody runs it: the types that programs which read rely on."""

from __future__ import annotations

from typing import Any, Literal, assert_type

import numpy as np
from numpy.typing import NDArray

import embar_shm as es


def read(address: str) -> None:
    with es.Subscriber.connect(address, mode="lossy", start="earliest", timeout=1.5) as sub:
        assert_type(sub, es.Subscriber)
        assert_type(sub.mode, Literal["reliable", "lossy"])
        assert_type(sub.position, es.Position)
        assert_type(sub.position.ticket, int)
        assert_type(sub.next(), es.Batch)
        assert_type(sub.next(timeout=None), es.Batch)
        assert_type(sub.poll(), es.Batch | None)
        for batch in sub:
            assert_type(batch, es.Batch)
            batch.release()
        assert_type(sub.stats(), es.SubscriberStats)
        assert_type(sub.stats().lag, int)
        es.Subscriber.connect(address, start=sub.position)
        es.Subscriber.connect(address, start=7)


def use(batch: es.Batch) -> None:
    with batch as same:
        assert_type(same, es.Batch)
        for message in batch.messages():
            assert_type(message, memoryview)
        assert_type(memoryview(batch), memoryview)
        assert_type(batch.array(np.float32, shape=(-1, 4)), NDArray[Any])
        assert_type(np.frombuffer(memoryview(batch), np.uint8), NDArray[np.uint8])
        assert_type(batch.copy(), bytes)
        assert_type(batch.ticket + batch.count + batch.gap + batch.nbytes, int)
        assert_type(batch.released, bool)


def own_process() -> None:
    with es.Broker.create("demo/0", retain=4, max_subscribers=2) as broker:
        with broker.subscribe(mode="reliable", start="latest", timeout=1) as sub:
            assert_type(sub, es.Subscriber)
        for one in broker.stats().subscribers:
            assert_type(one, es.SubscriberStatus)
            assert_type(one.stalled_seconds, float)


def errors(sub: es.Subscriber) -> None:
    try:
        sub.next()
    except es.EndOfLog as error:
        ours: es.EmbarError = error
        print(ours.hint)
    except (es.BrokerGone, es.BrokerRestarted, es.PositionLost, es.CorruptBatch):
        pass


def wrong(sub: es.Subscriber, batch: es.Batch) -> None:
    """Each of these is an error that a checker has to find."""
    es.Subscriber.connect("shm://demo/0", mode="exactly once")  # type: ignore[arg-type]
    es.Subscriber.connect("shm://demo/0", start="yesterday")  # type: ignore[arg-type]
    sub.publish(b"")  # type: ignore[attr-defined]
    batch.ticket = 7  # type: ignore[misc]
