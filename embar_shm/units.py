"""Sizes, rates and durations: what people write, and what they read.

A size is an exact number of bytes. KB, MB, GB and TB count in powers of 1000, KiB, MiB, GiB and TiB
in powers of 1024; a lone K, M, G or T is refused because half of its readers would take it for the
other one.
"""

from __future__ import annotations

import math
import re
from typing import Final

__all__ = ["MAX_SIZE", "format_duration", "format_rate", "format_size", "parse_size"]

MAX_SIZE: Final = 2**63 - 1
"""Sizes travel through signed 64-bit words of shared memory; a larger one is a slip of the pen."""

_UNITS: Final = {
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "TiB": 1024**4,
}
_UNIT_OF: Final = {unit.lower(): unit for unit in _UNITS}
_AMBIGUOUS: Final = frozenset("kmgt")
# Nineteen digits hold MAX_SIZE, and as many decimals any exact fraction worth writing.
_SIZE: Final = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,19}))?[ \t]*([a-z]*)", re.IGNORECASE)


def parse_size(text: str | int) -> int:
    """The number of bytes that ``"2MiB"``, ``"1.5 GiB"``, ``"64"`` or ``64`` means.

    Raises `ValueError`, with a sentence that names the value, for everything else: negative
    numbers, unknown or ambiguous units, booleans, fractions of a byte, more than `MAX_SIZE`.
    """
    if isinstance(text, bool) or not isinstance(text, (str, int)):
        raise ValueError(f"{text!r} is not a size: write a number of bytes, or 2MiB, 10GB")
    if isinstance(text, int):
        if text < 0:
            raise ValueError(f"{_short(text)} is negative: a size is 0 bytes or more")
        return _bounded(text, text)
    stripped = text.strip()
    if re.match(r"-\s*[0-9.]", stripped):
        raise ValueError(f"{_short(text)} is negative: a size is 0 bytes or more")
    match = _SIZE.fullmatch(stripped)
    if match is None:
        raise ValueError(
            f"{_short(text)} is not a size: write digits and a unit, like 64, 2MiB or 10GB"
        )
    whole, fraction, suffix = match[1], match[2] or "", match[3].lower()
    if suffix in _AMBIGUOUS:
        letter = suffix.upper()
        raise ValueError(
            f"{_short(text)} is ambiguous: write {letter}B for powers of 1000, "
            f"{letter}iB for powers of 1024"
        )
    if suffix and suffix not in _UNIT_OF:
        raise ValueError(f"{_short(text)} has an unknown unit: use one of {', '.join(_UNITS)}")
    scale = _UNITS[_UNIT_OF[suffix]] if suffix else 1
    # Integers, not floats: 0.1 TB is exactly 100 GB here.
    size, remainder = divmod(int(whole + fraction) * scale, 10 ** len(fraction))
    if remainder:
        raise ValueError(f"{_short(text)} is not a whole number of bytes")
    return _bounded(size, text)


def format_size(size: int) -> str:
    """`size`, exactly, in the unit that needs the smallest number: "2 MiB", "10 GB", "1,025 B".

    Raises `ValueError` for a negative size.
    """
    if size < 0:
        raise ValueError(f"{size} is negative: a size is 0 bytes or more")
    exact = [unit for unit, scale in _UNITS.items() if size and size % scale == 0]
    unit = max(exact, key=_UNITS.__getitem__, default="B")
    return f"{size // _UNITS[unit]:,} {unit}"


def format_rate(bytes_per_second: float) -> str:
    """A data rate in powers of 1000, as networks count: "14.83 GB/s", "836.0 MB/s".

    Raises `ValueError` for a rate that is negative or not finite.
    """
    _require_amount(bytes_per_second, "rate")
    for unit, scale in (("B/s", 1.0), ("KB/s", 1e3), ("MB/s", 1e6)):
        text = _two_to_one_decimals(bytes_per_second / scale)
        if float(text) < 1000:  # the rounded number decides: never "1000.0 MB/s"
            return f"{text} {unit}"
    return f"{_two_to_one_decimals(bytes_per_second / 1e9)} GB/s"


def format_duration(seconds: float) -> str:
    """A duration in the unit that reads best: "90.0 ns", "2.10 ms", "12.5 s", "2 min 05 s".

    Three significant digits below a minute, whole seconds from there on. Raises `ValueError` for a
    duration that is negative or not finite.
    """
    _require_amount(seconds, "duration")
    if seconds == 0:
        return "0 s"
    for unit, per_second in (("ns", 1e9), ("us", 1e6), ("ms", 1e3)):
        text = _three_digits(seconds * per_second)
        if float(text) < 1000:
            return f"{text} {unit}"
    text = _three_digits(seconds)
    if float(text) < 60:
        return f"{text} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min {rest:02d} s"
    return f"{minutes} min {rest:02d} s"


def _bounded(size: int, written: str | int) -> int:
    if size > MAX_SIZE:
        raise ValueError(f"{_short(written)} is too large: sizes end at {MAX_SIZE:,} bytes")
    return size


def _short(value: str | int) -> str:
    """The value for a message, cut so that a pasted file does not fill the screen."""
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 128 else f"a {value.bit_length()}-bit number"
    return repr(value) if len(value) <= 60 else f"{value[:57]!r}..."


def _require_amount(number: float, what: str) -> None:
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{number} is not a {what}: it must be finite and not negative")


def _two_to_one_decimals(number: float) -> str:
    text = f"{number:.2f}"
    return text if float(text) < 100 else f"{number:.1f}"


def _three_digits(number: float) -> str:
    for decimals, limit in ((2, 10), (1, 100)):
        text = f"{number:.{decimals}f}"
        if float(text) < limit:
            return text
    return f"{number:.0f}"
