"""The TCP proxy of `embar_shm.testing` cuts where it is told to."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from embar_shm.net import format_endpoint, parse_endpoint
from embar_shm.testing import Cut, Proxy


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(30)
        yield listening


@pytest.fixture
def proxy(server: socket.socket) -> Iterator[Proxy]:
    with Proxy(format_endpoint(*server.getsockname())) as found:
        yield found


@pytest.fixture
def pair(
    server: socket.socket, proxy: Proxy
) -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """Opens connections through the proxy: both ends."""
    with ExitStack() as stack:

        def connect() -> tuple[socket.socket, socket.socket]:
            address = parse_endpoint(proxy.address.removeprefix("tcp://"))
            client = stack.enter_context(socket.create_connection(address, timeout=30))
            target, _ = server.accept()
            target.settimeout(30)
            return client, stack.enter_context(target)

        yield connect


def read_all(sock: socket.socket) -> tuple[bytes, bool]:
    """What comes until the end, and whether that was an orderly one."""
    data = b""
    try:
        while some := sock.recv(65536):
            data += some
    except ConnectionResetError:
        return data, False
    return data, True


def test_it_forwards_both_ways_until_both_sides_have_closed(
    pair: Callable[[], tuple[socket.socket, socket.socket]], proxy: Proxy
) -> None:
    client, target = pair()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert read_all(target) == (b"question", True)
    target.sendall(bytes(1_000_000))
    target.close()
    assert read_all(client) == (bytes(1_000_000), True)
    assert proxy.passed == {"up": 8, "down": 1_000_000}
    assert (proxy.connections, proxy.cuts_made) == (1, 0)


@pytest.mark.parametrize("reset", [True, False], ids=["RST", "FIN"])
@pytest.mark.parametrize("after", [1, 99, 100])
def test_it_cuts_both_sides_after_so_many_bytes(
    pair: Callable[[], tuple[socket.socket, socket.socket]], proxy: Proxy, after: int, reset: bool
) -> None:
    proxy.plan([Cut("up", after, reset)])
    client, target = pair()
    client.sendall(bytes(range(100)))
    assert read_all(target) == (bytes(range(after)), not reset)
    assert read_all(client) == (b"", not reset)
    assert proxy.cuts_made == 1


def test_it_cuts_by_what_comes_back(
    pair: Callable[[], tuple[socket.socket, socket.socket]], proxy: Proxy
) -> None:
    proxy.plan([None, Cut("down", 3)])
    pair()  # the first one is left alone
    client, target = pair()
    client.sendall(bytes(100))
    target.sendall(b"answer")
    assert read_all(client) == (b"ans", False)


@pytest.mark.parametrize("side", ["client", "target"])
def test_it_cuts_one_side_and_the_other_one_does_not_notice(
    pair: Callable[[], tuple[socket.socket, socket.socket]], proxy: Proxy, side: str
) -> None:
    client, target = pair()
    told, untold = (client, target) if side == "client" else (target, client)
    proxy.cut("client" if side == "client" else "target")
    assert read_all(told) == (b"", False)
    untold.sendall(b"nobody hears this")
    untold.setblocking(False)
    with pytest.raises(BlockingIOError):
        untold.recv(1)
    proxy.cut()
    untold.setblocking(True)
    assert read_all(untold) == (b"", False)


def test_it_holds_what_comes_and_forwards_it_later(
    pair: Callable[[], tuple[socket.socket, socket.socket]], proxy: Proxy
) -> None:
    client, target = pair()
    proxy.hold("up")
    client.sendall(b"late")
    target.sendall(b"at once")
    assert client.recv(7, socket.MSG_WAITALL) == b"at once"
    assert proxy.passed["up"] == 0
    proxy.go_on()
    assert target.recv(4, socket.MSG_WAITALL) == b"late"


def test_it_refuses_connections_and_takes_them_again_on_the_same_port(
    pair: Callable[[], tuple[socket.socket, socket.socket]], proxy: Proxy
) -> None:
    client, target = pair()
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        pair()
    client.sendall(b"goes on")
    assert target.recv(7, socket.MSG_WAITALL) == b"goes on"
    proxy.admit()
    pair()
    assert proxy.connections == 2


def test_a_target_that_is_not_there_resets(server: socket.socket, proxy: Proxy) -> None:
    server.close()
    address = parse_endpoint(proxy.address.removeprefix("tcp://"))
    with (
        pytest.raises(ConnectionResetError),  # in either call
        socket.create_connection(address, timeout=30) as client,
    ):
        client.recv(1)


def test_a_closed_proxy_refuses_to_work(proxy: Proxy) -> None:
    proxy.close()
    proxy.close()
    with pytest.raises(AssertionError, match="closed"):
        proxy.cut()
