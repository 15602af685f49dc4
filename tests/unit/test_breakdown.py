"""The arithmetic of a batch's time and of connections, on results with round numbers."""

from __future__ import annotations

import pytest
from verdict_cases import SHM, TCP, changed

from embar_shm.bench import breakdown


def test_a_publishers_batch_takes_the_wall_time_of_the_run_times_publishers_by_batches() -> None:
    side = breakdown.publisher_side(SHM)
    assert side is not None
    assert side["batch_us"] == pytest.approx(1000)  # 1 s x 4 / 4000


def test_a_stage_per_message_counts_once_for_each_message_of_a_batch() -> None:
    assert breakdown.per_batch_us(SHM, "publisher.buffer_write") == pytest.approx(400)


def test_a_sampled_copy_that_lost_its_cpu_does_not_count_for_all_that_were_not_timed() -> None:
    unlucky = changed(SHM, {"stages.publisher.buffer_write.mean_us": 50.0})
    assert breakdown.per_batch_us(unlucky, "publisher.buffer_write") == pytest.approx(400)
    side = breakdown.publisher_side(unlucky)
    assert side is not None
    assert sum(part["share"] for part in side["stages"].values()) <= 1


def test_a_stage_per_batch_counts_once_and_one_per_call_is_spread_over_all_batches() -> None:
    assert breakdown.per_batch_us(SHM, "publisher.send_payload") == 100
    assert breakdown.per_batch_us(SHM, "publisher.wait_ack") == pytest.approx(10)  # 4 of 10 ms
    assert breakdown.per_batch_us(SHM, "broker.receive") is None


def test_over_shared_memory_the_publisher_claims_the_slot_and_the_rest_is_outside() -> None:
    side = breakdown.publisher_side(SHM)
    assert side is not None
    assert {name: part["share"] for name, part in side["stages"].items()} == pytest.approx(
        {
            "publisher.buffer_write": 0.4,
            "publisher.wait_space": 0.2,
            "publisher.send_payload": 0.1,
            "publisher.wait_ack": 0.01,
            "broker.get_buffer": 0.01,
        }
    )
    assert side["outside_us"] == pytest.approx(280)
    assert side["outside_share"] == pytest.approx(0.28)
    assert side["sender_share"] == 0
    assert side["overlap_share"] == pytest.approx(0)


def test_over_sockets_the_producers_time_adds_up_and_its_sender_works_beside_it() -> None:
    side = breakdown.publisher_side(TCP)  # 400 filling, 250 waiting, 10 acks; 600 of the sender
    assert side is not None
    assert "broker.get_buffer" not in side["stages"]
    assert side["outside_us"] == pytest.approx(340)
    assert side["outside_share"] == pytest.approx(0.34)
    assert side["sender_share"] == side["stages"]["publisher.send_payload"]["share"] == 0.6
    assert side["overlap_share"] == pytest.approx(0.6)


def test_sockets_tell_that_there_is_a_sender_where_the_brokers_times_are_not_known() -> None:
    stages = {name: times for name, times in TCP["stages"].items() if "broker" not in name}
    assert breakdown.publisher_side(TCP | {"stages": stages}) == breakdown.publisher_side(TCP)
    assert breakdown.connections(TCP | {"stages": stages}) is None, "how fast they receive?"


def test_a_brokers_batch_is_the_sum_of_its_stages() -> None:
    shm, tcp = breakdown.broker_side(SHM), breakdown.broker_side(TCP)
    assert shm is not None
    assert tcp is not None
    assert shm["batch_us"] == 50
    assert tcp["batch_us"] == 960  # with the claim and the receiving, which are its own there
    assert tcp["stages"]["broker.receive"]["share"] == pytest.approx(900 / 960)
    assert next(iter(tcp["stages"])) == "broker.receive", "the largest first"
    for side in (shm, tcp):
        assert sum(part["share"] for part in side["stages"].values()) == pytest.approx(1)
        # 10 us x 4000 batches of 2 brokers x 1 s
        assert side["busy_share"] == pytest.approx(0.02)


def test_without_a_sampled_copy_there_is_no_breakdown_of_the_publisher() -> None:
    unsampled = changed(SHM, {"stages.publisher.buffer_write.count": 0})
    assert breakdown.publisher_side(unsampled) is None
    assert breakdown.connections(changed(SHM, {"stages.publisher.buffer_write.count": 0})) is None
    assert breakdown.broker_side(unsampled) is not None


def test_a_connection_over_shared_memory_fills_claims_and_commits() -> None:
    found = breakdown.connections(SHM)
    assert found is not None
    assert found["batch_us"] == pytest.approx(488)  # medians: 400 + 8 + 80
    assert found["slowest"] == "fill and commit"
    assert found["bytes_per_second"] == pytest.approx(1e6 / 488e-6)
    assert found["theoretical_bytes_per_second"] == pytest.approx(4 * 1e6 / 488e-6)
    assert found["actual_bytes_per_second"] == 4e9
    assert found["efficiency"] == pytest.approx(0.488)
    assert found["serialisation_factor"] == pytest.approx(1 / 0.488)
    assert found["at_once"] == pytest.approx(4 * 0.488)


