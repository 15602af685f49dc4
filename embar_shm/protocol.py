"""The TCP protocol, without sockets: its frames, and one table of who may say what when.

Everything that decides what may come next is in this file; `transports/tcp*.py` move the bytes.
Over plain sockets batches and ACKs are moved natively (`_native/receiver.hpp`, `relay.hpp`): what
is not exactly the next batch, or an ACK, is handed to this file's checks.

    publisher                              broker
    HELLO  ------------------------------>            who I am, what I speak, my largest batch
           <------------------------------ CHALLENGE  only when the broker has a token: a nonce
    PROOF  ------------------------------>            HMAC-SHA256(token, nonce + HELLO)
           <------------------------------ WELCOME    its largest batch; what it has of mine
    DATA   ------------------------------>            128-byte batch header, then the body
           <------------------------------ ACK        all batches up to this seq are in the log
    GOODBYE ----------------------------->            I have sent everything I want
           <------------------------------ GOODBYE    all of it is in the ring
           <------------------------------ ERROR      at any point: why, before it closes

    subscriber                             broker
    SUBSCRIBE ---------------------------->           who I am, where to begin, how much may come
           <------------------------------ CHALLENGE, PROOF as above
           <------------------------------ SUBSCRIBED which log it is, the first ticket
           <------------------------------ DATA       batch header with ticket and gap, the body
    CREDIT ------------------------------>            received up to this ticket; so many may come
           <------------------------------ END        the log has ended: that was all of it
    GOODBYE ----------------------------->            I want nothing more, forget me
           <------------------------------ GOODBYE    you are forgotten; batches may come before it
           <------------------------------ ERROR      at any point: why, before it closes

A control frame is a head of 16 bytes (magic "EMBC", kind, version, length) and `length` bytes of
body, which no kind allows to be more than `MAX_CONTROL_BODY`. A DATA frame is the 128-byte header
that stands before a batch in shared memory (`_native/layout.hpp`), and `body_bytes` of body; a
header that does not fit what was agreed on is refused before anything is allocated or received. The
publisher's GOODBYE, and what the broker says to a subscriber after SUBSCRIBED, come in the place of
a batch header, and are padded with zeros to its size. Numbers are little endian.

The broker sends a subscriber only as many batches as it was granted: all of them have a slot there,
so a connection that takes nothing is broken, not slow. What a reliable subscriber has not said to
have received is kept, and sent again to its next connection.
"""

from __future__ import annotations

import enum
import hmac
import secrets
import struct
import threading
from dataclasses import dataclass
from typing import Final

from embar_shm import _core
from embar_shm.batch_header import BATCH_HEADER, BatchHead, Delivery
from embar_shm.error_frames import MAX_CONTROL_BODY, SAME_VERSION, error_body, error_from
from embar_shm.errors import AccessDenied, ProtocolError
from embar_shm.publish_frames import HELLO_BYTES, WELCOME_BYTES, Hello, Welcome, check_hello
from embar_shm.subscribe_frames import CREDIT_BYTES, SUBSCRIBE_BYTES, SUBSCRIBED_BYTES

__all__ = [
    "ACK_HEAD",
    "BATCH_HEADER",
    "CREDIT_HEAD",
    "HEAD_BYTES",
    "MAX_CONTROL_BODY",
    "TRANSITIONS",
    "VERSION",
    "BatchHead",
    "Connection",
    "Delivery",
    "Frame",
    "Hello",
    "Kind",
    "Role",
    "State",
    "Welcome",
    "ack_body",
    "acked_seq",
    "check_hello",
    "check_proof",
    "encode",
    "error_body",
    "error_from",
    "is_goodbye",
    "new_nonce",
    "prove",
]

VERSION: Final = 1
NONCE_BYTES: Final = 32
_MAGIC: Final = b"EMBC"
_HEAD: Final = struct.Struct("<4sHHQ")
_ACK: Final = struct.Struct("<Q")
HEAD_BYTES: Final = _HEAD.size


