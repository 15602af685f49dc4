"""What becomes of what subscribers and publishers say: rates, latencies, losses, or an error."""

from __future__ import annotations

import io
from typing import Any, cast

import pytest
from rich.console import Console
from rich.table import Table

from embar_shm.bench import delivery, latency
from embar_shm.bench.failure import lost_acknowledged
from embar_shm.bench.phases import Measured
from embar_shm.cli import render_scenario
from embar_shm.config.loader import load
from embar_shm.config.schema import RunConfig
from embar_shm.errors import IntegrityError

MESSAGES = 100
FINE = {"messages": MESSAGES, "lost": 0, "duplicated": 0, "reordered": 0, "corrupt": 0}


def values(**flags: str) -> RunConfig:
    """One broker, two publishers with 50 messages each, one subscriber."""
    given = {"scenario": "end-to-end", "brokers": "1", "publishers_per_broker": "2"}
    size = {"message_size": "1000", "total_bytes": "100000", "batch_size": "10000"}
    return load(None, None, [], {}, given | size | flags).values


def subscriber(
    messages: int = MESSAGES, lost: int = 0, verified: dict[str, Any] | None = None
) -> dict[str, Any]:
    counts = {
        "batches": 10, "messages": messages, "payload_bytes": messages * 1000, "lost": lost,
        "waits": 3,
    }  # fmt: skip
    return {"name": "subscriber 0 of broker 0", "counts": counts, "held": 0, "verified": verified}


def checked(first: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    found = {"overrun": 0, "resent": 0}
    return {
        "counts": FINE | found,
        "first": first,
        "next": {"0": 51, "1": 51},
        "skipped": {},
    } | more


def measured(*read: dict[str, Any]) -> Measured:
    return Measured(
        None, publish_seconds=1.0, read_seconds=2.0, seconds=2.5, rounds=1, read=[*read]
    )


def test_end_to_end_is_what_a_subscriber_of_each_broker_read_by_the_whole_time() -> None:
    found = delivery.collect(values(), measured(subscriber()), {"copy_and_read": 80_000.0})
    assert found["end_to_end"] == {
        "bytes_per_second": 40_000.0,
        "messages_per_second": 40.0,
        "seconds": 2.5,
        "bytes": 100_000,
        "messages": 100,
        "share_of_ceiling": 0.5,
    }
    assert "verified" not in found


def test_messages_count_once_however_many_subscribers_read_them() -> None:
    both = measured(subscriber(), subscriber())
    found = delivery.collect(values(subscribers_per_broker="2"), both, {})
    assert found["end_to_end"]["messages"] == 100
    assert found["end_to_end"]["share_of_ceiling"] is None
    assert [one["messages"] for one in found["subscribers"]] == [100, 100]


def test_where_reading_follows_it_has_a_rate_of_its_own() -> None:
    found = delivery.collect(values(scenario="subscribe"), measured(subscriber()), {})
    assert found["subscribe"]["bytes_per_second"] == 50_000.0
    assert "end_to_end" not in found


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (subscriber(messages=99), "has read 99 of 100 messages"),
        (subscriber(lost=1), "lost 1 batches"),
        (
            subscriber(verified=checked(next={"0": 51, "1": 50})),
            "missing of publisher 1: 1 at the end",
        ),
    ],
)
def test_a_reliable_subscriber_that_misses_something_is_an_error(
    one: dict[str, Any], said: str
) -> None:
    with pytest.raises(IntegrityError, match=said) as caught:
        delivery.collect(values(), measured(one), {})
    assert caught.value.exit_code == 3


def test_a_lossy_subscriber_may_miss_batches() -> None:
    found = delivery.collect(
        values(subscribe_mode="lossy"), measured(subscriber(messages=60, lost=4)), {}
    )
    assert found["end_to_end"]["messages"] == 60
    assert found["subscribers"][0]["lost"] == 4


@pytest.mark.parametrize("kind", ["lost", "duplicated", "reordered", "corrupt"])
def test_the_first_fault_is_named_with_its_place(kind: str) -> None:
    first = {"kind": kind, "publisher": 1, "expected": 6, "found": 7, "ticket": 42}
    with pytest.raises(IntegrityError) as caught:
        delivery.check_stamps([subscriber(verified=checked(first))])
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith(
        f"subscriber 0 of broker 0: a message is {kind}: of publisher 1, number 6 was expected and "
        "7 found, in the batch of ticket 42"
    )


# ---- a broker that died --------------------------------------------------------------------------


