"""What a publisher and its broker tell each other over TCP: the bodies of their frames.

Which of them may come when is `protocol`'s. Numbers are little endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Self

from embar_shm import _core
from embar_shm.error_frames import SAME_VERSION
from embar_shm.errors import ProtocolError

__all__ = ["HELLO_BYTES", "WELCOME_BYTES", "Hello", "Welcome", "check_hello"]

FEATURES: Final = 0  # bits both sides must understand; none exist yet
_HELLO: Final = struct.Struct("<QQQQQII")
_WELCOME: Final = struct.Struct("<QQQ")
HELLO_BYTES: Final = _HELLO.size
WELCOME_BYTES: Final = _WELCOME.size


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
                SAME_VERSION,
            )
        if not 0 < welcome.slot_bytes <= _core.MAX_SLOT_BYTES:
            raise ProtocolError(f"the broker announced slots of {welcome.slot_bytes} bytes")
        return welcome


def check_hello(hello: Hello, slot_bytes: int) -> None:
    """Raises `ProtocolError` when the broker cannot serve this publisher."""
    if hello.features & ~FEATURES:
        raise ProtocolError(
            f"the publisher needs features {hello.features:#x}, this broker has {FEATURES:#x}",
            SAME_VERSION,
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
