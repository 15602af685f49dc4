"""Prints whom `evict` would end, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence

from embar_shm.cli.console import open_console
from embar_shm.inspection.eviction import Evicted, Plan
from embar_shm.units import format_duration

__all__ = ["evicted", "planned"]


def planned(agreed: Plan) -> None:
    """On stderr: it is a question, not a result."""
    lines = [f"process {agreed.pid}{', stopped' if agreed.stopped else ''}: {agreed.command}"]
    lines.append(f"is {', '.join(agreed.rows)} of {agreed.ring}")
    if agreed.slots:
        lines.append(f"owns {_slots(agreed.slots)}")
    if agreed.batches_held_back:
        lines.append(f"holds back {agreed.batches_held_back:,} batches")
    if agreed.other_segments:
        lines.append(f"also has open: {', '.join(agreed.other_segments)}")
    console = open_console(stderr=True)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def evicted(done: Evicted) -> None:
    """A few sentences."""
    told = [
        f"process {done.pid} has ended ({', '.join(done.signals)}), "
        f"{format_duration(done.seconds)} after the first signal"
    ]
    if "broker" in done.rows:
        told.append(
            f"another broker of {done.ring} is alive"
            if done.broker_alive
            else f"{done.ring} has no broker now; a new one takes over what is in the ring"
        )
    elif done.reaped:
        told.append(f"{', '.join(done.rows)} of {done.ring} is free")
    elif done.broker_alive:
        told.append(f"the broker is alive and has not freed {', '.join(done.rows)}: look at it")
    else:
        told.append(f"{done.ring} has no broker; the next one frees {', '.join(done.rows)}")
    if done.slots_returned:
        told.append(f"came back: {_slots(done.slots_returned)}")
    if done.slots_in_log:
        told.append(f"in the log until they are read: {_slots(done.slots_in_log)}")
    if done.reaped and done.batches_held_back:
        told.append(f"no longer held back: {done.batches_held_back:,} batches")
    console = open_console()
    for line in told:
        console.print(line, markup=False, soft_wrap=True)


def _slots(slots: Sequence[int]) -> str:
    return f"slot{'' if len(slots) == 1 else 's'} {', '.join(map(str, slots))}"
