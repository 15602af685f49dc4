"""The native loops that carry batches and acknowledgements, between two rings and a socket pair."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from raw_ring import RawRing, accept, commit_batches

from embar_shm import _core, protocol
from embar_shm.errors import BatchRefused, BrokerGone
from embar_shm.protocol import ACK_HEAD, Kind, ack_body, encode

LIMIT = 256  # bytes of a slot
BODY = 64  # of one message
MORE = 10**6
STALL = 30.0


class Ends:
    """A publisher's ring and relay, a broker's ring and receiver, and a connection between them."""

    def __init__(self, slots: int = 3) -> None:
        self.near, self.far = RawRing(slots=slots), RawRing(slots=slots)
        self.publisher = self.near.publisher(quota=slots)
        self.relay = _core.RelayCore(self.near.memory, 2, 0.0, 1, True)
        self.broker = self.far.broker()
        self.receiver = _core.ReceiverCore(
            self.far, self.far.memory, 0, -1, 1000, 1, slots, 1, True
        )
        self.up, self.down = socket.socketpair()

    def close(self) -> None:
        self.up.close()
        self.down.close()

    def send(self, sent: int = 0, last: int = MORE, forget: bool = False) -> tuple[int, str, int]:
        return self.relay.send(self.up.fileno(), sent, last, forget)

    def receive(self, seq: int = 0, limit: int = LIMIT) -> tuple[Any, ...]:
        return self.receiver.receive(self.down.fileno(), limit, seq, STALL, 64e3)

    def header(self, seq: int) -> bytes:
        place = self.relay.next(seq, 0)
        assert place is not None
        return bytes(self.near.memory[place[0] : place[0] + _core.BATCH_HEADER_BYTES])


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


@pytest.fixture
def running() -> Iterator[Callable[[Callable[[], Any]], list[Any]]]:
    """Runs something in a thread; the list it gives gets the result. Joined after the test."""
    threads = []

    def run(what: Callable[[], Any]) -> list[Any]:
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(what()))
        thread.start()
        threads.append(thread)
        results_of[id(results)] = thread
        return results

    results_of: dict[int, threading.Thread] = {}
    run.wait = lambda results: results_of[id(results)].join()  # type: ignore[attr-defined]
    yield run
    for thread in threads:
        thread.join()


# --- sending --------------------------------------------------------------------------------------


def test_batches_are_sent_in_order_until_the_last_one(ends: Ends) -> None:
    commit_batches(ends.publisher, 3)
    assert ends.send(last=2) == (2, "whole", 0)
    assert ends.send(2, last=3) == (3, "whole", 0)
    ends.up.shutdown(socket.SHUT_WR)
    seq, why, *_ = ends.receive()
    assert (seq, why) == (3, "ended")
    assert [accept(ends.broker)["seq"] for _ in range(3)] == [1, 2, 3]


def test_a_wake_up_ends_sending_also_when_it_came_before(ends: Ends) -> None:
    ends.relay.wake()
    assert ends.send() == (0, "whole", 0)
    commit_batches(ends.publisher, 1)
    ends.relay.wake()
    assert ends.send() == (1, "whole", 0)  # what is committed is sent first


def test_sending_waits_for_the_next_batch(
    ends: Ends, running: Callable[[Callable[[], Any]], list[Any]]
) -> None:
    sent = running(lambda: ends.send(last=1))
    commit_batches(ends.publisher, 1)
    running.wait(sent)  # type: ignore[attr-defined]
    assert sent == [(1, "whole", 0)]


def test_what_needs_no_acknowledgement_gives_its_slot_back_at_once(ends: Ends) -> None:
    commit_batches(ends.publisher, 2)
    assert ends.send(last=2, forget=True) == (2, "whole", 0)
    assert (ends.relay.acknowledged, ends.publisher.in_flight) == (2, 0)


def test_what_is_acknowledged_already_is_not_sent(ends: Ends) -> None:
    commit_batches(ends.publisher, 2)
    ends.header(1)  # as if to send it
    ends.relay.acknowledge(1)
    assert ends.send(last=2) == (2, "whole", 0)
    _, why, header, *_ = ends.receive()
    assert why == "header"
    assert protocol.BatchHead.unpack(header).seq == 2


def test_a_socket_that_is_gone_ends_sending_with_the_reason(ends: Ends) -> None:
    commit_batches(ends.publisher, 1)
    ends.down.close()
    sent, how, number = ends.send()
    assert (sent, how) == (0, "failed")
    assert number != 0


def test_a_socket_that_takes_nothing_is_a_stall(ends: Ends) -> None:
    ends.up.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 20_000))
    sent, how = 0, "whole"
    while how == "whole":
        commit_batches(ends.publisher, 1)
        sent, how, _ = ends.send(sent, last=sent + 1, forget=True)
    assert how == "stalled"
    assert ends.relay.socket_calls()["eagain"] == 1


# --- acknowledgements -----------------------------------------------------------------------------


def test_acknowledgements_release_what_they_cover(ends: Ends) -> None:
    commit_batches(ends.publisher, 3)
    ends.send(last=3)
    ends.down.sendall(encode(Kind.ACK, ack_body(1)) + encode(Kind.ACK, ack_body(3)))
    ends.down.shutdown(socket.SHUT_WR)
    how, *_ = ends.relay.read_acks(ends.up.fileno(), ACK_HEAD)
    assert how == "closed"
    assert (ends.relay.acknowledged, ends.publisher.accepted_seq) == (3, 3)


@pytest.mark.parametrize("cut", range(1, 24))
def test_an_acknowledgement_may_come_in_two_pieces(
    ends: Ends, cut: int, running: Callable[[Callable[[], Any]], list[Any]]
) -> None:
    commit_batches(ends.publisher, 1)
    ends.send(last=1)
    frame = encode(Kind.ACK, ack_body(1))
    read = running(lambda: ends.relay.read_acks(ends.up.fileno(), ACK_HEAD))
    ends.down.sendall(frame[:cut])
    ends.down.sendall(frame[cut:])
    ends.down.shutdown(socket.SHUT_WR)
    running.wait(read)  # type: ignore[attr-defined]
    assert read[0][0] == "closed"
    assert ends.relay.acknowledged == 1


@pytest.mark.parametrize(
    "frame", [encode(Kind.GOODBYE), encode(Kind.ERROR, b"BrokerGone\nit stopped\n")]
)
def test_another_frame_is_handed_over_with_what_was_read_of_it(ends: Ends, frame: bytes) -> None:
    commit_batches(ends.publisher, 1)
    ends.send(last=1)
    ends.down.sendall(encode(Kind.ACK, ack_body(1)) + frame)
    how, begun, got, *_ = ends.relay.read_acks(ends.up.fileno(), ACK_HEAD)
    assert (how, len(begun)) == ("whole", got)
    assert frame.startswith(begun)
    assert len(begun) >= protocol.HEAD_BYTES
    ends.down.shutdown(socket.SHUT_WR)
    assert begun + ends.up.recv(100) == frame


@pytest.mark.parametrize("seq", [2, 3, 2**64 - 1])
def test_an_acknowledgement_of_what_was_never_sent_is_told(ends: Ends, seq: int) -> None:
    commit_batches(ends.publisher, 2)
    ends.send(last=1)
    ends.down.sendall(encode(Kind.ACK, ack_body(seq)))
    how, *_, lie = ends.relay.read_acks(ends.up.fileno(), ACK_HEAD)
    assert (how, lie) == ("lie", seq)


def test_an_old_acknowledgement_changes_nothing(ends: Ends) -> None:
    commit_batches(ends.publisher, 2)
    ends.send(last=2)
    ends.down.sendall(encode(Kind.ACK, ack_body(2)) + encode(Kind.ACK, ack_body(1)))
    ends.down.shutdown(socket.SHUT_WR)
    assert ends.relay.read_acks(ends.up.fileno(), ACK_HEAD)[0] == "closed"
    assert ends.relay.acknowledged == 2


def test_the_broker_tells_each_time_it_has_accepted_more(
    ends: Ends, running: Callable[[Callable[[], Any]], list[Any]]
) -> None:
    commit_batches(ends.publisher, 2)
    ends.send(last=2)
    ends.up.shutdown(socket.SHUT_WR)
    ends.receive()
    told = running(lambda: ends.receiver.send_acks(ends.down.fileno(), ACK_HEAD, 0))
    for seq in (1, 2):
        accept(ends.broker)
        assert ends.up.recv(24, socket.MSG_WAITALL) == encode(Kind.ACK, ack_body(seq))
        ends.broker.release()
    ends.receiver.interrupt()
    running.wait(told)  # type: ignore[attr-defined]
    assert told[0][:2] == (2, "interrupted")


def test_the_end_of_the_broker_is_told_after_the_last_acknowledgement(ends: Ends) -> None:
    commit_batches(ends.publisher, 1)
    ends.send(last=1)
    ends.up.shutdown(socket.SHUT_WR)
    ends.receive()
    ends.broker.retire()  # accepts it
    seq, why, _, status = ends.receiver.send_acks(ends.down.fileno(), ACK_HEAD, 0)
    assert (seq, why) == (1, "ring")
    assert isinstance(ends.receiver.ring_error(status), BrokerGone)
    assert ends.up.recv(24) == encode(Kind.ACK, ack_body(1))


# --- receiving ------------------------------------------------------------------------------------


def changed(header: bytes, **fields: int) -> bytes:
    """The header with other fields, and the check that belongs to them."""
    names = ("magic", "version", "format", "publisher_id", "incarnation", "seq", "messages")
    values = list(protocol.BATCH_HEADER.unpack(header))
    for name, value in fields.items():
        values[names.index(name) if name in names else 8] = value
    packed = protocol.BATCH_HEADER.pack(*values)
    return packed[:-8] + struct.pack("<Q", _core.header_check(packed))


@pytest.mark.parametrize(
    "fields",
    [
        {"magic": 1},
        {"version": 9},
        {"publisher_id": 7},
        {"incarnation": 7},
        {"seq": 2},
        {"seq": 0},
        {"body_bytes": 0},
        {"body_bytes": LIMIT + 1},
        {"body_bytes": 2**32},
        {"body_bytes": 2**64 - 1},
    ],
    ids=str,
)
def test_a_header_that_is_not_the_next_ones_is_handed_over_and_no_slot_taken(
    ends: Ends, fields: dict[str, int]
) -> None:
    commit_batches(ends.publisher, 1)
    header = changed(ends.header(1), **fields)
    ends.up.sendall(header)
    seq, why, found, *_ = ends.receive()
    assert (seq, why, found) == (0, "header", header)
    assert all(owner < 0 for _, owner, _, _ in ends.far.monitor().slots())


def test_a_damaged_header_is_handed_over(ends: Ends) -> None:
    commit_batches(ends.publisher, 1)
    header = bytearray(ends.header(1))
    header[100] ^= 1
    ends.up.sendall(header)
    assert ends.receive()[1] == "header"


def test_a_limit_below_the_slot_is_kept(ends: Ends) -> None:
    commit_batches(ends.publisher, 1)
    ends.send(last=1)
    assert ends.receive(limit=BODY - 1)[1] == "header"


@pytest.mark.parametrize("cut", [1, 127, 128, 129, 128 + BODY - 1])
def test_a_connection_that_ends_in_a_batch_gives_the_slot_back(ends: Ends, cut: int) -> None:
    commit_batches(ends.publisher, 1)
    place = ends.relay.next(1, 0)
    assert place is not None
    header, body, size = place
    whole = bytes(ends.near.memory[header : header + 128]) + bytes(
        ends.near.memory[body : body + size]
    )
    ends.up.sendall(whole[:cut])
    ends.up.shutdown(socket.SHUT_WR)
    seq, why, _, got, wanted, *_ = ends.receive()
    assert (seq, why) == (0, "closed")
    assert (got, wanted) == ((cut, 128) if cut < 128 else (cut - 128, size))
    assert all(owner < 0 for _, owner, _, _ in ends.far.monitor().slots())


def test_a_connection_that_stands_still_in_a_batch_gives_the_slot_back(ends: Ends) -> None:
    ends.down.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 20_000))
    commit_batches(ends.publisher, 1)
    ends.up.sendall(ends.header(1) + b"a part")
    seq, why, _, got, *_ = ends.receive()
    assert (seq, why, got) == (0, "stalled", 6)
    assert all(owner < 0 for _, owner, _, _ in ends.far.monitor().slots())


def test_a_batch_that_comes_too_slowly_gives_the_slot_back(ends: Ends) -> None:
    commit_batches(ends.publisher, 1)
    ends.up.sendall(ends.header(1) + b"a part")
    ends.down.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 5_000))
    # The socket's timeout gives it the part; by then all of it should have been there.
    _, why, _, got, *_ = ends.receiver.receive(ends.down.fileno(), LIMIT, 0, 0.0, 1e12)
    assert (why, got) == ("stalled", 6)
    assert all(owner < 0 for _, owner, _, _ in ends.far.monitor().slots())


def test_a_connection_on_which_nothing_comes_may_wait(
    ends: Ends, running: Callable[[Callable[[], Any]], list[Any]]
) -> None:
    ends.down.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 5_000))
    received = running(ends.receive)
    while ends.receiver.socket_calls()["recv_calls"] < 5:  # it has come back some times
        threading.Event().wait(0.001)
    assert received == []
    ends.receiver.interrupt()
    running.wait(received)  # type: ignore[attr-defined]
    assert received[0][1] == "interrupted"


def test_receiving_waits_for_a_slot_and_can_be_interrupted_in_it(
    ends: Ends, running: Callable[[Callable[[], Any]], list[Any]]
) -> None:
    commit_batches(ends.publisher, 3)
    ends.send(last=3)
    ends.relay.acknowledge(3)
    commit_batches(ends.publisher, 1)
    ends.send(3, last=4)
    received = running(ends.receive)
    while ends.far.monitor().publisher(0)["space_waits"] == 0:
        threading.Event().wait(0.001)
    ends.receiver.interrupt()
    running.wait(received)  # type: ignore[attr-defined]
    assert received[0][:2] == (3, "interrupted")


def test_a_broker_that_stopped_ends_receiving(ends: Ends) -> None:
    ends.broker.retire()
    commit_batches(ends.publisher, 1)
    ends.send(last=1)
    seq, why, *_, status = ends.receive()
    assert (seq, why) == (0, "ring")
    assert isinstance(ends.receiver.ring_error(status), BrokerGone)


def test_a_batch_that_the_broker_refuses_ends_receiving(ends: Ends) -> None:
    commit_batches(ends.publisher, 1)
    header = changed(ends.header(1), messages=0)  # an intact header of an impossible batch
    place = ends.relay.next(1, 0)
    assert place is not None
    ends.up.sendall(header + bytes(ends.near.memory[place[1] : place[1] + place[2]]) + header)
    ends.up.shutdown(socket.SHUT_WR)
    ends.receive()
    assert accept(ends.broker)["verdict"] == "bad_header"
    _, why, _, status = ends.receiver.send_acks(ends.down.fileno(), ACK_HEAD, 0)
    assert why == "ring"
    assert isinstance(ends.receiver.ring_error(status), BatchRefused)


def test_stage_times_and_calls_are_counted(ends: Ends) -> None:
    commit_batches(ends.publisher, 3)
    ends.send(last=3)
    ends.up.shutdown(socket.SHUT_WR)
    ends.receive()
    assert ends.relay.send_times()["count"] == 3
    assert ends.far.monitor().publisher_stages(0)["receive"]["count"] == 3
    assert ends.relay.socket_calls()["send_calls"] == 3
    assert ends.receiver.socket_calls()["recv_calls"] == 7  # headers, bodies, the end
