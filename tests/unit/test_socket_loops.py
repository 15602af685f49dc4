"""The native loops behind the loopback ceiling: whole batches, and an end to every wait."""

from __future__ import annotations

import mmap
import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from embar_shm import _core

BATCH = 100_000  # more than a socket pair holds on its way, so that sender and receiver wait
OFFSETS = [8, 8 + BATCH]
SIZE = 8 + 2 * BATCH

Pair = tuple[socket.socket, socket.socket]


def socket_pair() -> Pair:
    return socket.socketpair()


def tcp_pair() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return client, server.accept()[0]


@pytest.fixture(params=[socket_pair, tcp_pair])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    make: Callable[[], Pair] = request.param
    one, other = make()
    with one, other:
        yield one, other


@pytest.fixture
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def receiving(pool: ThreadPoolExecutor, sock: socket.socket, memory: mmap.mmap) -> Future[int]:
    return pool.submit(_core.tcp_receive_loop, sock.fileno(), memory, OFFSETS, BATCH)


def test_batches_arrive_whole_and_in_turn(pair: Pair, elsewhere: ThreadPoolExecutor) -> None:
    source, target = os.urandom(SIZE), mmap.mmap(-1, SIZE + 5)
    sender, receiver = pair
    received = receiving(elsewhere, receiver, target)
    took = _core.tcp_send_loop(sender.fileno(), source, OFFSETS, BATCH, 3)
    sender.close()
    assert received.result() == 3 * BATCH
    assert took > 0
    assert target[8:SIZE] == source[8:]
    assert target[:8] == target[SIZE:] + b"\0\0\0" == bytes(8), "nothing was written elsewhere"


def test_each_batch_goes_to_the_next_place(pair: Pair, elsewhere: ThreadPoolExecutor) -> None:
    target = mmap.mmap(-1, SIZE)
    sender, receiver = pair
    received = receiving(elsewhere, receiver, target)
    for batch in (b"a", b"b", b"c"):
        _core.tcp_send_loop(sender.fileno(), batch * BATCH, [0], BATCH, 1)
    sender.close()
    assert received.result() == 3 * BATCH
    assert target[8 : 8 + BATCH] == b"c" * BATCH
    assert target[8 + BATCH :] == b"b" * BATCH


def test_a_peer_that_sends_nothing_is_no_error(pair: Pair) -> None:
    sender, receiver = pair
    sender.close()
    assert _core.tcp_receive_loop(receiver.fileno(), mmap.mmap(-1, SIZE), OFFSETS, BATCH) == 0


def test_an_end_inside_a_batch_raises(pair: Pair) -> None:
    sender, receiver = pair
    sender.sendall(b"x" * 77)
    sender.close()
    with pytest.raises(EOFError, match=f"after 77 of the {BATCH} bytes of a batch"):
        _core.tcp_receive_loop(receiver.fileno(), mmap.mmap(-1, SIZE), OFFSETS, BATCH)


def test_a_receiver_that_goes_away_ends_the_sender(
    pair: Pair, elsewhere: ThreadPoolExecutor
) -> None:
    sender, receiver = pair
    sent = elsewhere.submit(
        _core.tcp_send_loop, sender.fileno(), bytes(SIZE), OFFSETS, BATCH, 10**9
    )
    receiver.recv(10 * BATCH, socket.MSG_WAITALL)  # it is in the middle of it
    receiver.close()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        sent.result()


def test_shutdown_in_another_thread_ends_a_receiver(
    pair: Pair, elsewhere: ThreadPoolExecutor
) -> None:
    sender, receiver = pair
    received = receiving(elsewhere, receiver, mmap.mmap(-1, SIZE))
    sender.sendall(bytes(BATCH))
    receiver.shutdown(socket.SHUT_RDWR)
    assert received.result() in (0, BATCH), "whether or not it had started"


@pytest.mark.parametrize(
    ("offsets", "batch"),
    [
        ([SIZE - BATCH + 1], BATCH),
        ([SIZE + 1], 1),
        ([2**64 - 1], 2),
        ([0, SIZE], 1),
        ([0], SIZE + 1),
    ],
)
def test_an_offset_beyond_the_buffer_raises_before_anything_moves(
    pair: Pair, offsets: list[int], batch: int
) -> None:
    one, other = pair
    with pytest.raises(ValueError, match="beyond the buffer"):
        _core.tcp_send_loop(one.fileno(), bytes(SIZE), offsets, batch, 1)
    with pytest.raises(ValueError, match="beyond the buffer"):
        _core.tcp_receive_loop(one.fileno(), mmap.mmap(-1, SIZE), offsets, batch)
    one.close()
    assert other.recv(1) == b""


@pytest.mark.parametrize(("offsets", "batch"), [([], BATCH), ([0], 0)])
def test_nothing_to_move_raises(pair: Pair, offsets: list[int], batch: int) -> None:
    fd = pair[0].fileno()
    with pytest.raises(ValueError, match="must not be empty"):
        _core.tcp_send_loop(fd, bytes(SIZE), offsets, batch, 1)
    with pytest.raises(ValueError, match="must not be empty"):
        _core.tcp_receive_loop(fd, mmap.mmap(-1, SIZE), offsets, batch)


def test_a_descriptor_that_is_no_socket_raises() -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(OSError, match="non-socket"):
            _core.tcp_send_loop(writer, bytes(SIZE), OFFSETS, BATCH, 1)
        with pytest.raises(OSError, match="non-socket"):
            _core.tcp_receive_loop(reader, mmap.mmap(-1, SIZE), OFFSETS, BATCH)
    finally:
        os.close(reader)
        os.close(writer)


class Enough(Exception):
    """Raised by a signal handler."""


@pytest.mark.parametrize("direction", ["send", "receive"])
def test_signal_handlers_run_in_a_wait_and_end_it_when_they_raise(
    direction: str, pair: Pair
) -> None:
    handled = 0

    def handle(*_: object) -> None:
        nonlocal handled
        handled += 1
        if handled == 5:
            raise Enough

    one, other = pair
    other.send(b"a part of a batch")
    before = signal.signal(signal.SIGALRM, handle)
    try:
        with pytest.raises(Enough):
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            if direction == "send":
                _core.tcp_send_loop(one.fileno(), bytes(SIZE), OFFSETS, BATCH, 10**9)
            else:
                _core.tcp_receive_loop(one.fileno(), mmap.mmap(-1, SIZE), OFFSETS, BATCH)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert handled == 5
