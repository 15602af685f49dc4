"""Stage times of a run: the brokers' from the rings, the publishers' from themselves.

`broker.get_buffer` is the claim of a slot. Over shared memory the publisher claims it itself; the
stage keeps its name, because it is the same step of the same batch. `broker.receive` has samples
only where batches come from a network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from embar_shm import _core

__all__ = ["Stage", "collect", "merged", "percentile", "summarise"]

_OF_ROWS = ("get_buffer", "receive")  # the broker's steps that a publisher's row has


class Stage(TypedDict):
    """Times of one step in microseconds. `count` samples were taken."""

    count: int
    mean_us: float
    p50_us: float
    p99_us: float
    max_us: float


def collect(
    rings: Iterable[_core.Monitor], rows: int, publishers: Iterable[Mapping[str, dict[str, Any]]]
) -> dict[str, Stage]:
    """All stages of a run; each ring has its first `rows` publishers' rows in use.

    `publishers`: what `PublisherLink.stages` of each says.
    """
    recorded: dict[str, list[dict[str, Any]]] = {}
    for ring in rings:
        for stage, histogram in ring.broker_stages().items():
            recorded.setdefault(f"broker.{stage}", []).append(histogram)
        for row in range(rows):
            of_row = ring.publisher_stages(row)
            for stage in _OF_ROWS:
                recorded.setdefault(f"broker.{stage}", []).append(of_row[stage])
    for stages in publishers:
        for stage, histogram in stages.items():
            recorded.setdefault(f"publisher.{stage}", []).append(histogram)
    return {name: summarise(histograms) for name, histograms in sorted(recorded.items())}


def summarise(histograms: Iterable[dict[str, Any]]) -> Stage:
    """Merges histograms of nanoseconds; a percentile is its bucket's bound, at most 1/16 high."""
    count, total, largest, buckets = merged(histograms)
    return {
        "count": count,
        "mean_us": total / count / 1e3 if count else 0.0,
        "p50_us": percentile(buckets, 0.50, largest) / 1e3,
        "p99_us": percentile(buckets, 0.99, largest) / 1e3,
        "max_us": largest / 1e3,
    }


def merged(histograms: Iterable[dict[str, Any]]) -> tuple[int, int, int, Counter[int]]:
    """Samples, their sum, the largest, and how many lie in the bucket with which bound."""
    count = total = largest = 0
    buckets: Counter[int] = Counter()
    for histogram in histograms:
        count += histogram["count"]
        total += histogram["sum"]
        largest = max(largest, histogram["max"])
        buckets.update(dict(histogram["buckets"]))
    return count, total, largest, buckets


def percentile(buckets: Counter[int], share: float, largest: int) -> int:
    """The smallest bucket bound below which at least `share` of the samples lie."""
    needed = share * buckets.total()
    seen = 0
    for bound in sorted(buckets):
        seen += buckets[bound]
        if seen >= needed:
            return min(bound, largest)
    return 0
