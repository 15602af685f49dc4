"""`embar-shm run --transport tcp`, as its user sees it, with brokers of its own and elsewhere."""

from __future__ import annotations

import csv
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from certificates import Site
from command import SMALL, RunningBroker, embar_shm, leftovers_of, running_broker, started

from embar_shm.address import RingName
from embar_shm.bench.verdict import verdict
from embar_shm.left_behind import remove_dead
from embar_shm.segment import Segment
from embar_shm.testing import wait_until

TCP = ["--transport", "tcp"]
# SMALL without its brokers: how many there are follows from --connect.
ELSEWHERE = [*TCP, *SMALL[2:]]
LISTEN = ["--listen", "tcp://127.0.0.1:0"]
OF_BROKERS = ("slots", "slot_size", "max_publishers", "broker_scheduling")

Start = Callable[..., RunningBroker]


@pytest.fixture
def start(cluster: str) -> Iterator[Start]:
    """Starts brokers that listen: ``start(*flags)``; ends those that run."""
    with ExitStack() as stack:
        number = 0

        def begin(*flags: str) -> RunningBroker:
            nonlocal number
            number += 1
            return stack.enter_context(running_broker(f"{cluster}/{number}", *LISTEN, *flags))

        yield begin


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("tls") / "site")


@pytest.fixture
def tokens(tmp_path: Path) -> tuple[str, str]:
    """Files with the right and a wrong token."""
    paths = tmp_path / "right", tmp_path / "wrong"
    for path in paths:
        path.write_text(f"the {path.name} token\n")
        path.chmod(0o600)
    return str(paths[0]), str(paths[1])


def json_of(*arguments: str, **options: Any) -> dict[str, Any]:
    done = embar_shm("run", "--json", *arguments, **options)
    assert done.code == 0, done.stderr
    assert leftovers_of(done.pid) == []
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def failed(code: int, *arguments: str) -> str:
    """What a run says that fails; it prints no result and leaves nothing."""
    done = embar_shm("run", "--json", *arguments)
    assert done.code == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert leftovers_of(done.pid) == []
    return done.stderr


def check_nothing_lost(result: dict[str, Any], messages: int = 4000) -> None:
    assert result["integrity"] == {
        "sent": messages,
        "accepted": messages,
        "lost": 0,
        "duplicated": 0,
        "reordered": 0,
        "corrupt": 0,
    }


# --- brokers of its own ---------------------------------------------------------------------------


@pytest.mark.parametrize(("producer", "ack"), [("one", "1"), ("many", "1"), ("many", "0")])
def test_the_result_tells_what_sockets_did(producer: str, ack: str) -> None:
    result = json_of(*TCP, *SMALL, "--producer", producer, "--ack", ack, "--ceiling")

    check_nothing_lost(result)
    batches = result["throughput"]["batches"]
    assert set(result["ceilings"]) == {"memory_copy", "tcp_loopback"}
    stages = result["stages"]
    for name in ("receive", "get_buffer", "queue", "validate", "release"):
        assert stages[f"broker.{name}"]["count"] == batches, name
    assert stages["broker.receive"]["mean_us"] > 0
    assert stages["publisher.wait_space"]["count"] == batches
    assert stages["publisher.wait_ack"]["count"] == (0 if ack == "0" else 4)
    # What a publisher has in flight (2) when it is done may not be sent, or not noted as sent.
    assert batches - 4 * 2 <= stages["publisher.send_payload"]["count"] <= batches
    sockets = result["system"]["sockets"]
    assert set(sockets) == {
        *("recv_calls_per_batch", "send_calls_per_batch", "eagain", "retransmits"),
        *("requested_sndbuf", "granted_sndbuf", "requested_rcvbuf", "granted_rcvbuf"),
        *("max_inq_bytes", "max_outq_bytes"),
    }
    assert sockets["send_calls_per_batch"] > 0.5
    assert sockets["recv_calls_per_batch"] >= 2, "a header and a body"
    for direction in ("sndbuf", "rcvbuf"):
        assert sockets[f"requested_{direction}"] > 0
        assert sockets[f"granted_{direction}"] > 0
    for counter in ("eagain", "retransmits", "max_inq_bytes", "max_outq_bytes"):
        assert sockets[counter] >= 0
    assert result["verdict"] == json.loads(json.dumps(verdict(result)))