class Kind(enum.IntEnum):
    """What a frame is."""

    HELLO = 1
    CHALLENGE = 2
    PROOF = 3
    WELCOME = 4
    ACK = 5
    GOODBYE = 6
    ERROR = 7
    DATA = 8  # has a batch header in place of a control head
    SUBSCRIBE = 9
    SUBSCRIBED = 10
    CREDIT = 11
    END = 12


class State(enum.Enum):
    """Where a connection is; both sides see the same.

    A state between the first and the last belongs to publishers or to subscribers, never to both.
    """

    START = "new"
    GREETED = "greeted"
    CHALLENGED = "challenged"
    PROVED = "proved"
    OPEN = "open"
    LEAVING = "leaving"
    ASKED = "asked to subscribe"
    ASKED_CHALLENGED = "asked to subscribe and challenged"
    ASKED_PROVED = "asked to subscribe and proved"
    STREAMING = "streaming"
    ENDED = "at the end of the log"
    PARTING = "parting"
    CLOSED = "closed"


class Role(enum.Enum):
    """Who sends a frame."""

    PUBLISHER = "publisher"
    SUBSCRIBER = "subscriber"
    BROKER = "broker"


# (state, sender, kind) -> the state after the frame. What is not here is a protocol error.
TRANSITIONS: Final[dict[tuple[State, Role, Kind], State]] = {
    (State.START, Role.PUBLISHER, Kind.HELLO): State.GREETED,
    (State.GREETED, Role.BROKER, Kind.CHALLENGE): State.CHALLENGED,
    (State.CHALLENGED, Role.PUBLISHER, Kind.PROOF): State.PROVED,
    (State.GREETED, Role.BROKER, Kind.WELCOME): State.OPEN,
    (State.PROVED, Role.BROKER, Kind.WELCOME): State.OPEN,
    (State.OPEN, Role.PUBLISHER, Kind.DATA): State.OPEN,
    (State.OPEN, Role.BROKER, Kind.ACK): State.OPEN,
    (State.OPEN, Role.PUBLISHER, Kind.GOODBYE): State.LEAVING,
    (State.LEAVING, Role.BROKER, Kind.ACK): State.LEAVING,
    (State.LEAVING, Role.BROKER, Kind.GOODBYE): State.CLOSED,
    (State.START, Role.SUBSCRIBER, Kind.SUBSCRIBE): State.ASKED,
    (State.ASKED, Role.BROKER, Kind.CHALLENGE): State.ASKED_CHALLENGED,
    (State.ASKED_CHALLENGED, Role.SUBSCRIBER, Kind.PROOF): State.ASKED_PROVED,
    (State.ASKED, Role.BROKER, Kind.SUBSCRIBED): State.STREAMING,
    (State.ASKED_PROVED, Role.BROKER, Kind.SUBSCRIBED): State.STREAMING,
    (State.ASKED, Role.BROKER, Kind.GOODBYE): State.CLOSED,  # it only wanted to leave
    (State.ASKED_PROVED, Role.BROKER, Kind.GOODBYE): State.CLOSED,
    (State.STREAMING, Role.BROKER, Kind.DATA): State.STREAMING,
    (State.STREAMING, Role.SUBSCRIBER, Kind.CREDIT): State.STREAMING,
    (State.STREAMING, Role.SUBSCRIBER, Kind.GOODBYE): State.PARTING,
    (State.STREAMING, Role.BROKER, Kind.END): State.ENDED,
    (State.ENDED, Role.SUBSCRIBER, Kind.CREDIT): State.ENDED,
    (State.ENDED, Role.SUBSCRIBER, Kind.GOODBYE): State.PARTING,
    (State.PARTING, Role.BROKER, Kind.DATA): State.PARTING,
    (State.PARTING, Role.BROKER, Kind.END): State.PARTING,
    (State.PARTING, Role.BROKER, Kind.GOODBYE): State.CLOSED,
    **{(s, Role.BROKER, Kind.ERROR): State.CLOSED for s in State if s is not State.CLOSED},
}

