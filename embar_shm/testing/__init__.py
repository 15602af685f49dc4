"""Tools for testing embar-shm, its transports, and programs that use it.

- `unique_cluster`, `leftovers`, `isolated`: tests that run in parallel do not meet, and leave
  neither rings nor processes behind; `embar_shm.testing.plugin` makes a pytest fixture of it;
- `wait_until`, `Child`: conditions and processes to wait for, with a deadline;
- `Proxy`: cuts TCP connections at a byte, holds them, refuses them;
- `Log`: what reached a broker, message by message;
- `TransportContract`: the test suite that every transport has to pass.

`TransportContract` and the plugin need pytest, the rest does not.
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

__all__ = [
    "Batch",
    "Child",
    "Cut",
    "LeftBehind",
    "Log",
    "Proxy",
    "TransportContract",
    "isolated",
    "leftovers",
    "unique_cluster",
    "wait_until",
]


def __getattr__(name: str) -> object:
    if name == "TransportContract":  # not before somebody asks: it imports pytest
        from embar_shm.testing.contract import TransportContract

        return TransportContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