def after_failure(acked: int, seen: int, skipped: int) -> int:
    """Publisher 0 had `acked` messages acknowledged, its subscriber had read up to `seen`."""
    left = [{"acked": acked, "sent": 40}, {"acked": 0, "sent": 0}]
    skips = {"0": skipped} if skipped else {}
    end = subscriber(verified=checked(skipped=skips))
    return lost_acknowledged([50, 50], left, [{"next": {"0": seen + 1}}], [end])


def test_what_was_acknowledged_and_read_is_not_lost() -> None:
    assert after_failure(acked=30, seen=30, skipped=0) == 0
    assert after_failure(acked=30, seen=35, skipped=0) == 0, "the rest comes twice"


def test_what_was_acknowledged_and_in_nobodys_hands_is_lost() -> None:
    assert after_failure(acked=30, seen=25, skipped=5) == 5


def test_one_subscriber_that_has_it_is_enough() -> None:
    left = [{"acked": 30, "sent": 30}]
    ends = [subscriber(verified=checked(skipped={"0": n})) for n in (20, 4)]
    orphaned = [{"next": {"0": 11}}, {"next": {"0": 27}}]
    assert lost_acknowledged([50, 50], left, orphaned, ends) == 4


def test_without_subscribers_all_that_was_acknowledged_is_lost() -> None:
    assert lost_acknowledged([50], [{"acked": 30, "sent": 30}], [], []) == 30


@pytest.mark.parametrize(("acked", "seen", "skipped"), [(30, 30, 1), (30, 25, 4), (30, 35, 5)])
def test_anything_else_that_is_missing_is_an_error(acked: int, seen: int, skipped: int) -> None:
    with pytest.raises(IntegrityError, match="messages of publisher 0 are missing"):
        after_failure(acked, seen, skipped)


def test_a_last_message_that_nobody_got_is_an_error() -> None:
    end = subscriber(verified=checked(next={"0": 51, "1": 41}))
    with pytest.raises(IntegrityError, match="last message of publisher 1 was 40 of 50"):
        lost_acknowledged([50, 50], [{"acked": 50, "sent": 50}], [{"next": {"0": 51}}], [end])


# ---- latency -------------------------------------------------------------------------------------


def test_percentiles_are_of_all_processes_together() -> None:
    first = {"count": 998, "sum": 998_000, "max": 1000, "buckets": [(1023, 998)]}
    second = {"count": 2, "sum": 2_000_000, "max": 1_000_000, "buckets": [(1_048_575, 2)]}
    assert latency.percentiles([first, second]) == {
        "count": 1000,
        "mean_ns": 2998.0,
        "p50_ns": 1023,
        "p90_ns": 1023,
        "p99_ns": 1023,
        "p99_9_ns": 1_000_000,
        "max_ns": 1_000_000,
    }


def test_a_rate_that_was_not_reached_is_a_warning() -> None:
    found: Any = {"rate_asked": 1000.0, "rate_reached": 995.0}
    assert latency.warnings(found) == []
    assert "900 of 1,000 messages/s" in latency.warnings(found | {"rate_reached": 900.0})[0]
    assert latency.warnings(None) == []


# ---- as it is printed ----------------------------------------------------------------------------


def printed(result: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=110, highlight=False)
    render_scenario.tables(console, cast(Any, result))
    table = Table()
    render_scenario.summary(table, cast(Any, result))
    console.print(table)
    return cast(io.StringIO, console.file).getvalue()


def test_a_time_series_has_bars_and_the_moments_of_the_failure() -> None:
    series = [(0.05, 4e9), (0.1, 0.0), (0.15, 0.0), (0.2, 2e9)]
    failure = {
        "broker": 0, "failed_seconds": 0.04, "replaced_seconds": 0.11, "recovered_seconds": 0.16,
        "recovery_seconds": 0.12, "acknowledged": 10, "delivered": 90, "lost_acknowledged": 3,
        "sent_again": 4, "delivered_again": 1,
        "series": [{"seconds": s, "bytes_per_second": b} for s, b in series],
    }  # fmt: skip
    text = printed({"failure": failure})
    lines = [line.split() for line in text.splitlines()]
    assert ["50.0", "ms", "4.00", "GB/s", "#" * 40, "killed"] in lines
    assert ["150", "ms", "0.00", "B/s", "replaced"] in lines
    assert ["200", "ms", "2.00", "GB/s", "#" * 20, "recovered"] in lines
    assert "3 messages: acknowledged, but in nobody's hands" in text


def test_of_many_subscribers_those_that_read_least_are_shown() -> None:
    many = [
        {"name": f"s{n}", "messages": n, "batches": n, "lost": 0, "held": 0, "waits": 0}
        for n in range(20)
    ]
    text = printed({"subscribers": many})
    assert " s7 " in text
    assert " s8 " not in text
    assert "and 12 that read no less" in text
