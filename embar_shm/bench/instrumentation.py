"""What taking the stage times of a run costs, as a share of its CPU time.

    overhead_share = sum over the stages of (samples x cost of one) / CPU seconds of all processes

The samples are counted: they are in the histograms. The cost of one is put together from what is
done for it (`WORK`) and what each of these operations takes here, measured before the run starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypedDict

from embar_shm import _core
from embar_shm.bench.stages import Stage
from embar_shm.bench.usage import by_role

__all__ = ["ACCEPTABLE", "WORK", "Instrumentation", "describe", "measured_costs"]

ACCEPTABLE: Final = 0.02  # of the CPU time; the default of `sample_every` stays below it

# Operations per sample, by kind. Only those that would not be done without stage times: when a
# batch was opened and committed is in its header in any case.
WORK: Final[Mapping[str, Mapping[str, int]]] = {
    "publisher.buffer_write": {"clock": 2, "record": 1},
    "publisher.wait_space": {"record": 1},  # its clocks are those of get_buffer
    "broker.get_buffer": {"clock": 1, "record": 1},
    "publisher.send_payload": {"clock": 1, "record": 1},
    "publisher.wait_ack": {"clock": 1, "record": 1},
    "broker.receive": {"clock": 2, "record": 1},
    "broker.queue": {"record": 1},  # its clock is that of validate
    "broker.validate": {"clock": 2, "record": 1},
    "broker.release": {"clock": 2, "record": 1},
}

# What differs when batches go through sockets.
NETWORK_WORK: Final[Mapping[str, Mapping[str, int]]] = {
    "publisher.send_payload": {"clock": 2, "record": 1}
}


class Instrumentation(TypedDict):
    """`overhead_share` is 0 to 1, of the CPU time of all brokers and publishers together."""

    sample_every: int
    overhead_share: float


def measured_costs() -> dict[str, float]:
    """Nanoseconds of one operation of each kind in `WORK`, here and now. Takes some 5 ms."""
    clock_ns, record_ns = _core.sample_costs()
    return {"clock": clock_ns, "record": record_ns}


def describe(
    sample_every: int,
    stages: Mapping[str, Stage],
    system: Mapping[str, Any],
    costs: Mapping[str, float],
    *,
    over_network: bool = False,
) -> Instrumentation:
    """The share of the CPU time in `system` that the samples in `stages` have cost.

    Raises `KeyError` for a stage that is not in `WORK`: what it costs is not known to be nothing.
    """
    work = {**WORK, **NETWORK_WORK} if over_network else WORK
    spent_ns = sum(
        stage["count"] * sum(times * costs[kind] for kind, times in work[name].items())
        for name, stage in stages.items()
    )
    used_ns = sum(usage["cpu_seconds"] for usage in by_role(system).values()) * 1e9
    return {
        "sample_every": sample_every,
        "overhead_share": spent_ns / used_ns if used_ns else 0.0,
    }
