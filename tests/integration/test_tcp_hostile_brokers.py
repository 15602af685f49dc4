"""What a publisher may find at the other end, and what becomes of it: always one of our errors."""

from __future__ import annotations

import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from wire import FakeBroker, Peer

import embar_shm as es
from embar_shm import protocol
from embar_shm.errors import (
    AccessDenied,
    BrokerGone,
    ConfigurationError,
    ConnectionLost,
    EmbarError,
    NoSuchBroker,
    NotEnoughSpace,
    ProtocolError,
    WaitTimeout,
)
from embar_shm.protocol import Kind, Welcome
from embar_shm.testing import Child, wait_until
from embar_shm.transports import tcp

Script = Callable[[Peer], object]


def connect(broker: FakeBroker | str, **options: Any) -> es.Publisher:
    address = broker if isinstance(broker, str) else broker.address
    return es.Publisher.connect(address, **({"linger_ms": 0, "timeout": 1} | options))


def publish(publisher: es.Publisher, count: int = 1) -> None:
    for _ in range(count):
        publisher.publish(b"x" * 16)
        publisher.flush()


def give_up(publisher: es.Publisher) -> None:
    """Closes a publisher that cannot deliver what it has."""
    with pytest.raises(EmbarError):
        publisher.close()


def serve(peer: Peer, after: int = 2**63) -> None:
    """A broker that behaves, for so many batches."""
    peer.welcome()
    obey(peer, 0, after)


def obey(peer: Peer, seq: int, after: int = 2**63) -> None:
    while seq < after:
        if peer.batch() is None:
            peer.say(Kind.GOODBYE)
            peer.wait_for_end()
            return
        seq += 1
        peer.say(Kind.ACK, protocol.ack_body(seq))


def wait_for_end(peer: Peer) -> None:
    peer.wait_for_end()


# --- handshakes that fail -------------------------------------------------------------------------


def test_where_nobody_listens_there_is_no_broker() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        port = taken.getsockname()[1]
        with pytest.raises(NoSuchBroker, match=f"nobody listens on tcp://127.0.0.1:{port}") as e:
            connect(f"tcp://127.0.0.1:{port}")
        assert "start a broker" in e.value.hint


def test_a_broker_that_appears_in_time_is_found() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = "tcp://{}:{}".format(*taken.getsockname())
        found: list[es.Publisher] = []
        wait = threading.Thread(target=lambda: found.append(connect(address, connect_timeout=30)))
        wait.start()
        taken.listen()
        with Peer(taken.accept()[0]) as peer:
            server = threading.Thread(target=serve, args=(peer,))
            server.start()
            wait.join()
            found[0].close()
            server.join()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "300.1.1.1", "a..b", "x" * 70])
def test_a_host_that_does_not_exist_is_named(host: str) -> None:
    # Without a name server at all it cannot be known that there is no such host.
    with pytest.raises((ConfigurationError, ConnectionLost), match="tcp://"):
        connect(f"tcp://{host}:7400")


HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"
V2 = struct.pack("<4sHHQ", b"EMBC", Kind.WELCOME, 2, 24) + bytes(24)


def answer(data: bytes) -> Script:
    def script(peer: Peer) -> None:
        peer.send(data)
        peer.wait_for_end()

    return script


def welcome(**fields: int) -> bytes:
    return protocol.encode(
        Kind.WELCOME, Welcome(**({"slot_bytes": 4096, "received_seq": 0} | fields)).pack()
    )


def error(kind: type[EmbarError], message: str = "so it is") -> bytes:
    return protocol.encode(Kind.ERROR, protocol.error_body(kind(message, "do something")))


