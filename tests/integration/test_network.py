"""Brokers on one machine and publishers on another: two network namespaces joined by a cable."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from certificates import Site
from command import SMALL, RunningBroker, embar_shm, leftovers_of, running_broker, started
from namespaces import Machine, two_machines

from embar_shm.address import RingName
from embar_shm.segment import Segment
from embar_shm.testing import wait_until

RUN = ["run", "--json", "--transport", "tcp", *SMALL[2:]]
# A cable of 80 Mbit/s: 10 MB keep it busy for a second.
SLOW = ("tbf", "rate", "80mbit", "burst", "64kb", "latency", "50ms")

Machines = tuple[Machine, Machine]


@pytest.fixture
def machines() -> Iterator[Machines]:
    """The brokers' and the publishers'."""
    with two_machines() as made:
        yield made


@pytest.fixture
def token(tmp_path: Path) -> list[str]:
    path = tmp_path / "token"
    path.write_text("what both sides know\n")
    path.chmod(0o600)
    return ["--token-file", str(path)]


@contextmanager
def broker_on(machine: Machine, name: str, *flags: str) -> Iterator[RunningBroker]:
    url = f"tcp://{machine.address}:0"
    with running_broker(name, "--listen", url, *flags, command=machine.command) as broker:
        yield broker


def result_of(machine: Machine, broker: RunningBroker, *flags: str) -> dict[str, Any]:
    done = embar_shm(*RUN, "--connect", broker.address, *flags, command=machine.command)
    assert done.code == 0, done.stderr
    assert leftovers_of(done.pid) == []
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def check_exactly_once(result: dict[str, Any], broker: RunningBroker) -> None:
    """The log has what was sent, by what the run says and by what the broker says."""
    stats = broker.stop()["stats"]
    sent = result["throughput"]
    assert (stats["messages"], stats["batches"]) == (sent["messages"], sent["batches"])
    assert stats["payload_bytes"] >= sent["bytes"]
    assert stats["duplicated"] == stats["out_of_order"] == stats["corrupt"] == 0
    integrity = result["integrity"]
    assert integrity["sent"] == integrity["accepted"] == sent["messages"]
    assert integrity["lost"] == integrity["duplicated"] == integrity["reordered"] == 0


def test_publishers_reach_a_broker_of_another_machine_with_a_token(
    machines: Machines, cluster: str, token: list[str]
) -> None:
    there, here = machines
    with broker_on(there, f"{cluster}/0", *token) as broker:
        assert broker.address.startswith(f"tcp://{there.address}:")
        refused = embar_shm(*RUN, "--connect", broker.address, command=here.command)
        assert refused.code == 1
        assert "asks for a token" in refused.stderr
        result = result_of(here, broker, *token)
        assert result["system"]["sockets"]["requested_sndbuf"] == 0, "left to autotuning"
        check_exactly_once(result, broker)


def test_publishers_reach_a_broker_of_another_machine_with_tls(
    machines: Machines, cluster: str, tmp_path: Path
) -> None:
    there, here = machines
    site = Site(tmp_path / "site")
    own = site.issue(there.address)
    own_files = ("--tls-cert", own.certificate, "--tls-key", own.key)
    with broker_on(there, f"{cluster}/0", *own_files) as broker:
        check_exactly_once(result_of(here, broker, "--tls-ca", site.ca), broker)


def test_what_the_network_loses_and_delays_is_in_the_log_once_all_the_same(
    machines: Machines, cluster: str, token: list[str]
) -> None:
    there, here = machines
    for machine in machines:
        queued = machine.queue("netem", "delay", "2ms", "loss", "1%")
        if queued.returncode != 0:
            pytest.skip(f"no netem here: {queued.stderr.strip()}")
    here.send_single_segments()  # 4 MiB are 2,900 of them: 29 are lost
    with broker_on(there, f"{cluster}/0", *token) as broker:
        result = result_of(here, broker, *token, "--total-bytes", "4MiB")
        assert result["system"]["sockets"]["retransmits"] > 0
        check_exactly_once(result, broker)


def test_what_a_full_queue_drops_is_in_the_log_once_all_the_same(
    machines: Machines, cluster: str, token: list[str]
) -> None:
    there, here = machines
    # Cuts large packets into such for the wire, and drops those that find the queue full: two
    # connections begin with ten each.
    queued = here.queue("tbf", "rate", "80mbit", "burst", "5kb", "limit", "20kb")
    if queued.returncode != 0:
        pytest.skip(f"no tbf here: {queued.stderr.strip()}")
    with broker_on(there, f"{cluster}/0", *token) as broker:
        result = result_of(here, broker, *token, "--total-bytes", "4MiB")
        assert result["system"]["sockets"]["retransmits"] > 0
        check_exactly_once(result, broker)


def test_a_cable_that_is_pulled_costs_connections_and_no_batch(
    machines: Machines, cluster: str, token: list[str]
) -> None:
    there, here = machines
    queued = here.queue(*SLOW)  # so that the run is not over before the cable is pulled
    if queued.returncode != 0:
        pytest.skip(f"no {SLOW[0]} here: {queued.stderr.strip()}")
    here.set("tcp_retries2", 1)  # a connection is given up after parts of a second, not minutes
    with (
        broker_on(there, f"{cluster}/0", *token) as broker,
        started(
            *(*RUN, "--connect", broker.address, *token, "--total-bytes", "100MiB"),
            command=here.command,
        ) as process,
    ):
        wait_until(lambda: batches_of(f"{cluster}/0") > 0, "the run publishes")
        here.link("down")
        wait_until(lambda: here.connections() == 0, "the connections are lost")
        assert process.poll() is None, process.communicate()
        here.queue("pfifo")
        here.link("up")
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        check_exactly_once(json.loads(stdout), broker)
    assert leftovers_of(process.pid) == []


def test_a_cable_that_stays_pulled_fails_the_run(
    machines: Machines, cluster: str, token: list[str]
) -> None:
    there, here = machines
    here.set("tcp_retries2", 1)
    with (
        broker_on(there, f"{cluster}/0", *token) as broker,
        started(
            *(*RUN, "--connect", broker.address, *token, "--total-bytes", "100TiB"),
            *("--timeout", "1"),
            command=here.command,
        ) as process,
    ):
        wait_until(lambda: batches_of(f"{cluster}/0") > 0, "the run publishes")
        here.link("down")
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 1
        assert broker.address in stderr
        assert "Traceback" not in stderr
        assert broker.stop()["stats"]["messages"] > 0
    assert leftovers_of(process.pid) == []


def batches_of(name: str) -> int:
    """In the log of a broker; /dev/shm is that of all machines here."""
    segment = Segment.attach(RingName.parse(name), prefault=False)
    try:
        return int(segment.monitor().control()["batches"])
    finally:
        segment.close()
