"""Type checkers read this file, nobody runs it: the types that programs which publish rely on."""

from __future__ import annotations

import array
import ssl
from typing import assert_type

import numpy as np

import embar_shm as es
from embar_shm.tls import client_context, server_context
from embar_shm.token import read_token
from embar_shm.transports.base import Listener


def publish(address: str) -> None:
    with es.Publisher.connect(address, message_size="1KiB", wait="block", timeout=None) as pub:
        assert_type(pub, es.Publisher)
        for message in (b"", bytearray(8), memoryview(b"m"), array.array("d", [1.0])):
            pub.publish(message)
        pub.publish(np.arange(8, dtype=np.float32))
        pub.publish_many(np.zeros((4, 8)))
        pub.publish_many(b"aabb", message_size=2)
        with pub.reserve(64) as view:
            assert_type(view, memoryview)
            view[:] = bytes(64)
            np.frombuffer(view, np.uint32)[:] = 7
        assert_type(pub.flush(), int)
        pub.wait_acked(timeout=5, seq=1)
        assert_type(pub.stats(), es.PublisherStats)


def serve() -> None:
    with es.Broker.create("demo/0", slots=16, slot_size="1MiB", wait="spin") as broker:
        assert_type(broker, es.Broker)
        assert_type(broker.start(), es.Broker)
        context = server_context("broker.pem", "broker.key", None)
        assert_type(context, ssl.SSLContext)
        listener = broker.listen("tcp://127.0.0.1:0", token=read_token("token"), tls=context)
        assert_type(listener, Listener)
        assert_type(listener.address, str)
        assert_type(broker.stats(), es.BrokerStats)
        assert_type(broker.stats().messages, int)


def errors() -> None:
    try:
        es.Publisher.connect("tcp://192.0.2.1:7400", tls=client_context("ca.pem"))
    except es.WaitTimeout as error:
        caught: TimeoutError = error
        print(caught)
    except es.EmbarError as error:
        assert_type(error.message, str)
        assert_type(error.hint, str)
        assert_type(error.exit_code, int)


def wrong(pub: es.Publisher, broker: es.Broker) -> None:
    """Each of these is an error that a checker has to find: an unused 'ignore' is one, too."""
    pub.publish("text")  # type: ignore[arg-type]
    pub.publish_many(b"aabb", "2")  # type: ignore[arg-type]
    es.Publisher.connect("shm://demo/0", wait="maybe")  # type: ignore[arg-type]
    es.Broker.create("demo/0", 16)  # type: ignore[call-arg]
    broker.publish(b"")  # type: ignore[attr-defined]
