"""Subscribers over TCP with tokens and TLS: who is let in, and that nothing else changes."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import Site
from listening import Listening

import embar_shm as es
from embar_shm import tls
from embar_shm.errors import AccessDenied, EndOfLog, ProtocolError
from embar_shm.testing import Cut, Proxy, wait_until
from embar_shm.transports.tcp_listener import Limits

Listen = Callable[..., Listening]


def publish(broker: Listening, numbers: range) -> None:
    with es.Publisher.connect(broker.broker.address, message_size=8, in_flight=4) as pub:
        for number in numbers:
            pub.publish(number.to_bytes(8, "little"))
            pub.flush()
        pub.wait_acked()


def take(sub: es.Subscriber) -> int:
    with sub.next() as batch:
        assert batch.ticket == int.from_bytes(batch.copy(), "little")
        return batch.ticket


def test_only_who_knows_the_token_may_subscribe(listen: Listen) -> None:
    broker = listen(token="secret")
    with pytest.raises(AccessDenied, match="asks for a token"):
        es.Subscriber.connect(broker.address)
    with pytest.raises(AccessDenied, match="token is wrong"):
        es.Subscriber.connect(broker.address, token="guess")
    with es.Subscriber.connect(broker.address, token="secret", timeout=30) as sub:
        publish(broker, range(1))
        assert take(sub) == 0


def test_batches_arrive_over_tls_through_a_cut_connection(listen: Listen, tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    own = site.issue("127.0.0.1")
    broker = listen(Limits(), tls=tls.server_context(own.certificate, own.key))
    rng = random.Random(1)  # noqa: S311 - a test is to be repeated
    cuts = [Cut("down", rng.randrange(20_000), rng.random() < 0.5) for _ in range(8)]
    with (
        Proxy(broker.address, cuts) as proxy,
        es.Subscriber.connect(
            proxy.address, tls=tls.client_context(site.ca), timeout=30, connect_timeout=30
        ) as sub,
    ):
        publishing = threading.Thread(target=publish, args=(broker, range(200)))
        publishing.start()
        assert [take(sub) for _ in range(200)] == list(range(200))
        publishing.join()
        assert proxy.cuts_made > 2


def test_a_slow_subscriber_over_tls_gets_everything_and_the_end(
    listen: Listen, tmp_path: Path
) -> None:
    site = Site(tmp_path / "site")
    own = site.issue("127.0.0.1")
    broker = listen(Limits(), tls=tls.server_context(own.certificate, own.key))
    broker.broker._listeners.append(broker.listener)
    with es.Subscriber.connect(
        broker.address, tls=tls.client_context(site.ca), timeout=30, in_flight=1
    ) as sub:
        publishing = threading.Thread(target=publish, args=(broker, range(30)))
        publishing.start()
        kept = [sub.next()]
        wait_until(lambda: broker.broker.stats().batches >= 4, "the publisher waits")
        kept.pop().release()
        assert [take(sub) for _ in range(29)] == list(range(1, 30))
        publishing.join()
        closing = threading.Thread(target=broker.broker.close)
        closing.start()
        with pytest.raises(EndOfLog):
            sub.next()
        closing.join()


def test_a_lossy_subscriber_over_tls_misses_what_it_must(listen: Listen, tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    own = site.issue("127.0.0.1")
    broker = listen(Limits(), tls=tls.server_context(own.certificate, own.key))
    with es.Subscriber.connect(
        broker.address, tls=tls.client_context(site.ca), timeout=30, mode="lossy"
    ) as sub:
        publish(broker, range(100))
        expected = 0
        while expected < 100:
            with sub.next() as batch:
                assert batch.ticket == expected + batch.gap
                assert int.from_bytes(batch.copy(), "little") == batch.ticket
                expected = batch.ticket + 1
        assert sub.stats().lost > 0


def test_tls_has_to_be_used_by_both_sides_or_neither(listen: Listen, tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    own = site.issue("127.0.0.1")
    encrypted = listen(tls=tls.server_context(own.certificate, own.key))
    with pytest.raises(ProtocolError, match="does not speak"):
        es.Subscriber.connect(encrypted.address)
    with pytest.raises(ProtocolError, match="does not speak TLS"):
        es.Subscriber.connect(listen().address, tls=tls.client_context(site.ca))
