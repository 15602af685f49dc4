"""embar-shm: batches between processes at memory speed.

A broker owns a ring in shared memory, publishers write batches into it, subscribers read them:

    import embar_shm as es

    with es.Broker.create("demo/0").start() as broker:
        with es.Publisher.connect(broker.address) as pub:
            with es.Subscriber.connect(broker.address, start="earliest") as sub:
                pub.publish(b"hello")
                pub.flush()
                with sub.next() as batch:
                    print([bytes(message) for message in batch.messages()])
"""

from __future__ import annotations

from embar_shm._core import Batch
from embar_shm.broker import Broker, BrokerStats
from embar_shm.errors import (
    AccessDenied,
    BatchRefused,
    BrokerExists,
    BrokerGone,
    BrokerRestarted,
    BufferTypeError,
    CannotListen,
    ClosedError,
    ConfigurationError,
    ConnectionLost,
    CorruptBatch,
    CorruptSegment,
    EmbarError,
    EndOfLog,
    IncompatibleSegment,
    IntegrityError,
    MessageSizeError,
    MisuseError,
    NoSuchBroker,
    NotEnoughSpace,
    PeerError,
    PositionLost,
    ProtocolError,
    ResourceError,
    RunFailed,
    WaitTimeout,
)
from embar_shm.publisher import Publisher
from embar_shm.readers import SubscriberStatus
from embar_shm.subscriber import Subscriber
from embar_shm.takeover import Recovery
from embar_shm.transports.base import Position, PublisherStats, SubscriberStats

__all__ = [
    "AccessDenied",
    "Batch",
    "BatchRefused",
    "Broker",
    "BrokerExists",
    "BrokerGone",
    "BrokerRestarted",
    "BrokerStats",
    "BufferTypeError",
    "CannotListen",
    "ClosedError",
    "ConfigurationError",
    "ConnectionLost",
    "CorruptBatch",
    "CorruptSegment",
    "EmbarError",
    "EndOfLog",
    "IncompatibleSegment",
    "IntegrityError",
    "MessageSizeError",
    "MisuseError",
    "NoSuchBroker",
    "NotEnoughSpace",
    "PeerError",
    "Position",
    "PositionLost",
    "ProtocolError",
    "Publisher",
    "PublisherStats",
    "Recovery",
    "ResourceError",
    "RunFailed",
    "Subscriber",
    "SubscriberStats",
    "SubscriberStatus",
    "WaitTimeout",
]


def __getattr__(name: str) -> str:
    if name == "__version__":  # looked up when asked for: it reads the installed metadata
        from importlib.metadata import version

        return version("embar-shm")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
