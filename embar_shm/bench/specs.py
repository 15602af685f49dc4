"""What each process of a run is told to be: its first line. `worker` reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from embar_shm.address import RingName
from embar_shm.bench.scenarios import SCENARIOS, consumed, stamped
from embar_shm.config.schema import OF_TCP, RunConfig
from embar_shm.layout import Geometry

__all__ = ["broker", "publishers", "shares", "subscribers"]


def broker(
    values: RunConfig, ring: RingName, geometry: Geometry, address: str | None = None
) -> dict[str, Any]:
    """`address`: of a broker that is gone, whose place it takes."""
    keeps = SCENARIOS[values.scenario].reads_afterwards or SCENARIOS[values.scenario].kills
    return {
        "role": "broker",
        "transport": values.transport,
        "ring": str(ring),
        "address": address,
        "slots": values.slots,
        "slot_size": values.effective_slot_size,
        "slot_stride": geometry.slot_stride,
        "message_size": values.message_size,
        "batch_size": values.batch_size,
        "in_flight": values.in_flight,
        "max_publishers": values.max_publishers,
        "retain": values.slots if keeps else 0,
        "wait": values.wait,
        "spin_us": values.spin_us,
        "scheduling": values.broker_scheduling,
        "sample_every": values.sample_every,
        **_of_tcp(values),
    }


def publishers(values: RunConfig, broker: int, geometry: Geometry) -> Iterator[dict[str, Any]]:
    """Those of one broker."""
    for row in range(values.publishers_per_broker):
        yield {
            "role": "publisher",
            "publisher_id": broker * values.publishers_per_broker + row,
            "row": row,
            "message_size": values.message_size,
            "batch_size": values.batch_size,
            "slots": geometry.slots,
            "slot_stride": geometry.slot_stride,
            "in_flight": values.in_flight,
            "ack": values.ack,
            "linger_ms": 0 if SCENARIOS[values.scenario].kills else values.linger_ms,
            "timeout": values.timeout,
            "wait": values.wait,
            "spin_us": values.spin_us,
            "copy": values.copy_mode,
            "sample_every": values.sample_every,
            "producer": values.producer,
            "messages_per_call": values.messages_per_call,
            "stamped": stamped(values),
            "rate": values.rate / values.publishers if values.is_paced else None,
            "publishers": values.publishers,
            "ceiling": values.ceiling,
            **_of_tcp(values),
            **_of_clients(values),
        }


def subscribers(values: RunConfig, broker: int) -> Iterator[dict[str, Any]]:
    """Those of one broker."""
    first = broker * values.publishers_per_broker
    for number in range(values.effective_subscribers_per_broker):
        yield {
            "role": "subscriber",
            "name": f"subscriber {number} of broker {broker}",
            "mode": values.subscribe_mode,
            # Of brokers elsewhere, what is there already is none of ours.
            "start": "latest" if values.addresses else "earliest",
            "consume": consumed(values),
            "verify": values.verify or SCENARIOS[values.scenario].kills,
            "paced": values.is_paced,
            "message_size": values.message_size,
            "expected": {
                first + row: shares(values)[first + row]
                for row in range(values.publishers_per_broker)
            },
            "timeout": values.timeout,
            "wait": values.wait,
            "spin_us": values.spin_us,
            **_of_tcp(values),
            **_of_clients(values),
        }


def shares(values: RunConfig) -> list[int]:
    """How many messages each publisher sends."""
    share, rest = divmod(values.total_messages, values.publishers)
    return [share + (number < rest) for number in range(values.publishers)]


def _of_tcp(values: RunConfig) -> dict[str, Any]:
    """What sockets are to be like; over shared memory nothing, and no file is looked at."""
    return {name: None if values.transport == "shm" else getattr(values, name) for name in OF_TCP}


def _of_clients(values: RunConfig) -> dict[str, None]:
    """Brokers of the run's own have the certificate, and ask nobody for one."""
    return {} if values.addresses else {"tls_cert": None, "tls_key": None}
