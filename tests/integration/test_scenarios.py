"""All scenarios of `embar-shm run`, as their user sees them, with every message verified."""

from __future__ import annotations

import json
import os
import textwrap
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from command import COMMAND, embar_shm, leftovers_of, running_broker, started

from embar_shm.address import RingName
from embar_shm.bench.scenarios import SCENARIOS
from embar_shm.config.schema import KEYS
from embar_shm.errors import EmbarError
from embar_shm.segment import Segment
from embar_shm.testing import wait_until

ROOT = Path(__file__).parents[2]
TRANSPORTS = ["shm", "tcp"]
# 2 brokers, 4 publishers; 1000 messages of each, 64 to a batch: 16 batches.
SMALL = [
    *("--brokers", "2", "--publishers-per-broker", "2", "--message-size", "256"),
    *("--batch-size", "16KiB", "--total-bytes", "1000KiB", "--no-ceiling", "--verify"),
]
MESSAGES = 4000


def json_of(*arguments: str, **options: Any) -> dict[str, Any]:
    done = embar_shm("run", "--json", *arguments, **options)
    assert done.code == 0, done.stderr
    assert leftovers_of(done.pid) == []
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def run(transport: str, scenario: str, *arguments: str) -> dict[str, Any]:
    """A small run, of which all messages are there and checked, whatever the scenario."""
    result = json_of(*SMALL, "--transport", transport, "--scenario", scenario, *arguments)
    assert result["integrity"]["sent"] == MESSAGES
    lost = result["failure"]["lost_acknowledged"] if "failure" in result else 0
    assert result["integrity"]["lost"] == lost
    subscribers = len(result["subscribers"])
    assert subscribers == 2 * result["parameters"]["subscribers_per_broker"]["value"]
    assert sum(s["messages"] for s in result["subscribers"]) == result["verified"]["messages"]
    assert result["system"]["subscriber"]["cpu_seconds"] > 0
    return result


def everything_was_read(result: dict[str, Any]) -> None:
    for subscriber in result["subscribers"]:
        assert subscriber["messages"] == MESSAGES // 2
        assert subscriber["payload_bytes"] == MESSAGES // 2 * 256
        assert (subscriber["lost"], subscriber["held"]) == (0, 0)
    assert result["verified"]["resent"] == result["verified"]["overrun"] == 0


def rate_of(part: dict[str, Any]) -> None:
    """A part of the result that counts messages over time."""
    assert (part["messages"], part["bytes"]) == (MESSAGES, MESSAGES * 256)
    assert part["bytes_per_second"] == pytest.approx(part["bytes"] / part["seconds"])
    assert part["messages_per_second"] == pytest.approx(part["messages"] / part["seconds"])


def test_the_table_of_scenarios_is_that_of_the_key() -> None:
    key = next(key for key in KEYS if key.name == "scenario")
    assert set(SCENARIOS) == set(key.metavar.split("|"))
    assert sorted(scenario.number for scenario in SCENARIOS.values()) == list(range(8))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_publishing_is_verified_by_subscribers_that_are_added(transport: str) -> None:
    result = run(transport, "publish")
    everything_was_read(result)
    assert result["verified"]["messages"] == MESSAGES
    assert result["phases"]["rounds"] == 1
    assert not {"end_to_end", "subscribe", "latency", "failure", "verdict"} & set(result)
    assert any("read along to verify" in warning for warning in result["warnings"])


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("producer", ["one", "many"])
def test_end_to_end_is_until_the_last_message_was_read(transport: str, producer: str) -> None:
    result = run(transport, "end-to-end", "--producer", producer, "--ceiling")
    everything_was_read(result)
    found, ceiling = result["end_to_end"], result["ceilings"]["copy_and_read"]
    rate_of(found)
    assert found["seconds"] == result["phases"]["read_seconds"]
    share = found["bytes_per_second"] / ceiling["bytes_per_second"]
    assert found["share_of_ceiling"] == pytest.approx(share)
    assert ceiling["share"] == pytest.approx(share)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_parallel_clients_are_as_many_subscribers_as_publishers(transport: str) -> None:
    result = run(transport, "parallel", "--ceiling")
    everything_was_read(result)
    rate_of(result["end_to_end"])  # each message counts once, however many read it
    assert len(result["subscribers"]) == 4
    assert result["verified"]["messages"] == 2 * MESSAGES
    assert result["ceilings"]["copy_and_read"]["bytes_per_second"] > 0


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("ack", ["0", "1"])
@pytest.mark.parametrize(
    "scenario", ["publish-then-subscribe", "subscribe", "publish-then-consume"]
)
def test_what_does_not_fit_into_the_ring_is_published_and_read_in_rounds(
    transport: str, scenario: str, ack: str
) -> None:
    result = run(transport, scenario, "--ack", ack)
    everything_was_read(result)
    # 16 batches of each publisher, 2 in flight.
    phases = result["phases"]
    assert phases["rounds"] == 8
    rate_of(result["subscribe"])
    assert result["subscribe"]["seconds"] == phases["read_seconds"]
    assert result["throughput"]["elapsed_seconds"] == phases["publish_seconds"]
    assert ("end_to_end" in result) == (scenario != "subscribe")
    if "end_to_end" in result:
        rate_of(result["end_to_end"])
        both = phases["publish_seconds"] + phases["read_seconds"]
        assert result["end_to_end"]["seconds"] == pytest.approx(both)
        assert result["end_to_end"]["share_of_ceiling"] is None


