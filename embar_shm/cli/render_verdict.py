"""Prints a verdict for people. Like `render`: computes nothing but its presentation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from embar_shm.bench.breakdown import BrokerSide, Connections, PublisherSide
from embar_shm.bench.verdict import Finding, Verdict
from embar_shm.units import format_duration, format_rate

__all__ = ["findings", "lines", "verdict"]

_WIDTH: Final = 100  # longer lines of text are hard to read, however wide the terminal is
_NOT_SHOWN: Final = 0.005  # shares that would be printed as 0 %


def verdict(console: Console, found: Verdict, title: str = "Verdict") -> None:
    """Where a batch's time went on each side, what the connections reached, and what bounds it."""
    table = lines(console, title)
    if (publisher := found["publisher"]) is not None:
        table.add_row("publisher", _publisher(publisher))
    if (broker := found["broker"]) is not None:
        table.add_row("broker", _broker(broker))
    if (reached := found["connections"]) is not None:
        table.add_row("connections", _connections(reached))
    findings(table, found["findings"])
    if table.row_count:
        console.print(table)


def lines(console: Console, title: str) -> Table:
    """An empty list of lines with a word in front of each."""
    table = Table(box=None, title=f"{title}\n", title_justify="left", title_style="bold")
    table.show_header = False
    table.padding = (0, 0, 0, 2)
    table.width = min(console.width, _WIDTH)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    return table


def findings(table: Table, found: Iterable[Finding]) -> None:
    """A line for each finding, and one for what to try next. The first bound is the answer."""
    words = {"bound": "bound", "note": "note"}
    for finding in found:
        word = words[finding["kind"]]
        # Text, never markup: what a finding quotes may have brackets.
        table.add_row(Text(word), Text(finding["sentence"], "bold" if word == "bound" else ""))
        table.add_row("", Text(f"try: {finding['next']}", "cyan"))
        words["bound"] = "also"


def _publisher(side: PublisherSide) -> str:
    parts = {name: part["share"] for name, part in side["stages"].items()}
    sending = parts.pop("publisher.send_payload", 0.0) if side["sender_share"] else 0.0
    parts["outside the stages"] = side["outside_share"]
    text = f"{format_duration(side['batch_us'] / 1e6)} per batch: {_shares(parts.items())}"
    if sending:
        text += f"; its sender meanwhile: send_payload {sending:.1%}"
    return text


def _broker(side: BrokerSide) -> str:
    parts = [(name, part["share"]) for name, part in side["stages"].items()]
    return (
        f"{format_duration(side['batch_us'] / 1e6)} per batch: {_shares(parts)}; "
        f"accepting thread {side['busy_share']:.1%} busy"
    )


def _connections(reached: Connections) -> str:
    return (
        f"{reached['count']} x {format_rate(reached['bytes_per_second'])} = "
        f"{format_rate(reached['theoretical_bytes_per_second'])} if each had a CPU, "
        f"{format_rate(reached['actual_bytes_per_second'])} actual: "
        f"efficiency {reached['efficiency']:.2g}, "
        f"serialisation factor {reached['serialisation_factor']:.1f}"
    )


def _shares(parts: Iterable[tuple[str, float]]) -> str:
    shown = sorted((part for part in parts if part[1] >= _NOT_SHOWN), key=lambda part: -part[1])
    return ", ".join(f"{name.partition('.')[2] or name} {share:.1%}" for name, share in shown)
