"""What subscribers read, and whether it is what was published.

Makes ``end_to_end``, ``subscribe``, ``subscribers``, ``verified`` and ``phases`` of a result. A run
whose subscribers miss something has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, cast

from embar_shm.bench import specs
from embar_shm.bench.phases import Measured
from embar_shm.bench.scenarios import SCENARIOS
from embar_shm.config.schema import RunConfig
from embar_shm.errors import IntegrityError

__all__ = [
    "Delivery",
    "EndToEnd",
    "Phases",
    "Rate",
    "Subscriber",
    "Verified",
    "check_stamps",
    "collect",
]


class Rate(TypedDict):
    """Messages and their bytes, each counted once however many subscribers read it."""

    bytes_per_second: float
    messages_per_second: float
    seconds: float
    bytes: int
    messages: int


class EndToEnd(Rate):
    """`share_of_ceiling`: of copies that somebody reads, without a broker."""

    share_of_ceiling: float | None


class Subscriber(TypedDict):
    """One subscriber. `lost` and `held` count batches."""

    name: str
    messages: int
    payload_bytes: int
    batches: int
    lost: int
    held: int
    waits: int


class Verified(TypedDict):
    """Messages whose stamps were checked, by all subscribers together; no fault was found."""

    messages: int
    overrun: int
    resent: int


class Phases(TypedDict):
    """Times of all rounds, added up."""

    rounds: int
    publish_seconds: float
    read_seconds: float


class Delivery(TypedDict):
    """The parts of a result that are about subscribers; see docs/result.md."""

    end_to_end: NotRequired[EndToEnd]
    subscribe: NotRequired[Rate]
    subscribers: list[Subscriber]
    verified: NotRequired[Verified]
    phases: Phases


def collect(values: RunConfig, measured: Measured, ceilings: Mapping[str, float]) -> Delivery:
    """Raises `IntegrityError` when subscribers have not read what was published."""
    scenario = SCENARIOS[values.scenario]
    check_stamps(measured.read)
    if measured.read and values.subscribe_mode == "reliable" and not scenario.kills:
        _check_complete(values, measured)
    delivery: Delivery = {
        "subscribers": [
            cast(Subscriber, {"name": s["name"], **s["counts"], "held": s["held"]})
            for s in measured.read
        ],
        "phases": {
            "rounds": measured.rounds,
            "publish_seconds": measured.publish_seconds,
            "read_seconds": measured.read_seconds,
        },
    }
    if not measured.read:
        return delivery
    if scenario.counts_end_to_end:
        found = _rate(values, measured, measured.seconds)
        ceiling = ceilings.get("copy_and_read")
        share = found["bytes_per_second"] / ceiling if ceiling else None
        delivery["end_to_end"] = {**found, "share_of_ceiling": share}
    if scenario.reads_afterwards:
        delivery["subscribe"] = _rate(values, measured, measured.read_seconds)
    if all(s["verified"] for s in measured.read):
        counts = [s["verified"]["counts"] for s in measured.read]
        delivery["verified"] = {
            "messages": sum(c["messages"] for c in counts),
            "overrun": sum(c["overrun"] for c in counts),
            "resent": sum(c["resent"] for c in counts),
        }
    return delivery


def _rate(values: RunConfig, measured: Measured, seconds: float) -> Rate:
    """What the subscribers of a broker read on average, of all brokers together."""
    each = values.effective_subscribers_per_broker
    messages = sum(s["counts"]["messages"] for s in measured.read) // each
    size = messages * values.message_size
    return {
        "bytes_per_second": size / seconds,
        "messages_per_second": messages / seconds,
        "seconds": seconds,
        "bytes": size,
        "messages": messages,
    }


def check_stamps(read: list[dict[str, Any]]) -> None:
    """Raises `IntegrityError` with the first thing that a subscriber found wrong.

    `read`: what each subscriber said in the end.
    """
    for subscriber in read:
        first = subscriber["verified"] and subscriber["verified"]["first"]
        if not first:
            continue
        counts = {
            kind: subscriber["verified"]["counts"][kind]
            for kind in ("lost", "duplicated", "reordered", "corrupt")
        }
        raise IntegrityError(
            f"{subscriber['name']}: a message is {first['kind']}: of publisher "
            f"{first['publisher']}, number {first['expected']} was expected and "
            f"{first['found']} found, in the batch of ticket {first['ticket']}; in all "
            + ", ".join(f"{count} {kind}" for kind, count in counts.items()),
            "this is a bug in embar-shm, or a process that writes into others' memory; please "
            "report it with the parameters of this run",
        )


def _check_complete(values: RunConfig, measured: Measured) -> None:
    """Every subscriber has read everything of its broker, and the last message of everybody."""
    shares, each = specs.shares(values), values.publishers_per_broker
    for number, subscriber in enumerate(measured.read):
        broker = number // values.effective_subscribers_per_broker
        expected = sum(shares[broker * each :][:each])
        found = subscriber["counts"]["messages"]
        missing = [
            f"publisher {publisher}: {shares[int(publisher)] + 1 - high} at the end"
            for publisher, high in (subscriber["verified"] or {"next": {}})["next"].items()
            if high != shares[int(publisher)] + 1
        ]
        if found != expected or missing or subscriber["counts"]["lost"]:
            raise IntegrityError(
                f"{subscriber['name']} has read {found} of {expected} messages, and lost "
                f"{subscriber['counts']['lost']} batches"
                + (f"; missing of {', '.join(missing)}" if missing else ""),
                "this is a bug in embar-shm; please report it with the parameters of this run",
            )