def test_a_copy_too_short_for_the_clocks_median_counts_with_its_mean() -> None:
    found = breakdown.connections(changed(SHM, {"stages.publisher.buffer_write.p50_us": 0.0}))
    assert found is not None
    assert found["batch_us"] == pytest.approx(588)
    nothing = {"stages.publisher.buffer_write": {"count": 9, "mean_us": 0.0, "p50_us": 0.0}}
    assert breakdown.connections(changed(SHM, nothing)) is None


def test_a_connection_over_sockets_is_as_fast_as_its_slowest_thread() -> None:
    found = breakdown.connections(TCP)
    assert found is not None
    assert (found["slowest"], found["batch_us"]) == ("receive", 858)  # 850 and the claim's 8
    sending = breakdown.connections(changed(TCP, {"stages.publisher.send_payload.p50_us": 900.0}))
    assert sending is not None
    assert (sending["slowest"], sending["batch_us"]) == ("send", 900)


def test_the_figures_of_the_report_come_out_as_it_printed_them() -> None:
    """12 connections, 2 MiB batches, 2.1 ms in recv(), 836 MB/s: an efficiency of 7 %."""
    batch, batches = 2 * 2**20, 5120
    elapsed = batch * batches / 836e6
    report = changed(
        TCP,
        {
            "parameters.publishers.value": 12,
            "throughput.bytes": batch * batches,
            "throughput.batches": batches,
            "throughput.messages": 2048 * batches,
            "throughput.elapsed_seconds": elapsed,
            "throughput.bytes_per_second": 836e6,
            "stages.publisher.buffer_write.p50_us": 0.09,
            "stages.publisher.send_payload.p50_us": 2000.0,
            "stages.broker.get_buffer": {"count": batches, "mean_us": 3.0, "p50_us": 3.0},
            "stages.broker.receive": {"count": batches, "mean_us": 2100.0, "p50_us": 2100.0},
            "stages.broker.queue": {"count": 0, "mean_us": 0.0, "p50_us": 0.0},
            "stages.broker.validate.mean_us": 0.1,
            "stages.broker.release.mean_us": 0.9,
        },
    )
    found, broker = breakdown.connections(report), breakdown.broker_side(report)
    assert found is not None
    assert broker is not None
    assert broker["stages"]["broker.receive"]["share"] == pytest.approx(0.998, abs=0.0005)
    assert found["theoretical_bytes_per_second"] == pytest.approx(12e9, rel=0.01)
    assert found["efficiency"] == pytest.approx(0.07, abs=0.001)
    assert found["serialisation_factor"] == pytest.approx(14.3, abs=0.1)


@pytest.mark.parametrize(
    ("transport", "counts"), [("shm", "memory_copy"), ("tcp", "tcp_loopback"), ("x", "memory_copy")]
)
def test_the_ceiling_that_counts_follows_the_transport(transport: str, counts: str) -> None:
    both = {
        name: {"bytes_per_second": 8e9, "share": 0.5} for name in ("memory_copy", "tcp_loopback")
    }
    result = changed(SHM, {"ceilings": both, "parameters.transport.value": transport})
    found = breakdown.ceiling(result)
    assert found is not None
    assert found["name"] == counts
    assert breakdown.ceiling(changed(result, {f"ceilings.{counts}": None})) is None


def test_the_share_of_cpu_time_needs_both_roles() -> None:
    assert breakdown.cpu_share(SHM) == pytest.approx(3.0 / 8)
    remote = changed(SHM, {"system": {"publisher": SHM["system"]["publisher"]}})
    assert breakdown.cpu_share(remote) is None


def test_what_the_machine_used_beyond_the_run_is_others() -> None:
    assert breakdown.others_share(SHM) is None
    machine = {"system.machine": {"busy_seconds": 5.0}}
    assert breakdown.others_share(changed(SHM, machine)) == pytest.approx(2.0 / 8)
    machine = {"system.machine": {"busy_seconds": 2.9}}  # ticks are rough: never below nothing
    assert breakdown.others_share(changed(SHM, machine)) == 0


def test_a_run_too_short_for_timer_ticks_blames_nobody() -> None:
    changes = {"system.machine": {"busy_seconds": 5.0}, "throughput.elapsed_seconds": 0.09}
    short = changed(SHM, changes)
    assert breakdown.others_share(short) is None
    assert breakdown.machine_share(short) is None


def test_moving_packets_is_not_others_over_sockets() -> None:
    machine = {"system.machine": {"busy_seconds": 5.0, "softirq_seconds": 1.2}}
    assert breakdown.others_share(changed(TCP, machine)) == pytest.approx(0.8 / 8)
    assert breakdown.others_share(changed(SHM, machine)) == pytest.approx(2.0 / 8)
    assert breakdown.machine_share(changed(TCP, machine)) == pytest.approx(5.0 / 8)