def test_what_fits_into_the_ring_takes_one_round_and_rounds_are_printed() -> None:
    large = ("--slots", "64", "--in-flight", "32")
    assert run("shm", "subscribe", *large)["phases"]["rounds"] == 1
    printed = embar_shm("run", *SMALL, "--scenario", "subscribe")
    assert printed.code == 0, printed.stderr
    assert "8: the rings do not hold all at once" in printed.stdout
    assert "4,000 messages by checksum and number: no fault" in printed.stdout


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_latency_counts_every_message_from_when_it_was_due(transport: str) -> None:
    result = run(transport, "latency", "--rate", "20000")
    everything_was_read(result)
    latency = result["latency"]
    assert latency["rate_asked"] == 20000
    assert 0 < latency["rate_reached"] < 20000 * 1.01
    for name in ("send_delay", "publish_to_ack", "publish_to_deliver"):
        found = latency[name]
        assert found["count"] == MESSAGES, name
        order = [found[p] for p in ("p50_ns", "p90_ns", "p99_ns", "p99_9_ns", "max_ns")]
        assert order == sorted(order)
    # A message is sent before it is anywhere.
    assert latency["send_delay"]["p50_ns"] <= latency["publish_to_ack"]["p50_ns"]
    assert result["throughput"]["batches"] == MESSAGES, "each is flushed"


def test_latency_without_acknowledgements_or_subscribers_has_only_the_rest() -> None:
    arguments = ("--scenario", "latency", "--brokers", "1", "--total-bytes", "10KiB")
    deaf = json_of(*arguments, "--no-ceiling", "--ack", "0", "--subscribers-per-broker", "0")
    assert deaf["latency"]["publish_to_ack"] is deaf["latency"]["publish_to_deliver"] is None
    assert deaf["latency"]["send_delay"]["count"] == 10
    assert "verified" not in deaf


