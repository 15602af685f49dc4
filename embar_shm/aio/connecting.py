"""Connecting without blocking the loop, so that a cancelled attempt is soon over."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from embar_shm.aio.threads import in_thread
from embar_shm.errors import BrokerGone, ConnectionLost, NoSuchBroker, WaitTimeout
from embar_shm.options import number

__all__ = ["connected"]

T = TypeVar("T")

_ATTEMPT = 0.25  # seconds
_PASSING = (NoSuchBroker, BrokerGone, ConnectionLost, WaitTimeout)


async def connected(
    connect: Callable[..., T], close: Callable[[T], object], address: str, options: dict[str, Any]
) -> T:
    """``connect(address, **options)``, in a thread, for ``connect_timeout`` in all."""
    patience = number("connect_timeout", options.pop("connect_timeout", 0.0))
    deadline = time.monotonic() + patience
    while True:
        attempt = min(_ATTEMPT, max(0.0, deadline - time.monotonic()))
        try:
            call = partial(connect, address, connect_timeout=attempt, **options)
            return await in_thread(call, close)
        except _PASSING:
            if time.monotonic() >= deadline:
                raise
