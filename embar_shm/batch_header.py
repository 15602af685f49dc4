"""The 128 bytes in front of a batch (`BatchHeader` of ``_native/layout.hpp``), as they come in."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final, Self

from embar_shm import _core
from embar_shm.error_frames import SAME_VERSION
from embar_shm.errors import ProtocolError

__all__ = ["BATCH_HEADER", "BatchHead", "Delivery"]

BATCH_HEADER: Final = struct.Struct("<IHHQQQIIQQQQQQ32sQ")


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
        _, _, _, publisher_id, incarnation, seq, _, _, body, *_ = _intact(header)
        return cls(publisher_id, incarnation, seq, body)


@dataclass(frozen=True, slots=True)
class Delivery:
    """The fields of the header of a batch that goes to a subscriber."""

    ticket: int
    gap: int  # batches just before it that this subscriber has missed
    body_bytes: int

    @classmethod
    def unpack(cls, header: bytes) -> Self:
        """Raises `ProtocolError` when these 128 bytes are no intact batch header."""
        _, _, _, _, _, _, _, _, body, _, _, _, ticket, gap, _, _ = _intact(header)
        return cls(ticket, gap, body)


def _intact(header: bytes) -> tuple[Any, ...]:
    """The fields of a batch header. Raises `ProtocolError` when it is damaged, or none."""
    fields = BATCH_HEADER.unpack(header)
    magic, version, *_, check = fields
    if magic != _core.BATCH_MAGIC or version != _core.BATCH_VERSION:
        raise ProtocolError(
            f"a batch header begins with magic {magic:#x} and version {version}, expected "
            f"{_core.BATCH_MAGIC:#x} and {_core.BATCH_VERSION}",
            SAME_VERSION,
        )
    if check != _core.header_check(header):
        raise ProtocolError("a batch header was damaged on its way", "publish again")
    return fields