# Sizes of the bodies; ERROR's is text of up to MAX_CONTROL_BODY.
_BODY_BYTES: Final = {
    Kind.HELLO: HELLO_BYTES,
    Kind.CHALLENGE: NONCE_BYTES,
    Kind.PROOF: 32,
    Kind.WELCOME: WELCOME_BYTES,
    Kind.ACK: _ACK.size,
    Kind.GOODBYE: 0,
    Kind.SUBSCRIBE: SUBSCRIBE_BYTES,
    Kind.SUBSCRIBED: SUBSCRIBED_BYTES,
    Kind.CREDIT: CREDIT_BYTES,
    Kind.END: 0,
}
_CLIENTS: Final = (Role.PUBLISHER, Role.SUBSCRIBER)


@dataclass(frozen=True, slots=True)
class Frame:
    """A control frame."""

    kind: Kind
    body: bytes = b""


def encode(kind: Kind, body: bytes = b"") -> bytes:
    """The bytes of a control frame."""
    return _HEAD.pack(_MAGIC, kind, VERSION, len(body)) + body


class Connection:
    """One side's view of a connection: what was said, and what may be said next.

    One thread may send while another receives.
    """

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = State.START
        self._others = _CLIENTS if role is Role.BROKER else (Role.BROKER,)
        self._moving = threading.Lock()  # from the look at the state to the next one

    def send(self, kind: Kind, body: bytes = b"") -> bytes:
        """The bytes of a control frame to send, of which this takes note.

        A frame that may not be sent now is a bug of ours: RuntimeError.
        """
        if kind is Kind.DATA:
            raise RuntimeError("a batch goes as it lies in its slot, not as a control frame")
        with self._moving:
            after = TRANSITIONS.get((self.state, self.role, kind))
            if after is None:
                raise RuntimeError(
                    f"the {self.role.value} may not send {kind.name} on a connection that is "
                    f"{self.state.value}"
                )
            among_batches = (self.state, self.role, Kind.DATA) in TRANSITIONS or (
                self.state is State.ENDED and self.role is Role.BROKER
            )
            self.state = after
        frame = encode(kind, body)
        if among_batches:
            return frame.ljust(_core.BATCH_HEADER_BYTES, b"\0")
        return frame

    def head(self, head: bytes) -> tuple[Kind, int]:
        """Kind and body size of the control frame that begins with these `HEAD_BYTES`.

        Raises `ProtocolError` when it is none, too large, or not allowed now.
        """
        magic, number, version, length = _HEAD.unpack(head)
        if magic != _MAGIC:
            raise ProtocolError(
                f"the other side does not speak this protocol: it began with {head!r}",
                _tls_or_port(head),
            )
        if version != VERSION:
            raise ProtocolError(
                f"the other side speaks version {version} of the protocol, this one {VERSION}",
                SAME_VERSION,
            )
        try:
            kind = Kind(number)
        except ValueError:
            raise ProtocolError(f"a frame of kind {number} came, which does not exist") from None
        if kind is Kind.DATA:
            raise ProtocolError("DATA came in a control frame: it has a batch header")
        if length > MAX_CONTROL_BODY or length != _BODY_BYTES.get(kind, length):
            raise ProtocolError(f"a {kind.name} frame cannot have a body of {length} bytes")
        self._check(kind)
        return kind, length

    def received(self, kind: Kind, body: bytes = b"") -> Frame:
        """Takes note of a control frame whose head was checked, or of a GOODBYE among batches."""
        with self._moving:
            self.state = self._check(kind)
        return Frame(kind, body)

    def batch(self, header: bytes, hello: Hello, limit: int, last_seq: int) -> BatchHead:
        """Checks the header of a DATA frame against what was agreed on, before its body is read.

        `limit`: the largest body in bytes; `last_seq`: the batch before. Raises `ProtocolError`.
        """
        self._check(Kind.DATA)
        batch = BatchHead.unpack(header)
        if (batch.publisher_id, batch.incarnation) != (hello.publisher_id, hello.incarnation):
            raise ProtocolError("a batch of another publisher came on this connection")
        if not 0 < batch.body_bytes <= limit:
            raise ProtocolError(f"a batch announces {batch.body_bytes} bytes, the limit is {limit}")
        if batch.seq != last_seq + 1:
            raise ProtocolError(f"batch {batch.seq} came, batch {last_seq + 1} was expected")
        return batch

    def among_batches(self, header: bytes) -> tuple[Kind, int, bytes] | None:
        """Of a control frame that came to a subscriber in the place of this batch header: its kind,
        the bytes of its body, and those that are here. None: it is for `delivery` to look at.

        Raises as `head`.
        """
        if not header.startswith(_MAGIC):
            return None
        kind, length = self.head(header[:HEAD_BYTES])
        if any(header[HEAD_BYTES + length :]):
            raise ProtocolError(f"something follows {kind.name} where nothing can")
        return kind, length, header[HEAD_BYTES : HEAD_BYTES + length]

    def delivery(self, header: bytes, limit: int, next_ticket: int, reliable: bool) -> Delivery:
        """Checks the header of a batch that the broker sent, before its body is read.

        `limit`: the largest body in bytes; `next_ticket`: the lowest that may come. Tickets may be
        left out: those of refused batches. Raises `ProtocolError`.
        """
        self._check(Kind.DATA)
        found = Delivery.unpack(header)
        if not 0 < found.body_bytes <= limit:
            raise ProtocolError(f"a batch announces {found.body_bytes} bytes, the limit is {limit}")
        skipped = found.ticket - next_ticket
        if skipped < 0:
            raise ProtocolError(f"ticket {found.ticket} came, {next_ticket} was expected")
        if found.gap > (0 if reliable else skipped):
            raise ProtocolError(
                f"{found.gap} batches are said to be lost before ticket {found.ticket}, and "
                f"{next_ticket} was expected"
            )
        return found

    def _check(self, kind: Kind) -> State:
        for sender in self._others:
            if (after := TRANSITIONS.get((self.state, sender, kind))) is not None:
                return after
        raise ProtocolError(
            f"{kind.name} is not allowed on a connection that is {self.state.value}"
        )