def test_it_prints_what_a_batch_went_through() -> None:
    done = embar_shm("run", *TCP, *SMALL)
    assert done.code == 0, done.stderr
    assert "tcp, 2 brokers, 4 publishers" in done.stdout
    assert "broker.receive" in done.stdout
    assert "broker, receive" in done.stdout
    assert "4,000 sent, 4,000 accepted, 0 lost" in done.stdout
    assert done.stderr == ""


def test_a_buffer_the_kernel_does_not_give_is_a_warning_that_names_the_setting() -> None:
    settings = ("core/wmem_max", "core/rmem_max", "ipv4/tcp_wmem", "ipv4/tcp_rmem")
    paths = [Path("/proc/sys/net") / name for name in settings]
    # A network namespace may hide the first two.
    most = max(int(path.read_text().split()[-1]) for path in paths if path.exists())
    result = json_of(*TCP, *SMALL, "--socket-buffer", str(most + 1))
    check_nothing_lost(result)
    sockets = result["system"]["sockets"]
    assert sockets["requested_sndbuf"] == sockets["requested_rcvbuf"] == most + 1
    for direction, setting in (("send", "net.core.wmem_max"), ("receive", "net.core.rmem_max")):
        (warning,) = (w for w in result["warnings"] if setting in w)
        assert warning.startswith(f"{direction} buffers")


def test_a_buffer_the_kernel_gives_is_no_warning() -> None:
    result = json_of(*TCP, *SMALL, "--socket-buffer", "16KiB")
    sockets = result["system"]["sockets"]
    assert sockets["requested_sndbuf"] == sockets["granted_sndbuf"] == 16384
    assert not [w for w in result["warnings"] if "net.core" in w]


@pytest.mark.parametrize("ack", ["0", "1"])
def test_its_own_brokers_use_tls_and_a_token(site: Site, tokens: tuple[str, str], ack: str) -> None:
    mine = site.issue("127.0.0.1")
    files = ["--tls-cert", mine.certificate, "--tls-key", mine.key, "--tls-ca", site.ca]
    result = json_of(*TCP, *SMALL, *files, "--token-file", tokens[0], "--ack", ack)
    check_nothing_lost(result)
    assert result["stages"]["broker.receive"]["count"] == result["throughput"]["batches"]
    assert result["system"]["sockets"]["recv_calls_per_batch"] >= 1
    text = json.dumps(result)
    assert "the right token" not in text
    assert result["parameters"]["token_file"]["value"] == tokens[0]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["--tls-ca", "{ca}"], "tls_ca without tls_cert, tls_key"),
        (["--tls-cert", "{cert}", "--tls-key", "{key}"], "tls_cert, tls_key without tls_ca"),
        (["--tls-cert", "{cert}", "--tls-ca", "{ca}"], "tls_cert, tls_ca without tls_key"),
        (["--tls-ca", "{ca}", "--tls-cert", "{cert}", "--tls-key", "{ca}"], "ca.pem"),
        (["--token-file", "missing/token"], "missing/token"),
        (["--token-file", "{ca}", "--connect", "tcp://127.0.0.1:1"], "ca.pem"),
        (["--tls-ca", "missing.pem", "--connect", "tcp://127.0.0.1:1"], "missing.pem"),
        (
            ["--tls-cert", "{cert}", "--tls-key", "{key}", "--connect", "tcp://127.0.0.1:1"],
            "tls_cert, tls_key without tls_ca",
        ),
    ],
)
def test_mistakes_in_tokens_and_tls_are_told_before_anything_starts(
    site: Site, files: list[str], said: str
) -> None:
    mine = site.issue("127.0.0.1")
    names = {"ca": site.ca, "cert": mine.certificate, "key": mine.key}
    Path(site.ca).chmod(0o644)
    brokers = ELSEWHERE if "--connect" in files else [*TCP, *SMALL]
    stderr = failed(2, *brokers, *(part.format(**names) for part in files))
    assert said in stderr
    assert "pid" not in stderr, "no process was started for it"


