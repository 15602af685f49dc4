"""Arithmetic on one result: where a batch's time went, and what its connections could have moved.

Works on the result's JSON alone and needs nothing else, so it can be applied to old results, too.
What a result does not contain (an older version, a remote run, ``sample_every`` 0) is None here,
never a guess.

Three threads can work on one connection at the same time: the producer fills a batch, over sockets
a sender sends the one before, and the broker's ingest thread receives. Over shared memory they are
one, the publisher's: it claims the slot, fills and commits. A result tells which it was by its
sockets, or by `broker.receive`: only an ingest thread has samples of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypedDict

from embar_shm.bench.usage import ROLES, by_role

__all__ = [
    "BrokerSide",
    "Ceiling",
    "Connections",
    "Part",
    "PublisherSide",
    "broker_side",
    "ceiling",
    "connections",
    "copy_us",
    "cpu_share",
    "has_ingest",
    "machine_share",
    "others_share",
    "parameter",
    "per_batch_us",
    "publisher_side",
    "ratio",
    "wall_us_per_batch",
]

_SHORTEST_FOR_TICKS: Final = 0.1  # seconds; in less, ticks of 10 ms are a tenth or more of it
_BUFFER_WRITE: Final = "publisher.buffer_write"  # one sample per message
_WAIT_ACK: Final = "publisher.wait_ack"  # one sample per call, whatever the batches
_SEND: Final = "publisher.send_payload"
_PRODUCER_STAGES: Final = (_BUFFER_WRITE, "publisher.wait_space", _WAIT_ACK)
_BROKER_STAGES: Final = ("broker.receive", "broker.queue", "broker.validate", "broker.release")
_GET_BUFFER: Final = "broker.get_buffer"  # the thread that fills the slot claims it
_CEILINGS: Final = {"tcp": "tcp_loopback"}  # by transport; others move bytes like memory_copy


class Part(TypedDict):
    """One stage's part of a batch's time."""

    us: float
    share: float


class PublisherSide(TypedDict):
    """A batch's time on the publisher's side; shares are of `batch_us`, which is wall time.

    `outside_us` is what the stages of the producing thread leave: the calling code, and with more
    processes than CPUs the time in which others had the CPU outside a stage or while it copied.

    Over sockets a sender thread works beside that one: its stage is among `stages`, and
    `sender_share` is its share, 0 where there is no such thread. So all shares together may be
    more than 1: `overlap_share` is what is above it.
    """

    batch_us: float
    stages: dict[str, Part]
    outside_us: float
    outside_share: float
    sender_share: float
    overlap_share: float


class BrokerSide(TypedDict):
    """A batch's way through the broker; shares are of `batch_us`, the sum of its stages.

    `busy_share` is about the broker's accepting thread: the part of the run's wall time in which it
    checked, acknowledged and released.
    """

    batch_us: float
    stages: dict[str, Part]
    busy_share: float


class Connections(TypedDict):
    """What connections would move if none waited for another, and what they moved.

    - `batch_us`: a batch at its typical pace on one connection: medians, because a mean contains
      the time in which others had the CPU. The slowest of the connection's threads, `slowest`.
    - `bytes_per_second`: one connection alone: bytes of a batch / `batch_us`.
    - `theoretical_bytes_per_second`: `count` x that. `actual_bytes_per_second`: the throughput.
    - `efficiency`: actual / theoretical: the part of the time in which a connection moved bytes.
    - `serialisation_factor`: theoretical / actual.
    - `at_once`: `count` x efficiency: so many connections, never waiting, would move the same. Near
      1, connections take turns.
    """

    count: int
    batch_us: float
    slowest: str
    bytes_per_second: float
    theoretical_bytes_per_second: float
    actual_bytes_per_second: float
    efficiency: float
    serialisation_factor: float
    at_once: float


class Ceiling(TypedDict):
    """The ceiling that counts for a result's transport."""

    name: str
    bytes_per_second: float
    share: float


def parameter(result: Mapping[str, Any], name: str) -> Any:
    """The value of a parameter; None when this result has no such parameter."""
    return ((result.get("parameters") or {}).get(name) or {}).get("value")


def ratio(part: float | None, whole: float | None) -> float | None:
    """`part` / `whole`; None when one is unknown or `whole` is 0."""
    return part / whole if part is not None and whole else None