@pytest.mark.parametrize(
    ("said", "kind", "says"),
    [
        (HTTP, ProtocolError, "began with b'HTTP/1.1 400 Bad"),
        (b"220 mail.example ESMTP\r\n", ProtocolError, "does not speak this protocol"),
        (bytes(100), ProtocolError, "does not speak this protocol"),
        (V2, ProtocolError, "speaks version 2 of the protocol, this one 1"),
        (welcome(slot_bytes=0), ProtocolError, "slots of 0 bytes"),
        (welcome(slot_bytes=2**31 + 1), ProtocolError, "slots of 2147483649 bytes"),
        (welcome(slot_bytes=2**64 - 1), ProtocolError, "slots of 18446744073709551615 bytes"),
        (welcome(slot_bytes=64), ProtocolError, "slots of 64 bytes, .* batches of 256"),
        (welcome(features=8), ProtocolError, "features 0x8"),
        (protocol.encode(Kind.ACK, bytes(8)), ProtocolError, "ACK is not allowed"),
        (protocol.encode(Kind.GOODBYE), ProtocolError, "GOODBYE is not allowed"),
        (protocol.encode(Kind.HELLO, bytes(48)), ProtocolError, "HELLO is not allowed"),
        (struct.pack("<4sHHQ", b"EMBC", 7, 1, 2**32), ProtocolError, f"body of {2**32} bytes"),
        (2 * protocol.encode(Kind.CHALLENGE, bytes(32)), ProtocolError, "CHALLENGE is not allowed"),
        (protocol.encode(Kind.ERROR), ProtocolError, "nothing that could be understood"),
        (protocol.encode(Kind.ERROR, b"\xff\x1b[2J" * 9), ProtocolError, "tcp://"),
        (error(AccessDenied), AccessDenied, "tcp://.* says: so it is"),
        (error(NotEnoughSpace), NotEnoughSpace, "tcp://.* says: so it is"),
        (error(BrokerGone), BrokerGone, "tcp://.* says: so it is"),
        (error(WaitTimeout), WaitTimeout, "tcp://.* says: so it is"),
        (welcome()[:20], ConnectionLost, "closed the connection after 4 of 24 bytes"),
    ],
    ids=lambda value: value.hex()[:16] if isinstance(value, bytes) else "",
)
def test_an_answer_that_is_no_welcome_is_told_with_the_class_of_who_has_to_act(
    said: bytes, kind: type[EmbarError], says: str
) -> None:
    def script(peer: Peer) -> None:
        peer.send(said)
        if len(said) == 20:
            peer.socket.shutdown(socket.SHUT_WR)
        peer.wait_for_end()

    with FakeBroker(script) as broker:
        with pytest.raises(kind, match=says) as caught:
            connect(broker, token="t", batch_size=256)
        assert type(caught.value) is kind
        assert all(c.isprintable() or c == "\n" for c in str(caught.value))
        assert broker.connections == 1


def test_a_broker_that_closes_at_once_is_a_lost_connection() -> None:
    with FakeBroker(Peer.close) as broker, pytest.raises(ConnectionLost, match="connection"):
        connect(broker)
    with FakeBroker(Peer.reset) as broker, pytest.raises(ConnectionLost, match=r"lost|reset"):
        connect(broker)


def test_a_broker_that_says_nothing_is_waited_for_until_the_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tcp, "_HANDSHAKE_TIMEOUT", 0.1)
    with FakeBroker(wait_for_end) as broker:
        with pytest.raises(WaitTimeout, match="stands still: 0 of 16 bytes have come"):
            connect(broker)
        with pytest.raises(WaitTimeout, match="stands still"):
            connect(broker, connect_timeout=0.3)
        assert 2 <= broker.connections <= 1 + 3


def test_a_broker_that_asks_for_a_token_needs_one() -> None:
    with (
        FakeBroker(answer(protocol.encode(Kind.CHALLENGE, bytes(32)))) as broker,
        pytest.raises(AccessDenied, match="asks for a token") as caught,
    ):
        connect(broker)
    assert "token=" in caught.value.hint


