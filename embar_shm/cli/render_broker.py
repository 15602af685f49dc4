"""Prints what brokers in the foreground have to say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

__all__ = ["ended", "goes_on", "json_line", "ready", "recovered"]


def ready(addresses: Sequence[str]) -> None:
    """Where publishers can connect, a line each."""
    for address in addresses:
        click.echo(f"ready: {address}")


def recovered(name: str, recovery: Mapping[str, Any]) -> None:
    """What a broker found in the ring that it took over."""
    click.echo(
        f"recovered: {name}, broker {recovery['epoch']}, in {1e3 * recovery['seconds']:.1f} ms: "
        f"{recovery['accepted']:,} batches in the log, {recovery['unread']:,} of them in the ring, "
        f"{recovery['unaccepted']:,} more committed; {recovery['publishers']} publishers and "
        f"{recovery['subscribers']} subscribers connected"
    )
    if recovery["redone"]:
        finished = ", ".join(recovery["redone"])
        click.echo(f"recovered: finished or undone: {finished}")
    for note in recovery["notes"]:
        click.echo(f"recovered: {note}")


def goes_on(name: str, seconds: float, since_start: float) -> None:
    """The first batch after that."""
    click.echo(
        f"goes on: {name} accepted its first batch {1e3 * seconds:.0f} ms after it began to "
        f"recover, {1e3 * since_start:.0f} ms after its process was started"
    )


def ended(stats: Mapping[str, Any], name: str | None = None) -> None:
    """What a broker did, from its counters. `name`: one of several."""
    if name is not None:
        click.echo(name)
    click.echo(
        f"accepted {stats['messages']:,} messages in {stats['batches']:,} batches, "
        f"{stats['payload_bytes'] / 1e9:,.3f} GB"
    )
    refused = {name: stats[name] for name in ("duplicated", "out_of_order", "corrupt")}
    if any(refused.values()):
        found = ", ".join(f"{count:,} {name}" for name, count in refused.items())
        label = click.style("did not accept:", fg="yellow")
        click.echo(f"{label} {found.replace('_', ' ')} batches")
    if stats["reaped_subscribers"]:
        click.echo(f"{stats['reaped_subscribers']:,} subscribers died without closing")
    if stats["reaped_publishers"]:
        click.echo(
            f"{stats['reaped_publishers']:,} publishers died without closing; "
            f"{stats['reaped_slots']:,} slots of theirs were given back"
        )


def json_line(found: Mapping[str, Any]) -> None:
    """One object for programs, at once."""
    click.echo(json.dumps(found))
