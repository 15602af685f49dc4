"""A ring in which a broker found words that cannot be: nobody uses it, and it stays as it is."""

from __future__ import annotations

from embar_shm.errors import CorruptSegment

__all__ = ["QUARANTINED", "quarantined"]

QUARANTINED = 4
"""``BrokerState::Quarantined`` of ``_native/layout.hpp``."""


def quarantined(name: object, damage: str) -> CorruptSegment:
    """The error of everybody who comes to such a ring. `damage`: what the broker found."""
    return CorruptSegment(
        f"the ring {name} is damaged and quarantined: {damage}",
        "some process wrote where it must not. Stop everything that uses the ring; "
        f"'embar-shm fsck {name}' shows what is wrong, 'embar-shm clean --force {name}' removes it",
    )