def test_what_is_for_sockets_is_a_warning_over_shared_memory() -> None:
    result = json_of(*SMALL, "--token-file", "no/such/file", "--socket-buffer", "1MiB")
    for flag in ("token_file (flag --token-file)", "socket_buffer (flag --socket-buffer)"):
        assert f"{flag} has no effect with transport=shm" in result["warnings"]
    assert "sockets" not in result["system"]


# --- brokers elsewhere ----------------------------------------------------------------------------


def test_brokers_elsewhere_are_only_known_by_what_they_acknowledge(start: Start) -> None:
    broker = start()
    result = json_of(*ELSEWHERE, "--connect", broker.address, "--ceiling", "--in-flight", "4")

    check_nothing_lost(result)
    batches = result["throughput"]["batches"]
    stats = broker.stop()["stats"]
    assert (stats["messages"], stats["batches"]) == (4000, batches)
    assert set(result["ceilings"]) == {"memory_copy"}
    assert set(result["system"]) & {"broker", "publisher"} == {"publisher"}
    assert set(result["system"]["sockets"]) == {
        *("send_calls_per_batch", "eagain", "retransmits", "max_outq_bytes"),
        *("requested_sndbuf", "granted_sndbuf"),
    }
    assert not [name for name in result["stages"] if name.startswith("broker.")]
    assert result["memory"]["segment_bytes"] == 0
    assert result["verdict"]["broker"] is None
    parameters = result["parameters"]
    for name in OF_BROKERS:
        assert parameters[name]["origin"].startswith("not used: the brokers run elsewhere")
    assert parameters["brokers"] == {
        "value": 1,
        "origin": "derived: addresses in connect (flag --connect)",
    }
    assert [w for w in result["warnings"] if w.startswith("the brokers run elsewhere")]


def test_each_of_two_brokers_elsewhere_gets_its_publishers(start: Start) -> None:
    brokers = [start(), start("--slots", "2")]
    addresses = ",".join(broker.address for broker in brokers)
    result = json_of(*ELSEWHERE, "--connect", addresses)
    check_nothing_lost(result)
    assert result["parameters"]["publishers"]["value"] == 4
    assert [broker.stop()["stats"]["messages"] for broker in brokers] == [2000, 2000]


def test_what_is_not_known_of_brokers_elsewhere_is_not_printed(
    start: Start, tmp_path: Path
) -> None:
    output, table = tmp_path / "result.json", tmp_path / "results.csv"
    done = embar_shm(
        *("run", *ELSEWHERE, "--connect", start().address),
        *("--output", str(output), "--csv", str(table)),
    )
    assert done.code == 0, done.stderr
    assert "tcp, 1 broker elsewhere, 2 publishers" in done.stdout
    assert "broker." not in done.stdout.partition("Stages")[2].partition("System")[0]
    assert "shared memory" not in done.stdout
    assert "4,000 sent, 4,000 accepted" in done.stdout
    assert "warning: the brokers run elsewhere" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110
    result = json.loads(output.read_text())
    with table.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["brokers"] == "1"
    assert float(row["cpu_seconds"]) == pytest.approx(
        result["system"]["publisher"]["cpu_seconds"], abs=1e-3
    )


def test_without_acknowledgements_what_was_sent_arrives_all_the_same(start: Start) -> None:
    broker = start()
    result = json_of(*ELSEWHERE, "--connect", broker.address, "--ack", "0")
    assert result["stages"]["publisher.wait_ack"]["count"] == 0
    assert broker.stop()["stats"]["messages"] == 4000


