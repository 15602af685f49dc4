"""TCP, what a listener is made of: its socket, its connections, and the publishers behind them.

The path of a batch: `receive_batches` on a thread of the connection, `send_acks` on another.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from embar_shm import _core, protocol, socket_buffers
from embar_shm.errors import CannotListen, ConfigurationError, ConnectionLost, EmbarError
from embar_shm.kept_rows import KeptPublisher
from embar_shm.net import Stream, format_endpoint
from embar_shm.participants import take_row
from embar_shm.protocol import Connection, Hello, Kind, Role, State
from embar_shm.segment import Segment
from embar_shm.transports.base import ListenOptions

__all__ = [
    "LAST_WORDS",
    "Limits",
    "Link",
    "Remote",
    "listening_socket",
    "receive_batches",
    "send_acks",
]

LAST_WORDS = 1.0  # seconds the other side gets to read why
_BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Limits:
    """What a listener bears with. Times in seconds."""

    handshake: float = 10.0  # for all of it, TLS included
    stall: float = 10.0  # that a connection may stand still in the middle of a batch
    least_rate: float = 64 * 1024  # bytes/s that a body has to come with, after `stall`
    newcomers: int = 64  # connections that are not greeted; one more, and the oldest has to go
    forget_after: float = 60.0  # without a connection until somebody's row is given away
    farewell: float = 5.0  # that subscribers may get nothing done when the broker has stopped
    housekeeping: float = 1.0  # between two looks at who is gone


class Remote:
    """A remote publisher: what is known of it from one connection to the next."""

    def __init__(
        self, segment: Segment, who: KeptPublisher, timed: bool, *, is_new: bool = False
    ) -> None:
        """The row's lock is held by `segment`."""
        self.slot_bytes = segment.geometry.slot_bytes
        self.timed = timed
        self.key = who.key
        self.received_seq = who.received_seq  # batches that are committed to the ring
        self.link: Link | None = None  # the connection that has it, or is about to
        self.gone_since = 0.0  # time.monotonic() at which the last connection ended
        self.turn = threading.Lock()  # held by the connection that uses `core`
        publisher_id, incarnation = who.key
        self.core = _core.ReceiverCore(
            context=segment,
            buffer=segment.memory,
            index=who.row,
            lock_fd=segment.lock_fd,
            publisher_id=publisher_id,
            incarnation=incarnation,
            quota=max(1, min(who.quota, segment.geometry.slots)),
            ack=who.ack,
            timed=timed,
            committed=None if is_new else who.received_seq,
        )

    @classmethod
    def new(cls, segment: Segment, hello: Hello, timed: bool) -> Self:
        """Takes a row for it. Raises `NotEnoughSpace` at once when there is none."""
        row, key = take_row(segment, patience=0), (hello.publisher_id, hello.incarnation)
        who = KeptPublisher(key, row, 0, hello.in_flight, hello.ack)
        return cls(segment, who, timed, is_new=True)

    def leave(self, segment: Segment) -> None:
        """Gives the row back: the broker frees it when its batches are released."""
        self.core.close()
        _core.unlock(segment.lock_fd, _core.publisher_lock(self.core.index))


