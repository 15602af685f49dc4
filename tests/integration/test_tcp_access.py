"""Who may connect and who may listen: tokens, TLS, and addresses others can reach."""

from __future__ import annotations

import datetime
import itertools
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from listening import FORGETFUL, Listening
from wire import HELLO, FakeBroker, Peer, batch, batch_header, endpoint_of

import embar_shm as es
from embar_shm import protocol, tls
from embar_shm.errors import (
    AccessDenied,
    CannotListen,
    ConfigurationError,
    ConnectionLost,
    ProtocolError,
    WaitTimeout,
)
from embar_shm.protocol import Kind
from embar_shm.transports import tcp

Listen = Callable[..., Listening]
Brokers = Callable[..., es.Broker]

YEARS_AGO = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Pem:
    """Files with a certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority, and the files it makes."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._numbers = itertools.count()
        self._ca = trustme.CA()
        self.ca = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(self.ca)

    def issue(self, *hosts: str, **options: Any) -> Pem:
        """A certificate for these host names and addresses."""
        stem = f"{self._name}-{next(self._numbers)}"
        pem = Pem(self._folder / f"{stem}.cert", self._folder / f"{stem}.key")
        made = self._ca.issue_cert(*hosts, **options)
        made.private_key_pem.write_to_path(pem.key)
        with pem.certificate.open("wb") as file:
            file.writelines(blob.bytes() for blob in made.cert_chain_pems)
        return pem


@dataclass(frozen=True)
class Certificates:
    """What a site has, and what somebody else has."""

    authority: Authority
    other: Authority
    broker: Pem
    client: Pem

    def server(self, pem: Pem | None = None, ca: Path | None = None) -> ssl.SSLContext:
        pem = pem or self.broker
        return tls.server_context(pem.certificate, pem.key, ca)

    def publisher(self, pem: Pem | None = None, ca: Path | None = None) -> ssl.SSLContext:
        ca = ca or self.authority.ca
        return tls.client_context(
            ca, None if pem is None else pem.certificate, None if pem is None else pem.key
        )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    authority, other = Authority(folder, "ours"), Authority(folder, "theirs")
    return Certificates(
        authority, other, authority.issue("127.0.0.1", "localhost"), authority.issue("client")
    )


def connect(broker: Listening | FakeBroker, **options: Any) -> es.Publisher:
    return es.Publisher.connect(broker.address, **({"linger_ms": 0, "timeout": 5} | options))


# --- tokens ---------------------------------------------------------------------------------------


def test_the_right_token_is_let_in(listen: Listen) -> None:
    listen(token="pässwörd 1").check_that_it_serves(token="pässwörd 1")


@pytest.mark.parametrize("token", ["Secret", "secre", "secret2", "s" * 10_000])
def test_a_wrong_token_is_refused_on_both_sides(
    listen: Listen, caplog: pytest.LogCaptureFixture, token: str
) -> None:
    broker = listen(token="secret")
    with (
        caplog.at_level(logging.WARNING, "embar_shm.tcp"),
        pytest.raises(AccessDenied, match="says: the token is wrong") as caught,
    ):
        connect(broker, token=token, connect_timeout=60)  # is not tried again
    assert "same token" in caught.value.hint
    assert "the token is wrong" in caplog.text
    assert "secre" not in caplog.text + str(caught.value)
    broker.check_that_it_serves(token="secret")


def test_a_missing_token_is_asked_for(listen: Listen) -> None:
    broker = listen(token="secret")
    with pytest.raises(AccessDenied, match="asks for a token") as caught:
        connect(broker)
    assert "token=" in caught.value.hint


def test_a_token_that_nobody_asks_for_does_no_harm(listen: Listen) -> None:
    listen().check_that_it_serves(token="secret")


@pytest.mark.parametrize("token", ["", " ", "\n", "secret\n", b"secret", 5], ids=repr)
def test_a_token_that_protects_nothing_is_refused_without_showing_it(
    make_broker: Brokers, token: Any
) -> None:
    broker = make_broker()
    with pytest.raises(ConfigurationError, match="the token is ") as caught:
        broker.listen("tcp://0.0.0.0:0", token=token)
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="the token is "):
        es.Publisher.connect("tcp://127.0.0.1:1", token=token)


# --- TLS that works -------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "secret"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_trusted_certificate_is_accepted(
    listen: Listen, certificates: Certificates, host: str, token: str | None
) -> None:
    broker = listen(tls=certificates.server(), token=token)
    address = f"tcp://{host}:{endpoint_of(broker.address)[1]}"
    with es.Publisher.connect(
        address, tls=certificates.publisher(), token=token, linger_ms=0
    ) as publisher:
        for number in range(20):
            publisher.publish(number.to_bytes(4) * 1000)
        publisher.wait_acked()
    assert broker.broker.stats().messages == 20


def test_a_client_certificate_of_the_right_authority_is_accepted(
    listen: Listen, certificates: Certificates
) -> None:
    broker = listen(tls=certificates.server(ca=certificates.authority.ca))
    broker.check_that_it_serves(tls=certificates.publisher(certificates.client))


def test_a_client_certificate_that_nobody_asks_for_does_no_harm(
    listen: Listen, certificates: Certificates
) -> None:
    broker = listen(tls=certificates.server())
    broker.check_that_it_serves(tls=certificates.publisher(certificates.client))


def test_reading_and_writing_at_the_same_time_does_not_disturb_tls(
    listen: Listen, certificates: Certificates
) -> None:
    broker = listen(tls=certificates.server(), ring={"slot_size": 65536})
    with ExitStack() as stack:
        publishers = [
            stack.enter_context(connect(broker, tls=certificates.publisher(), in_flight=4))
            for _ in range(2)
        ]
        threads = [
            threading.Thread(target=lambda p=p: [p.publish(bytes(60_000)) for _ in range(100)])
            for p in publishers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for publisher in publishers:
            publisher.wait_acked()
    assert broker.broker.stats().payload_bytes == 2 * 100 * 60_000


def test_a_cut_tls_connection_is_taken_up_again(listen: Listen, certificates: Certificates) -> None:
    broker = listen(replace(FORGETFUL, forget_after=60), tls=certificates.server())
    with connect(broker, tls=certificates.publisher(), timeout=30) as publisher:
        for number in range(1, 6):
            publisher.publish(b"x")
            publisher.wait_acked()
            assert broker.broker.stats().batches == number
            for link in list(broker.listener._links):
                link.stream.shutdown()


# --- TLS that does not ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "says"),
    [
        (lambda c: c.authority.issue("127.0.0.1", not_after=YEARS_AGO), "expired"),
        (lambda c: c.authority.issue("127.0.0.2"), "127.0.0.1"),
        (lambda c: c.authority.issue("example.org"), "127.0.0.1"),
        (lambda c: c.other.issue("127.0.0.1"), "self.signed|unable to get (local )?issuer"),
    ],
    ids=["expired", "another address", "another name", "another authority"],
)
def test_a_certificate_that_cannot_be_trusted_is_refused_and_both_sides_know_why(
    listen: Listen,
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
    server: Callable[[Certificates], Pem],
    says: str,
) -> None:
    broker = listen(tls=certificates.server(server(certificates)))
    with pytest.raises(AccessDenied, match=f"not trusted: .*({says})") as caught:
        connect(broker, tls=certificates.publisher(), connect_timeout=60)  # is not tried again
    assert broker.address in caught.value.message
    assert "CA" in caught.value.hint
    broker.wait_until_idle()
    assert "refused the TLS connection" in caplog.text
    assert "Traceback" not in caplog.text


def test_the_systems_authorities_do_not_vouch_for_a_private_one(
    listen: Listen, certificates: Certificates
) -> None:
    broker = listen(tls=certificates.server())
    with pytest.raises(AccessDenied, match="not trusted"):
        connect(broker, tls=tls.client_context())


@pytest.mark.parametrize(
    ("client", "says"),
    [
        (lambda _: None, "certificate required"),
        (lambda c: c.other.issue("client"), "unknown ca"),
        (lambda c: c.authority.issue("client", not_after=YEARS_AGO), "expired"),
    ],
    ids=["none", "another authority", "expired"],
)
def test_a_publisher_without_the_right_certificate_is_refused_and_both_sides_know_why(
    listen: Listen,
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
    client: Callable[[Certificates], Pem | None],
    says: str,
) -> None:
    broker = listen(tls=certificates.server(ca=certificates.authority.ca))
    with pytest.raises(AccessDenied, match=f"refused the TLS connection: .*{says}") as caught:
        connect(broker, tls=certificates.publisher(client(certificates)), connect_timeout=60)
    assert "certificate" in caught.value.hint
    broker.wait_until_idle()
    assert "not trusted" in caplog.text or "did not return a certificate" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_plain_publisher_is_told_that_the_broker_wants_tls(
    listen: Listen, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    broker = listen(tls=certificates.server())
    with pytest.raises(ProtocolError, match="TLS") as caught:
        connect(broker, connect_timeout=60)
    assert "both sides must use TLS, or neither" in caught.value.hint
    assert "does not speak TLS" in caplog.text


def test_a_tls_publisher_is_told_that_the_broker_is_plain(
    listen: Listen, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    broker = listen()
    with pytest.raises(ProtocolError, match="does not speak TLS") as caught:
        connect(broker, tls=certificates.publisher(), connect_timeout=60)
    assert "both sides must use TLS, or neither" in caught.value.hint
    broker.wait_until_idle()
    assert "\\x16\\x03" in caplog.text  # how a TLS handshake begins; what follows is random


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\x16\x03\x01\xff\xff" + bytes(100), b"EMBC"],
    ids=["http", "zeros", "broken record", "short"],
)
def test_a_stranger_at_a_tls_port_is_sent_away(
    listen: Listen,
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
    data: bytes,
) -> None:
    broker = listen(tls=certificates.server())
    with broker.peer() as peer:
        peer.send(data)
        peer.socket.shutdown(socket.SHUT_WR)
        peer.wait_for_end()
    broker.check_that_it_serves(tls=certificates.publisher())
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("size", [0, 1, 5, 100, 300])
def test_a_connection_may_be_reset_anywhere_in_the_tls_handshake(
    listen: Listen, certificates: Certificates, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    broker = listen(tls=certificates.server())
    outgoing = ssl.MemoryBIO()
    client = certificates.publisher().wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname="localhost"
    )
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    for data in (hello[:size], hello):
        for _ in range(5):  # the answer may meet the reset, or not
            with broker.peer() as peer:
                peer.send(data)
                peer.reset()
    broker.check_that_it_serves(tls=certificates.publisher())
    assert "Traceback" not in caplog.text


def tls_peer(broker: Listening, certificates: Certificates) -> Peer:
    sock = certificates.publisher().wrap_socket(
        socket.create_connection(endpoint_of(broker.address)), server_hostname="localhost"
    )
    return Peer(sock)


def test_a_tls_connection_may_be_reset_in_the_middle_of_a_batch(
    listen: Listen, certificates: Certificates
) -> None:
    broker = listen(tls=certificates.server(), ring={"slots": 1})
    for part in (0, 50, 128, 150):
        with tls_peer(broker, certificates) as peer:
            peer.greet()
            peer.send(batch(1)[:part])
            peer.reset()
        broker.check_that_it_serves(tls=certificates.publisher(), in_flight=1)


def test_the_tls_handshake_as_a_whole_has_a_deadline(
    listen: Listen, certificates: Certificates
) -> None:
    broker = listen(replace(FORGETFUL, handshake=0.2), tls=certificates.server())
    done = threading.Event()
    with broker.peer() as peer:

        def drip() -> None:
            for byte in b"\x16\x03\x01\x02\x00" + bytes(512):  # a record that takes its time
                if done.wait(0.02):
                    return
                try:
                    peer.send(bytes([byte]))
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        answer = peer.wait_for_end()
        done.set()
        dripping.join()
        assert b"stands still in the TLS handshake" in answer


def test_a_tls_publisher_that_drips_within_a_record_gives_its_slot_to_others(
    listen: Listen, certificates: Certificates
) -> None:
    limits = replace(FORGETFUL, stall=0.1, least_rate=1e9)
    broker = listen(limits, tls=certificates.server(), ring={"slots": 1})
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = certificates.publisher().wrap_bio(incoming, outgoing, server_hostname="localhost")
    done = threading.Event()
    with broker.peer() as peer:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                peer.send(outgoing.read())
                incoming.write(peer.socket.recv(65536))
        client.write(protocol.encode(Kind.HELLO, HELLO.pack()))
        client.write(batch_header(1, 4096))  # a record of its own
        client.write(bytes(4096))
        data = outgoing.read()
        peer.send(data[:-3000])  # the rest of the body comes slowly

        def drip() -> None:
            for position in range(len(data) - 3000, len(data)):
                if done.wait(0.01):
                    return
                try:
                    peer.send(data[position : position + 1])
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        peer.wait_for_end()
        done.set()
        dripping.join()
    broker.check_that_it_serves(tls=certificates.publisher(), in_flight=1)


@pytest.mark.parametrize(
    ("script", "kind", "says"),
    [
        (Peer.close, ConnectionLost, "connection"),
        (Peer.reset, ConnectionLost, "lost|closed"),
        (Peer.wait_for_end, WaitTimeout, "stands still in the TLS handshake"),
        (lambda peer: peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), ProtocolError, "speak TLS"),
        (lambda peer: peer.send(bytes(100)), ProtocolError, "speak TLS"),
    ],
    ids=["closes", "resets", "silent", "http", "zeros"],
)
def test_a_tls_publisher_meets_something_else(
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    script: Callable[[Peer], object],
    kind: type[es.EmbarError],
    says: str,
) -> None:
    monkeypatch.setattr(tcp, "_HANDSHAKE_TIMEOUT", 0.2 if kind is WaitTimeout else 10.0)

    def after_hello(peer: Peer) -> None:
        peer.read(5)
        script(peer)
        if kind is ProtocolError:
            peer.wait_for_end()

    with (
        FakeBroker(after_hello) as broker,
        pytest.raises(kind, match=says),
    ):
        connect(broker, tls=certificates.publisher())


# --- contexts and files ---------------------------------------------------------------------------


def test_a_context_of_the_other_side_is_refused_when_it_is_given(
    make_broker: Brokers, certificates: Certificates
) -> None:
    broker = make_broker()
    with pytest.raises(ConfigurationError, match="TLS context cannot be used here") as caught:
        broker.listen("tcp://127.0.0.1:0", tls=certificates.publisher())
    assert "server_context" in caught.value.hint
    with pytest.raises(ConfigurationError, match="TLS context cannot be used here") as caught:
        es.Publisher.connect("tcp://127.0.0.1:1", tls=certificates.server())
    assert "client_context" in caught.value.hint


def test_files_that_are_no_certificates_are_named(
    certificates: Certificates, tmp_path: Path
) -> None:
    ours, no_pem, missing = certificates.broker, tmp_path / "no.pem", tmp_path / "missing.pem"
    no_pem.write_text("hello")
    with pytest.raises(ConfigurationError, match=r"no\.pem"):
        tls.server_context(no_pem, ours.key)
    with pytest.raises(ConfigurationError, match=r"missing\.pem"):
        tls.server_context(ours.certificate, missing)
    with pytest.raises(ConfigurationError, match="with the key"):
        tls.server_context(ours.certificate, certificates.client.key)
    for ca in (no_pem, missing):
        with pytest.raises(ConfigurationError, match=ca.name):
            tls.server_context(ours.certificate, ours.key, ca)
        with pytest.raises(ConfigurationError, match=ca.name):
            tls.client_context(ca)
    with pytest.raises(ConfigurationError, match="needs its key"):
        tls.client_context(certificates.authority.ca, certificate=ours.certificate)


def test_an_encrypted_key_is_refused_instead_of_asking_on_the_terminal(
    certificates: Certificates, tmp_path: Path
) -> None:
    key = serialization.load_pem_private_key(certificates.broker.key.read_bytes(), None)
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"1"),
        )
    )
    with pytest.raises(ConfigurationError, match="the key is encrypted"):
        tls.server_context(certificates.broker.certificate, encrypted)


# --- where to listen ------------------------------------------------------------------------------


def test_an_address_in_use_cannot_be_listened_on(make_broker: Brokers) -> None:
    first, second = make_broker(), make_broker()
    address = first.listen("tcp://127.0.0.1:0").address
    with pytest.raises(CannotListen, match=f"cannot listen on {address}: .*in use") as caught:
        second.listen(address)
    assert "another port" in caught.value.hint
    first.close()
    assert second.listen(address).address == address  # free again, at once


@pytest.mark.parametrize("host", ["192.0.2.1", "[2001:db8::1]"])
def test_an_address_of_another_machine_cannot_be_listened_on(
    make_broker: Brokers, host: str
) -> None:
    with pytest.raises(CannotListen, match="cannot listen on tcp://"):
        make_broker().listen(f"tcp://{host}:0", token="secret")


def test_a_host_that_does_not_exist_cannot_be_listened_on(make_broker: Brokers) -> None:
    with pytest.raises(ConfigurationError, match="no-such-host"):
        make_broker().listen("tcp://no-such-host.invalid:0", token="secret")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1"])  # noqa: S104 - it is refused
def test_an_address_others_can_reach_needs_protection(make_broker: Brokers, host: str) -> None:
    with pytest.raises(ConfigurationError, match="neither a token nor TLS protects it") as caught:
        make_broker().listen(f"tcp://{host}:0")
    assert "--token-file" in caught.value.hint
    assert "--insecure" in caught.value.hint


@pytest.mark.parametrize("protection", ["token", "tls", "insecure"])
def test_an_address_others_can_reach_is_listened_on_with_protection_or_on_demand(
    make_broker: Brokers, certificates: Certificates, protection: str
) -> None:
    broker = make_broker().start()
    here: dict[str, Any] = {"token": "secret", "tls": certificates.server(), "insecure": True}
    there: dict[str, Any] = {"token": "secret", "tls": certificates.publisher()}
    listener = broker.listen("tcp://0.0.0.0:0", **{protection: here[protection]})
    address = f"tcp://127.0.0.1:{endpoint_of(listener.address)[1]}"
    options = {protection: there[protection]} if protection in there else {}
    with es.Publisher.connect(address, **options) as publisher:
        publisher.publish(b"x")
        publisher.wait_acked()
    assert broker.stats().messages == 1


def test_loopback_needs_no_protection(make_broker: Brokers) -> None:
    broker = make_broker().start()
    for host in ("127.0.0.1", "127.0.0.2", "localhost"):
        address = broker.listen(f"tcp://{host}:0").address
        with es.Publisher.connect(address) as publisher:
            publisher.publish(b"x")
            publisher.wait_acked()
