"""Byte streams over real sockets: whole reads, time limits, gathered writes, and their counters."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from embar_shm import net, socket_buffers
from embar_shm.errors import ConfigurationError, ConnectionLost, NoSuchBroker, WaitTimeout
from embar_shm.net import SocketCounters, Stream, format_endpoint, open_socket, parse_endpoint
from embar_shm.testing import wait_until

# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:7400", ("127.0.0.1", 7400)),
        ("localhost:0", ("localhost", 0)),
        ("broker-1.example.org:65535", ("broker-1.example.org", 65535)),
        ("[::1]:7400", ("::1", 7400)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
        ("[localhost]:1", ("localhost", 1)),
        ("h:00080", ("h", 80)),
    ],
)
def test_an_endpoint_is_a_host_and_a_port(text: str, endpoint: tuple[str, int]) -> None:
    assert parse_endpoint(text) == endpoint
    assert parse_endpoint(format_endpoint(*endpoint).removeprefix("tcp://")) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":7400",
        "localhost",
        "localhost:",
        "localhost:65536",
        "localhost:-1",
        "localhost:+1",
        "localhost: 1",
        "localhost:1 ",
        "localhost:http",
        "localhost:7_4",
        "localhost:\u0661",
        "localhost:000080",
        "::1:7400",
        "::1",
        "[::1]",
        "[]:7400",
        "[::1:7400",
        "::1]:7400",
    ],
)
def test_what_is_no_endpoint_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a TCP address") as caught:
        parse_endpoint(text)
    assert repr(text) in caught.value.message
    assert "127.0.0.1:7400" in caught.value.hint


# --- connecting -----------------------------------------------------------------------------------


def test_the_next_address_of_a_name_is_tried_when_nobody_listens_on_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as silent, socket.create_server(("127.0.0.1", 0)) as server:
        silent.bind(("127.0.0.1", 0))
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", s.getsockname()) for s in (silent, server)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        sock, buffers = open_socket(("a-name", 1), 10, 65536)
        with sock:
            assert sock.getpeername() == server.getsockname()
            assert buffers.send.requested == buffers.receive.requested == 65536
        found.pop()
        with pytest.raises(NoSuchBroker, match="nobody listens on tcp://a-name:1"):
            open_socket(("a-name", 1), 10, 65536)


def test_a_name_server_that_does_not_answer_may_do_so_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(number: int) -> Any:
        def getaddrinfo(*_: object, **__: object) -> None:
            raise socket.gaierror(number, "told by the resolver")

        return getaddrinfo

    monkeypatch.setattr(socket, "getaddrinfo", fails(socket.EAI_AGAIN))
    with pytest.raises(ConnectionLost, match="told by the resolver"):
        open_socket(("a-name", 1), 10, 65536)
    monkeypatch.setattr(socket, "getaddrinfo", fails(socket.EAI_NONAME))
    with pytest.raises(ConfigurationError, match="told by the resolver"):
        open_socket(("a-name", 1), 10, 65536)


def test_a_machine_without_descriptors_is_an_error_that_may_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cannot(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(net.socket, "socket", cannot)
    with pytest.raises(ConnectionLost, match="Too many open files"):
        open_socket(("127.0.0.1", 1), 10, 65536)


# --- reading --------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[Stream, socket.socket]]:
    """A stream, and the plain socket at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname())
        other = server.accept()[0]
    stream = Stream(sock, "the peer")
    other.settimeout(30)
    with other:
        yield stream, other
    stream.close()


Pair = tuple[Stream, socket.socket]


def test_a_read_waits_until_all_of_it_is_there(pair: Pair) -> None:
    stream, other = pair
    send = threading.Thread(target=lambda: [other.sendall(bytes([n])) for n in range(100)])
    send.start()
    assert stream.read(100) == bytes(range(100))
    send.join()
    assert 1 <= stream.counters.recv_calls <= 100
    assert stream.counters.eagain == 0


def test_a_read_takes_no_more_than_it_was_asked_for(pair: Pair) -> None:
    stream, other = pair
    other.sendall(b"abcdef")
    assert (stream.read(2), stream.read(0), stream.read(4)) == (b"ab", b"", b"cdef")


def test_a_connection_that_ends_within_a_read_is_lost(pair: Pair) -> None:
    stream, other = pair
    other.sendall(b"abc")
    other.close()
    with pytest.raises(ConnectionLost, match="the peer closed the connection after 3 of 5 bytes"):
        stream.read(5)
    with pytest.raises(ConnectionLost, match="after 0 of 5"):
        stream.read(5)


