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

A control frame is a head of 16 bytes (magic "EMBC", kind, version, length) and `length` bytes of
body, which no kind allows to be more than `MAX_CONTROL_BODY`. A DATA frame is the 128-byte header
that stands before a batch in shared memory (`_native/layout.hpp`), and `body_bytes` of body; a
header that does not fit what was agreed on is refused before anything is allocated or received. The
publisher's GOODBYE comes in the place of a batch header, and is padded with zeros to its size.
Numbers are little endian.
"""

from __future__ import annotations

import enum
import hmac
import secrets
import struct
import threading
from dataclasses import dataclass
from typing import Final, Self

from embar_shm import _core
from embar_shm.error_frames import MAX_CONTROL_BODY, error_body, error_from
from embar_shm.errors import AccessDenied, ProtocolError

__all__ = [
    "ACK_HEAD",
    "BATCH_HEADER",
    "HEAD_BYTES",
    "MAX_CONTROL_BODY",
    "TRANSITIONS",
    "VERSION",
    "BatchHead",
    "Connection",
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
FEATURES: Final = 0  # bits both sides must understand; none exist yet
NONCE_BYTES: Final = 32
_MAGIC: Final = b"EMBC"
_HEAD: Final = struct.Struct("<4sHHQ")
_HELLO: Final = struct.Struct("<QQQQQII")
_WELCOME: Final = struct.Struct("<QQQ")
_ACK: Final = struct.Struct("<Q")
BATCH_HEADER: Final = struct.Struct("<IHHQQQIIQQQQ48sQ")  # BatchHeader of layout.hpp
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


class State(enum.Enum):
    """Where a connection is; both sides see the same."""

    START = "new"
    GREETED = "greeted"
    CHALLENGED = "challenged"
    PROVED = "proved"
    OPEN = "open"
    LEAVING = "leaving"
    CLOSED = "closed"


class Role(enum.Enum):
    """Who sends a frame."""

    PUBLISHER = "publisher"
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
    **{(s, Role.BROKER, Kind.ERROR): State.CLOSED for s in State if s is not State.CLOSED},
}

# Sizes of the bodies; ERROR's is text of up to MAX_CONTROL_BODY.
_BODY_BYTES: Final = {
    Kind.HELLO: _HELLO.size,
    Kind.CHALLENGE: NONCE_BYTES,
    Kind.PROOF: 32,
    Kind.WELCOME: _WELCOME.size,
    Kind.ACK: _ACK.size,
    Kind.GOODBYE: 0,
}


@dataclass(frozen=True, slots=True)
class Hello:
    """What a publisher introduces itself with."""

    publisher_id: int
    incarnation: int
    max_batch: int  # bytes of the largest body it will send; 0: whatever the broker takes
    sent_seq: int = 0  # batches of this incarnation that it has sent already
    features: int = FEATURES
    ack: int = 1
    in_flight: int = 2  # slots of the ring it may hold at a time

    def pack(self) -> bytes:
        """The body of a HELLO."""
        return _HELLO.pack(
            self.publisher_id,
            self.incarnation,
            self.max_batch,
            self.sent_seq,
            self.features,
            self.ack,
            self.in_flight,
        )

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """From the body of a HELLO."""
        return cls(*_HELLO.unpack(body))


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the broker answers."""

    slot_bytes: int  # the largest body it takes
    received_seq: int  # batches of this incarnation that are in its ring: go on with the next
    features: int = FEATURES

    def pack(self) -> bytes:
        """The body of a WELCOME."""
        return _WELCOME.pack(self.slot_bytes, self.received_seq, self.features)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """From the body of a WELCOME. Raises `ProtocolError` for a broker this cannot speak to."""
        welcome = cls(*_WELCOME.unpack(body))
        if welcome.features & ~FEATURES:
            raise ProtocolError(
                f"the broker uses features {welcome.features:#x}, this publisher has {FEATURES:#x}",
                _SAME_VERSION,
            )
        if not 0 < welcome.slot_bytes <= _core.MAX_SLOT_BYTES:
            raise ProtocolError(f"the broker announced slots of {welcome.slot_bytes} bytes")
        return welcome


@dataclass(frozen=True, slots=True)
class BatchHead:
    """The fields of a batch header that the protocol looks at."""

    publisher_id: int
    incarnation: int
    seq: int
    body_bytes: int

    @classmethod
    def unpack(cls, header: bytes) -> Self:
        """Raises `ProtocolError` when these 128 bytes are no intact batch header."""
        magic, version, _, publisher_id, incarnation, seq, _, _, body, *_, check = (
            BATCH_HEADER.unpack(header)
        )
        if magic != _core.BATCH_MAGIC or version != _core.BATCH_VERSION:
            raise ProtocolError(
                f"a batch header begins with magic {magic:#x} and version {version}, expected "
                f"{_core.BATCH_MAGIC:#x} and {_core.BATCH_VERSION}",
                _SAME_VERSION,
            )
        if check != _core.header_check(header):
            raise ProtocolError("a batch header was damaged on its way", "publish again")
        return cls(publisher_id, incarnation, seq, body)


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
        self._moving = threading.Lock()  # from the look at the state to the next one

    @property
    def peer(self) -> Role:
        """Who is at the other end."""
        return Role.BROKER if self.role is Role.PUBLISHER else Role.PUBLISHER

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
            self.state = after
        if kind is Kind.GOODBYE and self.role is Role.PUBLISHER:
            return _GOODBYE_AMONG_BATCHES
        return encode(kind, body)

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
                _SAME_VERSION,
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

    def _check(self, kind: Kind) -> State:
        after = TRANSITIONS.get((self.state, self.peer, kind))
        if after is None:
            raise ProtocolError(
                f"{kind.name} is not allowed on a connection that is {self.state.value}"
            )
        return after


_GOODBYE_AMONG_BATCHES: Final = encode(Kind.GOODBYE).ljust(_core.BATCH_HEADER_BYTES, b"\0")


def is_goodbye(header: bytes) -> bool:
    """Are these bytes, in the place of a batch header, a GOODBYE?"""
    return header == _GOODBYE_AMONG_BATCHES


def check_hello(hello: Hello, slot_bytes: int) -> None:
    """Raises `ProtocolError` when the broker cannot serve this publisher."""
    if hello.features & ~FEATURES:
        raise ProtocolError(
            f"the publisher needs features {hello.features:#x}, this broker has {FEATURES:#x}",
            _SAME_VERSION,
        )
    if hello.max_batch > slot_bytes:
        raise ProtocolError(
            f"the publisher's batches have up to {hello.max_batch} bytes, the broker's slots "
            f"{slot_bytes}",
            "connect with a smaller batch_size, or start the broker with larger slots",
        )
    if hello.in_flight < 1:
        raise ProtocolError("a publisher needs at least one slot")
    if hello.ack not in (0, 1):
        raise ProtocolError(f"acknowledgement level {hello.ack} does not exist")


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


def ack_body(seq: int) -> bytes:
    """The body of an ACK frame."""
    return _ACK.pack(seq)


def acked_seq(body: bytes) -> int:
    """The seq in the body of an ACK frame."""
    return int(_ACK.unpack(body)[0])


_SAME_VERSION: Final = "run the same version of embar-shm on both sides"


def _tls_or_port(head: bytes) -> str:
    if head[:2] in (b"\x16\x03", b"\x15\x03"):  # a TLS handshake or alert (RFC 8446, 5.1)
        return "it wants TLS, and this side does not use it"
    return "is this the port of an embar-shm broker?"
