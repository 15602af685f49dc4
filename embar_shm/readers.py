"""What is known of a ring's subscribers: for statistics, and for whoever waits for one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from embar_shm import _core

__all__ = ["SubscriberStatus", "describe_slow", "subscribers"]

_SLOW_AFTER = 0.01  # seconds that a batch may be in use before its subscriber is named
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class SubscriberStatus:
    """One subscriber, as its broker sees it."""

    index: int  # row in the table
    name: str
    pid: int
    mode: Literal["reliable", "lossy"]
    lag: int  # batches in the log that it has not read
    holding: int  # slots that cannot be used again because of it; lossy: 0
    stalled_seconds: float  # for how long it has had the oldest of them
    batches: int  # read
    lost: int  # batches overwritten before it read them; lossy only


def subscribers(monitor: _core.Monitor) -> tuple[SubscriberStatus, ...]:
    """All subscribers of a ring. Costs them nothing."""
    found = []
    head = monitor.control()["head"]
    for index in range(monitor.max_subscribers):
        row = monitor.subscriber(index)
        if row["state"] != "active":
            continue
        reliable = row["mode"] == "reliable"
        found.append(
            SubscriberStatus(
                index=index,
                name=row["name"],
                pid=row["pid"],
                mode=row["mode"],
                lag=max(0, head - row["next"]),
                holding=max(0, head - row["cursor"]) if reliable else 0,
                stalled_seconds=row["stalled_ns"] / 1e9 if reliable else 0.0,
                batches=row["batches"],
                lost=row["lost"],
            )
        )
    return tuple(found)


def describe_slow(monitor: _core.Monitor) -> str:
    """Who holds back the release: which slots, for how long. Empty: nobody does."""
    slow = sorted(
        (s for s in subscribers(monitor) if s.holding and s.stalled_seconds >= _SLOW_AFTER),
        key=lambda s: -s.stalled_seconds,
    )
    shown = [
        f"subscriber {s.index} ({s.name!r}, pid {s.pid}) holds {s.holding} slots, "
        f"the oldest for {s.stalled_seconds:.3g} s"
        for s in slow[:_SHOWN]
    ]
    if len(slow) > _SHOWN:
        shown.append(f"{len(slow) - _SHOWN} more subscribers hold slots")
    return "; ".join(shown)
