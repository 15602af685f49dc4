"""Byte streams over TCP: whole reads, gathered writes, and counting what they cost.

Sockets are blocking and have kernel timeouts (SO_RCVTIMEO, SO_SNDTIMEO): Python's own timeouts make
a socket non-blocking, and MSG_WAITALL does not wait then. One thread reads a stream, any may write:
what one call of `Stream.write` is given stays together.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import termios
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from embar_shm import socket_buffers
from embar_shm.errors import (
    ConfigurationError,
    ConnectionLost,
    EmbarError,
    NoSuchBroker,
    WaitTimeout,
)

__all__ = ["SocketCounters", "Stream", "format_endpoint", "open_socket", "parse_endpoint"]

_SIOCINQ = termios.FIONREAD  # bytes received and not read (tcp(7))
_SIOCOUTQ = termios.TIOCOUTQ  # bytes that the other side's kernel has not acknowledged
_TCP_INFO_BYTES = 104
_TCP_INFO_TOTAL_RETRANS = 100  # offset of tcpi_total_retrans in struct tcp_info (linux/tcp.h)
_WASTE = bytearray(65536)  # what is received into it is not looked at: one is enough for all
# On an idle connection a machine that vanished is noticed after idle + count * interval: 25 s.
_KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}


@dataclass(slots=True)
class SocketCounters:
    """What sockets were asked for, and what they did. Sizes in bytes; of one side of connections.

    `granted_*`: what the buffer can hold, which autotuning may not have grown it to yet.
    """

    recv_calls: int = 0
    send_calls: int = 0
    eagain: int = 0
    retransmits: int = 0  # segments, by this side
    max_inq_bytes: int = 0
    max_outq_bytes: int = 0
    requested_sndbuf: int = 0
    granted_sndbuf: int = 0
    requested_rcvbuf: int = 0
    granted_rcvbuf: int = 0

    def add(self, other: SocketCounters) -> None:
        """Adds other connections: calls are summed; of sizes the largest, of granted the least."""
        for name in ("recv_calls", "send_calls", "eagain", "retransmits"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("max_inq_bytes", "max_outq_bytes", "requested_sndbuf", "requested_rcvbuf"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        for name in ("granted_sndbuf", "granted_rcvbuf"):
            known = [n for n in (getattr(self, name), getattr(other, name)) if n]
            setattr(self, name, min(known, default=0))

    def note_buffers(self, buffers: socket_buffers.Buffers) -> None:
        """Remembers what was asked for, and what the kernel gives at most."""
        self.requested_sndbuf = buffers.send.requested
        self.granted_sndbuf = buffers.send.at_most
        self.requested_rcvbuf = buffers.receive.requested
        self.granted_rcvbuf = buffers.receive.at_most


def parse_endpoint(text: str) -> tuple[str, int]:
    """Reads "host:port" or "[v6]:port". Raises `ConfigurationError`."""
    host, separator, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    wrong_port = not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535)
    if not separator or not host or wrong_port or (":" in host and not bracketed):
        raise ConfigurationError(
            f"{text!r} is not a TCP address",
            'an address is "host:port", for example 127.0.0.1:7400 or [::1]:7400',
        )
    return host, int(port)


def format_endpoint(host: str, port: int) -> str:
    """The URL: "tcp://host:port"."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def open_socket(
    endpoint: tuple[str, int], timeout: float, buffer: int | None
) -> tuple[socket.socket, socket_buffers.Buffers]:
    """A socket connected to the first address of the endpoint that answers.

    `buffer`: bytes of payload that the kernel's buffers should hold, None: what suits the address;
    `timeout`: seconds for each address. Raises `NoSuchBroker` when nobody listens there,
    `ConnectionLost` for other failures that may pass, `ConfigurationError` for a name that does not
    exist.
    """
    peer = format_endpoint(*endpoint)
    try:
        found = socket.getaddrinfo(*endpoint, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) == socket.EAI_AGAIN:  # the name server did not answer
            raise ConnectionLost(f"{peer}: {error}", "is the network up?") from error
        raise ConfigurationError(f"{peer}: {error}", "is the name of the host right?") from error
    failure: OSError | None = None
    for family, kind, number, _, address in found:
        try:
            sock = socket.socket(family, kind, number)
        except OSError as error:  # out of descriptors, or no IPv6 here
            failure = error
            continue
        try:
            # Before connect: the window scale is agreed on there.
            wanted = socket_buffers.default_for(str(address[0])) if buffer is None else buffer
            buffers = socket_buffers.request(sock, wanted)
            sock.settimeout(timeout)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock, buffers
    if isinstance(failure, ConnectionRefusedError):
        raise NoSuchBroker(
            f"nobody listens on {peer}", "start a broker there, or correct the address"
        ) from failure
    raise ConnectionLost(
        f"cannot connect to {peer}: {failure}", "is the machine up, and no firewall in between?"
    ) from failure


