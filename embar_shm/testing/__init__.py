"""Tools for testing embar-shm, its transports, and programs that use it.

- `unique_cluster`, `leftovers`, `isolated`: tests that run in parallel do not meet, and leave
  neither rings nor processes behind; `embar_shm.testing.plugin` makes a pytest fixture of it;
- `wait_until`, `Child`: conditions and processes to wait for, with a deadline;
- `Proxy`: cuts TCP connections at a byte, holds them, refuses them;
- `Log`: what reached a broker, message by message;
- `TransportContract`, `SubscriberContract`: the test suites that every transport has to pass.

The contracts and the plugin need pytest, the rest does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embar_shm.testing.conditions import wait_until
from embar_shm.testing.isolation import LeftBehind, isolated, leftovers, unique_cluster
from embar_shm.testing.log import Batch, Log
from embar_shm.testing.processes import Child
from embar_shm.testing.proxy import Cut, Proxy

if TYPE_CHECKING:
    from embar_shm.testing.contract import TransportContract
    from embar_shm.testing.subscriber_contract import SubscriberContract

__all__ = [
    "Batch",
    "Child",
    "Cut",
    "LeftBehind",
    "Log",
    "Proxy",
    "SubscriberContract",
    "TransportContract",
    "isolated",
    "leftovers",
    "unique_cluster",
    "wait_until",
]


def __getattr__(name: str) -> object:
    # Not before somebody asks: they import pytest.
    if name == "TransportContract":
        from embar_shm.testing.contract import TransportContract

        return TransportContract
    if name == "SubscriberContract":
        from embar_shm.testing.subscriber_contract import SubscriberContract

        return SubscriberContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
