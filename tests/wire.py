"""The bytes of the TCP protocol, made by hand: for peers that need not behave."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from embar_shm import _core, protocol
from embar_shm.protocol import Delivery, Hello, Kind, Welcome
from embar_shm.subscribe_frames import Credit, Subscribe, Subscribed
from embar_shm.testing.conditions import DEADLINE

__all__ = [
    "HEADER_FIELDS",
    "HELLO",
    "SUBSCRIBE",
    "FakeBroker",
    "Peer",
    "batch",
    "batch_header",
    "endpoint_of",
]

HELLO = Hello(publisher_id=7, incarnation=1, max_batch=0)
SUBSCRIBE = Subscribe(subscriber_id=7, incarnation=1, credit=2, name="by hand")
HEADER_FIELDS = (
    "magic",
    "version",
    "format",
    "publisher_id",
    "incarnation",
    "seq",
    "messages",
    "message_size",
    "body_bytes",
    "payload_bytes",
    "opened_ns",
    "committed_ns",
    "ticket",
    "gap",
    "reserved",
    "check",
)


def batch_header(seq: int, body_bytes: int, hello: Hello = HELLO, **changes: Any) -> bytes:
    """The header of a batch with one message, its check word made to fit."""
    fields = {
        "magic": _core.BATCH_MAGIC,
        "version": _core.BATCH_VERSION,
        "format": 0,
        "publisher_id": hello.publisher_id,
        "incarnation": hello.incarnation,
        "seq": seq,
        "messages": 1,
        "message_size": body_bytes % 2**32,
        "body_bytes": body_bytes,
        "payload_bytes": body_bytes,
        "opened_ns": 0,
        "committed_ns": 0,
        "ticket": 0,
        "gap": 0,
        "reserved": b"",
        "check": 0,
    } | changes
    header = protocol.BATCH_HEADER.pack(*(fields[name] for name in HEADER_FIELDS))
    if "check" in changes:
        return header
    return header[:-8] + struct.pack("<Q", _core.header_check(header))


def batch(seq: int, body: bytes = b"x" * 64, hello: Hello = HELLO, **changes: Any) -> bytes:
    """Header and body."""
    return batch_header(seq, len(body), hello, **changes) + body


def endpoint_of(address: str) -> tuple[str, int]:
    """Host and port of "tcp://host:port"."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host.strip("[]"), int(port)