def test_slots_that_do_not_fit_into_memory_are_told_as_such(
    run_child: Callable[..., Child],
) -> None:
    program = """
        import resource, sys
        import embar_shm as es

        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
        try:
            es.Publisher.connect(sys.argv[1])
        except es.NotEnoughSpace as error:
            print(error.message)
    """
    with FakeBroker(lambda peer: (peer.welcome(2**31), peer.wait_for_end())) as broker:
        child = run_child(program, broker.address)
        assert "batches of 2147483648 bytes" in child.read()
        assert child.wait() == 0


def test_a_publisher_that_does_not_want_what_it_was_offered_says_goodbye() -> None:
    left = threading.Event()

    def script(peer: Peer) -> None:
        peer.welcome(slot_bytes=64)
        assert peer.batch() is None
        left.set()

    with FakeBroker(script) as broker:
        with pytest.raises(ConfigurationError, match="message_size 100"):
            connect(broker, message_size=100)
        wait_until(left.is_set, "the goodbye")


# --- brokers that say what cannot be --------------------------------------------------------------


def acknowledge(*seqs: int, batches: int = 1) -> Script:
    def script(peer: Peer) -> None:
        peer.welcome()
        for _ in range(batches):
            peer.batch()
        for seq in seqs:
            peer.say(Kind.ACK, protocol.ack_body(seq))
        peer.wait_for_end()

    return script


@pytest.mark.parametrize(
    ("script", "kind", "says"),
    [
        (acknowledge(2), ProtocolError, "acknowledged batch 2, which was never sent"),
        (acknowledge(2**64 - 1), ProtocolError, "which was never sent"),
        (answer(welcome(received_seq=5)), ProtocolError, "has batches that were never sent"),
        (answer(welcome(received_seq=2**64 - 1)), ProtocolError, "never sent"),
        (answer(2 * welcome()), ProtocolError, "WELCOME is not allowed"),
        (answer(welcome() + protocol.encode(Kind.GOODBYE)), ProtocolError, "GOODBYE is not"),
        (answer(welcome() + HTTP), ProtocolError, "does not speak this protocol"),
        (answer(welcome() + error(BrokerGone)), BrokerGone, "says: so it is"),
        (answer(welcome() + error(NotEnoughSpace)), NotEnoughSpace, "says: so it is"),
        (answer(welcome() + protocol.encode(Kind.ERROR, bytes(99))), ProtocolError, "says: "),
    ],
)
def test_a_broker_that_says_what_cannot_be_ends_the_publisher_and_is_not_asked_again(
    script: Script, kind: type[EmbarError], says: str
) -> None:
    with FakeBroker(script) as broker:
        publisher = connect(broker)
        with pytest.raises(kind, match=says) as caught:
            publish(publisher)
            publisher.wait_acked(timeout=30)
        assert type(caught.value) is kind
        with pytest.raises(kind, match=says):
            publisher.publish(b"more")
            publisher.flush()
            publisher.wait_acked(timeout=30)
        publisher.close()  # it was told already
        assert broker.connections == 1


def test_what_is_committed_and_not_sent_cannot_be_acknowledged() -> None:
    size = 16 * 2**20  # no socket buffer holds it
    both_are_committed = threading.Event()

    def script(peer: Peer) -> None:
        peer.welcome(size)
        assert both_are_committed.wait(30)
        peer.say(Kind.ACK, protocol.ack_body(2))
        peer.wait_for_end()

    with FakeBroker(script) as broker:
        publisher = connect(broker, message_size=size, batch_size=size, socket_buffer=65536)
        publisher.publish(bytes(size))
        publisher.publish(bytes(size))
        both_are_committed.set()
        with pytest.raises(ProtocolError, match="acknowledged batch 2, which was never sent"):
            publisher.wait_acked(timeout=30)
        assert publisher.stats().accepted == 0
        publisher.close()


