"""Prints what a scenario adds to a result: readers, latencies, a failure. Computes nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from embar_shm.bench.delivery import Phases, Rate, Subscriber
from embar_shm.bench.failure import Failure, Sample
from embar_shm.bench.latency import Latency, Percentiles
from embar_shm.bench.result import Result
from embar_shm.units import format_duration, format_rate

__all__ = ["summary", "tables"]

_LATENCIES: Final = {
    "send_delay": "sent",
    "publish_to_ack": "acknowledged",
    "publish_to_deliver": "in a subscriber's hands",
}
_PERCENTILES: Final = ("p50_ns", "p90_ns", "p99_ns", "p99_9_ns", "max_ns")
_MOST_SUBSCRIBERS: Final = 8  # rows; of more, those with the fewest messages are shown
_BAR: Final = 40  # characters of the highest bar of a time series


def tables(console: Console, found: Result) -> None:
    """What comes before the summary."""
    if "latency" in found:
        console.print(_latency(found["latency"]))
    if found.get("subscribers"):
        console.print(_subscribers(found["subscribers"]))
    if "failure" in found:
        console.print(_series(found["failure"]))


def summary(table: Table, found: Result) -> None:
    """Adds lines to the summary."""
    if "phases" in found and found["phases"]["rounds"] > 1:
        table.add_row("rounds", _rounds(found["phases"]))
    if "subscribe" in found:
        table.add_row("subscribers", _rate(found["subscribe"]))
    if "end_to_end" in found:
        table.add_row("end to end", _rate(found["end_to_end"]))
    if "latency" in found:
        table.add_row("rate", _reached(found["latency"]))
    if "failure" in found:
        for name, text in _failure(found["failure"]):
            table.add_row(name, text)
    if "verified" in found:
        v = found["verified"]
        text = f"{v['messages']:,} messages by checksum and number: no fault"
        if v["resent"]:
            text += f"; {v['resent']:,} were sent again"
        if v["overrun"]:
            text += f"; {v['overrun']:,} were skipped where a gap was announced"
        table.add_row("verified", text)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for n, column in enumerate(columns):
        table.add_column(column, justify="left" if n == 0 else "right", overflow="fold")
    return table


def _latency(found: Latency) -> Table:
    names = [name.removeprefix("p").removesuffix("_ns").replace("_", ".") for name in _PERCENTILES]
    columns = [name if name == "max" else f"p{name}" for name in names]
    table = _table("Latency, from when a message was due until it was", ["", "count", *columns])
    values: dict[str, Percentiles | None] = {
        "send_delay": found["send_delay"],
        "publish_to_ack": found["publish_to_ack"],
        "publish_to_deliver": found["publish_to_deliver"],
    }
    for name, what in _LATENCIES.items():
        one = values[name]
        if one is None:
            continue
        numbers = (one["p50_ns"], one["p90_ns"], one["p99_ns"], one["p99_9_ns"], one["max_ns"])
        shown = [format_duration(ns / 1e9) for ns in numbers]
        table.add_row(what, f"{one['count']:,}", *shown)
    return table


def _subscribers(found: list[Subscriber]) -> Table:
    columns = ("subscriber", "messages", "batches", "batches lost", "held in the end", "waits")
    table = _table("Subscribers", columns)
    for one in sorted(found, key=lambda s: s["messages"])[:_MOST_SUBSCRIBERS]:
        table.add_row(
            one["name"],
            *(f"{one[field]:,}" for field in ("messages", "batches", "lost", "held", "waits")),
        )
    if (left := len(found) - _MOST_SUBSCRIBERS) > 0:
        table.caption = f"  and {left} that read no less\n"
        table.caption_justify = "left"
        table.caption_style = ""
    return table


def _series(found: Failure) -> Table:
    table = _table("Throughput around the failure", ["after", "accepted", ""])
    highest = max((s["bytes_per_second"] for s in found["series"]), default=0.0)
    before = 0.0
    for sample in found["series"]:
        marks = [
            word
            for word, moment in (
                ("killed", found["failed_seconds"]),
                ("replaced", found["replaced_seconds"]),
                ("recovered", found["recovered_seconds"]),
            )
            if before < moment <= sample["seconds"]
        ]
        before = sample["seconds"]
        table.add_row(
            format_duration(sample["seconds"]),
            format_rate(sample["bytes_per_second"]),
            f"{_bar(sample, highest)} {', '.join(marks)}",
        )
    table.columns[2].justify = "left"
    return table


def _bar(sample: Sample, highest: float) -> str:
    return "#" * round(_BAR * sample["bytes_per_second"] / highest) if highest else ""


def _rounds(found: Phases) -> str:
    return (
        f"{found['rounds']:,}: the rings do not hold all at once, so they were filled and read in "
        f"turn; {format_duration(found['publish_seconds'])} of publishing and "
        f"{format_duration(found['read_seconds'])} of reading in all"
    )


def _rate(found: Rate) -> str:
    return (
        f"[bold]{format_rate(found['bytes_per_second'])}[/bold], "
        f"{found['messages_per_second'] / 1e6:.2f} million messages/s: {found['messages']:,} "
        f"messages in {format_duration(found['seconds'])}"
    )


def _reached(found: Latency) -> str:
    return f"{found['rate_asked']:,.0f} messages/s asked, {found['rate_reached']:,.0f} reached"


def _failure(found: Failure) -> list[tuple[str, str]]:
    lost = found["lost_acknowledged"]
    return [
        (
            "failure",
            f"broker {found['broker']} killed after {format_duration(found['failed_seconds'])}; "
            f"[bold]{format_duration(found['recovery_seconds'])}[/bold] until its successor had "
            "acknowledged a batch",
        ),
        (
            "its messages",
            f"{found['acknowledged']:,} acknowledged before, {found['sent_again']:,} sent again, "
            f"{found['delivered_again']:,} of them read twice",
        ),
        (
            "lost with its log",
            f"{lost:,} messages: acknowledged, but in nobody's hands"
            if lost
            else "none: what was acknowledged had been read",
        ),
    ]
