"""TCP, one connection to a broker: opened, greeted, and known to have ended once it has."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from embar_shm import protocol
from embar_shm.errors import AccessDenied, ConnectionLost, EmbarError, ProtocolError
from embar_shm.net import Stream, format_endpoint, open_socket
from embar_shm.protocol import Connection, Hello, Kind, Role, Welcome
from embar_shm.subscribe_frames import Start, Subscribe, Subscribed
from embar_shm.tls import TlsStream

if TYPE_CHECKING:
    import ssl

__all__ = [
    "Attempt",
    "Farewell",
    "PublisherSession",
    "Session",
    "SubscriberSession",
    "read_among_batches",
    "read_control",
]


class Access(Protocol):
    """What options of publishers and subscribers say of the way to the broker."""

    @property
    def token(self) -> str | None:
        """The shared secret."""

    @property
    def tls(self) -> ssl.SSLContext | None:
        """None: not encrypted."""

    @property
    def socket_buffer(self) -> int | None:
        """Bytes; None: what suits the address."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """How to connect."""

    endpoint: tuple[str, int]
    access: Access
    patience: float
    """Seconds for the connection, and again for the handshake."""
    opening: list[Stream]
    """Gets the stream while the handshake lasts, so that another thread can end it."""


class Session:
    """An open connection to the broker, handshake done, until it ends."""

    def __init__(self, attempt: Attempt, role: Role, kind: Kind, greeting: bytes) -> None:
        """`greeting`: the body of the first frame, which is of this `kind`."""
        access, patience = attempt.access, attempt.patience
        sock, buffers = open_socket(attempt.endpoint, patience, access.socket_buffer)
        try:
            self.protocol = Connection(role)
            self.stream = self._stream(sock, attempt.endpoint, access)
            attempt.opening.append(self.stream)
            self.stream.counters.note_buffers(buffers)
            self.stream.set_deadline(patience)
            if isinstance(self.stream, TlsStream):
                self.stream.handshake()
            self._understand(self._greet(kind, greeting, access.token))
            self.stream.set_deadline(None)
        except BaseException:
            sock.close()
            raise
        finally:
            attempt.opening.clear()
        self.error: EmbarError | None = None
        """Why it ended; None when it has not, or after a goodbye."""
        self._ended = threading.Event()
        self._ending = threading.Lock()

    def _understand(self, answer: bytes) -> None:
        """What the broker says to the greeting. Raises `ProtocolError` when it cannot be."""
        raise NotImplementedError

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def wait_for_end(self, timeout: float | None) -> bool:
        return self._ended.wait(timeout)

    def end(self, error: EmbarError | None) -> None:
        """Any thread. What is told first counts: the rest follows from it."""
        with self._ending:
            if not self._ended.is_set():
                self.error = error
                self._ended.set()

    @staticmethod
    def _stream(sock: socket.socket, endpoint: tuple[str, int], access: Access) -> Stream:
        peer = format_endpoint(*endpoint)
        try:
            if access.tls is None:
                return Stream(sock, peer)
            return TlsStream(sock, peer, access.tls, endpoint[0])
        except OSError as error:
            raise ConnectionLost(f"the connection with {peer} was lost: {error}") from error

    def _greet(self, kind: Kind, greeting: bytes, token: str | None) -> bytes:
        self.stream.write(self.protocol.send(kind, greeting))
        frame = read_control(self.stream, self.protocol)
        if frame.kind is Kind.CHALLENGE:
            if token is None:
                raise AccessDenied(
                    f"the broker at {self.stream.peer} asks for a token",
                    "connect with token=...; a run takes it from --token-file",
                )
            proof = protocol.prove(token, frame.body, greeting)
            self.stream.write(self.protocol.send(Kind.PROOF, proof))
            frame = read_control(self.stream, self.protocol)  # a second challenge is not allowed
        return frame.body


class PublisherSession(Session):
    """A publisher's."""

    def __init__(self, attempt: Attempt, hello: Hello) -> None:
        self._hello = hello
        super().__init__(attempt, Role.PUBLISHER, Kind.HELLO, hello.pack())

    def _understand(self, answer: bytes) -> None:
        self.welcome = Welcome.unpack(answer)
        if self.welcome.slot_bytes < self._hello.max_batch:
            raise ProtocolError(
                f"{self.stream.peer} has slots of {self.welcome.slot_bytes} bytes, and was told of "
                f"batches of {self._hello.max_batch}"
            )


class SubscriberSession(Session):
    """A subscriber's."""

    def __init__(self, attempt: Attempt, subscribe: Subscribe) -> None:
        super().__init__(attempt, Role.SUBSCRIBER, Kind.SUBSCRIBE, subscribe.pack())

    def _understand(self, answer: bytes) -> None:
        self.subscribed = Subscribed.unpack(answer)


class Farewell(Session):
    """Of a subscriber that only wants to be forgotten: it is over when this is opened."""

    def __init__(self, attempt: Attempt, subscribe: Subscribe) -> None:
        leave = replace(subscribe, start=Start.LEAVE)
        super().__init__(attempt, Role.SUBSCRIBER, Kind.SUBSCRIBE, leave.pack())
        self.stream.close()

    def _understand(self, answer: bytes) -> None:
        """Whatever it is: no row is kept."""


def read_control(
    stream: Stream, connection: Connection, *, idle: bool = False, begun: bytes = b""
) -> protocol.Frame:
    """The next control frame. Raises what an ERROR frame says.

    `idle`: waits without a limit; `begun`: what was read of it already, at least its head.
    """
    head, body = begun[: protocol.HEAD_BYTES], begun[protocol.HEAD_BYTES :]
    if not head:
        space = bytearray(protocol.HEAD_BYTES)
        if not stream.read_into(memoryview(space), idle=idle):
            raise ConnectionLost(f"{stream.peer} closed the connection")
        head = bytes(space)
    kind, size = connection.head(head)
    if size < len(body):
        raise ProtocolError(f"{stream.peer} sent something behind its {kind.name}")
    frame = connection.received(kind, body + stream.read(size - len(body)))
    if frame.kind is Kind.ERROR:
        raise protocol.error_from(stream.peer, frame.body)
    return frame


def read_among_batches(
    stream: Stream, connection: Connection, header: bytes
) -> protocol.Frame | None:
    """The control frame that begins in the place of this batch header; None: it is none.

    Raises what an ERROR frame says.
    """
    found = connection.among_batches(header)
    if found is None:
        return None
    kind, size, begun = found
    frame = connection.received(kind, begun + stream.read(size - len(begun)))
    if frame.kind is Kind.ERROR:
        raise protocol.error_from(stream.peer, frame.body)
    return frame
