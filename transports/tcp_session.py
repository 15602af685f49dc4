"""TCP, one connection of a publisher: opened, greeted, and known to have ended once it has."""

from __future__ import annotations

import socket
import threading

from embar_shm import protocol
from embar_shm.errors import AccessDenied, ConnectionLost, EmbarError, ProtocolError
from embar_shm.net import Stream, format_endpoint, open_socket
from embar_shm.protocol import Connection, Hello, Kind, Role, Welcome
from embar_shm.tls import TlsStream
from embar_shm.transports.base import PublisherOptions

__all__ = ["Session", "read_control"]


class Session:
    """An open connection to the broker, handshake done, until it ends."""

    def __init__(
        self,
        endpoint: tuple[str, int],
        hello: Hello,
        options: PublisherOptions,
        patience: float,
        opening: list[Stream],
    ) -> None:
        """`patience`: seconds for the connection, and again for the handshake.

        `opening` gets the stream while the handshake lasts, so that another thread can end it.
        """
        sock, buffers = open_socket(endpoint, patience, options.socket_buffer)
        try:
            self.protocol = Connection(Role.PUBLISHER)
            self.stream = self._stream(sock, endpoint, options)
            opening.append(self.stream)
            self.stream.counters.note_buffers(buffers)
            self.stream.set_deadline(patience)
            if isinstance(self.stream, TlsStream):
                self.stream.handshake()
            self.welcome = self._greet(hello, options.token)
            self.stream.set_deadline(None)
        except BaseException:
            sock.close()
            raise
        finally:
            opening.clear()
        self.error: EmbarError | None = None
        """Why it ended; None when it has not, or after a goodbye."""
        self._ended = threading.Event()
        self._ending = threading.Lock()

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
    def _stream(
        sock: socket.socket, endpoint: tuple[str, int], options: PublisherOptions
    ) -> Stream:
        peer = format_endpoint(*endpoint)
        try:
            if options.tls is None:
                return Stream(sock, peer)
            return TlsStream(sock, peer, options.tls, endpoint[0])
        except OSError as error:
            raise ConnectionLost(f"the connection with {peer} was lost: {error}") from error

    def _greet(self, hello: Hello, token: str | None) -> Welcome:
        greeting = hello.pack()
        self.stream.write(self.protocol.send(Kind.HELLO, greeting))
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
        welcome = Welcome.unpack(frame.body)
        if welcome.slot_bytes < hello.max_batch:
            raise ProtocolError(
                f"{self.stream.peer} has slots of {welcome.slot_bytes} bytes, and was told of "
                f"batches of {hello.max_batch}"
            )
        return welcome


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
