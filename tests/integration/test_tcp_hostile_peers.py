"""What comes to a broker's port and is no well-behaved publisher.

After each test the `listen` fixture checks that no slot, row or thread is left.
"""

from __future__ import annotations

import logging
import os
import resource
import select
import socket
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from listening import FORGETFUL, Listening
from wire import HELLO, Peer, batch, batch_header

import embar_shm as es
from embar_shm import _core, protocol
from embar_shm.errors import (
    AccessDenied,
    BatchRefused,
    BrokerGone,
    NotEnoughSpace,
    ProtocolError,
    WaitTimeout,
)
from embar_shm.protocol import Kind
from embar_shm.testing import Child, wait_until
from embar_shm.transports import tcp_listener
from embar_shm.transports.tcp_listener import Limits

Listen = Callable[..., Listening]
GOODBYE = protocol.encode(Kind.GOODBYE).ljust(_core.BATCH_HEADER_BYTES, b"\0")

# --- what is no protocol of ours ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n", "began with b'GET / HTTP/1.1"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "began with b'SSH-2.0-OpenSSH_"),
        (bytes(64), "does not speak this protocol"),
        (struct.pack("<4sHHQ", b"EMBC", 1, 2, 48), "speaks version 2 of the protocol, this one 1"),
        (struct.pack("<4sHHQ", b"EMBC", 1, 1, 2**32), f"cannot have a body of {2**32} bytes"),
        (struct.pack("<4sHHQ", b"EMBC", 99, 1, 0), "kind 99"),
        (protocol.encode(Kind.PROOF, bytes(32)), "PROOF is not allowed"),
        (protocol.encode(Kind.GOODBYE), "GOODBYE is not allowed"),
        (batch(1), "does not speak this protocol"),
    ],
    ids=["http", "ssh", "zeros", "version", "4 GB", "kind", "proof", "goodbye", "batch"],
)
def test_a_stranger_is_told_what_is_wrong_and_the_broker_logs_it(
    listen: Listen, caplog: pytest.LogCaptureFixture, data: bytes, says: str
) -> None:
    broker = listen()
    with caplog.at_level(logging.WARNING, "embar_shm.tcp"), broker.peer() as peer:
        peer.send(data)
        error = peer.error()
        assert isinstance(error, ProtocolError)
        assert says in error.message
        assert peer.wait_for_end() == b""
        assert f"127.0.0.1:{peer.socket.getsockname()[1]} ended: " in caplog.text
        assert says in caplog.text
    broker.check_that_it_serves()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_batch": 4097}, "the broker's slots 4096"),
        ({"in_flight": 0}, "at least one slot"),
        ({"ack": 7}, "level 7"),
        ({"features": 1}, "features 0x1"),
    ],
)
def test_a_publisher_that_cannot_be_served_is_told_why(
    listen: Listen, changes: dict[str, int], says: str
) -> None:
    broker = listen()
    with broker.peer() as peer:
        peer.say(Kind.HELLO, replace(HELLO, **changes).pack())
        error = peer.error()
    assert isinstance(error, ProtocolError)
    assert says in error.message


def test_headers_that_announce_gigabytes_cost_no_memory(listen: Listen) -> None:
    broker = listen()
    with ExitStack() as stack:
        peers = [stack.enter_context(broker.peer()) for _ in range(8)]
        for number, peer in enumerate(peers[4:]):
            peer.greet(replace(HELLO, publisher_id=number))
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        before = psutil.Process().memory_info().rss
        for kind, peer in zip(
            (Kind.HELLO, Kind.PROOF, Kind.ERROR, Kind.DATA), peers[:4], strict=True
        ):
            peer.send(struct.pack("<4sHHQ", b"EMBC", kind, 1, 2**32))
        for number, peer in enumerate(peers[4:]):
            hello = replace(HELLO, publisher_id=number)
            peer.send(batch_header(1, 2 ** (32 + 8 * number) - 1, hello))
        for peer in peers:
            assert isinstance(peer.error(), ProtocolError)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
        assert psutil.Process().memory_info().rss - before < 64 * 2**20
        assert broker.held_slots() == 0


def conversation(token: str | None) -> bytes:
    """What a publisher sends to a broker whose challenge is all zeros."""
    said = protocol.encode(Kind.HELLO, HELLO.pack())
    if token is not None:
        proof = protocol.prove(token, bytes(32), HELLO.pack())
        said += protocol.encode(Kind.PROOF, proof)
    return said + batch(1) + batch(2) + GOODBYE