def test_an_idle_read_tells_an_end_in_order_from_one_in_the_middle(pair: Pair) -> None:
    stream, other = pair
    view = memoryview(bytearray(4))
    other.sendall(b"abcdef")
    assert stream.read_into(view, idle=True)
    assert bytes(view) == b"abcd"
    other.close()
    with pytest.raises(ConnectionLost, match="after 2 of 4"):
        stream.read_into(view, idle=True)
    assert not stream.read_into(view, idle=True)


def test_a_reset_is_a_lost_connection(pair: Pair) -> None:
    stream, other = pair
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    other.close()
    with pytest.raises(ConnectionLost, match=r"with the peer was lost: .*reset"):
        stream.read_into(memoryview(bytearray(4)), idle=True)


def test_a_read_that_stands_still_ends_at_its_timeout(pair: Pair) -> None:
    stream, other = pair
    stream.set_timeouts(0.05, None)
    other.sendall(b"abc")
    with pytest.raises(WaitTimeout, match="the peer stands still: 3 of 5 bytes have come"):
        stream.read(5)
    assert stream.counters.eagain == 1


def test_an_idle_read_has_no_timeout_before_its_first_byte_and_one_after_it(pair: Pair) -> None:
    stream, other = pair
    stream.set_timeouts(0.01, None)
    results: list[object] = []

    def read() -> None:
        try:
            results.append(stream.read_into(memoryview(bytearray(4)), idle=True))
            stream.read_into(memoryview(bytearray(4)), idle=True)
        except WaitTimeout as error:
            results.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: stream.counters.recv_calls >= 5, "the timeout passes several times")
    assert not results
    other.sendall(b"abcd" + b"e")
    reader.join()
    assert results[0] is True
    assert "1 of 4 bytes" in str(results[1])


def drip(sock: socket.socket, over: threading.Event) -> None:
    while not over.wait(0.01):
        try:
            sock.sendall(b"x")
        except OSError:  # the other side has had enough
            return


@pytest.mark.parametrize("limit", ["deadline", "within"])
def test_a_byte_now_and_then_does_not_prolong_a_read(pair: Pair, limit: str) -> None:
    stream, other = pair
    stream.set_timeouts(0.05, None)
    over = threading.Event()
    dripping = threading.Thread(target=drip, args=(other, over))
    dripping.start()
    begin = time.monotonic()
    if limit == "deadline":
        stream.set_deadline(0.2)
    with pytest.raises(WaitTimeout, match=r"stands still: [1-9]"):
        stream.read_into(memoryview(bytearray(2**20)), within=0.2 if limit == "within" else None)
    assert time.monotonic() - begin >= 0.2
    over.set()
    dripping.join()


def test_a_deadline_is_one_for_all_reads_together(pair: Pair) -> None:
    stream, other = pair
    begin = time.monotonic()
    stream.set_deadline(0.2)
    over = threading.Event()
    dripping = threading.Thread(target=drip, args=(other, over))
    dripping.start()
    with pytest.raises(WaitTimeout):
        while True:  # each of them is quick
            stream.read(1)
    assert time.monotonic() - begin >= 0.2
    over.set()
    dripping.join()
    stream.set_deadline(None)
    assert stream.read(0) == b""
    other.sendall(b"!")
    assert stream.read(1) in (b"x", b"!")


def test_another_thread_can_end_a_read(pair: Pair) -> None:
    stream, other = pair
    for end in (stream.end_reading, stream.shutdown):
        results: list[bool] = []
        calls = stream.counters.recv_calls
        reader = threading.Thread(
            target=lambda results=results: results.append(
                stream.read_into(memoryview(bytearray(4)), idle=True)
            )
        )
        reader.start()
        wait_until(lambda calls=calls: stream.counters.recv_calls > calls, "the read begins")
        end()
        reader.join()
        assert results == [False]
        if end == stream.end_reading:
            stream.write(b"still")
            assert other.recv(5) == b"still"
    assert other.recv(1) == b""


# --- writing --------------------------------------------------------------------------------------


def test_parts_are_gathered_into_one_call(pair: Pair) -> None:
    stream, other = pair
    stream.write(b"head", memoryview(b"body"), b"")
    assert other.recv(100) == b"headbody"
    assert stream.counters.send_calls == 1


