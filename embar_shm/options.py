"""Choices that several parts of the library take by name, and how they are checked."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Final, Literal

from embar_shm.errors import ConfigurationError, MisuseError
from embar_shm.units import parse_size

__all__ = [
    "COPY_MODES",
    "START_PLACES",
    "SUBSCRIBE_MODES",
    "WAIT_MODES",
    "CopyMode",
    "StartPlace",
    "SubscribeMode",
    "WaitMode",
    "choose",
    "nbytes",
    "number",
    "secret",
    "size",
    "whole",
]

WaitMode = Literal["adaptive", "spin", "block"]
CopyMode = Literal["auto", "plain", "nontemporal"]
SubscribeMode = Literal["reliable", "lossy"]
StartPlace = Literal["latest", "earliest"]

# The numbers are those of the native enums in waiting.hpp, copy.hpp and layout.hpp.
WAIT_MODES: Final[Mapping[str, int]] = {"adaptive": 0, "spin": 1, "block": 2}
_MOST = 1e9  # of seconds, milliseconds, microseconds: as good as forever
COPY_MODES: Final[Mapping[str, int]] = {"auto": 0, "plain": 1, "nontemporal": 2}
SUBSCRIBE_MODES: Final[Mapping[str, int]] = {"reliable": 0, "lossy": 1}
START_PLACES: Final[Mapping[str, int]] = {"latest": 0, "earliest": 1}


def choose(parameter: str, value: str, choices: Mapping[str, int]) -> int:
    """The native number of a choice. Raises `ConfigurationError` naming all of them."""
    try:
        return choices[value]
    except (KeyError, TypeError):
        raise ConfigurationError(
            f"{parameter}={value!r} does not exist", f"choose one of: {', '.join(choices)}"
        ) from None


def number(parameter: str, value: object) -> float:
    """A finite number that is not negative. Raises `ConfigurationError`."""
    if not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value <= _MOST:
        return float(value)
    raise ConfigurationError(f"{parameter}={value!r} is not a number from 0 to {_MOST:g}")


def whole(parameter: str, value: object, least: int, most: int) -> int:
    """A whole number within limits. Raises `ConfigurationError`."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    raise ConfigurationError(f"{parameter}={value!r} is not a whole number from {least} to {most}")


def nbytes(parameter: str, value: object) -> int:
    """A number of bytes that an argument of a call must be. Raises `MisuseError`."""
    try:
        found = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        found = -1
    if found < 0:
        raise MisuseError(f"{parameter}={value!r} is not a number of bytes")
    return found


def secret(parameter: str, value: object) -> str | None:
    """A text that others cannot guess, or None. Raises `ConfigurationError`, without the value."""
    if value is None or (isinstance(value, str) and value.strip() and value.isprintable()):
        return value
    what = "empty" if value in ("", b"") else "no text of printable characters"
    raise ConfigurationError(f"the {parameter} is {what}", "None means that there is none")


def size(parameter: str, value: int | str) -> int:
    """A size in bytes from a number or text like "2MiB". Raises `ConfigurationError`."""
    try:
        return parse_size(value)
    except ValueError as error:
        raise ConfigurationError(f"{parameter}: {error}") from None
