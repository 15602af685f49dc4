"""What an ERROR frame of the TCP protocol says, and the error that its reader raises.

Three lines: the name of an error class, its message, its hint.
"""

from __future__ import annotations

from typing import Final

from embar_shm.errors import (
    AccessDenied,
    BatchRefused,
    BrokerGone,
    BrokerRestarted,
    CorruptBatch,
    CorruptSegment,
    EmbarError,
    NotEnoughSpace,
    PositionLost,
    ProtocolError,
    WaitTimeout,
)

__all__ = ["MAX_CONTROL_BODY", "SAME_VERSION", "error_body", "error_from"]

MAX_CONTROL_BODY: Final = (
    1024  # bytes of any control frame's body: an ERROR with two long sentences
)
SAME_VERSION: Final = "run the same version of embar-shm on both sides"
"""What to do about a side that speaks something else."""
# What a broker may say of itself; everything else is told as a ProtocolError.
_TELLABLE: Final = {
    kind.__name__: kind
    for kind in (
        AccessDenied,
        BatchRefused,
        BrokerGone,
        BrokerRestarted,
        CorruptBatch,
        CorruptSegment,
        NotEnoughSpace,
        PositionLost,
        ProtocolError,
        WaitTimeout,
    )
}


def error_body(error: EmbarError) -> bytes:
    """The body of an ERROR frame: kind, message and hint, a line each; the end of long ones is cut.

    The message may take two thirds, so that the hint, what to do next, comes through.
    """
    name = type(error).__name__
    kind = name if name in _TELLABLE else ProtocolError.__name__
    message = _cut(error.message, MAX_CONTROL_BODY * 2 // 3)
    return "\n".join((kind, message, _cut(error.hint, MAX_CONTROL_BODY // 4))).encode()


def _cut(text: str, limit: int) -> str:
    """One line of at most `limit` bytes of UTF-8."""
    data = text.replace("\n", " ").encode("utf-8", "replace")  # a file's name can be no text
    return data.decode() if len(data) <= limit else data[:limit].decode("utf-8", "ignore")


def error_from(peer: str, body: bytes) -> EmbarError:
    """The error that an ERROR frame of `peer` tells."""
    text = body.decode("utf-8", "replace")
    text = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)  # for a terminal
    kind, _, rest = text.partition("\n")
    message, _, hint = rest.partition("\n")
    message = message or "nothing that could be understood"
    return _TELLABLE.get(kind, ProtocolError)(f"{peer} says: {message}", hint)