class Link:
    """One connection: its stream, and what was said on it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.connection = Connection(Role.BROKER)
        self._saying = threading.Lock()

    def say(self, kind: Kind, body: bytes = b"") -> None:
        """Sends a control frame, unless the last word was said. From any thread."""
        with self._saying:
            if self.connection.state is not State.CLOSED:
                self.stream.write(self.connection.send(kind, body))

    def refuse(self, error: EmbarError) -> None:
        """Tells the other side why this is the end, if it is still there to hear it."""
        if isinstance(error, ConnectionLost):
            return
        with suppress(EmbarError):
            self.stream.set_timeouts(LAST_WORDS, LAST_WORDS)
            self.say(Kind.ERROR, protocol.error_body(error))


def receive_batches(
    link: Link, remote: Remote, hello: Hello, limits: Limits, memory: memoryview
) -> bool:
    """Until the goodbye (True), or an orderly end of the connection without one.

    `memory`: of the ring. Raises what ends the connection otherwise.
    """
    while (header := _next_header(link, remote, limits)) is not None:
        if protocol.is_goodbye(header):
            link.connection.received(Kind.GOODBYE)
            return True
        batch = link.connection.batch(header, hello, remote.slot_bytes, remote.received_seq)
        _receive_body(link.stream, remote, limits, memory, header, batch)
        remote.received_seq = batch.seq
    return False


def _next_header(link: Link, remote: Remote, limits: Limits) -> bytes | None:
    """The next header that has to be looked at; None: an orderly end of the connection.

    On a plain socket batches are received natively, until one comes that is not the next.
    """
    stream = link.stream
    if (fd := stream.plain_fd) is None:
        space = bytearray(_core.BATCH_HEADER_BYTES)
        return bytes(space) if stream.read_into(memoryview(space), idle=True) else None
    seq, why, header, got, size, number, status = remote.core.receive(
        fd, remote.slot_bytes, remote.received_seq, limits.stall, limits.least_rate
    )
    remote.received_seq = seq
    if why == "interrupted":
        raise _given_up()
    if why == "ring":
        raise remote.core.ring_error(status)
    if why not in ("ended", "header"):
        raise stream.lost(why, got, size, number)
    return header


def _receive_body(
    stream: Stream,
    remote: Remote,
    limits: Limits,
    memory: memoryview,
    header: bytes,
    batch: protocol.BatchHead,
) -> None:
    place = remote.core.claim(None)
    if place is None:
        raise _given_up()
    try:
        begin = time.monotonic_ns()
        # Whoever sends a byte now and then would hold the slot for days.
        within = limits.stall + batch.body_bytes / limits.least_rate
        stream.read_into(memory[place : place + batch.body_bytes], within=within)
        took = time.monotonic_ns() - begin
    except BaseException:
        remote.core.give_back()
        raise
    remote.core.commit(header, took)
    if remote.timed and batch.seq % _core.LOOK_AT_QUEUES_EVERY == 0:
        stream.sample_queues()


def send_acks(link: Link, remote: Remote, wanted: bool) -> None:
    """Tells what the broker has accepted, until the receiver is interrupted.

    Without `wanted` nothing is told. Raises why nothing more will be accepted, or told.
    """
    if wanted and (fd := link.stream.plain_fd) is not None:
        _, why, number, status = remote.core.send_acks(fd, protocol.ACK_HEAD, 0)
        if why == "ring":
            raise remote.core.ring_error(status)
        if why != "interrupted":
            raise link.stream.lost(why, 0, len(protocol.ACK_HEAD), number)
        return
    acked = 0
    while (accepted := remote.core.wait_accepted(acked + 1, None)) > acked:
        acked = accepted
        if wanted:
            link.say(Kind.ACK, protocol.ack_body(acked))


def _given_up() -> ConnectionLost:
    return ConnectionLost("the connection was given up for another one, or the broker stops")


def listening_socket(
    endpoint: tuple[str, int], options: ListenOptions
) -> tuple[socket.socket, socket_buffers.Buffers]:
    """A listening socket. Raises `CannotListen`, `ConfigurationError`."""
    address = format_endpoint(*endpoint)
    try:
        family, kind, number, _, where = socket.getaddrinfo(
            *endpoint, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"{address}: {error}", "is the name of the host right?") from error
    protected = options.token is not None or options.tls is not None
    if not (protected or options.insecure or ipaddress.ip_address(where[0]).is_loopback):
        raise ConfigurationError(
            f"other machines can reach {address}, and neither a token nor TLS protects it",
            "give a token (--token-file), TLS (--tls-cert and --tls-key), or say that everybody "
            "may write (--insecure)",
        )
    sock: socket.socket | None = None
    try:
        sock = socket.socket(family, kind, number)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        wanted = options.socket_buffer
        if wanted is None:
            wanted = socket_buffers.default_for(str(where[0]))
        buffers = socket_buffers.request(sock, wanted)  # accepted connections inherit it
        sock.bind(where)
        sock.listen(_BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise CannotListen(
            f"cannot listen on {address}: {error}",
            "choose another port (0: any free one), or stop what uses this one",
        ) from error
    return sock, buffers