class Peer:
    """One end of a connection that does what the test says. A context manager."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(DEADLINE)

    @classmethod
    def connect(cls, address: str) -> Self:
        """Connects to a broker, and says nothing."""
        return cls(socket.create_connection(endpoint_of(address)))

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def say(self, kind: Kind, body: bytes = b"") -> None:
        """Sends a control frame, allowed or not."""
        self.send(protocol.encode(kind, body))

    def greet(self, hello: Hello = HELLO, token: str | None = None) -> Welcome:
        """A publisher's handshake, up to the WELCOME."""
        self.say(Kind.HELLO, hello.pack())
        kind, body = self.frame()
        if kind is Kind.CHALLENGE:
            assert token is not None
            self.say(Kind.PROOF, protocol.prove(token, body, hello.pack()))
            kind, body = self.frame()
        assert kind is Kind.WELCOME, body
        return Welcome.unpack(body)

    def subscribe(self, subscribe: Subscribe = SUBSCRIBE, token: str | None = None) -> Subscribed:
        """A subscriber's handshake, up to the SUBSCRIBED."""
        self.say(Kind.SUBSCRIBE, subscribe.pack())
        kind, body = self.frame()
        if kind is Kind.CHALLENGE:
            assert token is not None
            self.say(Kind.PROOF, protocol.prove(token, body, subscribe.pack()))
            kind, body = self.frame()
        assert kind is Kind.SUBSCRIBED, body
        return Subscribed.unpack(body)

    def credit(self, received: int, granted: int) -> None:
        """Sends a CREDIT."""
        self.say(Kind.CREDIT, Credit(received, granted).pack())

    def delivery(self) -> tuple[int, int, bytes]:
        """What the broker sends to a subscriber: ticket, gap and body of a batch."""
        found = self.delivery_or_frame()
        assert len(found) == 3, found
        return found

    def delivery_or_frame(self) -> tuple[int, int, bytes] | tuple[Kind, bytes]:
        """The same, or a control frame in its place."""
        header = self.read(_core.BATCH_HEADER_BYTES)
        if header.startswith(b"EMBC"):
            _, kind, _, length = struct.unpack_from("<4sHHQ", header)
            body = header[protocol.HEAD_BYTES : protocol.HEAD_BYTES + length]
            return Kind(kind), body + self.read(length - len(body))
        found = Delivery.unpack(header)
        return found.ticket, found.gap, self.read(found.body_bytes)

    def feed_error(self) -> Any:
        """The error that the broker tells a subscriber, before which batches may come."""
        while len(found := self.delivery_or_frame()) == 3:
            pass
        assert found[0] is Kind.ERROR, found
        return protocol.error_from("it", found[1])

    def feed(self, subscribed: Subscribed) -> Subscribe:
        """A broker's handshake with a subscriber."""
        kind, body = self.frame()
        assert kind is Kind.SUBSCRIBE
        self.say(Kind.SUBSCRIBED, subscribed.pack())
        return Subscribe.unpack(body)

    def welcome(self, slot_bytes: int = 4096, received_seq: int = 0) -> Hello:
        """A broker's handshake."""
        kind, body = self.frame()
        assert kind is Kind.HELLO
        self.say(Kind.WELCOME, Welcome(slot_bytes, received_seq).pack())
        return Hello.unpack(body)

    def frame(self) -> tuple[Kind, bytes]:
        """The next control frame."""
        magic, kind, version, length = struct.unpack("<4sHHQ", self.read(protocol.HEAD_BYTES))
        assert (magic, version) == (b"EMBC", protocol.VERSION)
        return Kind(kind), self.read(length)

    def error(self) -> Any:
        """The error that the other side tells, before which nothing but acks may come."""
        while (answer := self.frame())[0] is Kind.ACK:
            pass
        assert answer[0] is Kind.ERROR, answer
        return protocol.error_from("it", answer[1])

    def batch(self) -> bytes | None:
        """Reads a batch: its body; None: a goodbye."""
        header = self.read(_core.BATCH_HEADER_BYTES)
        if protocol.is_goodbye(header):
            return None
        return self.read(protocol.BatchHead.unpack(header).body_bytes)

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            some = self.socket.recv(size - len(data))
            if not some:
                raise EOFError(f"closed after {data!r}")
            data += some
        return data

    def wait_for_end(self) -> bytes:
        """What comes until the other side closes, which it has to, in one way or the other."""
        data = b""
        try:
            while some := self.socket.recv(65536):
                data += some
        except ConnectionResetError:
            pass
        return data

    def reset(self) -> None:
        """Closes with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class FakeBroker:
    """Listens, and answers each connection with a script; the last one is for all that follow.

    A script that raises anything but the end of its connection fails the test when the ``with``
    block ends. What a script returns from is closed, unless it was closed by then.
    """

    def __init__(self, *scripts: Callable[[Peer], object]) -> None:
        self._scripts = scripts
        self._errors: list[BaseException] = []
        self._peers: list[Peer] = []
        self._threads: list[threading.Thread] = []
        self._ending = False
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = "tcp://{}:{}".format(*self._socket.getsockname())
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    @property
    def connections(self) -> int:
        """How many have come so far."""
        return len(self._peers)

    def _accept(self) -> None:
        while True:
            try:
                peer = Peer(self._socket.accept()[0])
            except OSError:
                assert self._ending
                return
            script = self._scripts[min(len(self._peers), len(self._scripts) - 1)]
            self._peers.append(peer)
            thread = threading.Thread(target=self._answer, args=(script, peer), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _answer(self, script: Callable[[Peer], object], peer: Peer) -> None:
        try:
            with peer:
                script(peer)
        except (EOFError, OSError):  # the publisher has had enough
            pass
        except BaseException as error:
            self._errors.append(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending = True
        self._socket.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._socket.close()
        for peer in self._peers:
            try:
                peer.socket.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed already
                continue
        for thread in self._threads:
            thread.join()
        if error is None and self._errors:
            raise self._errors[0]
