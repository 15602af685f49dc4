"""embar-shm: batches between processes at memory speed.

A broker owns a ring in shared memory, publishers write batches into it:

    import embar_shm as es

    with es.Broker.create("demo/0").start() as broker:
        with es.Publisher.connect(broker.address) as pub:
            pub.publish(b"hello")
            pub.wait_acked()
"""

from __future__ import annotations

from embar_shm.broker import Broker, BrokerStats
from embar_shm.errors import (
    AccessDenied,
    BatchRefused,
    BrokerExists,
    BrokerGone,
    BufferTypeError,
    CannotListen,
    ClosedError,
    ConfigurationError,
    ConnectionLost,
    CorruptSegment,
    EmbarError,
    IncompatibleSegment,
    IntegrityError,
    MessageSizeError,
    MisuseError,
    NoSuchBroker,
    NotEnoughSpace,
    PeerError,
    ProtocolError,
    ResourceError,
    RunFailed,
    WaitTimeout,
)
from embar_shm.publisher import Publisher
from embar_shm.transports.base import PublisherStats

__all__ = [
    "AccessDenied",
    "BatchRefused",
    "Broker",
    "BrokerExists",
    "BrokerGone",
    "BrokerStats",
    "BufferTypeError",
    "CannotListen",
    "ClosedError",
    "ConfigurationError",
    "ConnectionLost",
    "CorruptSegment",
    "EmbarError",
    "IncompatibleSegment",
    "IntegrityError",
    "MessageSizeError",
    "MisuseError",
    "NoSuchBroker",
    "NotEnoughSpace",
    "PeerError",
    "ProtocolError",
    "Publisher",
    "PublisherStats",
    "ResourceError",
    "RunFailed",
    "WaitTimeout",
]


def __getattr__(name: str) -> str:
    if name == "__version__":  # looked up when asked for: it reads the installed metadata
        from importlib.metadata import version

        return version("embar-shm")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
