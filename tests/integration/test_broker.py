"""A broker can be stopped, interrupted and timed out, however busy its publishers keep it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

import embar_shm as es
from embar_shm.testing import wait_until


@pytest.fixture
def busy(make_broker: Callable[..., es.Broker]) -> Iterator[es.Broker]:
    """A broker whose two publishers commit tiny batches without a pause."""
    broker = make_broker()
    end = threading.Event()

    def publish() -> None:
        try:
            with es.Publisher.connect(broker.address, message_size=64, batch_size=64) as pub:
                while not end.is_set():
                    pub.publish(bytes(64))
        except es.BrokerGone:
            assert end.is_set()

    threads = [threading.Thread(target=publish) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: broker.stats().publishers == 2, "both publishers are connected")
    yield broker
    end.set()
    broker.close()
    for thread in threads:
        thread.join()


def later(condition: Callable[[], object], act: Callable[[], object]) -> threading.Thread:
    def run() -> None:
        wait_until(condition, "the broker works")
        act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_busy_broker_stops(busy: es.Broker) -> None:
    stopping = later(lambda: busy.stats().batches > 1000, busy.stop)
    busy.serve()
    stopping.join()
    assert busy.stats().batches > 1000


def test_a_busy_broker_is_interrupted_by_ctrl_c(busy: es.Broker) -> None:
    interrupting = later(
        lambda: busy.stats().batches > 1000, lambda: os.kill(os.getpid(), signal.SIGINT)
    )
    with pytest.raises(KeyboardInterrupt):
        busy.serve()
    interrupting.join()


def test_a_busy_broker_returns_at_its_timeout(busy: es.Broker) -> None:
    busy.serve(timeout=0.05)
    before = busy.stats().batches
    busy.serve(timeout=0.05)
    assert busy.stats().batches > before


def test_a_broker_accepts_what_was_committed_before_it_is_closed(
    make_broker: Callable[..., es.Broker],
) -> None:
    broker = make_broker()
    with es.Publisher.connect(broker.address) as pub:
        pub.publish(b"x")
        pub.flush()
        broker.close()
        assert broker.stats().messages == 1
        pub.wait_acked()  # it was accepted, although nobody serves any more
        with pytest.raises(es.BrokerGone, match="has stopped"):
            pub.publish(b"y")


def test_a_second_thread_cannot_serve_the_same_broker(
    make_broker: Callable[..., es.Broker],
) -> None:
    broker = make_broker().start()
    with es.Publisher.connect(broker.address) as pub:
        pub.publish(b"x")
        pub.wait_acked()  # so it serves
        with pytest.raises(es.MisuseError, match="another thread is serving"):
            broker.serve()
        with pytest.raises(es.MisuseError, match="was started already"):
            broker.start()