def test_acknowledgements_that_go_back_take_nothing_back() -> None:
    def script(peer: Peer) -> None:
        peer.welcome()
        for _ in range(2):
            peer.batch()
        for seq in (2, 1, 0, 2):
            peer.say(Kind.ACK, protocol.ack_body(seq))
        obey(peer, 2)

    with FakeBroker(script) as broker, connect(broker) as publisher:
        publish(publisher, 2)
        publisher.wait_acked(timeout=30)
        for n in range(3, 20):  # also over several laps of its ring
            publish(publisher)
            publisher.wait_acked(timeout=30)
            assert publisher.stats().accepted == n
            assert publisher.stats().in_flight == 0


def test_a_broker_that_has_forgotten_what_it_acknowledged_is_another_one() -> None:
    with FakeBroker(lambda peer: serve(peer, 3), answer(welcome())) as broker:
        publisher = connect(broker)
        publish(publisher, 3)
        with pytest.raises(BrokerGone, match=r"has batches up to 0 only, .* up to 3"):
            publisher.wait_acked(timeout=30)  # may be in time
            wait_until(lambda: broker.connections == 2, "the publisher comes back")
            publish(publisher)
            publisher.wait_acked(timeout=30)
        publisher.close()


# --- connections that are lost --------------------------------------------------------------------


@pytest.mark.parametrize("end", [Peer.reset, Peer.close])
@pytest.mark.parametrize("at", [0, 1, 127, 128, 140])
def test_what_was_cut_off_is_sent_again(end: Callable[[Peer], None], at: int) -> None:
    bodies: list[bytes | None] = []

    def cut(peer: Peer) -> None:
        peer.welcome()
        peer.read(at)
        end(peer)

    def go_on(peer: Peer) -> None:
        assert peer.welcome().sent_seq <= 2
        for seq in (1, 2):
            bodies.append(peer.batch())
            peer.say(Kind.ACK, protocol.ack_body(seq))
        obey(peer, 2)

    with FakeBroker(cut, go_on) as broker, connect(broker, timeout=30) as publisher:
        publish(publisher, 2)
        publisher.wait_acked()
        assert len(bodies) == 2
        assert broker.connections == 2


def test_the_calls_of_a_lost_connection_are_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tcp, "_SHORTEST_HANDSHAKE", 0.1)

    def silent(peer: Peer) -> None:
        peer.frame()
        peer.wait_for_end()

    with FakeBroker(lambda peer: serve(peer, 1), silent) as broker:
        publisher = connect(broker, timeout=0.1)
        publish(publisher)
        publisher.wait_acked(timeout=30)
        wait_until(lambda: broker.connections >= 2, "the publisher comes back")
        counted = publisher._link.sockets()
        assert counted is not None
        assert counted.send_calls == 2  # the hello and the batch
        publisher.close()


def test_a_broker_that_says_that_something_passing_was_wrong_is_asked_again() -> None:
    with (
        FakeBroker(answer(welcome() + error(WaitTimeout)), serve) as broker,
        connect(broker, timeout=30) as publisher,
    ):
        publish(publisher)
        publisher.wait_acked()
        assert broker.connections == 2


RELAPSES: dict[str, Script] = {
    "closes at once": Peer.close,
    "resets at once": Peer.reset,
    "closes after the hello": lambda peer: peer.frame(),
    "says nothing": wait_for_end,
    "welcomes and closes": lambda peer: peer.welcome(),
    "welcomes and resets": lambda peer: (peer.welcome(), peer.reset()),
    "reads and closes": lambda peer: (peer.welcome(), peer.batch()),
    "tells of something passing": answer(welcome() + error(WaitTimeout)),
}


@pytest.mark.parametrize("relapse", RELAPSES)
def test_a_broker_that_never_gets_on_is_given_up_at_the_timeout_without_haste(
    relapse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "_SHORTEST_HANDSHAKE", 0.05)
    with FakeBroker(lambda peer: peer.welcome(), RELAPSES[relapse]) as broker:
        begin = time.monotonic()
        publisher = connect(broker, timeout=0.5)
        with pytest.raises(BrokerGone, match=r"connection to tcp://.* was lost .*no other"):
            publish(publisher)
            publisher.wait_acked(timeout=30)
        assert time.monotonic() - begin >= 0.5
        # Pauses of 20, 40, 80, 160, 320 ms: half a second has no room for many.
        assert broker.connections <= 10
        publisher.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", ["_send_natively", "_reconnect"])