def test_random_and_damaged_bytes_leave_the_broker_serving(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "new_nonce", lambda: bytes(32))
    brokers = {None: listen(), "secret": listen(token="secret")}

    @settings(max_examples=80, deadline=None, database=None)
    @given(
        token=st.sampled_from([None, "secret"]),
        noise=st.binary(max_size=300),
        cut=st.integers(0, 700),
        flip=st.integers(0, 700) | st.none(),
        end=st.sampled_from(["shutdown", "reset", "close"]),
    )
    def attack(token: str | None, noise: bytes, cut: int, flip: int | None, end: str) -> None:
        data = bytearray(conversation(token)[:cut] + noise)
        if flip is not None and flip < len(data):
            data[flip] ^= 0x10
        with brokers[token].peer() as peer:
            peer.send(data)
            if end == "shutdown":
                peer.socket.shutdown(socket.SHUT_WR)
                peer.wait_for_end()
            elif end == "reset":
                peer.reset()

    attack()
    for token, broker in brokers.items():
        broker.check_that_it_serves(token=token)
        wait_until(lambda broker=broker: broker.held_slots() == 0, "all slots become free")


# --- batches that are not what they should be -----------------------------------------------------


@pytest.mark.parametrize(
    ("header", "kind", "says"),
    [
        (batch_header(3, 64), ProtocolError, "batch 3 came, batch 2 was expected"),
        (batch_header(1, 64), ProtocolError, "batch 1 came, batch 2 was expected"),
        (batch_header(2, 4097), ProtocolError, "4097 bytes, the limit is 4096"),
        (batch_header(2, 0), ProtocolError, "0 bytes"),
        (batch_header(2, 64, publisher_id=8), ProtocolError, "another publisher"),
        (batch_header(2, 64, check=5), ProtocolError, "damaged"),
        (protocol.encode(Kind.HELLO, HELLO.pack()) + bytes(64), ProtocolError, "magic"),
        (protocol.encode(Kind.GOODBYE) + b"\1" * 112, ProtocolError, "magic"),
    ],
    ids=["gap", "again", "large", "empty", "of another", "damaged", "hello", "bad goodbye"],
)
def test_a_batch_that_was_not_agreed_on_ends_the_connection_with_the_reason(
    listen: Listen, header: bytes, kind: type[es.EmbarError], says: str
) -> None:
    broker = listen()
    with broker.peer() as peer:
        peer.greet()
        peer.send(batch(1) + header)
        error = peer.error()
        assert type(error) is kind
        assert says in error.message
        peer.wait_for_end()
    wait_until(lambda: broker.broker.stats().batches == 1, "the batch before it is accepted")
    broker.check_that_it_serves()


def test_a_batch_the_broker_refuses_ends_the_connection_with_the_reason(
    make_broker: Callable[..., es.Broker], listen: Listen
) -> None:
    broker = listen()
    with broker.peer() as peer:
        peer.greet()
        peer.send(batch(1) + batch(2, messages=3))  # three of 64 bytes in a body of 64
        error = peer.error()
        assert isinstance(error, BatchRefused)
        assert "refused batch 2" in error.message
        peer.wait_for_end()
    stats = broker.broker.stats()
    assert (stats.batches, stats.corrupt) == (1, 1)
    broker.check_that_it_serves()
    wait_until(lambda: broker.held_slots() == 0, "all slots become free")
    broker.listener.stop()  # a damaged batch is counted: the fixture wants none


def test_a_publisher_that_has_sent_batches_and_is_not_known_cannot_go_on(listen: Listen) -> None:
    broker = listen()
    with broker.peer() as peer:
        peer.say(Kind.HELLO, replace(HELLO, sent_seq=3).pack())
        error = peer.error()
    assert isinstance(error, BrokerGone)
    assert "does not know this publisher, which has sent 3 batches" in error.message


# --- connections that end where they must not -----------------------------------------------------

HELLO_FRAME = protocol.encode(Kind.HELLO, HELLO.pack())


def greeted(peer: Peer, after: bytes = b"") -> None:
    peer.greet()
    peer.send(after)


