"""Draws what rings do per second, once or again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from embar_shm.cli.console import open_console
from embar_shm.cli.render_ls import state_style, table
from embar_shm.inspection.sampling import Activity, ParticipantRates, RingRates
from embar_shm.inspection.text import printable
from embar_shm.units import format_duration, format_rate

__all__ = ["live", "printed"]

_WIDE = 200  # columns of a file or pipe: no name is broken there


def printed(found: Activity) -> None:
    """As tables, below what was printed before."""
    console = open_console()
    if not console.is_terminal:
        console.width = _WIDE
    console.print(_drawn(found))


@contextmanager
def live() -> Iterator[Callable[[Activity], None]]:
    """Gives a function that draws anew. The terminal's content is back at the end of the block."""
    with Live(console=open_console(), screen=True, auto_refresh=False) as screen:

        def show(found: Activity) -> None:
            ends = Text("q or Ctrl-C ends", "dim")
            screen.update(Group(_drawn(found), ends), refresh=True)

        yield show


def _drawn(found: Activity) -> RenderableType:
    taken = time.strftime("%H:%M:%S", time.localtime(found.time_unix))
    over = f", over {format_duration(found.interval_seconds)}" if found.interval_seconds else ""
    title = Text(f"{taken}{over}", "bold")
    if not found.rings:
        return Group(title, Text("There are no rings to look at: embar-shm ls"))
    parts: list[RenderableType] = [title, _rings(found)]
    if any(ring.participants for ring in found.rings):
        parts.append(_participants(found))
    return Group(*parts)


def _rings(found: Activity) -> Table:
    listed = table(
        "ring",
        "state",
        right=(
            *("batches/s", "messages/s", "rate", "slots", "waits/s", "lost/s", "wakes/s"),
            *("missed", "slowest subscriber"),
        ),
    )
    listed.columns[0].no_wrap = True  # on a narrow terminal the figures give way, not the name
    for ring in found.rings:
        state = ring.state if ring.broker_alive else f"{ring.state}, dead"
        listed.add_row(
            printable(ring.name),
            Text(state, state_style(ring.state) if ring.broker_alive else "yellow"),
            _number(ring.batches_per_second),
            _number(ring.messages_per_second),
            _rate(ring.bytes_per_second),
            f"{ring.slots_held} of {ring.slots}",
            _number(ring.waits_per_second),
            _number(ring.lost_per_second),
            _number(ring.wakes_per_second),
            f"{ring.missed_wakeups:,}",
            Text(_slowest(ring)),
        )
    return listed


def _participants(found: Activity) -> Table:
    listed = table(
        "ring",
        "who",
        "pid",
        right=(
            *("batches/s", "messages/s", "rate", "in flight", "lag", "holding", "waits/s"),
            *("lost/s", "missed"),
        ),
    )
    listed.columns[0].no_wrap = True
    for ring in found.rings:
        for one in ring.participants:
            publishes = one.kind == "publisher"
            listed.add_row(
                printable(ring.name),
                Text(_who(one)),
                str(one.pid),
                _number(one.batches_per_second),
                _number(one.messages_per_second),
                _rate(one.bytes_per_second),
                f"{one.in_flight}" if publishes else "",
                "" if publishes else f"{one.lag:,}",
                "" if publishes else f"{one.holding:,}",
                _number(one.waits_per_second),
                "" if publishes else _number(one.lost_per_second),
                f"{one.missed_wakeups:,}",
            )
    return listed


def _who(one: ParticipantRates) -> str:
    name = f" {printable(one.name)}" if one.name else ""
    return f"{one.kind} {one.index}{name}{', remote' if one.remote else ''}" + (
        "" if one.alive else ", dead"
    )


def _slowest(ring: RingRates) -> str:
    slow = ring.slowest_subscriber
    if slow is None:
        return "-"
    held = f", holds {slow.holding:,}" if slow.holding else ""
    return f"{printable(slow.name) or slow.index}: {slow.lag:,} behind{held}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _rate(value: float | None) -> str:
    return "-" if value is None else format_rate(value)