def has_ingest(result: Mapping[str, Any]) -> bool:
    """Does a thread of the broker receive the batches, rather than the publisher write them?"""
    sockets = (result.get("system") or {}).get("sockets")  # known where the brokers' times are not
    return bool(sockets) or _samples(result, "broker.receive") > 0


def per_batch_us(result: Mapping[str, Any], stage: str, figure: str = "mean_us") -> float | None:
    """The time of one stage per batch in us; None when it has no samples.

    A figure of a stage that is timed for each batch is that already. `wait_ack` is timed for each
    call, so the time in all calls is divided by the batches. `buffer_write` is timed for one
    message of many, so it counts once for each message of a batch, and always by `copy_us`: one
    sample in which another process had the CPU would count for the hundreds that were not timed.
    """
    batches = _batches(result)
    if not _samples(result, stage) or not batches:
        return None
    if stage == _BUFFER_WRITE:
        copy = copy_us(result)
        return None if copy is None else copy * float(result["throughput"]["messages"]) / batches
    us = float(result["stages"][stage][figure])
    if stage == _WAIT_ACK:
        return us * _samples(result, stage) / batches
    return us


def wall_us_per_batch(result: Mapping[str, Any]) -> float | None:
    """The time one publisher has for a batch: wall time of the run x publishers / batches."""
    publishers = parameter(result, "publishers")
    if not publishers:
        return None
    return ratio(result["throughput"]["elapsed_seconds"] * 1e6 * publishers, _batches(result))


def copy_us(result: Mapping[str, Any]) -> float | None:
    """Copying one message, typically: the median, or where the clock is too coarse for that, the
    mean. None when it was not sampled."""
    if not _samples(result, _BUFFER_WRITE):
        return None
    stage = result["stages"][_BUFFER_WRITE]
    return float(stage["p50_us"] or stage["mean_us"]) or None


def publisher_side(result: Mapping[str, Any]) -> PublisherSide | None:
    """A batch's time on one publisher, `wall_us_per_batch`, and the stages in it.

    None when the copy was not sampled: what is left over would be mostly that.
    """
    batch_us = wall_us_per_batch(result)
    if not batch_us or not _samples(result, _BUFFER_WRITE):
        return None
    sender = (_SEND,) if has_ingest(result) else ()
    producer = _PRODUCER_STAGES if sender else (*_PRODUCER_STAGES, _SEND, _GET_BUFFER)
    parts = _parts(result, (*producer, *sender), batch_us)
    own = sum(part["us"] for name, part in parts.items() if name not in sender)
    outside = max(0.0, batch_us - own)
    total = outside + sum(part["us"] for part in parts.values())
    return {
        "batch_us": batch_us,
        "stages": parts,
        "outside_us": outside,
        "outside_share": outside / batch_us,
        "sender_share": sum(parts[name]["share"] for name in sender if name in parts),
        "overlap_share": max(0.0, total / batch_us - 1),
    }


def broker_side(result: Mapping[str, Any]) -> BrokerSide | None:
    """A batch's way through the broker, from its slot's claim to its slot's release.

    None when there are no times of the broker. Over shared memory the way begins with the commit:
    claiming and filling are the publisher's.
    """
    names = (_GET_BUFFER, *_BROKER_STAGES) if has_ingest(result) else _BROKER_STAGES
    us = {name: per_batch_us(result, name) for name in names}
    batch_us = sum(filter(None, us.values()))
    brokers = parameter(result, "brokers")
    wall_us = result["throughput"]["elapsed_seconds"] * 1e6
    if not batch_us or not brokers or not wall_us:
        return None
    busy_us = sum(us[name] or 0.0 for name in ("broker.validate", "broker.release"))
    return {
        "batch_us": batch_us,
        "stages": _parts(result, names, batch_us),
        "busy_share": busy_us * _batches(result) / brokers / wall_us,
    }


def connections(result: Mapping[str, Any]) -> Connections | None:
    """Per-connection rate x connections against what was reached; None when not measured.

    Over sockets that needs the brokers' times: sending is over when the kernel has the batch.
    """
    count = parameter(result, "publishers")
    slowest = _slowest_thread(result)
    if not count or slowest is None:
        return None
    name, batch_us = slowest
    throughput = result["throughput"]
    if not throughput["bytes"] or not throughput["bytes_per_second"]:
        return None
    one = throughput["bytes"] / throughput["batches"] / batch_us * 1e6
    actual = float(throughput["bytes_per_second"])
    return {
        "count": count,
        "batch_us": batch_us,
        "slowest": name,
        "bytes_per_second": one,
        "theoretical_bytes_per_second": one * count,
        "actual_bytes_per_second": actual,
        "efficiency": actual / (one * count),
        "serialisation_factor": one * count / actual,
        "at_once": actual / one,
    }