_GOODBYE_AMONG_BATCHES: Final = encode(Kind.GOODBYE).ljust(_core.BATCH_HEADER_BYTES, b"\0")


def is_goodbye(header: bytes) -> bool:
    """Are these bytes, in the place of a batch header, a GOODBYE?"""
    return header == _GOODBYE_AMONG_BATCHES


def new_nonce() -> bytes:
    """A fresh challenge."""
    return secrets.token_bytes(NONCE_BYTES)


def prove(token: str, nonce: bytes, hello: bytes) -> bytes:
    """Shows that one knows the token without sending it: HMAC-SHA256 (RFC 2104)."""
    return hmac.digest(token.encode(), nonce + hello, "sha256")


def check_proof(token: str, nonce: bytes, hello: bytes, proof: bytes) -> None:
    """Raises `AccessDenied` when the publisher does not know the token. Constant time."""
    if not hmac.compare_digest(prove(token, nonce, hello), proof):
        raise AccessDenied("the token is wrong", "both sides need the same token")


ACK_HEAD: Final = encode(Kind.ACK, bytes(_ACK.size))[: _HEAD.size]
"""How every ACK frame begins: the native code moves those by itself."""


CREDIT_HEAD: Final = encode(Kind.CREDIT, bytes(CREDIT_BYTES))[: _HEAD.size]
"""The same of every CREDIT frame."""


def ack_body(seq: int) -> bytes:
    """The body of an ACK frame."""
    return _ACK.pack(seq)


def acked_seq(body: bytes) -> int:
    """The seq in the body of an ACK frame."""
    return int(_ACK.unpack(body)[0])


def _tls_or_port(head: bytes) -> str:
    if head[:2] in (b"\x16\x03", b"\x15\x03"):  # a TLS handshake or alert (RFC 8446, 5.1)
        return "it wants TLS, and this side does not use it"
    return "is this the port of an embar-shm broker?"
