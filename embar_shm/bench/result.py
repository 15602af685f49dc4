"""The result of a run: one JSON object, ``"schema": "embar-shm.result/1"``.

A stable contract: fields are added, never renamed or given another meaning. docs/result.md
describes it. Times are microseconds unless the name says seconds, sizes are bytes, 1 GB is 1e9
bytes; throughput counts message bytes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from embar_shm.bench.delivery import Delivery, EndToEnd, Phases, Rate, Subscriber, Verified
from embar_shm.bench.failure import Failure
from embar_shm.bench.instrumentation import ACCEPTABLE, Instrumentation
from embar_shm.bench.latency import Latency
from embar_shm.bench.latency import warnings as latency_warnings
from embar_shm.bench.scenarios import SCENARIOS
from embar_shm.bench.sockets import Sockets
from embar_shm.bench.sockets import warnings as socket_warnings
from embar_shm.bench.stages import Stage
from embar_shm.bench.verdict import Verdict, verdict
from embar_shm.config.loader import LoadedConfig, Parameter
from embar_shm.config.schema import OF_TCP
from embar_shm.errors import IntegrityError

__all__ = ["SCHEMA", "Result", "build", "unused_over_shm"]

SCHEMA = "embar-shm.result/1"
_SHORT_RUN = 0.1  # seconds; shorter runs mostly measure how processes start


class Integrity(TypedDict):
    """`sent`, `accepted` and `lost` count messages, the others batches."""

    sent: int
    accepted: int
    lost: int
    duplicated: int
    reordered: int
    corrupt: int


class Result(TypedDict):
    """See docs/result.md."""

    schema: str
    started: str
    startup_seconds: float
    parameters: dict[str, Parameter]
    throughput: dict[str, float]
    integrity: Integrity
    ceilings: dict[str, dict[str, float]]
    stages: dict[str, Stage]
    instrumentation: Instrumentation
    system: dict[str, Any]
    """By role a `Usage`, and what is known besides: of the machine, and of sockets."""
    memory: dict[str, int]
    environment: dict[str, Any]
    warnings: list[str]
    phases: NotRequired[Phases]
    subscribers: NotRequired[list[Subscriber]]
    end_to_end: NotRequired[EndToEnd]
    subscribe: NotRequired[Rate]
    verified: NotRequired[Verified]
    latency: NotRequired[Latency]
    failure: NotRequired[Failure]
    verdict: NotRequired[Verdict]
    """Made from all of the above, last. Of publishing as fast as it goes."""


def build(
    config: LoadedConfig,
    *,
    started: str,
    startup_seconds: float,
    elapsed_seconds: float,
    counters: dict[str, int],
    ceilings: dict[str, float],
    stages: dict[str, Stage],
    instrumentation: Instrumentation,
    system: dict[str, Any],
    sockets: Sockets | None,
    segment_bytes: int,
    environment: dict[str, Any],
    warnings: list[str],
    delivered: Delivery | None = None,
    paced: Latency | None = None,
    failed: Failure | None = None,
) -> Result:
    """Puts a result together. Raises `IntegrityError` instead when the counters do not add up.

    `counters` are those of `Monitor.control`, of all brokers together; `ceilings` are bytes per
    second, by name; `warnings` come after those that the numbers themselves give cause for.
    """
    messages = config.values.total_messages
    size = messages * config.values.message_size
    integrity: Integrity = {
        "sent": messages,
        "accepted": counters["messages"],
        "lost": max(0, messages - counters["messages"]),
        "duplicated": counters["duplicated"],
        "reordered": counters["out_of_order"],
        "corrupt": counters["corrupt"],
    }
    _check(integrity, failed)
    rate = size / elapsed_seconds
    end_to_end = delivered.get("end_to_end") if delivered else None
    result: Result = {
        "schema": SCHEMA,
        "started": started,
        "startup_seconds": startup_seconds,
        "parameters": config.parameters(),
        "throughput": {
            "bytes_per_second": rate,
            "messages_per_second": messages / elapsed_seconds,
            "batches_per_second": counters["batches"] / elapsed_seconds,
            "elapsed_seconds": elapsed_seconds,
            "bytes": size,
            "messages": messages,
            "batches": counters["batches"],
        },
        "integrity": integrity,
        "ceilings": {
            name: {"bytes_per_second": ceiling, "share": _rate_of(name, rate, end_to_end) / ceiling}
            for name, ceiling in ceilings.items()
        },
        "stages": stages,
        "instrumentation": instrumentation,
        "system": dict(system) if sockets is None else {**system, "sockets": sockets},
        "memory": {"segment_bytes": segment_bytes},
        "environment": environment,
        "warnings": [
            *_warnings(config, elapsed_seconds, counters, instrumentation),
            *socket_warnings(sockets),
            *latency_warnings(paced),
            *(_failure_warnings(failed) if failed else []),
            *warnings,
        ],
    }
    if delivered is not None:
        result.update(delivered)  # type: ignore[typeddict-item]
    if paced is not None:
        result["latency"] = paced
    if failed is not None:
        result["failure"] = failed
    if config.values.scenario == "publish" and not config.values.subscribers:
        result["verdict"] = verdict(result)
    return result


def _rate_of(ceiling: str, published: float, end_to_end: EndToEnd | None) -> float:
    """What is compared with a ceiling."""
    if ceiling == "copy_and_read" and end_to_end is not None:
        return end_to_end["bytes_per_second"]
    return published


def _failure_warnings(failed: Failure) -> list[str]:
    found = ["the CPU time of the broker that was killed is not in system.broker"]
    if lost := failed["lost_acknowledged"]:
        found.append(
            f"{lost} messages were acknowledged and in nobody's hands when the broker died: its "
            "log is in its memory, and acknowledgement 1 does not say that anybody else has it"
        )
    return found


def _check(integrity: Integrity, failed: Failure | None) -> None:
    if failed is not None:  # what logs have accepted is not what was sent: see `failure`
        integrity["lost"] = failed["lost_acknowledged"]
        integrity = {**integrity, "accepted": integrity["sent"], "lost": 0}
    wrong = {name: integrity[name] for name in ("lost", "duplicated", "reordered", "corrupt")}
    if any(wrong.values()) or integrity["accepted"] != integrity["sent"]:
        found = ", ".join(f"{count} {name}" for name, count in wrong.items())
        raise IntegrityError(
            f"{integrity['sent']} messages were sent, {integrity['accepted']} accepted: {found}",
            "this is a bug in embar-shm, or a process that writes into others' memory; "
            "please report it with the parameters of this run",
        )


def _warnings(
    config: LoadedConfig,
    elapsed_seconds: float,
    counters: dict[str, int],
    instrumentation: Instrumentation,
) -> list[str]:
    """What a reader should know before believing the numbers."""
    values = config.values
    found = []
    if elapsed_seconds < _SHORT_RUN and not config.values.is_paced:
        found.append(
            f"the run took only {elapsed_seconds * 1e3:.0f} ms: raise total_bytes for numbers "
            "that mean something"
        )
    if not values.is_paced and (left := values.total_bytes % values.message_size):
        found.append(
            f"{left} of total_bytes={values.total_bytes} were not sent: it is not a multiple of "
            f"message_size={values.message_size}"
        )
    scenario = SCENARIOS[values.scenario]
    if (
        not values.addresses
        and not scenario.reads_afterwards
        and (wanted := values.publishers_per_broker * values.in_flight) > values.slots
    ):
        found.append(
            f"{values.publishers_per_broker} publishers with in_flight={values.in_flight} want "
            f"{wanted} slots of each broker, which has {values.slots}: they wait for each other"
        )
    if values.verify and values.scenario == "publish":
        found.append(
            "subscribers read along to verify: publishers wait for them, and for checksums, and "
            "are faster without"
        )
    if values.is_paced and values.total_messages < values.total_bytes // values.message_size:
        found.append(
            f"{values.total_messages} messages were sent in duration={values.duration:g} s, "
            f"not all of total_bytes={values.total_bytes}"
        )
    if (
        values.producer == "one"
        and not values.is_paced
        and config.origins["messages_per_call"] != "default"
    ):
        found.append(
            f"messages_per_call ({config.origins['messages_per_call']}) has no effect with "
            "producer=one"
        )
    found += unused_over_shm(config.parameters())
    if (share := instrumentation["overhead_share"]) > ACCEPTABLE:
        found.append(
            f"taking the stage times used {share:.1%} of the CPU time: raise sample_every "
            f"({values.sample_every}; 0 takes none) or, as each batch is timed, batch_size"
        )
    if counters["missed_wakeups"]:
        found.append(
            f"{counters['missed_wakeups']} sleeps ran out although there was work: "
            "a wake-up was lost; please report this"
        )
    return found


def unused_over_shm(parameters: Mapping[str, Parameter]) -> list[str]:
    """Warnings about what was set for sockets, where there are none."""
    if parameters["transport"]["value"] != "shm":
        return []
    found = {name: parameters[name]["origin"] for name in OF_TCP if name in parameters}
    return [
        f"{name} ({origin}) has no effect with transport=shm"
        for name, origin in found.items()
        if origin != "default"
    ]
