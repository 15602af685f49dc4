"""Prints segments and who is in them. Takes what `inspection` found, computes only how it looks.

Everything goes through `printable`: what is in a segment may have been written by anybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from embar_shm.cli.console import open_console
from embar_shm.doctor.report import about
from embar_shm.inspection.ring import PublisherView, RingView, SubscriberView
from embar_shm.inspection.segments import SegmentView, State
from embar_shm.inspection.text import printable
from embar_shm.units import format_duration

__all__ = ["details", "overview", "seconds", "state_style", "table"]

_GOOD: Final[tuple[State, ...]] = ("serving", "starting", "creating")
_BAD: Final[tuple[State, ...]] = ("damaged", "quarantined")
_NUMBERS: Final = ("size", "age", "pubs", "subs", "unread", "unaccepted", "held")
_WIDE: Final = 200  # columns of a file or pipe: no name is broken there


def overview(segments: Sequence[SegmentView]) -> None:
    """A row for each, and a line for each that is not simply in use."""
    console = open_console()
    if not segments:
        console.print("There are no segments in /dev/shm.")
        return
    if not console.is_terminal:
        console.width = _WIDE
    listed = table("segment", "state", "owner", right=_NUMBERS)
    for one in segments:
        listed.add_row(
            Text(_name(one)),
            Text(one.state, state_style(one.state)),
            printable(one.user),
            about(one.size_bytes),
            seconds(one.age_seconds),
            *_counts(one.ring),
        )
    console.print(listed)
    for one in segments:
        if one.state != "serving":
            _line(console, f"{_name(one)}: ", f"{one.state}: {one.detail}")


def details(segments: Sequence[SegmentView]) -> None:
    """All that is known of each."""
    console = open_console()
    for one in segments:
        _line(console, one.title, "")
        facts = table("", "", header=False)
        state = Text(one.state, state_style(one.state))
        facts.add_row("state", state.append(f": {printable(one.detail)}", "default"))
        facts.add_row("file", printable(one.file))
        facts.add_row("owner", f"{printable(one.user)} (user id {one.uid}), mode {one.mode}")
        facts.add_row(
            "size", f"{about(one.size_bytes)}, {about(one.allocated_bytes)} of them in memory"
        )
        facts.add_row("age", seconds(one.age_seconds))
        if one.ring is not None:
            _ring(facts, one.ring)
        console.print(facts)
        if one.ring is not None:
            _participants(console, one.ring)


def table(*columns: str, right: Sequence[str] = (), header: bool = True) -> Table:
    """A table in the style of this program; `right`: more columns, with numbers."""
    made = Table(box=SIMPLE_HEAD, show_header=header, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for column in right:
        made.add_column(column, justify="right")
    return made


def seconds(duration: float) -> str:
    """An age or a wait: nobody needs its milliseconds once it has minutes."""
    return format_duration(round(duration) if duration >= 10 else duration)


def state_style(state: str) -> str:
    """A colour for the state of a segment."""
    return "green" if state in _GOOD else "bold red" if state in _BAD else "yellow"


def _name(one: SegmentView) -> str:
    return one.name or one.file.rpartition("/")[2]


def _counts(ring: RingView | None) -> list[str]:
    if ring is None:
        return ["-"] * 5
    return [
        _alive(ring.publishers),
        _alive(ring.subscribers),
        f"{ring.log.unread:,}",
        f"{ring.log.unaccepted:,}",
        f"{len(ring.held)} of {ring.slots}",
    ]


def _alive(rows: Sequence[PublisherView] | Sequence[SubscriberView]) -> str:
    dead = sum(not row.alive for row in rows)
    return f"{len(rows) - dead}" + (f" + {dead} dead" if dead else "")


def _ring(facts: Table, ring: RingView) -> None:
    broker, log = ring.broker, ring.log
    alive = "alive" if broker.alive else "gone"
    facts.add_row(
        "broker", f"pid {broker.pid}, {alive}, {broker.state}; number {broker.epoch} on this ring"
    )
    facts.add_row("slots", f"{len(ring.held)} of {ring.slots} held, {about(ring.slot_bytes)} each")
    facts.add_row(
        "log",
        f"{log.accepted:,} batches accepted, {log.readable:,} of them readable, {log.unread:,} "
        f"unread; {log.unaccepted:,} committed and not accepted",
    )


def _participants(console: Console, ring: RingView) -> None:
    if ring.publishers:
        listed = table(
            "publisher",
            "pid",
            "state",
            right=("since", "committed", "accepted", "in flight", "slots"),
        )
        for p in ring.publishers:
            listed.add_row(
                str(p.index),
                str(p.pid),
                _condition(p.alive, p.remote, p.state),
                seconds(p.attached_seconds),
                f"{p.committed_batches:,}",
                f"{p.accepted_batches:,}",
                f"{p.in_flight} of {p.quota}",
                str(p.slots),
            )
        console.print(listed)
    if ring.subscribers:
        listed = table(
            "subscriber",
            "name",
            "pid",
            "state",
            right=("since", "read", "lag", "holding", "for", "lost"),
        )
        for s in ring.subscribers:
            listed.add_row(
                str(s.index),
                Text(printable(s.name)),
                str(s.pid),
                f"{_condition(s.alive, s.remote, s.state)}, {s.mode}",
                seconds(s.attached_seconds),
                f"{s.read_batches:,}",
                f"{s.lag:,}",
                f"{s.holding:,}",
                seconds(s.stalled_seconds) if s.holding else "-",
                f"{s.lost_batches:,}",
            )
        console.print(listed)
    if ring.held:
        listed = table("slot", "held by", "what it is", right=("ticket", "for"))
        for h in ring.held:
            ticket = "-" if h.ticket is None else f"{h.ticket:,}"
            listed.add_row(str(h.slot), h.owner, _USES[h.use], ticket, seconds(h.held_seconds))
        console.print(listed)


_USES: Final = {
    "filling": "being filled",
    "committed": "committed, not accepted",
    "in the log": "in the log",
    "unknown": "referred to by nobody",
}


def _condition(alive: bool, remote: bool, state: str) -> str:
    return ("alive" if alive else "dead") + f", {state}" + (", remote" if remote else "")


def _line(console: Console, title: str, text: str) -> None:
    console.print(Text.assemble((printable(title), "bold"), printable(text)), soft_wrap=True)
