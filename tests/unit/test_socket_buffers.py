"""Socket buffers are set only where the kernel grants all of the request."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from embar_shm import socket_buffers

LARGEST = (2**31 - 1) // 2  # the kernel cuts every request at this
SO_BUF_LOCK = 72  # Linux 5.14; says which buffers no longer grow by themselves
SENDING, RECEIVING = 1, 2  # its bits


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as made:
        yield made


def sizes(sock: socket.socket) -> tuple[int, int]:
    send, receive = (
        sock.getsockopt(socket.SOL_SOCKET, option)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF)
    )
    return send, receive


def fixed(sock: socket.socket) -> int:
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK)
    except OSError as error:
        pytest.skip(f"this kernel does not say which buffers are fixed: {error}")


def test_a_size_below_the_limits_is_set_in_both_directions(sock: socket.socket) -> None:
    found = socket_buffers.request(sock, 50_000)
    assert sizes(sock) == (100_000, 100_000), "the kernel doubles it for its bookkeeping"
    for buffer in (found.send, found.receive):
        assert (buffer.requested, buffer.granted, buffer.at_most) == (50_000, True, 50_000)
    assert fixed(sock) == SENDING | RECEIVING


def test_a_size_beyond_the_limits_leaves_the_socket_to_autotuning(sock: socket.socket) -> None:
    before = sizes(sock)
    found = socket_buffers.request(sock, LARGEST)
    if found.send.granted or found.receive.granted:
        pytest.skip("this machine grants the largest buffer there is")
    assert sizes(sock) == before
    assert fixed(sock) == 0
    assert found.send.setting == "net.core.wmem_max"
    assert found.receive.setting == "net.core.rmem_max"


def test_what_can_be_had_at_most_is_no_less_than_what_a_cut_request_gives(
    sock: socket.socket,
) -> None:
    found = socket_buffers.request(sock, LARGEST)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, LARGEST)  # cut by the kernel
    send, receive = sizes(sock)
    assert send // 2 <= found.send.at_most <= LARGEST
    assert receive // 2 <= found.receive.at_most <= LARGEST


def test_where_nothing_is_requested_autotuning_is_all_there_is(sock: socket.socket) -> None:
    before = sizes(sock)
    found = socket_buffers.request(sock, 0)
    assert sizes(sock) == before
    for buffer, name in ((found.send, "tcp_wmem"), (found.receive, "tcp_rmem")):
        most = int(Path(f"/proc/sys/net/ipv4/{name}").read_text().split()[2])
        assert (buffer.requested, buffer.granted, buffer.at_most) == (0, False, most // 2)


def test_accepted_sockets_inherit_the_size_from_the_listening_one(sock: socket.socket) -> None:
    socket_buffers.request(sock, 50_000)
    sock.bind(("127.0.0.1", 0))
    sock.listen(1)
    with socket.create_connection(sock.getsockname()), sock.accept()[0] as accepted:
        assert sizes(accepted) == (100_000, 100_000)


def test_a_closed_socket_raises(sock: socket.socket) -> None:
    sock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        socket_buffers.request(sock, 50_000)
