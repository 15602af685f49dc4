"""Waiting for something to become true, never for a length of time."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["DEADLINE", "wait_until"]

DEADLINE = (
    30.0  # seconds until a wait is given up: a loaded machine is slow, only a bug is this slow
)
_POLL = 0.002


def wait_until(condition: Callable[[], object], what: str, timeout: float = DEADLINE) -> None:
    """Returns as soon as `condition()` is true.

    Raises `AssertionError` "`what` did not happen within ..." after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what}: did not happen within {timeout:g} s")
        time.sleep(_POLL)