STAGES: dict[str, Callable[[Peer], object]] = {
    "nothing said": lambda peer: peer.send(b""),
    "in the head of the hello": lambda peer: peer.send(HELLO_FRAME[:7]),
    "in the body of the hello": lambda peer: peer.send(HELLO_FRAME[:40]),
    "hello said": lambda peer: peer.send(HELLO_FRAME),
    "welcomed": greeted,
    "in the header of a batch": lambda peer: greeted(peer, batch(1)[:50]),
    "after the header of a batch": lambda peer: greeted(peer, batch(1)[:128]),
    "in the body of a batch": lambda peer: greeted(peer, batch(1)[:150]),
    "after a batch": lambda peer: greeted(peer, batch(1)),
    "in the body of the third": lambda peer: greeted(peer, batch(1) + batch(2) + batch(3)[:150]),
    "in the goodbye": lambda peer: greeted(peer, batch(1) + GOODBYE[:20]),
    "goodbye said": lambda peer: greeted(peer, batch(1) + GOODBYE),
}
ENDS: dict[str, Callable[[Peer], object]] = {
    "reset": Peer.reset,
    "closed": Peer.close,
    "half closed": lambda peer: (peer.socket.shutdown(socket.SHUT_WR), peer.wait_for_end()),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_connection_may_end_anywhere(listen: Listen, stage: str, end: str) -> None:
    broker = listen()
    with broker.peer() as peer:
        STAGES[stage](peer)
        ENDS[end](peer)
    broker.check_that_it_serves()


@pytest.mark.parametrize("end", ENDS)
def test_a_connection_may_end_while_it_is_challenged(listen: Listen, end: str) -> None:
    broker = listen(token="secret")
    for after in (b"", protocol.encode(Kind.PROOF, bytes(32))[:20]):
        with broker.peer() as peer:
            peer.send(HELLO_FRAME)
            assert peer.frame()[0] is Kind.CHALLENGE
            peer.send(after)
            ENDS[end](peer)
    broker.check_that_it_serves(token="secret")


def test_a_publisher_that_comes_back_goes_on_where_its_last_whole_batch_ended(
    listen: Listen,
) -> None:
    broker = listen(Limits())
    with broker.peer() as peer:
        greeted(peer, batch(1) + batch(2)[:150])
        wait_until(lambda: broker.broker.stats().batches == 1, "the first batch is accepted")
        peer.reset()
    with broker.peer() as peer:
        assert peer.greet(replace(HELLO, sent_seq=2)).received_seq == 1
        peer.send(batch(2) + GOODBYE)
        answers = [peer.frame()]
        while answers[-1][0] is Kind.ACK:
            answers.append(peer.frame())
        assert answers[-1] == (Kind.GOODBYE, b"")
        assert peer.wait_for_end() == b""
    wait_until(lambda: broker.broker.stats().batches == 2, "the second batch is accepted")


def test_a_second_connection_of_a_publisher_takes_over_from_the_first(listen: Listen) -> None:
    broker = listen()
    with broker.peer() as old, broker.peer() as new:
        greeted(old, batch(1) + batch(2)[:150])
        wait_until(lambda: broker.held_slots() == 1, "the slot for the second batch is claimed")
        assert new.greet(replace(HELLO, sent_seq=2)).received_seq == 1
        old.wait_for_end()
        assert broker.held_slots() == 0
        new.send(batch(2))
        wait_until(lambda: broker.broker.stats().batches == 2, "the second batch is accepted")
        with broker.peer() as newest:
            assert newest.greet(replace(HELLO, sent_seq=2)).received_seq == 2
            new.wait_for_end()


def test_a_publisher_whose_goodbye_was_not_answered_may_ask_again_and_only_that(
    listen: Listen,
) -> None:
    broker = listen()
    again = replace(HELLO, sent_seq=1)
    with broker.peer() as peer:
        greeted(peer, batch(1) + GOODBYE)
        peer.wait_for_end()
    with broker.peer() as peer:
        assert peer.greet(again).received_seq == 1
        peer.send(GOODBYE)
        assert peer.frame() == (Kind.GOODBYE, b"")
    with broker.peer() as peer:
        peer.greet(again)
        peer.send(batch(2))
        assert isinstance(peer.error(), BrokerGone)


# --- connections that stand still -----------------------------------------------------------------

IMPATIENT = replace(FORGETFUL, handshake=0.2, stall=0.2)


@pytest.mark.parametrize("said", [0, 7, 16, 40], ids=str)
def test_who_does_not_introduce_himself_in_time_is_told_and_sent_away(
    listen: Listen, said: int
) -> None:
    broker = listen(IMPATIENT)
    with broker.peer() as peer:
        peer.send(HELLO_FRAME[:said])
        error = peer.error()
        assert isinstance(error, WaitTimeout)
        assert "stands still" in error.message
        peer.wait_for_end()


def drip(peer: Peer, data: bytes) -> None:
    """Sends a byte at a time, until something comes."""
    for position in range(len(data)):
        if select.select([peer.socket], [], [], 0.01)[0]:
            return
        peer.send(data[position : position + 1])
    raise AssertionError("the broker bears with it")


def test_the_handshake_as_a_whole_has_a_deadline(listen: Listen) -> None:
    broker = listen(IMPATIENT)
    with broker.peer() as peer:
        drip(peer, HELLO_FRAME[:-1])
        assert isinstance(peer.error(), WaitTimeout)


@pytest.mark.parametrize("said", [128, 150], ids=["header only", "part of the body"])
def test_a_publisher_that_stalls_in_a_batch_gives_its_slot_to_others(
    listen: Listen, said: int
) -> None:
    broker = listen(IMPATIENT, ring={"slots": 1})
    with broker.peer() as peer:
        greeted(peer, batch(1)[:said])
        wait_until(lambda: broker.held_slots() == 1, "the only slot is claimed")
        broker.check_that_it_serves(in_flight=1)
        error = peer.error()
        assert isinstance(error, WaitTimeout)
        assert "stands still" in error.message
        peer.wait_for_end()


def test_a_publisher_that_drips_gives_its_slot_to_others(listen: Listen) -> None:
    broker = listen(replace(IMPATIENT, least_rate=1e9), ring={"slots": 1})
    with broker.peer() as peer:
        greeted(peer, batch_header(1, 4096))
        drip(peer, bytes(4096))
        assert isinstance(peer.error(), WaitTimeout)
        broker.check_that_it_serves(in_flight=1)


def test_a_publisher_that_has_nothing_to_say_may_stay(listen: Listen) -> None:
    broker = listen(replace(IMPATIENT, handshake=0.1, stall=0.05))
    with broker.peer() as peer:
        greeted(peer, batch(1))
        assert peer.frame() == (Kind.ACK, protocol.ack_body(1))
        for _ in range(2):  # a stranger is sent away: that long the publisher has been silent
            with broker.peer() as stranger:
                assert isinstance(stranger.error(), WaitTimeout)
        peer.send(batch(2))
        assert peer.frame() == (Kind.ACK, protocol.ack_body(2))


# --- many of them ---------------------------------------------------------------------------------


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_connections_that_say_nothing_are_bounded_and_stop_nobody(
    listen: Listen, many_descriptors: None
) -> None:
    broker = listen(replace(FORGETFUL, newcomers=16))
    process = psutil.Process()
    descriptors, memory = process.num_fds(), process.memory_info().rss
    most = 0
    with ExitStack() as stack:
        with es.Publisher.connect(broker.address) as publisher:
            for number in range(1000):
                stack.enter_context(broker.peer())
                if number % 100 == 0:
                    publisher.publish(b"in between")
                    publisher.wait_acked()
                    broker.check_that_it_serves()
                    most = max(most, len(broker.threads))
        wait_until(lambda: len(broker.threads) <= 16, "those who had to make room are gone")
        # Those on their way out, the publisher's two threads and the one that is being accepted.
        assert most <= 2 * 16 + 8
        wait_until(
            lambda: process.num_fds() <= descriptors + 1000 + 2 * 16, "their descriptors are closed"
        )
        assert process.memory_info().rss - memory < 64 * 2**20
        broker.check_that_it_serves()
        broker.listener.stop()
        assert not broker.threads
    assert process.num_fds() <= descriptors


def test_who_makes_room_is_the_one_who_was_silent_longest(listen: Listen) -> None:
    broker = listen(replace(FORGETFUL, newcomers=2))
    with broker.peer() as first, broker.peer() as second:
        wait_until(lambda: len(broker.threads) == 2, "both are served")
        with broker.peer() as third:
            assert first.wait_for_end() == b""
            third.greet()
            second.greet(replace(HELLO, publisher_id=8))


def test_publishers_that_only_want_to_leave_make_room_like_newcomers(listen: Listen) -> None:
    broker = listen(replace(FORGETFUL, newcomers=4))
    with broker.peer() as peer:
        greeted(peer, batch(1) + GOODBYE)
        peer.wait_for_end()
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(broker.peer()).greet(replace(HELLO, sent_seq=1))
        wait_until(lambda: len(broker.threads) <= 4, "only the last four are served")


def test_when_all_places_are_taken_the_next_publisher_is_told(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp_listener, "_ROW_TIME", 0.05)
    broker = listen(ring={"max_publishers": 1})
    with broker.peer() as peer:
        peer.greet()
        with pytest.raises(NotEnoughSpace, match=r"all 1 places for publishers .* are taken"):
            es.Publisher.connect(broker.address)


def test_who_waits_for_a_place_stops_nobody_and_gets_it_when_one_leaves(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp_listener, "_ROW_TIME", 60.0)
    broker = listen(Limits(), ring={"max_publishers": 1})
    with broker.peer() as peer, broker.peer() as waiting:
        peer.greet()
        waiting.say(Kind.HELLO, replace(HELLO, publisher_id=8).pack())
        with broker.peer() as again:  # is not kept waiting by the one that waits
            again.greet()
            peer.wait_for_end()
            again.send(GOODBYE)
            assert again.frame()[0] is Kind.GOODBYE
        assert waiting.frame()[0] is Kind.WELCOME
        waiting.send(GOODBYE)
        assert waiting.frame()[0] is Kind.GOODBYE


def test_a_publisher_that_is_gone_gives_its_place_to_a_new_one(listen: Listen) -> None:
    broker = listen(Limits(), ring={"max_publishers": 1})
    with broker.peer() as peer:
        greeted(peer, batch(1))
        assert peer.frame()[0] is Kind.ACK
    with broker.peer() as new:
        new.greet(replace(HELLO, publisher_id=8))
        with broker.peer() as old:
            old.say(Kind.HELLO, replace(HELLO, sent_seq=2).pack())
            assert isinstance(old.error(), BrokerGone)
        new.send(GOODBYE)
        assert new.frame()[0] is Kind.GOODBYE


def test_without_another_thread_a_connection_is_refused_and_the_next_is_served(
    listen: Listen, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broker = listen()
    start = threading.Thread.start

    def cannot(thread: threading.Thread) -> None:
        if thread.name.startswith("serve "):
            monkeypatch.undo()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", cannot)
    with broker.peer() as peer:
        assert peer.wait_for_end() == b""
    said = "could not be served: can't start new thread"
    wait_until(lambda: said in caplog.text, "it is logged")
    broker.check_that_it_serves()


# --- tokens ---------------------------------------------------------------------------------------


def test_a_wrong_token_is_refused_before_anything_else_is_said(listen: Listen) -> None:
    broker = listen(token="secret")
    with broker.peer() as peer:
        peer.say(Kind.HELLO, HELLO.pack())
        kind, nonce = peer.frame()
        assert kind is Kind.CHALLENGE
        peer.say(Kind.PROOF, protocol.prove("guess", nonce, HELLO.pack()))
        assert isinstance(peer.error(), AccessDenied)
        assert peer.wait_for_end() == b""
    assert broker.broker.stats().publishers == 0


def test_a_proof_for_one_hello_is_none_for_another(listen: Listen) -> None:
    broker = listen(token="secret")
    with broker.peer() as peer:
        peer.say(Kind.HELLO, replace(HELLO, publisher_id=8).pack())
        _, nonce = peer.frame()
        peer.say(Kind.PROOF, protocol.prove("secret", nonce, HELLO.pack()))
        assert isinstance(peer.error(), AccessDenied)


def test_batches_before_the_proof_are_refused(listen: Listen) -> None:
    broker = listen(token="secret")
    with broker.peer() as peer:
        peer.send(HELLO_FRAME + batch(1))
        assert peer.frame()[0] is Kind.CHALLENGE
        assert isinstance(peer.error(), ProtocolError)
    assert broker.broker.stats().batches == 0


# --- the end of the broker ------------------------------------------------------------------------

OPEN_STAGES = {
    name: stage
    for name, stage in STAGES.items()
    if name.startswith(("welcomed", "in the header", "in the body of a", "after", "in the goodbye"))
}


@pytest.mark.parametrize("stage", OPEN_STAGES)
@pytest.mark.parametrize("closes", ["listener", "broker"])
def test_a_publisher_is_told_that_the_broker_stops_wherever_it_is(
    listen: Listen, stage: str, closes: str
) -> None:
    broker = listen(Limits())
    with broker.peer() as peer:
        STAGES[stage](peer)
        if closes == "listener":
            end = threading.Thread(target=broker.listener.stop)
        else:
            broker.broker._listeners.append(broker.listener)
            end = threading.Thread(target=broker.broker.close)
        end.start()
        error = peer.error()
        assert isinstance(error, BrokerGone)
        assert "stopped" in error.message
        peer.wait_for_end()
        peer.close()
        end.join()


def test_whoever_stops_a_listener_waits_until_it_has_stopped(listen: Listen) -> None:
    broker = listen()
    with ExitStack() as stack:
        for number in range(6):
            peer = stack.enter_context(broker.peer())
            if number % 2:
                peer.greet(replace(HELLO, publisher_id=number))
        stops = [threading.Thread(target=broker.listener.stop) for _ in range(3)]
        for thread in stops:
            thread.start()
        for thread in stops:
            thread.join()
            assert not broker.threads
    with pytest.raises(ConnectionRefusedError):
        broker.peer()


def interrupt_once(monkeypatch: pytest.MonkeyPatch, target: object, name: str) -> None:
    """Ctrl-C, the next time that this is called."""

    def interrupted(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(target, name, interrupted)


@pytest.mark.parametrize("greeted", [True, False])
def test_a_stop_that_ctrl_c_interrupted_can_be_gone_on_with(
    listen: Listen, monkeypatch: pytest.MonkeyPatch, greeted: bool
) -> None:
    broker = listen()
    with broker.peer() as peer:
        if greeted:
            peer.greet()
        interrupt_once(monkeypatch, broker.listener._acceptor, "join")
        with pytest.raises(KeyboardInterrupt):
            broker.listener.stop()
        peer.wait_for_end()
    broker.listener.stop()
    broker.wait_until_idle()
    with pytest.raises(ConnectionRefusedError):
        broker.peer()


def test_a_broker_whose_close_ctrl_c_interrupted_leaves_no_segment(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = listen()
    broker.broker._listeners.append(broker.listener)
    interrupt_once(monkeypatch, broker.listener, "stop")
    with pytest.raises(KeyboardInterrupt):
        broker.broker.close()
    assert not broker.broker.segment.name.path.exists()
    broker.listener.stop()


FORKS = """
    import os, sys
    import embar_shm as es
    from embar_shm.errors import ClosedError

    broker = es.Broker.create(sys.argv[1]).start()
    listener = broker.listen("tcp://127.0.0.1:0")
    publisher = es.Publisher.connect(listener.address)
    publisher.publish(b"before")
    publisher.wait_acked()
    if not (child := os.fork()):
        listener.stop()
        try:
            publisher.publish(b"never")
        except ClosedError:
            publisher.close()
            broker.close()
            os._exit(42)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    publisher.publish(b"after")
    publisher.wait_acked()
    told, tell = os.pipe()
    if not (child := os.fork()):  # lives on, and keeps nothing open
        os.close(tell)
        os.read(told, 1)
        os._exit(0)
    publisher.close()
    with es.Publisher.connect(listener.address) as another:
        another.publish(b"another")
        another.wait_acked()
    print(broker.stats().batches, broker.stats().reaped_publishers)
    broker.close()
    os.close(tell)
    os.waitpid(child, 0)
"""


def test_a_forked_child_leaves_its_parents_connections_alone(
    run_child: Callable[..., Child], cluster: str
) -> None:
    child = run_child(FORKS, f"{cluster}/0")
    child.expect("3 0")
    assert child.wait() == 0, child.errors


def test_a_connection_ends_even_while_a_forked_child_has_its_socket(listen: Listen) -> None:
    broker = listen()
    with broker.peer() as peer:
        peer.greet()
        wait_until(lambda: broker.listener._links, "it is served")
        (link,) = broker.listener._links
        kept = os.dup(link.stream._socket.fileno())  # as a child forked in between has it
        try:
            peer.socket.shutdown(socket.SHUT_WR)
            assert peer.wait_for_end() == b""
        finally:
            os.close(kept)
