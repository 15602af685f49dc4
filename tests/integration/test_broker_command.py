"""`embar-shm broker`, as its user sees it."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import Site
from command import Outcome, embar_shm, running_broker, started

import embar_shm as es
from embar_shm import tls
from embar_shm.testing import leftovers, wait_until

LOOPBACK = ("--listen", "tcp://127.0.0.1:0")
EVERYWHERE = ("--listen", "tcp://0.0.0.0:0")
TOKEN = "a token of some length"


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    return written(tmp_path / "token", TOKEN)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("tls") / "site")


def written(path: Path, text: str | bytes, mode: int = 0o600) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return str(path)


def refused(cluster: str, *arguments: str) -> Outcome:
    """The broker does not start, says why in good order, and leaves nothing."""
    done = embar_shm("broker", f"{cluster}/0", *arguments)
    assert done.stdout == "", "it did start"
    assert "Traceback" not in done.stderr
    assert leftovers(cluster) == []
    return done


def publish(address: str, messages: int = 100, **options: object) -> None:
    with es.Publisher.connect(address, message_size=1024, timeout=20, **options) as publisher:
        for number in range(messages):
            publisher.publish(number.to_bytes(8) * 128)
        publisher.wait_acked()


# --- from the first line to the last --------------------------------------------------------------


def test_it_says_where_to_connect_and_in_the_end_what_came_in(cluster: str) -> None:
    with started("broker", f"{cluster}/0", *LOOPBACK) as process:
        assert process.stdout is not None
        ready = [process.stdout.readline().rstrip() for _ in range(2)]
        assert ready[0] == f"ready: shm://{cluster}/0"
        assert ready[1].startswith("ready: tcp://127.0.0.1:")
        for line in ready:
            publish(line.removeprefix("ready: "))
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert stdout == "accepted 200 messages in 2 batches, 0.000 GB\n"
    assert stderr == ""
    assert leftovers(cluster) == []


def test_as_json_it_prints_one_object_when_ready_and_one_at_the_end(cluster: str) -> None:
    with running_broker(f"{cluster}/0", *LOOPBACK, *LOOPBACK) as broker:
        assert broker.addresses[0] == f"shm://{cluster}/0"
        assert len(broker.addresses) == 3
        publish(broker.addresses[2])
        report = broker.stop()
    assert report["stats"]["messages"] == 100
    assert report["stats"]["batches"] == 1
    assert report["stats"]["publishers"] == report["stats"]["in_flight"] == 0
    idle, busy = report["sockets"]
    assert idle["recv_calls"] == 0
    assert busy["recv_calls"] >= 2
    assert busy["granted_rcvbuf"] > 0


def test_publishers_of_both_transports_fill_one_ring_at_the_same_time(cluster: str) -> None:
    with running_broker(f"{cluster}/0", *LOOPBACK, "--slots", "4") as broker:
        together = threading.Barrier(4)

        def work(address: str) -> None:
            together.wait()
            publish(address, 5000, batch_size=65536)

        threads = [threading.Thread(target=work, args=(a,)) for a in 2 * broker.addresses]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = broker.stop()["stats"]
    assert stats["messages"] == 4 * 5000
    assert stats["payload_bytes"] == 4 * 5000 * 1024
    assert stats["duplicated"] == stats["out_of_order"] == stats["corrupt"] == 0


def test_publishers_are_told_when_it_stops(cluster: str) -> None:
    with (
        running_broker(f"{cluster}/0", *LOOPBACK) as broker,
        es.Publisher.connect(broker.address, timeout=20) as publisher,
    ):
        publisher.publish(b"x")
        publisher.wait_acked()
        broker.stop()
        with pytest.raises(es.BrokerGone, match="has stopped"):
            publisher.publish(b"y")
            publisher.wait_acked()


def test_the_report_counts_the_sockets_of_publishers_that_are_still_there(cluster: str) -> None:
    batches = 20
    with (
        running_broker(f"{cluster}/0", *LOOPBACK) as broker,
        es.Publisher.connect(broker.address, timeout=20) as publisher,
    ):
        for _ in range(batches):
            publisher.publish(b"x")
            publisher.wait_acked()
        (sockets,) = broker.stop()["sockets"]
    assert sockets["recv_calls"] >= 2 * batches  # a header and a body each
    assert sockets["send_calls"] >= batches


def test_ctrl_c_is_exit_code_130_with_the_report_and_nothing_left(cluster: str) -> None:
    with running_broker(f"{cluster}/0", *LOOPBACK) as broker:
        broker.process.send_signal(signal.SIGINT)  # at once: it may not be waiting yet
        stdout, stderr = broker.process.communicate(timeout=60)
    assert broker.process.returncode == 130
    assert json.loads(stdout)["stats"]["messages"] == 0
    assert stderr.strip() == "embar-shm: interrupted"
    assert leftovers(cluster) == []


def test_what_a_killed_broker_leaves_is_replaced_on_demand(cluster: str) -> None:
    with running_broker(f"{cluster}/0") as broker:
        publish(broker.address)
        broker.process.kill()
        broker.process.wait(60)
    assert [str(ring) for ring in leftovers(cluster)] == [f"{cluster}/0"]
    with running_broker(f"{cluster}/0", "--replace-dead") as broker:
        publish(broker.address)
        assert broker.stop()["stats"]["messages"] == 100
    assert leftovers(cluster) == []


def test_a_name_and_an_address_have_one_broker_at_a_time(cluster: str) -> None:
    with running_broker(f"{cluster}/0", *LOOPBACK) as broker:
        again = embar_shm("broker", f"{cluster}/0", "--replace-dead")
        assert again.code == 1
        assert f"a broker of {cluster}/0 is running" in again.stderr
        port = embar_shm("broker", f"{cluster}/1", "--listen", broker.address)
        assert port.code == 1
        assert f"cannot listen on {broker.address}" in port.stderr
        assert "in use" in port.stderr
        publish(broker.address)
        assert broker.stop()["stats"]["messages"] == 100, "the first one was not disturbed"


# --- who may connect ------------------------------------------------------------------------------


def test_beyond_this_machine_it_wants_protection(cluster: str) -> None:
    done = refused(cluster, *EVERYWHERE)
    assert done.code == 2
    assert "neither a token nor TLS protects it" in done.stderr
    for way_out in ("--token-file", "--tls-cert", "--tls-key", "--insecure"):
        assert way_out in done.stderr


@contextmanager
def listening(cluster: str, *protection: str) -> Iterator[Callable[..., None]]:
    """A broker that others could reach; gives a way to publish to it."""
    with running_broker(f"{cluster}/0", *EVERYWHERE, *protection) as broker:
        address = broker.address.replace("0.0.0.0", "127.0.0.1")  # noqa: S104

        def use(**options: object) -> None:
            publish(address, **options)

        yield use
        assert broker.stop()["stats"]["messages"] == 100


def test_a_token_is_protection(cluster: str, token_file: str) -> None:
    with listening(cluster, "--token-file", token_file) as use:
        for wrong in (None, "another token"):
            with pytest.raises(es.AccessDenied, match="token"):
                use(token=wrong)
        use(token=TOKEN)


def test_tls_is_protection(cluster: str, site: Site) -> None:
    mine = site.issue("127.0.0.1")
    with listening(cluster, "--tls-cert", mine.certificate, "--tls-key", mine.key) as use:
        use(tls=tls.client_context(site.ca))


def test_the_certificates_of_the_documentation_are_protection(cluster: str, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    text = (Path(__file__).parents[2] / "docs" / "network.md").read_text()
    recipe = text.partition("<!-- certificates -->\n```sh\n")[2].partition("```")[0]
    assert len(recipe.splitlines()) == 5
    done = subprocess.run(
        ["sh", "-e", "-c", recipe.replace("192.0.2.1", "127.0.0.1")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    own = ("--tls-cert", str(tmp_path / "broker.pem"), "--tls-key", str(tmp_path / "broker.key"))
    with listening(cluster, *own) as use:
        use(tls=tls.client_context(tmp_path / "ca.pem"))


def test_publishers_can_be_asked_for_a_certificate(cluster: str, site: Site) -> None:
    mine, client = site.issue("127.0.0.1"), site.issue("client.example")
    own = ("--tls-cert", mine.certificate, "--tls-key", mine.key)
    with listening(cluster, *own, "--tls-client-ca", site.ca) as use:
        with pytest.raises(es.EmbarError, match="certificate"):
            use(tls=tls.client_context(site.ca))
        use(tls=tls.client_context(site.ca, client.certificate, client.key))


def test_who_does_not_want_protection_has_to_say_so(cluster: str) -> None:
    with listening(cluster, "--insecure") as use:
        use()


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (None, 0, "No such file"),
        (TOKEN, 0o640, "others may use the token file"),
        ("short", 0o600, "5 characters"),
        ("", 0o600, "0 characters"),
        (b"\xff\xfe binary", 0o600, "is not UTF-8 text"),
    ],
    ids=["missing", "readable by others", "short", "empty", "binary"],
)
def test_a_bad_token_file_is_named_and_not_shown(
    cluster: str, tmp_path: Path, content: str | bytes | None, mode: int, said: str
) -> None:
    path = tmp_path / "the-token"
    if content is not None:
        written(path, content, mode)
    done = refused(cluster, *LOOPBACK, "--token-file", str(path))
    assert done.code == 2
    assert str(path) in done.stderr
    assert said in done.stderr
    assert TOKEN not in done.stderr


@pytest.mark.parametrize(
    ("cert", "key", "ca", "said"),
    [
        ("mine.pem", None, None, "both --tls-cert and --tls-key"),
        (None, "mine.key", None, "both --tls-cert and --tls-key"),
        (None, None, "ca.pem", "both --tls-cert and --tls-key"),
        ("missing.pem", "mine.key", None, "missing.pem"),
        ("mine.pem", "missing.key", None, "missing.key"),
        ("text.pem", "mine.key", None, "text.pem"),
        ("mine.pem", "other.key", None, "other.key"),
        ("mine.pem", "mine.key", "text.pem", "text.pem"),
    ],
)
def test_bad_tls_files_are_named(
    cluster: str,
    site: Site,
    tmp_path: Path,
    cert: str | None,
    key: str | None,
    ca: str | None,
    said: str,
) -> None:
    for name in ("mine", "other"):
        issued = site.issue(f"{name}.example")
        Path(issued.certificate).rename(tmp_path / f"{name}.pem")
        Path(issued.key).rename(tmp_path / f"{name}.key")
    (tmp_path / "ca.pem").write_bytes(Path(site.ca).read_bytes())
    (tmp_path / "text.pem").write_text("this is no certificate\n")
    given = {"--tls-cert": cert, "--tls-key": key, "--tls-client-ca": ca}
    flags = [
        part
        for flag, file in given.items()
        if file is not None
        for part in (flag, str(tmp_path / file))
    ]
    done = refused(cluster, *LOOPBACK, *flags)
    assert done.code == 2
    assert said in done.stderr


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("tcp://192.0.2.1:0", 1, "cannot listen on tcp://192.0.2.1:0"),
        ("tcp://127.0.0.1:99999", 2, "'127.0.0.1:99999' is not a TCP address"),
        ("127.0.0.1:7400", 2, "127.0.0.1:7400"),
        ("shm://other/0", 2, "a ring cannot have a second name"),
        ("udp://127.0.0.1:7400", 2, "there is no transport 'udp'"),
    ],
)
def test_an_address_that_cannot_be_is_told(cluster: str, url: str, code: int, said: str) -> None:
    done = refused(cluster, "--listen", url, "--insecure")
    assert done.code == code
    assert said in done.stderr


@pytest.mark.parametrize(
    "flags", [["--token-file", "no/such"], ["--insecure"], ["--socket-buffer", "1MiB"]], ids=str
)
def test_what_only_matters_to_a_listener_needs_one(cluster: str, flags: list[str]) -> None:
    done = embar_shm("broker", f"{cluster}/0", *flags)
    assert done.code == 2
    assert f"{flags[0]}: nothing is protected or sized without --listen" in done.stderr


def test_when_one_of_several_addresses_fails_none_stays_open(cluster: str) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        done = refused(cluster, *LOOPBACK, "--listen", f"tcp://127.0.0.1:{busy.getsockname()[1]}")
    assert done.code == 1
    wait_until(lambda: leftovers(cluster) == [], "the ring is gone")
