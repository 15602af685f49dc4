"""The sizes of a segment, and whether the header of an existing one can be used.

The bytes themselves are defined in ``_native/layout.hpp``.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embar_shm import _core
from embar_shm.address import RingName
from embar_shm.errors import ConfigurationError, IncompatibleSegment

__all__ = ["DEFAULT_SUBSCRIBERS", "Geometry", "boot_id", "validated"]

DEFAULT_SUBSCRIBERS = 64  # rows of the table


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes and offsets of a segment in bytes; made by the native core from the first four."""

    slots: int
    slot_bytes: int
    max_publishers: int
    max_subscribers: int
    tickets: int
    publishers_offset: int
    subscribers_offset: int
    tickets_offset: int
    slot_words_offset: int
    slots_offset: int
    slot_stride: int
    total_bytes: int

    @classmethod
    def plan(
        cls,
        slots: int,
        slot_bytes: int,
        max_publishers: int,
        max_subscribers: int = DEFAULT_SUBSCRIBERS,
    ) -> Geometry:
        """Raises `ConfigurationError` beyond the limits of the layout."""
        try:
            return cls(**_core.plan(slots, slot_bytes, max_publishers, max_subscribers))
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"no segment can have slots={slots}, slot_size={slot_bytes}, "
                f"max_publishers={max_publishers}, max_subscribers={max_subscribers}: {error}"
            ) from None


def boot_id() -> str:
    """Identifies this boot of this kernel: shared memory does not outlive it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def validated(name: RingName, memory: mmap.mmap, size: int) -> Geometry:
    """Checks the header against this version, this boot and the file; every difference is told."""
    header: dict[str, Any] = _core.read_header(memory)
    wrong: list[str] = []

    def expect(field: str, theirs: object, ours: object) -> None:
        if theirs != ours:
            wrong.append(f"{field}: the segment has {theirs}, this process expects {ours}")

    expect("magic", f"{header['magic']:#x}", f"{_core.MAGIC:#x}")
    expect("layout version", header["layout_version"], _core.LAYOUT_VERSION)
    if not wrong:  # another layout's fields would only confuse
        expect("header size", header["header_bytes"], _core.SEGMENT_HEADER_BYTES)
        expect("feature bits", f"{header['features']:#x}", f"{_core.FEATURES:#x}")
        expect("boot id", header["boot_id"].decode("ascii", "replace"), boot_id())
        expect("name", header["name"].decode("ascii", "replace"), str(name))
        if header["total_bytes"] != size:
            wrong.append(
                f"size: the header says {header['total_bytes']}, the file has {size} bytes"
            )
        try:
            planned = _core.plan(
                header["slots"],
                header["slot_bytes"],
                header["max_publishers"],
                header["max_subscribers"],
            )
        except ValueError as error:
            wrong.append(f"geometry: {error}; the segment has slots={header['slots']}, "
                         f"slot_bytes={header['slot_bytes']}, "
                         f"max_publishers={header['max_publishers']}, "
                         f"max_subscribers={header['max_subscribers']}")  # fmt: skip
        else:
            for field, ours in planned.items():
                expect(field, header[field], ours)
            if not wrong:
                return Geometry(**planned)
    raise IncompatibleSegment(
        f"{name.path} cannot be used: " + "; ".join(wrong),
        "run broker and publishers with the same version of embar-shm, "
        f"or remove {name.path} if no broker uses it",
    )
