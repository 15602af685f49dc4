"""How late messages were: ``latency`` of a result, from the histograms of its processes.

Every time counts from the moment a message was due, not from when it was sent: a publisher that
falls behind makes its messages late, and that is part of their latency.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypedDict

from embar_shm.bench.phases import Measured
from embar_shm.bench.stages import merged, percentile
from embar_shm.config.schema import RunConfig

__all__ = ["Latency", "Percentiles", "collect", "percentiles", "warnings"]

_ENOUGH: Final = 0.99  # of the rate; less was not reached


class Percentiles(TypedDict):
    """Nanoseconds; a percentile is its bucket's bound, at most 1/16 too high."""

    count: int
    mean_ns: float
    p50_ns: int
    p90_ns: int
    p99_ns: int
    p99_9_ns: int
    max_ns: int


class Latency(TypedDict):
    """See docs/result.md. What was not measured is None."""

    rate_asked: float
    rate_reached: float
    send_delay: Percentiles
    publish_to_ack: Percentiles | None
    publish_to_deliver: Percentiles | None


def collect(values: RunConfig, measured: Measured) -> Latency | None:
    """None: the run was not paced."""
    if not values.is_paced:
        return None
    of_publishers = [p["latency"] for p in measured.published]
    delivered = [s["delays"] for s in measured.read]
    return {
        "rate_asked": values.rate,
        "rate_reached": sum(one["reached"] for one in of_publishers),
        "send_delay": percentiles(one["sent"] for one in of_publishers),
        "publish_to_ack": percentiles(one["acked"] for one in of_publishers)
        if values.ack
        else None,
        "publish_to_deliver": percentiles(delivered) if delivered else None,
    }


def percentiles(histograms: Iterable[dict[str, Any]]) -> Percentiles:
    """Of several histograms together."""
    count, total, largest, buckets = merged(histograms)
    return {
        "count": count,
        "mean_ns": total / count if count else 0.0,
        "p50_ns": percentile(buckets, 0.50, largest),
        "p90_ns": percentile(buckets, 0.90, largest),
        "p99_ns": percentile(buckets, 0.99, largest),
        "p99_9_ns": percentile(buckets, 0.999, largest),
        "max_ns": largest,
    }


def warnings(latency: Latency | None) -> list[str]:
    """A rate that was not reached: then the latencies are those of a queue that grows."""
    if latency is None or latency["rate_reached"] >= latency["rate_asked"] * _ENOUGH:
        return []
    return [
        f"{latency['rate_reached']:,.0f} of {latency['rate_asked']:,.0f} messages/s were sent: "
        "messages waited for their publisher, and the latencies say how long; choose a lower rate"
    ]
