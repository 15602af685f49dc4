"""What a subscriber and its broker tell each other over TCP: the bodies of their frames.

Which of them may come when is `protocol`'s. Numbers are little endian.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, Self

from embar_shm import _core
from embar_shm.error_frames import SAME_VERSION
from embar_shm.errors import ProtocolError

__all__ = [
    "CREDIT_BYTES",
    "MAX_CREDIT",
    "SUBSCRIBED_BYTES",
    "SUBSCRIBE_BYTES",
    "Credit",
    "Mode",
    "Start",
    "Subscribe",
    "Subscribed",
    "check_credit",
]

FEATURES: Final = 0  # bits both sides must understand; none exist yet
MAX_CREDIT: Final = _core.MAX_SLOTS  # batches that may be on their way at a time
_NAME_BYTES: Final = 64
_SUBSCRIBE: Final = struct.Struct(f"<QQQQQIHH{_NAME_BYTES}s")
_SUBSCRIBED: Final = struct.Struct("<QQQQQ")
_CREDIT: Final = struct.Struct("<QQ")
SUBSCRIBE_BYTES: Final = _SUBSCRIBE.size
SUBSCRIBED_BYTES: Final = _SUBSCRIBED.size
CREDIT_BYTES: Final = _CREDIT.size


class Mode(enum.IntEnum):
    """What happens when a subscriber is slower than the publishers."""

    RELIABLE = 0  # they wait for it
    LOSSY = 1  # it misses batches


class Start(enum.IntEnum):
    """Where a subscriber begins."""

    LATEST = 0  # with the next batch that is accepted
    EARLIEST = 1  # with the oldest one that is there
    TICKET = 2  # with this ticket of whatever log it is
    POSITION = 3  # with this ticket of this log
    RESUME = 4  # the same, where an earlier connection of this subscriber has ended
    LEAVE = 5  # nowhere: its goodbye on an earlier connection was not answered


@dataclass(frozen=True, slots=True)
class Subscribe:
    """What a subscriber introduces itself with."""

    subscriber_id: int  # with `incarnation` it tells one subscriber from all others
    incarnation: int
    credit: int  # batches that may be sent before the first CREDIT
    mode: Mode = Mode.RELIABLE
    start: Start = Start.LATEST
    log: int = 0  # POSITION, RESUME: which log
    ticket: int = 0  # TICKET, POSITION, RESUME: the first one wanted
    name: str = ""  # how statistics and wait messages call it; cut at 64 bytes
    features: int = FEATURES

    def pack(self) -> bytes:
        """The body of a SUBSCRIBE."""
        name = self.name.encode("utf-8", "replace")[:_NAME_BYTES].decode("utf-8", "ignore")
        return _SUBSCRIBE.pack(
            self.subscriber_id,
            self.incarnation,
            self.features,
            self.log,
            self.ticket,
            self.credit,
            self.mode,
            self.start,
            name.encode(),
        )

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """From the body of a SUBSCRIBE. Raises `ProtocolError` for what cannot be served."""
        number, incarnation, features, log, ticket, credit, mode, start, name = _SUBSCRIBE.unpack(
            body
        )
        if features & ~FEATURES:
            raise ProtocolError(
                f"the subscriber needs features {features:#x}, this broker has {FEATURES:#x}",
                SAME_VERSION,
            )
        if mode not in Mode.__members__.values() or start not in Start.__members__.values():
            raise ProtocolError(
                f"a subscriber asks for mode {mode} and start {start}, which do not both exist",
                SAME_VERSION,
            )
        if credit > MAX_CREDIT:
            raise ProtocolError(
                f"a subscriber can have {MAX_CREDIT} batches on their way, not {credit}"
            )
        text = name.rstrip(b"\0").decode("utf-8", "replace")
        text = "".join(c if c.isprintable() else "?" for c in text)  # it is shown in terminals
        return cls(
            number, incarnation, credit, Mode(mode), Start(start), log, ticket, text, features
        )


@dataclass(frozen=True, slots=True)
class Subscribed:
    """What the broker answers."""

    log: int  # whose tickets these are
    first: int  # ticket of the first batch that may come
    head: int  # tickets that are accepted by now
    slot_bytes: int  # the largest body that will come
    features: int = FEATURES

    def pack(self) -> bytes:
        """The body of a SUBSCRIBED."""
        return _SUBSCRIBED.pack(self.log, self.first, self.head, self.slot_bytes, self.features)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """From the body of a SUBSCRIBED. Raises `ProtocolError` for one that makes no sense."""
        found = cls(*_SUBSCRIBED.unpack(body))
        if found.features & ~FEATURES:
            raise ProtocolError(
                f"the broker uses features {found.features:#x}, this subscriber has {FEATURES:#x}",
                SAME_VERSION,
            )
        if not 0 < found.slot_bytes <= _core.MAX_SLOT_BYTES:
            raise ProtocolError(f"the broker announced slots of {found.slot_bytes} bytes")
        return found


@dataclass(frozen=True, slots=True)
class Credit:
    """What a subscriber has received, and what may be sent to it. Both only ever grow."""

    received: int  # all batches with lower tickets are there: the broker may forget them
    granted: int  # batches that may be sent on this connection, from its beginning

    def pack(self) -> bytes:
        """The body of a CREDIT."""
        return _CREDIT.pack(self.received, self.granted)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """From the body of a CREDIT; `check_credit` tells whether it can be."""
        return cls(*_CREDIT.unpack(body))


def check_credit(credit: Credit, before: Credit, sent: int, sent_to: int) -> None:
    """Raises `ProtocolError` for a CREDIT that no honest subscriber sends.

    `before`: the last one; `sent`: batches on this connection; `sent_to`: the ticket after the last
    of them.
    """
    if credit.received > sent_to:
        raise ProtocolError(
            f"a subscriber has received batches before ticket {credit.received}, of which those "
            f"from {sent_to} on were never sent"
        )
    if credit.received < before.received or credit.granted < before.granted:
        raise ProtocolError(f"a subscriber took {before} back: now it says {credit}")
    if credit.granted > sent + MAX_CREDIT:
        raise ProtocolError(
            f"a subscriber granted {credit.granted} batches after {sent} were sent: more than "
            f"{MAX_CREDIT} cannot be on their way"
        )
