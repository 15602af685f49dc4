"""`embar-shm broker --config`, and what a service manager sees of it."""

from __future__ import annotations

import json
import re
import secrets
import signal
import socket
import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from command import embar_shm, started

import embar_shm as es
from embar_shm.address import RingName
from embar_shm.segment import Segment
from embar_shm.testing import leftovers, wait_until

TWO = """
slots: 4
slot_size: 64KiB
listen: tcp://127.0.0.1:0
brokers:
  - name: {cluster}/0
  - name: {cluster}/1
    slots: 2
"""


@pytest.fixture
def file(cluster: str, tmp_path: Path) -> str:
    """Two brokers of this test's cluster."""
    return written(tmp_path, TWO, cluster)


def written(folder: Path, text: str, cluster: str) -> str:
    path = folder / "brokers.yaml"
    path.write_text(text.format(cluster=cluster))
    return str(path)


@contextmanager
def running(
    file: str, *arguments: str, environ: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The process once it is ready, and what it then printed."""
    with started("broker", "--config", file, "--json", *arguments, environ=environ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line, f"the brokers did not start: {process.stderr.read()}"
        yield process, json.loads(line)["brokers"]


def ended(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, json.loads(stdout)["brokers"], stderr


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children()


def child_of(process: subprocess.Popen[str], broker: str) -> psutil.Process:
    """The process of one broker: the one that has its segment mapped."""
    path = str(RingName.parse(broker).path)
    (found,) = (
        child
        for child in children(process)
        if path in {region.path for region in child.memory_maps(grouped=True)}
    )
    return found


def publish(address: str) -> None:
    with es.Publisher.connect(address, timeout=20) as publisher:
        publisher.publish(b"a message")
        publisher.wait_acked()


# --- one life for all -----------------------------------------------------------------------------


def test_the_brokers_of_a_file_are_ready_together_and_report_together(
    cluster: str, file: str
) -> None:
    names = [f"{cluster}/0", f"{cluster}/1"]
    with running(file) as (process, brokers):
        assert list(brokers) == names
        for name in names:
            shm, tcp = brokers[name]["addresses"]
            assert shm == f"shm://{name}"
            publish(shm)
            publish(tcp)
        publish(shm)
        process.terminate()
        code, reports, stderr = ended(process)
    assert (code, stderr) == (0, "")
    assert list(reports) == names
    assert [reports[name]["stats"]["messages"] for name in names] == [2, 3]
    assert [len(reports[name]["sockets"]) for name in names] == [1, 1]
    assert leftovers(cluster) == []


def test_people_get_the_addresses_of_all_and_then_what_each_did(cluster: str, file: str) -> None:
    with started("broker", "--config", file) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().rstrip() for _ in range(4)]
        process.terminate()
        stdout, stderr = process.communicate(timeout=60)
    assert lines[0] == f"ready: shm://{cluster}/0"
    assert lines[2] == f"ready: shm://{cluster}/1"
    nothing = "accepted 0 messages in 0 batches, 0.000 GB"
    assert stdout.splitlines() == [f"{cluster}/0", nothing, f"{cluster}/1", nothing]
    assert stderr == ""


def test_the_file_and_the_flags_reach_the_rings(cluster: str, file: str) -> None:
    more = ("--max-publishers", "3", "--max-subscribers", "5", "--retain", "2")
    with running(file, *more) as (process, brokers):
        publish(brokers[f"{cluster}/0"]["addresses"][0])
        with es.Subscriber.connect(f"shm://{cluster}/0", start="earliest", timeout=20) as reader:
            assert reader.next().copy()[8:17] == b"a message", "it was retained"

        found = []
        for number in range(2):
            segment = Segment.attach(RingName(cluster, str(number)), timeout=0)
            found.append(segment.geometry)
            segment.close()
        process.terminate()
        ended(process)
    assert [geometry.slots for geometry in found] == [4, 2]
    assert {geometry.slot_bytes for geometry in found} == {64 * 1024}
    assert {geometry.max_publishers for geometry in found} == {3}
    assert {geometry.max_subscribers for geometry in found} == {5}


def test_one_broker_of_a_file_looks_the_same_without_a_process_of_its_own(
    cluster: str, tmp_path: Path
) -> None:
    file = written(tmp_path, "brokers: [{{name: {cluster}/0}}]", cluster)
    with running(file) as (process, brokers):
        assert brokers == {f"{cluster}/0": {"addresses": [f"shm://{cluster}/0"]}}
        assert children(process) == []
        process.terminate()
        code, reports, _ = ended(process)
    assert code == 0
    assert list(reports) == [f"{cluster}/0"]
    assert leftovers(cluster) == []


def test_ctrl_c_is_exit_code_130_with_the_reports_and_nothing_left(cluster: str, file: str) -> None:
    with running(file) as (process, _):
        process.send_signal(signal.SIGINT)
        code, reports, stderr = ended(process)
    assert (code, stderr.strip()) == (130, "embar-shm: interrupted")
    assert len(reports) == 2
    assert leftovers(cluster) == []


def test_a_service_manager_may_tell_each_process_to_end(cluster: str, file: str) -> None:
    with running(file) as (process, _):
        for each in [psutil.Process(process.pid), *children(process)]:  # KillMode=control-group
            each.terminate()
        code, reports, stderr = ended(process)
    assert (code, stderr) == (0, "")
    assert len(reports) == 2
    assert leftovers(cluster) == []


def test_sigterm_while_they_start_leaves_nothing(cluster: str, file: str) -> None:
    with started("broker", "--config", file) as process:
        wait_until(lambda: children(process), "the first process of a broker")
        process.terminate()
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert stdout == "" or "ready" in stdout
    assert leftovers(cluster) == []


# --- one death for all ----------------------------------------------------------------------------


def test_when_one_does_not_start_none_does(cluster: str, tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        text = TWO.replace("slots: 2", f"listen: tcp://127.0.0.1:{busy.getsockname()[1]}")
        done = embar_shm("broker", "--config", written(tmp_path, text, cluster))
    assert done.code == 1
    assert done.stdout == ""
    assert f"the broker {cluster}/1 (pid " in done.stderr
    assert "cannot listen on" in done.stderr
    assert leftovers(cluster) == []


def test_the_exit_code_of_one_that_does_not_start_is_its_own(cluster: str, tmp_path: Path) -> None:
    text = TWO.replace("slots: 2", "listen: tcp://0.0.0.0:0")
    done = embar_shm("broker", "--config", written(tmp_path, text, cluster))
    assert done.code == 2, "a mistake of configuration"
    assert "neither a token nor TLS protects it" in done.stderr
    assert leftovers(cluster) == []


def test_one_that_is_killed_is_started_again_and_goes_on_where_it_was(
    cluster: str, file: str
) -> None:
    name = f"{cluster}/0"
    with running(file) as (process, brokers):
        shm, tcp = brokers[name]["addresses"]
        with es.Publisher.connect(shm, timeout=20, restart_timeout=20) as publisher:
            publisher.publish(b"before")
            publisher.wait_acked()
            child_of(process, name).kill()
            publisher.publish(b"after")
            publisher.wait_acked()
        publish(tcp)  # it listens where it did
        assert process.stdout is not None
        recovered = json.loads(process.stdout.readline())["recovered"]
        assert (recovered["name"], recovered["epoch"], recovered["accepted"]) == (name, 2, 1)
        assert json.loads(process.stdout.readline())["first_accept"]["name"] == name
        process.terminate()
        code, reports, stderr = ended(process)
    assert code == 0
    assert "was killed by signal 9: it is started again" in stderr
    assert reports[name]["stats"]["messages"] == 3
    assert leftovers(cluster) == []


def test_when_one_is_killed_again_and_again_the_others_end_in_good_order(
    cluster: str, file: str
) -> None:
    with running(file) as (process, brokers):
        publish(brokers[f"{cluster}/1"]["addresses"][0])
        assert process.stdout is not None
        for _ in range(5):
            child_of(process, f"{cluster}/0").kill()
            assert "recovered" in json.loads(process.stdout.readline())
        child_of(process, f"{cluster}/0").kill()
        code, reports, stderr = ended(process)
    assert code == 1
    assert f"the broker {cluster}/0 (pid " in stderr
    assert "was killed by signal 9" in stderr
    assert reports.keys() == {f"{cluster}/1"}
    assert reports[f"{cluster}/1"]["stats"]["messages"] == 1
    assert [str(ring) for ring in leftovers(cluster)] == [f"{cluster}/0"]
    with running(file, "--replace-dead") as (process, _):
        process.terminate()
        assert ended(process)[0] == 0
    assert leftovers(cluster) == []


def test_when_one_is_stopped_alone_that_is_a_failure(cluster: str, file: str) -> None:
    with running(file) as (process, _):
        child_of(process, f"{cluster}/1").terminate()
        code, reports, stderr = ended(process)
    assert code == 1
    assert f"the broker {cluster}/1 (pid " in stderr
    assert "was stopped" in stderr
    assert len(reports) == 2
    assert leftovers(cluster) == []


def test_when_the_parent_is_killed_the_next_one_goes_on_with_all_rings(
    cluster: str, file: str
) -> None:
    address = f"shm://{cluster}/0"
    with running(file) as (process, _):
        publisher = es.Publisher.connect(address, timeout=60, restart_timeout=60)
        subscriber = es.Subscriber.connect(address, timeout=60, restart_timeout=60)
        publisher.publish(b"before")
        publisher.wait_acked()
        brokers = children(process)
        process.kill()
        process.communicate(timeout=60)
        psutil.wait_procs(brokers, timeout=30)
        assert len(leftovers(cluster)) == 2
    with running(file) as (process, found):
        assert [found[f"{cluster}/{n}"]["recovered"]["epoch"] for n in range(2)] == [2, 2]
        publisher.publish(b"after")
        publisher.wait_acked()
        publisher.close()
        assert [bytes(m) for _ in range(2) for m in subscriber.next().messages()] == [
            b"before",
            b"after",
        ]
        subscriber.close()
        process.terminate()
        assert ended(process)[0] == 0
    assert leftovers(cluster) == []


# --- the service manager --------------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """NOTIFY_SOCKET, and what is behind it."""
    path = str(tmp_path / "notify")
    name = f"embar-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path if request.param == "path" else "\0" + name)
        sock.settimeout(30)
        yield path if request.param == "path" else "@" + name, sock


def test_it_hears_that_all_are_ready_and_that_the_end_begins(
    cluster: str, file: str, manager: tuple[str, socket.socket]
) -> None:
    address, sock = manager
    with running(file, environ={"NOTIFY_SOCKET": address}) as (process, _):
        assert sock.recv(4096).decode().splitlines() == [
            "READY=1",
            f"STATUS=serving {cluster}/0, {cluster}/1",
        ]
        assert all("NOTIFY_SOCKET" not in child.environ() for child in children(process))
        process.terminate()
        assert sock.recv(4096).decode().splitlines() == ["STOPPING=1", "STATUS=stopping"]
        assert ended(process)[0] == 0


def test_it_hears_the_same_of_a_single_broker(
    cluster: str, manager: tuple[str, socket.socket]
) -> None:
    address, sock = manager
    with started("broker", f"{cluster}/0", environ={"NOTIFY_SOCKET": address}) as process:
        assert sock.recv(4096).decode().splitlines() == ["READY=1", f"STATUS=serving {cluster}/0"]
        process.terminate()
        assert sock.recv(4096).decode().startswith("STOPPING=1\n")
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_it_hears_what_failed(cluster: str, file: str, manager: tuple[str, socket.socket]) -> None:
    address, sock = manager
    with running(file, environ={"NOTIFY_SOCKET": address}) as (process, _):
        sock.recv(4096)
        child_of(process, f"{cluster}/0").terminate()
        stopping = sock.recv(4096).decode().splitlines()
        assert ended(process)[0] == 1
    assert stopping[0] == "STOPPING=1"
    assert stopping[1].startswith(f"STATUS=failed: the broker {cluster}/0 (pid ")
    for ring in leftovers(cluster):
        ring.path.unlink()


def test_its_watchdog_is_fed_as_long_as_every_broker_responds(
    cluster: str, file: str, tmp_path: Path
) -> None:
    period_us = 100_000
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(30)
        environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": str(4 * period_us)}
        with running(file, environ=environ) as (process, _):
            assert sock.recv(4096).startswith(b"READY=1")
            assert [sock.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            hung = child_of(process, f"{cluster}/1")
            hung.suspend()
            sock.settimeout(20 * period_us / 1e6)
            with pytest.raises(TimeoutError):  # those on their way, and then no more
                for _ in range(20):
                    sock.recv(4096)
            hung.resume()
            sock.settimeout(30)
            assert sock.recv(4096) == b"WATCHDOG=1"
            process.terminate()
            assert ended(process)[0] == 0


def test_the_watchdog_of_a_single_broker_is_fed_by_the_thread_that_serves(
    cluster: str, manager: tuple[str, socket.socket]
) -> None:
    address, sock = manager
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"}
    with started("broker", f"{cluster}/0", environ=environ) as process:
        assert sock.recv(4096).startswith(b"READY=1")
        assert [sock.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        publish(f"shm://{cluster}/0")
        process.terminate()
        stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "accepted 1 messages" in stdout


def test_a_socket_that_cannot_be_is_told_before_anything_starts(cluster: str) -> None:
    done = embar_shm("broker", f"{cluster}/0", environ={"NOTIFY_SOCKET": "no-path"})
    assert done.code == 2
    assert "NOTIFY_SOCKET='no-path'" in done.stderr
    assert leftovers(cluster) == []


# --- mistakes -------------------------------------------------------------------------------------


def test_all_mistakes_of_a_file_are_told_with_their_place(cluster: str, tmp_path: Path) -> None:
    text = "slots: 0\nbrokers:\n  - name: {cluster}/0\n    wiat: spin\n  - slots: 3\n"
    file = written(tmp_path, text, cluster)
    done = embar_shm("broker", "--config", file, "--spin-us", "x")
    assert done.code == 2
    assert done.stdout == ""
    for mistake in (
        "flag --spin-us: 'x' is not a whole number",
        f"{file}:1:8: slots: 0 is below the minimum 1",
        f"{file}:4:5: unknown key 'wiat' (did you mean 'wait'?)",
        f"{file}:5:5: this broker has no name",
    ):
        assert mistake in done.stderr


def test_a_file_that_is_not_there_is_named() -> None:
    done = embar_shm("broker", "--config", "/no/such.yaml")
    assert done.code == 2
    assert "/no/such.yaml: cannot be read: No such file or directory" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["demo/0", "--config", "x.yaml"]], ids=str)
def test_it_wants_a_name_or_a_file(arguments: list[str]) -> None:
    done = embar_shm("broker", *arguments)
    assert done.code == 2
    assert "give either CLUSTER/BROKER or --config PATH" in done.stderr


def test_the_file_in_the_help_is_one(cluster: str, tmp_path: Path) -> None:
    help_text = embar_shm("broker", "--help").stdout
    found = re.search(r"^ +slots: 16\n.*?\n\n", help_text, re.MULTILINE | re.DOTALL)
    assert found
    example = textwrap.dedent(found[0])
    token = tmp_path / "token"
    token.write_text("a token of some length")
    token.chmod(0o600)
    example = example.replace("/etc/embar/token", str(token)).replace("demo", cluster)
    for port in ("7400", "7401", "7402"):
        example = example.replace(port, "0")
    path = tmp_path / "brokers.yaml"
    path.write_text(example)
    with running(str(path)) as (process, brokers):
        assert [len(broker["addresses"]) for broker in brokers.values()] == [2, 3]
        process.terminate()
        assert ended(process)[0] == 0
