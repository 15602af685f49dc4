"""Choices that several parts of the library take by name, and how they are checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from embar_shm.errors import ConfigurationError
from embar_shm.units import parse_size

__all__ = ["COPY_MODES", "WAIT_MODES", "CopyMode", "WaitMode", "choose", "size"]

WaitMode = Literal["adaptive", "spin", "block"]
CopyMode = Literal["auto", "plain", "nontemporal"]

# The numbers are those of the native enums in waiting.hpp and copy.hpp.
WAIT_MODES: Final[Mapping[str, int]] = {"adaptive": 0, "spin": 1, "block": 2}
COPY_MODES: Final[Mapping[str, int]] = {"auto": 0, "plain": 1, "nontemporal": 2}


def choose(parameter: str, value: str, choices: Mapping[str, int]) -> int:
    """The native number of a choice. Raises `ConfigurationError` naming all of them."""
    try:
        return choices[value]
    except (KeyError, TypeError):
        raise ConfigurationError(
            f"{parameter}={value!r} does not exist", f"choose one of: {', '.join(choices)}"
        ) from None


def size(parameter: str, value: int | str) -> int:
    """A size in bytes from a number or text like "2MiB". Raises `ConfigurationError`."""
    try:
        return parse_size(value)
    except ValueError as error:
        raise ConfigurationError(f"{parameter}: {error}") from None