def test_a_rate_that_cannot_be_reached_shows_in_the_latencies_and_in_a_warning() -> None:
    """Whoever waits for slow acknowledgements sends late, and late is what the result says."""
    arguments = ("--scenario", "latency", "--rate", "1e9", "--brokers", "1", "--no-ceiling")
    result = json_of(*arguments, "--publishers-per-broker", "1", "--total-bytes", "2MiB")
    assert result["latency"]["rate_reached"] < 1e9
    assert any("messages waited for their publisher" in w for w in result["warnings"])
    # All were due at once: half of them had to wait for half of the time at least.
    elapsed_ns = result["throughput"]["elapsed_seconds"] * 1e9
    assert result["latency"]["publish_to_deliver"]["p50_ns"] > elapsed_ns * 0.2
    printed = embar_shm("run", *arguments, "--total-bytes", "64KiB")
    assert "in a subscriber's hands" in printed.stdout, printed.stderr


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_broker_is_killed_and_everything_is_accounted_for(transport: str) -> None:
    result = run(transport, "broker-failure")
    failure = result["failure"]
    assert failure["broker"] == 0
    moments = [failure[f"{moment}_seconds"] for moment in ("failed", "replaced", "recovered")]
    assert 0 < moments[0] < moments[1] < moments[2] < result["throughput"]["elapsed_seconds"]
    assert failure["recovery_seconds"] == pytest.approx(moments[2] - moments[0])
    # It had half of its messages, and its publishers stopped after three quarters. Over a network
    # the acknowledgements of two batches in flight of each may have been on their way.
    assert failure["acknowledged"] + 2 * 2 * 64 >= MESSAGES // 4
    assert failure["acknowledged"] <= MESSAGES // 2 * 3 // 4
    assert failure["delivered"] == MESSAGES - failure["lost_acknowledged"]
    assert result["verified"]["resent"] == failure["delivered_again"]
    assert result["verified"]["overrun"] == failure["lost_acknowledged"]
    survivors = [s for s in result["subscribers"] if s["name"].endswith("broker 1")]
    assert [s["messages"] for s in survivors] == [MESSAGES // 2]
    assert failure["series"]
    ends = [sample["seconds"] for sample in failure["series"]]
    assert ends == sorted(ends)
    lengths = [b - a for a, b in zip([0.0, *ends], ends, strict=False)]
    accepted = sum(
        sample["bytes_per_second"] * length
        for sample, length in zip(failure["series"], lengths, strict=True)
    )
    assert accepted == pytest.approx(result["integrity"]["accepted"] * 256)
    assert any("was killed" in warning for warning in result["warnings"])


def test_a_failure_is_printed_with_its_moments_and_the_throughput_around_it() -> None:
    done = embar_shm("run", *SMALL, "--scenario", "broker-failure")
    assert done.code == 0, done.stderr
    for word in ("killed", "replaced", "recovered", "read twice", "lost with its log"):
        assert word in done.stdout
    assert leftovers_of(done.pid) == []


def test_without_subscribers_what_was_acknowledged_by_a_dead_broker_is_lost() -> None:
    arguments = [*SMALL, "--scenario", "broker-failure", "--subscribers-per-broker", "0"]
    arguments.remove("--verify")
    result = json_of(*arguments)
    failure = result["failure"]
    assert failure["lost_acknowledged"] == failure["acknowledged"] > 0
    assert failure["delivered"] == 0
    assert result["integrity"]["lost"] == failure["acknowledged"]
    assert any("in nobody's hands" in warning for warning in result["warnings"])


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("scenario", ["end-to-end", "subscribe"])
def test_a_lossy_subscriber_says_what_it_lost_and_verifies_the_rest(
    transport: str, scenario: str
) -> None:
    result = run(transport, scenario, "--subscribe-mode", "lossy")
    for subscriber in result["subscribers"]:
        assert subscriber["batches"] + subscriber["lost"] >= 16
        assert subscriber["messages"] <= MESSAGES // 2
    read = sum(s["messages"] for s in result["subscribers"])
    assert read + result["verified"]["overrun"] <= MESSAGES


def test_subscribers_can_go_through_messages_or_do_nothing() -> None:
    for consume in ("nothing", "messages"):
        everything_was_read(run("shm", "end-to-end", "--consume", consume))


# ---- faults, made by hand ------------------------------------------------------------------------

# Publisher 0 stamps its first block of messages wrongly: 6 and 7 are what is expected there.
SABOTAGE = """
    from embar_shm import _core

    stamp, done = _core.stamp, []

    def wrong(messages, size, publisher, first, due_ns=0):
        stamp(messages, size, publisher, first, due_ns)
        if publisher or done:
            return
        done.append(True)
        rest = messages[5 * size :]
        {fault}

    _core.stamp = wrong
"""
FAULTS = {
    "lost": "stamp(rest, size, publisher, first + 6, due_ns)",
    "duplicated": "stamp(rest, size, publisher, first + 4, due_ns)",
    "reordered": "rest[:size], rest[size : 2 * size] = bytes(rest[size : 2 * size]), "
    "bytes(rest[:size])",
    "corrupt": "rest[size // 2] ^= 1",
}
FOUND = {"lost": 7, "duplicated": 5, "reordered": 7, "corrupt": 6}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("scenario", ["end-to-end", "publish-then-subscribe", "broker-failure"])
def test_a_fault_ends_the_run_with_code_3_and_the_first_one_is_named(
    tmp_path: Path, fault: str, scenario: str
) -> None:
    code = textwrap.dedent(SABOTAGE).format(fault=FAULTS[fault])
    (tmp_path / "sitecustomize.py").write_text(code)
    output = tmp_path / "result.json"
    done = embar_shm(
        "run", *SMALL, "--scenario", scenario, "--output", str(output),
        environ={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.code == 3, done.stderr
    assert f"a message is {fault}: of publisher 0, number 6 was expected" in done.stderr
    assert f"and {FOUND[fault]} found, in the batch of ticket " in done.stderr
    assert "subscriber 0 of broker 0" in done.stderr
    assert not output.exists()
    assert leftovers_of(done.pid) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--verify", "--message-size", "31"], "message_size 31 (flag --message-size) is too"),
        (["--scenario", "latency", "--message-size", "8"], "too small for scenario latency"),
        (["--scenario", "end-to-end", "--subscribers-per-broker", "0"], "nobody would read"),
        (["--verify", "--subscribers-per-broker", "0"], "verify without subscribers (flag"),
        (["--scenario", "broker-failure", "--ack", "0"], "nobody knows what to send again"),
        (["--scenario", "broker-failure", "--subscribe-mode", "lossy"], "where a broker dies"),
        (["--scenario", "subscribe", "--slots", "2"], "cannot leave a batch each"),
        (
            ["--scenario", "subscribe", "--transport", "tcp", "--connect", "tcp://127.0.0.1:1"],
            "needs brokers that keep what nobody has read",
        ),
        (
            ["--scenario", "broker-failure", "--connect", "tcp://127.0.0.1:1",
             "--transport", "tcp"],
            "kills a broker",
        ),
    ],
)  # fmt: skip
def test_what_a_scenario_cannot_do_is_told_before_anything_starts(
    arguments: list[str], said: str
) -> None:
    done = embar_shm("run", *arguments)
    assert done.code == 2, done.stderr
    assert said in done.stderr
    assert "hint" in done.stderr


def test_a_comparison_is_of_publishing_only() -> None:
    done = embar_shm("compare", "--scenario", "latency")
    assert done.code == 2
    assert "a comparison is of publishing" in done.stderr


@pytest.mark.parametrize("number", range(8))
def test_the_originals_script_runs_each_test_type(tmp_path: Path, number: int) -> None:
    wrapper = tmp_path / "embar-shm"
    wrapper.write_text(
        '#!/bin/sh\nexec "$PYTHON" -c "from embar_shm.cli.main import main; main()" "$@"\n'
    )
    wrapper.chmod(0o755)
    environ = {"EMBAR_SHM": str(wrapper), "PYTHON": COMMAND[0], "TEST_TYPE": str(number)}
    script = [str(ROOT / "tools" / "run_throughput.sh")]
    done = embar_shm("--json", *SMALL, command=script, environ=environ)
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    assert SCENARIOS[result["parameters"]["scenario"]["value"]].number == number


# ---- processes that die, brokers that are elsewhere ----------------------------------------------

LONG = [
    *("--scenario", "end-to-end", "--brokers", "1", "--publishers-per-broker", "2"),
    *("--total-bytes", "100TiB", "--no-ceiling"),
]


def subscriber_of(process: Any) -> psutil.Process:
    """The last of its workers, once messages flow."""
    ring = RingName(f"run-{process.pid}", "0")

    def flows() -> bool:
        try:
            segment = Segment.attach(ring, prefault=False)
        except EmbarError:
            return False
        with closing(segment):
            return bool(segment.monitor().control()["messages"] > 0)

    wait_until(flows, "the run publishes")
    workers: list[psutil.Process] = psutil.Process(process.pid).children()
    return workers[-1]


def test_a_subscriber_that_is_killed_fails_the_run(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    with started("run", *LONG, "--output", str(output)) as process:
        victim = subscriber_of(process)
        victim.kill()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"subscriber 0 of broker 0 (pid {victim.pid}) was killed by signal 9" in stderr
    assert not output.exists()
    assert leftovers_of(process.pid) == []


def test_a_subscriber_that_does_not_read_fails_the_run_and_is_named() -> None:
    with started("run", *LONG, "--timeout", "0.5") as process:
        subscriber_of(process).suspend()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "subscriber 0 of broker 0" in stderr
    assert leftovers_of(process.pid) == []


@pytest.mark.parametrize("scenario", ["end-to-end", "latency", "publish"])
def test_brokers_elsewhere_are_read_and_verified_too(scenario: str) -> None:
    with running_broker(f"scenario-{os.getpid()}/0", "--listen", "tcp://127.0.0.1:0") as broker:
        result = json_of(
            *("--transport", "tcp", "--connect", broker.address, "--scenario", scenario),
            *("--publishers-per-broker", "2", "--message-size", "256", "--batch-size", "16KiB"),
            *("--total-bytes", "100KiB", "--no-ceiling", "--verify"),
        )
    assert result["verified"]["messages"] == 400
    assert result["integrity"]["accepted"] == 400