def test_a_token_and_tls_are_for_brokers_elsewhere_too(
    start: Start, site: Site, tokens: tuple[str, str]
) -> None:
    right, wrong = tokens
    mine, client = site.issue("127.0.0.1"), site.issue("client.example")
    broker = start(
        *("--token-file", right, "--tls-cert", mine.certificate, "--tls-key", mine.key),
        *("--tls-client-ca", site.ca),
    )
    there = [*ELSEWHERE, "--connect", broker.address, "--tls-ca", site.ca]
    shown = ["--tls-cert", client.certificate, "--tls-key", client.key]
    assert "the token is wrong" in failed(1, *there, *shown, "--token-file", wrong)
    assert "--token-file" in failed(1, *there, *shown)
    check_nothing_lost(json_of(*there, *shown, "--token-file", right))
    assert broker.stop()["stats"]["messages"] == 4000


def test_nobody_at_the_address_fails_the_run_and_names_it() -> None:
    with socket.socket() as silent:  # bound, so that nobody else takes the port; does not listen
        silent.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        stderr = failed(1, *ELSEWHERE, "--connect", address, "--timeout", "0.2")
    assert f"nobody listens on {address}" in stderr
    assert "publisher" in stderr


@pytest.mark.parametrize(
    ("transport", "address"), [("tcp", "shm://a/b"), ("shm", "tcp://127.0.0.1:1")]
)
def test_an_address_of_another_transport_is_a_mistake(transport: str, address: str) -> None:
    stderr = failed(2, *SMALL[2:], "--transport", transport, "--connect", address)
    assert f"{address} is not an address of the transport {transport}" in stderr
    assert f"--transport {address.partition(':')[0]}" in stderr


def test_a_broker_whose_slots_are_too_small_says_so(start: Start) -> None:
    broker = start("--slot-size", "4KiB")
    stderr = failed(1, *ELSEWHERE, "--connect", broker.address)
    assert broker.address in stderr
    assert "16384" in stderr
    assert "4096" in stderr
    assert broker.stop()["stats"]["messages"] == 0


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_broker_that_goes_in_the_middle_fails_the_run(
    start: Start, cluster: str, tmp_path: Path, how: str
) -> None:
    broker = start()
    output, table = tmp_path / "result.json", tmp_path / "results.csv"
    arguments = ["--connect", broker.address, "--total-bytes", "100TiB", "--timeout", "1"]
    files = ["--output", str(output), "--csv", str(table)]
    with started("run", *ELSEWHERE, *arguments, *files) as process:
        wait_until(lambda: accepted(f"{cluster}/1") > 0, "the run publishes")
        if how == "killed":
            broker.process.kill()
        else:
            broker.stop()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1, stderr
    assert broker.address in stderr
    assert ("has stopped" if how == "stopped" else "lost") in stderr
    assert "Traceback" not in stderr
    assert not output.exists()
    assert not table.exists()
    assert leftovers_of(process.pid) == []
    if how == "killed":
        broker.process.wait(60)
        remove_dead(RingName.parse(f"{cluster}/1"))


def test_an_interrupted_run_leaves_the_brokers_elsewhere_alone(start: Start, cluster: str) -> None:
    broker = start()
    arguments = ["--connect", broker.address, "--total-bytes", "100TiB"]
    with started("run", *ELSEWHERE, *arguments) as process:
        wait_until(lambda: accepted(f"{cluster}/1") > 0, "the run publishes")
        workers = psutil.Process(process.pid).children()
        process.terminate()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in stderr
    assert not any(worker.is_running() for worker in workers)
    check_nothing_lost(json_of(*ELSEWHERE, "--connect", broker.address))


def accepted(name: str) -> int:
    """Batches in the log of a broker of this machine."""
    segment = Segment.attach(RingName.parse(name), prefault=False)
    try:
        return int(segment.monitor().control()["batches"])
    finally:
        segment.close()