def ceiling(result: Mapping[str, Any]) -> Ceiling | None:
    """`tcp_loopback` for tcp, `memory_copy` for everything else; None when not measured."""
    name = _CEILINGS.get(str(parameter(result, "transport")), "memory_copy")
    found = (result.get("ceilings") or {}).get(name)
    if not found:
        return None
    return {
        "name": name,
        "bytes_per_second": found["bytes_per_second"],
        "share": found["share"],
    }


def cpu_share(result: Mapping[str, Any]) -> float | None:
    """CPU time of all processes of the run by what its CPUs had; None when one is not known."""
    return ratio(_cpu_seconds(result), _cpu_seconds_there_were(result))


def others_share(result: Mapping[str, Any]) -> float | None:
    """CPU time that went to other programs meanwhile, by the same; None when it is not known.

    Most kernels charge the moving of packets to nobody: over sockets that is this run's, not
    others'. Where it is in this run's CPU time already, others come out too low by it.
    """
    own, busy = _cpu_seconds(result), _machine_busy(result)
    if own is None or busy is None:
        return None
    machine = result["system"]["machine"]
    packets = (machine.get("softirq_seconds") or 0.0) if has_ingest(result) else 0.0
    others = busy - own - packets
    return ratio(max(0.0, others), _cpu_seconds_there_were(result))


def machine_share(result: Mapping[str, Any]) -> float | None:
    """CPU time that all programs used meanwhile, this run's and others, by the same."""
    return ratio(_machine_busy(result), _cpu_seconds_there_were(result))


def _machine_busy(result: Mapping[str, Any]) -> float | None:
    """CPU seconds of all programs; None also for a run too short for timer ticks to tell."""
    if result["throughput"]["elapsed_seconds"] < _SHORTEST_FOR_TICKS:
        return None
    busy: float | None = ((result.get("system") or {}).get("machine") or {}).get("busy_seconds")
    return busy


def _cpu_seconds(result: Mapping[str, Any]) -> float | None:
    usages = by_role(result.get("system") or {}).values()
    if len(usages) < len(ROLES):  # of a remote run only one side is known
        return None
    return sum(usage["cpu_seconds"] for usage in usages)


def _cpu_seconds_there_were(result: Mapping[str, Any]) -> float:
    cpus = (result.get("environment") or {}).get("cpus_available") or 0
    return float(result["throughput"]["elapsed_seconds"] * cpus)


def _slowest_thread(result: Mapping[str, Any]) -> tuple[str, float] | None:
    """Which of a connection's threads takes longest for a batch, and how long, by medians."""

    def median(*stages: str) -> float:
        times = [per_batch_us(result, stage, "p50_us") for stage in stages]
        return sum(time for time in times if time is not None)

    fill = per_batch_us(result, _BUFFER_WRITE)
    if fill is None:
        return None
    if not has_ingest(result):
        return "fill and commit", fill + median(_GET_BUFFER, _SEND)
    if not _samples(result, "broker.receive"):
        return None
    threads = {
        "fill": fill,
        "send": median(_SEND),
        "receive": median(_GET_BUFFER, "broker.receive"),
    }
    name = max(threads, key=threads.__getitem__)
    return name, threads[name]


def _parts(result: Mapping[str, Any], stages: tuple[str, ...], batch_us: float) -> dict[str, Part]:
    """The stages that have samples, the largest first."""
    us = {name: per_batch_us(result, name) for name in stages}
    known = {name: value for name, value in us.items() if value is not None}
    return {
        name: {"us": value, "share": value / batch_us}
        for name, value in sorted(known.items(), key=lambda item: -item[1])
    }


def _samples(result: Mapping[str, Any], stage: str) -> int:
    return int(((result.get("stages") or {}).get(stage) or {}).get("count") or 0)


def _batches(result: Mapping[str, Any]) -> float:
    return float(result["throughput"]["batches"])
