"""What becomes of a run's counters: a result with warnings, a CSV row, or an integrity error."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from embar_shm.bench.csvfile import COLUMNS, append_row
from embar_shm.bench.result import Result, build
from embar_shm.bench.sockets import Sockets
from embar_shm.bench.stages import summarise
from embar_shm.config.loader import load
from embar_shm.errors import ConfigurationError, IntegrityError

GOOD = {
    "messages": 1000,
    "batches": 10,
    "duplicated": 0,
    "out_of_order": 0,
    "corrupt": 0,
    "missed_wakeups": 0,
}
USAGE = {
    "cpu_seconds": 0.5,
    "voluntary_switches": 1,
    "involuntary_switches": 2,
    "max_rss_bytes": 3,
}


def result_of(
    counters: dict[str, int] | None = None,
    seconds: float = 2.0,
    overhead: float = 0.02,
    warnings: list[str] | None = None,
    sockets: Sockets | None = None,
    **flags: object,
) -> Result:
    flags = {"message_size": "1000", "total_bytes": "1MB"} | flags
    return build(
        load(None, None, [], {}, flags),
        started="2026-01-01T00:00:00+00:00",
        startup_seconds=0.5,
        elapsed_seconds=seconds,
        counters=GOOD | (counters or {}),
        ceilings={"memory_copy": 1e6, "tcp_loopback": 2.5e5},
        stages={},
        instrumentation={"sample_every": 256, "overhead_share": overhead},
        system={"broker": USAGE, "publisher": USAGE},  # type: ignore[dict-item]
        sockets=sockets,
        segment_bytes=1,
        environment={},
        warnings=warnings or [],
    )


def test_throughput_is_message_bytes_by_the_time_of_the_slowest() -> None:
    result = result_of(seconds=2.0)
    assert result["throughput"]["bytes_per_second"] == 500_000
    assert result["throughput"]["messages_per_second"] == 500
    assert result["throughput"]["batches_per_second"] == 5
    assert result["ceilings"] == {
        "memory_copy": {"bytes_per_second": 1e6, "share": 0.5},
        "tcp_loopback": {"bytes_per_second": 2.5e5, "share": 2.0},
    }


@pytest.mark.parametrize(
    ("counters", "said"),
    [
        ({"messages": 999}, "1000 messages were sent, 999 accepted: 1 lost"),
        ({"messages": 1001}, "1000 messages were sent, 1001 accepted"),
        ({"duplicated": 1}, "1 duplicated"),
        ({"out_of_order": 2}, "2 reordered"),
        ({"corrupt": 3}, "3 corrupt"),
    ],
)
def test_counters_that_do_not_add_up_are_an_error_and_no_result(
    counters: dict[str, int], said: str
) -> None:
    with pytest.raises(IntegrityError, match=said) as caught:
        result_of(counters)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"seconds": 0.01}, "took only 10 ms"),
        ({"total_bytes": "1000001"}, "1 of total_bytes=1000001 were not sent"),
        ({"slots": "4"}, "want 6 slots of each broker, which has 4"),
        ({"messages_per_call": "7"}, "messages_per_call (flag --messages-per-call) has no effect"),
        (
            {"overhead": 0.0213},
            "the stage times used 2.1% of the CPU time: raise sample_every (256",
        ),
        ({"counters": {"missed_wakeups": 5}}, "5 sleeps ran out although there was work"),
        (
            {"sockets": {"requested_sndbuf": 2**19, "granted_sndbuf": 2**18}},
            "send buffers of sockets: 512 KiB were wanted, the kernel gives 256 KiB at most: "
            "sudo sysctl -w net.core.wmem_max=524288",
        ),
        (
            {"sockets": {"requested_rcvbuf": 2**19, "granted_rcvbuf": 2**24}},
            "receive buffers of sockets: 512 KiB were wanted, the kernel does not grant that and "
            "sizes them by itself: sudo sysctl -w net.core.rmem_max=524288",
        ),
        (
            {"token_file": "no/such/file"},
            "token_file (flag --token-file) has no effect with transport=shm",
        ),
        ({"warnings": ["tcp_loopback was not measured"]}, "tcp_loopback was not measured"),
    ],
)
def test_what_a_reader_should_know_is_a_warning(arguments: dict[str, Any], said: str) -> None:
    assert result_of()["warnings"] == []
    assert [w for w in result_of(**arguments)["warnings"] if said in w]


def test_percentiles_are_bucket_bounds_and_never_above_the_largest_sample() -> None:
    first = {"count": 3, "sum": 1300, "max": 1000, "buckets": [(100, 1), (200, 1), (1023, 1)]}
    second = {"count": 1, "sum": 100, "max": 100, "buckets": [(100, 1)]}
    assert summarise([first, second]) == {
        "count": 4,
        "mean_us": 0.35,
        "p50_us": 0.1,
        "p99_us": 1.0,
        "max_us": 1.0,
    }


def test_a_stage_without_samples_is_all_zero() -> None:
    empty = {"count": 0, "sum": 0, "max": 0, "buckets": []}
    assert set(summarise([empty]).values()) == {0}


def test_a_new_csv_file_gets_the_header_once(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    append_row(path, result_of())
    append_row(path, result_of(seconds=4.0))
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == COLUMNS
    assert len(rows) == 2
    row = dict(zip(COLUMNS, rows[1], strict=True))
    assert row["pub_bandwidth_mbps"] == f"{250_000 / 2**20:.4f}", "MiB/s, as in the original"
    assert row["cpu_seconds"] == "1.0000"
    assert row["message_size"] == "1000"


def test_a_csv_file_with_other_columns_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigurationError, match="other columns: a,b"):
        append_row(path, result_of())
    assert path.read_text() == "a,b\n1,2\n"
