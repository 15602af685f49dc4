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

__all__ = [
    "DEFAULT_SUBSCRIBERS",
    "Difference",
    "Geometry",
    "boot_id",
    "header_differences",
    "validated",
]

DEFAULT_SUBSCRIBERS = 64  # rows of the table

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


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
    return _BOOT_ID.read_text().strip()


@dataclass(frozen=True, slots=True)
class Difference:
    """A field of a segment's header that this process cannot use, in words."""

    field: str
    found: str
    expected: str = ""

    def __str__(self) -> str:
        expected = f", {self.expected}" if self.expected else ""
        return f"{self.field}: {self.found}{expected}"


def header_differences(
    name: RingName, memory: mmap.mmap, size: int
) -> tuple[Geometry | None, list[Difference]]:
    """Compares the header with this version, this boot and the file.

    The geometry if there is no difference. `memory` has the header at least, `size` is the file's.
    """
    header: dict[str, Any] = _core.read_header(memory)
    wrong: list[Difference] = []

    def expect(field: str, theirs: object, ours: object) -> None:
        if theirs != ours:
            wrong.append(
                Difference(field, f"the segment has {theirs}", f"this process expects {ours}")
            )

    expect("magic", f"{header['magic']:#x}", f"{_core.MAGIC:#x}")
    expect("layout version", header["layout_version"], _core.LAYOUT_VERSION)
    if wrong:  # another layout's fields would only confuse
        return None, wrong
    expect("header size", header["header_bytes"], _core.SEGMENT_HEADER_BYTES)
    expect("feature bits", f"{header['features']:#x}", f"{_core.FEATURES:#x}")
    expect("boot id", header["boot_id"].decode("ascii", "replace"), boot_id())
    expect("name", header["name"].decode("ascii", "replace"), str(name))
    if header["total_bytes"] != size:
        wrong.append(
            Difference(
                "size", f"the header says {header['total_bytes']}", f"the file has {size} bytes"
            )
        )
    chosen = ("slots", "slot_bytes", "max_publishers", "max_subscribers")
    try:
        planned = _core.plan(*(header[field] for field in chosen))
    except ValueError as error:
        values = ", ".join(f"{field}={header[field]}" for field in chosen)
        wrong.append(Difference("geometry", f"{error}; the segment has {values}"))
        return None, wrong
    for field, ours in planned.items():
        expect(field, header[field], ours)
    return (None if wrong else Geometry(**planned)), wrong


def validated(name: RingName, memory: mmap.mmap, size: int) -> Geometry:
    """Checks the header against this version, this boot and the file; every difference is told."""
    geometry, wrong = header_differences(name, memory, size)
    if geometry is None:
        raise IncompatibleSegment(
            f"{name.path} cannot be used: " + "; ".join(map(str, wrong)),
            "run broker and publishers with the same version of embar-shm, "
            f"or remove {name.path} if no broker uses it",
        )
    return geometry