def test_a_sender_that_fails_unexpectedly_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError("unexpected")

    monkeypatch.setattr(tcp.TcpLink, name, fails)
    with FakeBroker(lambda peer: peer.welcome()) as broker:
        publisher = connect(broker, timeout=30)
        with pytest.raises(BrokerGone, match="failed: ZeroDivisionError"):
            publish(publisher)
            publisher.wait_acked()
        publisher.close()


def test_a_broker_that_is_gone_for_good_is_given_up_at_the_timeout() -> None:
    with FakeBroker(serve) as broker:
        publisher = connect(broker, timeout=0.3)
    with pytest.raises(BrokerGone, match="nobody listens"):
        publish(publisher)
        publisher.wait_acked(timeout=30)
    publisher.close()


# --- closing --------------------------------------------------------------------------------------


def test_a_goodbye_without_an_answer_is_no_error_when_everything_is_acknowledged() -> None:
    with FakeBroker(acknowledge(1)) as broker:
        publisher = connect(broker, timeout=0.2)
        publish(publisher)
        publisher.wait_acked(timeout=30)
        publisher.close()


@pytest.mark.parametrize("ack", [0, 1])
def test_a_goodbye_without_an_answer_is_an_error_when_something_may_be_missing(ack: int) -> None:
    with FakeBroker(acknowledge()) as broker:
        publisher = connect(broker, timeout=0.2, ack=ack)
        publish(publisher)
        with pytest.raises(WaitTimeout, match=r"has not taken everything within 0\.2 s"):
            publisher.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("send ")]
        assert broker.connections == 1


def test_closing_does_not_wait_for_a_connection_that_may_come_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tcp, "_SHORTEST_HANDSHAKE", 0.1)
    with FakeBroker(lambda peer: peer.welcome(), wait_for_end) as broker:
        publisher = connect(broker, timeout=0.2)
        publish(publisher)
        wait_until(lambda: broker.connections >= 2, "the publisher comes back")
        give_up(publisher)
        count = broker.connections
        assert not [t for t in threading.enumerate() if t.name.startswith("send ")]
    assert broker.connections == count


@pytest.mark.parametrize("relapse", ["welcomes and closes", "reads and closes"])
def test_closing_asks_a_broker_that_never_gets_on_without_haste(relapse: str) -> None:
    with FakeBroker(lambda peer: peer.welcome(), RELAPSES[relapse]) as broker:
        publisher = connect(broker, timeout=0.5)
        publish(publisher)
        give_up(publisher)
        assert broker.connections <= 10


INTERRUPTED = """
    import sys
    import embar_shm as es

    publisher = None
    try:
        if sys.argv[2] == "connect":
            print("ready")
            es.Publisher.connect(sys.argv[1], connect_timeout=60)
        publisher = es.Publisher.connect(sys.argv[1], linger_ms=0)
        publisher.publish(b"never acknowledged")
        publisher.flush()
        if sys.argv[2] == "wait_acked":
            print("ready")
            publisher.wait_acked()
        print("ready")
        publisher.close()
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize("what", ["connect", "wait_acked", "close"])
def test_ctrl_c_interrupts_whatever_waits_for_a_broker(
    run_child: Callable[..., Child], what: str
) -> None:
    asked = threading.Event()

    def script(peer: Peer) -> None:
        if what != "connect":
            peer.welcome()
            peer.batch()
        else:
            peer.frame()
        asked.set()
        peer.wait_for_end()

    with FakeBroker(script) as broker:
        child = run_child(INTERRUPTED, broker.address, what)
        child.expect("ready")
        wait_until(asked.is_set, "the publisher waits for the broker")
        child.signal(signal.SIGINT)
        child.expect("interrupted")
