"""What stage times cost: which operations are counted, and against what."""

from __future__ import annotations

import pytest
from raw_ring import RawRing, accept, commit_batches

from embar_shm.bench import stages
from embar_shm.bench.instrumentation import WORK, describe, measured_costs
from embar_shm.bench.stages import Stage
from embar_shm.bench.usage import Usage
from embar_shm.transports.ring import PUBLISHER_STAGES

COSTS = {"clock": 20.0, "record": 5.0}


def stage(count: int) -> Stage:
    return {"count": count, "mean_us": 1.0, "p50_us": 1.0, "p99_us": 1.0, "max_us": 1.0}


def usage(cpu_seconds: float) -> Usage:
    return {
        "cpu_seconds": cpu_seconds,
        "voluntary_switches": 0,
        "involuntary_switches": 0,
        "max_rss_bytes": 0,
    }


def collect(ring: RawRing) -> dict[str, Stage]:
    """The stages of a ring with one publisher."""
    recorded = ring.monitor().publisher_stages(0)
    return stages.collect(
        [ring.monitor()], 1, [{name: recorded[name] for name in PUBLISHER_STAGES}]
    )


def test_the_share_is_samples_times_their_cost_by_the_cpu_time_of_all_processes() -> None:
    taken = {
        "publisher.buffer_write": stage(1000),  # 2 clocks, 1 record: 45 ns
        "broker.queue": stage(400),  # 1 record: 5 ns
    }
    system = {"broker": usage(0.25e-3), "publisher": usage(0.75e-3)}
    assert describe(64, taken, system, COSTS) == {
        "sample_every": 64,
        "overhead_share": pytest.approx(0.047),
    }


def test_without_samples_there_is_no_overhead() -> None:
    found = describe(0, {name: stage(0) for name in WORK}, {"broker": usage(1.0)}, COSTS)
    assert found == {"sample_every": 0, "overhead_share": 0}


def test_a_stage_of_unknown_cost_is_not_taken_for_free() -> None:
    with pytest.raises(KeyError, match=r"broker\.dream"):
        describe(64, {"broker.dream": stage(1)}, {"broker": usage(1.0)}, COSTS)


def test_sending_through_a_socket_takes_two_clocks() -> None:
    taken, system = {"publisher.send_payload": stage(1000)}, {"publisher": usage(1e-3)}
    shares = [
        describe(64, taken, system, COSTS, over_network=network)["overhead_share"]
        for network in (False, True)
    ]
    assert shares == [pytest.approx(0.025), pytest.approx(0.045)]


def test_the_cost_of_every_stage_of_a_ring_is_known() -> None:
    assert collect(RawRing()).keys() == WORK.keys()


def test_every_operation_has_a_measured_cost() -> None:
    costs = measured_costs()
    assert {kind for work in WORK.values() for kind in work} == costs.keys()
    assert costs["clock"] > 0
    assert costs["record"] >= 0


def test_with_stage_times_off_nothing_is_recorded_and_everything_counted() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(stage_times=False), ring.publisher(sample_every=0, quota=1)
    commit_batches(publisher)
    with pytest.raises(TimeoutError):
        publisher.publish(bytes(64))  # the quota is used up: waits for space
    accept(broker)
    broker.release()
    publisher.publish(bytes(64))
    publisher.wait_acked(0.0, 1)
    found = collect(ring)
    assert {name: s["count"] for name, s in found.items()} == dict.fromkeys(WORK, 0)
    row, control = ring.monitor().publisher(0), ring.monitor().control()
    assert (row["space_waits"], row["ack_waits"], control["batches"]) == (1, 1, 1)
    assert control["released"] == 1


def test_with_stage_times_on_every_stage_of_a_batch_is_recorded() -> None:
    ring = RawRing()
    broker, publisher = ring.broker(), ring.publisher(sample_every=1)
    commit_batches(publisher)
    accept(broker)
    broker.release()
    publisher.wait_acked(0.0)
    found = collect(ring)
    messages = ring.monitor().publisher(0)["messages"]
    expected = dict.fromkeys(WORK, 1) | {"publisher.buffer_write": messages, "broker.receive": 0}
    assert {name: s["count"] for name, s in found.items()} == expected