class Stream:
    """A connected TCP socket."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.peer = peer  # what errors call the other side
        self.counters: SocketCounters = SocketCounters()
        self._socket = sock
        self._writing = threading.Lock()
        self._deadline: float | None = None  # time.monotonic() at which all reading must be over
        self._until: float | None = None  # the same for the present read
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            sock.setsockopt(socket.IPPROTO_TCP, option, value)

    def set_timeouts(self, receive: float | None, send: float | None) -> None:
        """Seconds that a read or write may stand still; None: forever."""
        self._set_timeout(socket.SO_RCVTIMEO, receive)
        self._set_timeout(socket.SO_SNDTIMEO, send)

    def set_deadline(self, seconds: float | None) -> None:
        """All reads from now on together may take so many seconds; None: no limit."""
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self.set_timeouts(seconds, seconds)

    def read_into(
        self, view: memoryview, *, idle: bool = False, within: float | None = None
    ) -> bool:
        """Fills the view. With `idle` it waits for the first byte without a limit, and returns
        False when the other side closed the connection before it.

        `within`: seconds for all of it, for those who send a byte now and then; looked at whenever
        something comes, and when a timeout of `set_timeouts` is over.
        Raises `ConnectionLost` when the connection ends, `WaitTimeout` when it stands still.
        """
        got, size = 0, len(view)
        self._until = self._deadline if within is None else time.monotonic() + within
        while got < size:
            self.counters.recv_calls += 1
            try:
                self._hurry()
                n = self._receive(view[got:])
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK):
                    raise ConnectionLost(
                        f"the connection with {self.peer} was lost: {error}"
                    ) from error
                if idle and got == 0:
                    continue
                self.counters.eagain += 1
                raise self._stalled(got, size) from error
            if n == 0:
                if idle and got == 0:
                    return False
                raise ConnectionLost(
                    f"{self.peer} closed the connection after {got} of {size} bytes"
                )
            got += n
        return True

    def read(self, size: int) -> bytes:
        """`size` bytes. Raises as `read_into`."""
        data = bytearray(size)
        self.read_into(memoryview(data))
        return bytes(data)

    def write(self, *parts: bytes | memoryview) -> None:
        """Sends all parts, gathered into one call where the kernel takes them at once.

        Raises `ConnectionLost`, and `WaitTimeout` when the other side takes nothing.
        """
        left = [memoryview(part) for part in parts]
        with self._writing:
            while left:
                self.counters.send_calls += 1
                try:
                    sent = self._send(left)
                except OSError as error:
                    if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK):
                        raise ConnectionLost(
                            f"the connection with {self.peer} was lost: {error}"
                        ) from error
                    self.counters.eagain += 1
                    raise WaitTimeout(f"{self.peer} takes nothing more") from error
                while left and sent >= len(left[0]):
                    sent -= len(left.pop(0))
                if left and sent:
                    left[0] = left[0][sent:]

    def sample_queues(self) -> None:
        """Looks at how much the kernel holds in both directions."""
        counters = self.counters
        counters.max_inq_bytes = max(counters.max_inq_bytes, self._queue(_SIOCINQ))
        counters.max_outq_bytes = max(counters.max_outq_bytes, self._queue(_SIOCOUTQ))

    @property
    def plain_fd(self) -> int | None:
        """The descriptor, for native code that moves bytes by itself; None: they are encrypted."""
        return self._socket.fileno()

    def lost(self, how: str, got: int, size: int, number: int) -> EmbarError:
        """The error for what native code says of this socket: how a transfer ended, and errno."""
        if how == "stalled":
            return self._stalled(got, size)
        if how == "closed":
            return ConnectionLost(f"{self.peer} closed the connection after {got} of {size} bytes")
        return ConnectionLost(f"the connection with {self.peer} was lost: {os.strerror(number)}")

    def count(self) -> SocketCounters:
        """The counters, with what TCP_INFO says now."""
        with suppress(OSError):
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            if len(info) == _TCP_INFO_BYTES:
                (total,) = struct.unpack_from("I", info, _TCP_INFO_TOTAL_RETRANS)
                self.counters.retransmits = total
        return self.counters

    def shutdown(self) -> None:
        """Wakes whoever reads or writes, on both sides. From any thread."""
        with suppress(OSError):  # it may be gone already
            self._socket.shutdown(socket.SHUT_RDWR)

    def end_reading(self) -> None:
        """Whoever reads gets what has arrived, and then the end. From any thread."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def end_writing(self) -> None:
        """Whoever writes is not kept waiting any more. From any thread."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def finish(self, seconds: float) -> None:
        """Sends nothing more, and waits until the other side closes, so that it reads everything.

        Closing at once would reset the connection when something unread has arrived, and the reset
        may destroy what was sent last (RFC 1122, 4.2.2.13).
        """
        end = time.monotonic() + seconds
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            self.set_timeouts(seconds, seconds)
            while time.monotonic() < end and self._socket.recv_into(_WASTE):
                pass

    def close(self) -> None:
        """Gives the socket back. Not while another thread uses it: `shutdown` first.

        The connection ends here even if a process that was forked meanwhile has the socket, too.
        """
        self.count()
        self.shutdown()
        self._socket.close()

    def abandon(self) -> None:
        """In a forked child: lets go of the socket, and leaves the connection to the parent."""
        self._socket.close()

    # --- what TLS does differently --------------------------------------------------------------

    def _receive(self, view: memoryview) -> int:
        return self._socket.recv_into(view, 0, socket.MSG_WAITALL)

    def _send(self, parts: list[memoryview]) -> int:
        return self._socket.sendmsg(parts)

    def _set_timeout(self, option: int, seconds: float | None) -> None:
        micros = 0 if seconds is None else max(1, round(seconds * 1e6))
        value = struct.pack("@ll", *divmod(micros, 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, option, value)

    def _hurry(self) -> None:
        """Before each wait for bytes: not beyond the time by which they have to be here."""
        if self._until is None:
            return
        left = self._until - time.monotonic()
        if left <= 0:
            raise BlockingIOError(errno.EAGAIN, "no time is left")
        if self._deadline is not None:
            self._set_timeout(socket.SO_RCVTIMEO, left)

    def _queue(self, request: int) -> int:
        answer = fcntl.ioctl(self._socket.fileno(), request, b"\0" * 4)
        return int(struct.unpack("i", answer)[0])

    def _stalled(self, got: int, size: int) -> WaitTimeout:
        return WaitTimeout(
            f"{self.peer} stands still: {got} of {size} bytes have come",
            "is that process stopped, or the network down?",
        )