def test_a_write_that_the_kernel_takes_in_pieces_arrives_whole(pair: Pair) -> None:
    stream, other = pair
    head, body = bytes(range(128)), bytes(range(256)) * 2**16  # 16 MiB: no buffer holds it
    writer = threading.Thread(target=stream.write, args=(head, body, head))
    writer.start()
    got = bytearray()
    while len(got) < len(body) + 256:
        got += other.recv(2**20)
    writer.join()
    assert got == head + body + head


def test_what_threads_write_at_once_does_not_mix(pair: Pair) -> None:
    stream, other = pair
    size = 200_000
    writers = [
        threading.Thread(
            target=lambda n=n: [stream.write(bytes([n]), bytes([n]) * size) for _ in range(10)]
        )
        for n in range(4)
    ]
    for writer in writers:
        writer.start()
    got = bytearray()
    while len(got) < 40 * (size + 1):
        got += other.recv(2**20)
    for writer in writers:
        writer.join()
    for at in range(0, len(got), size + 1):
        assert len(set(got[at : at + size + 1])) == 1


def test_who_takes_nothing_is_told_of_after_the_timeout(pair: Pair) -> None:
    stream, _ = pair
    stream.set_timeouts(None, 0.05)
    with pytest.raises(WaitTimeout, match="the peer takes nothing more"):
        stream.write(bytes(2**26))
    assert stream.counters.eagain == 1


def test_a_write_on_a_connection_that_was_lost_is_our_error(pair: Pair) -> None:
    stream, other = pair
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    other.close()
    with pytest.raises(ConnectionLost, match="with the peer was lost"):
        for _ in range(2):  # the first may have come before the reset
            stream.write(bytes(100))


# --- ends -----------------------------------------------------------------------------------------


def test_the_last_words_arrive_although_something_unread_had_come(pair: Pair) -> None:
    stream, other = pair
    other.sendall(bytes(100_000))
    stream.write(b"last words")
    finish = threading.Thread(target=lambda: (stream.finish(30), stream.close()))
    finish.start()
    got = b""
    while some := other.recv(100):
        got += some
    other.close()
    finish.join()
    assert got == b"last words"


def test_who_does_not_close_is_not_waited_for_much_longer_than_said(pair: Pair) -> None:
    stream, other = pair
    begin = time.monotonic()
    stream.finish(0.05)
    assert time.monotonic() - begin >= 0.05
    over = threading.Event()
    dripping = threading.Thread(target=drip, args=(other, over))
    dripping.start()
    stream.finish(0.05)  # ends although something comes all the time
    over.set()
    dripping.join()


def test_all_ends_may_come_twice_and_in_any_order(pair: Pair) -> None:
    stream, _ = pair
    for _ in range(2):
        stream.shutdown()
        stream.end_reading()
        stream.finish(0.01)
        stream.close()


# --- counters -------------------------------------------------------------------------------------


def test_counters_of_several_connections_are_summed_or_the_extreme_is_kept() -> None:
    total = SocketCounters()
    one = SocketCounters(1, 2, 3, 4, 50, 6, 70, 8, 90, 10)
    other = SocketCounters(10, 20, 30, 40, 5, 60, 7, 80, 9, 100)
    total.add(one)
    assert total == one
    total.add(other)
    assert total == SocketCounters(11, 22, 33, 44, 50, 60, 70, 8, 90, 10)
    total.add(SocketCounters())  # a connection whose buffers are not known
    assert total == SocketCounters(11, 22, 33, 44, 50, 60, 70, 8, 90, 10)


def test_the_kernels_queues_are_looked_at_in_both_directions(pair: Pair) -> None:
    stream, other = pair
    other.sendall(bytes(1000))
    wait_until(lambda: (stream.sample_queues(), stream.counters.max_inq_bytes)[1] == 1000, "inq")
    stream.set_timeouts(None, 0.02)
    with pytest.raises(WaitTimeout):
        stream.write(bytes(2**26))
    stream.sample_queues()
    assert stream.counters.max_outq_bytes > 1000
    stream.read(1000)
    stream.sample_queues()
    assert stream.counters.max_inq_bytes == 1000


def test_a_stream_remembers_what_its_buffers_were_given(pair: Pair) -> None:
    stream, _ = pair
    with socket.socket() as sock:
        stream.counters.note_buffers(socket_buffers.request(sock, 65536))
    assert stream.counters.requested_sndbuf == stream.counters.requested_rcvbuf == 65536
    assert stream.counters.granted_sndbuf > 0
    assert stream.counters.granted_rcvbuf > 0
