"""Prints what brokers in the foreground have to say."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from embar_shm.cli.console import open_console

__all__ = ["ended", "goes_on", "json_line", "ready", "recovered"]


def ready(addresses: Sequence[str]) -> None:
    """Where publishers can connect, a line each."""
    console = open_console()
    for address in addresses:
        console.print(f"ready: {address}", markup=False, soft_wrap=True)
    sys.stdout.flush()


def recovered(name: str, recovery: Mapping[str, Any]) -> None:
    """What a broker found in the ring that it took over."""
    console = open_console()
    console.print(
        f"recovered: {name}, broker {recovery['epoch']}, in {1e3 * recovery['seconds']:.1f} ms: "
        f"{recovery['accepted']:,} batches in the log, {recovery['unread']:,} of them in the ring, "
        f"{recovery['unaccepted']:,} more committed; {recovery['publishers']} publishers and "
        f"{recovery['subscribers']} subscribers connected",
        markup=False,
        soft_wrap=True,
    )
    if recovery["redone"]:
        finished = ", ".join(recovery["redone"])
        console.print(f"recovered: finished or undone: {finished}", markup=False, soft_wrap=True)
    for note in recovery["notes"]:
        console.print(f"recovered: {note}", markup=False, soft_wrap=True)
    sys.stdout.flush()


def goes_on(name: str, seconds: float, since_start: float) -> None:
    """The first batch after that."""
    open_console().print(
        f"goes on: {name} accepted its first batch {1e3 * seconds:.0f} ms after it began to "
        f"recover, {1e3 * since_start:.0f} ms after its process was started",
        markup=False,
        soft_wrap=True,
    )
    sys.stdout.flush()


def ended(stats: Mapping[str, Any], name: str | None = None) -> None:
    """What a broker did, from its counters. `name`: one of several."""
    console = open_console()
    if name is not None:
        console.print(name, markup=False)
    console.print(
        f"accepted {stats['messages']:,} messages in {stats['batches']:,} batches, "
        f"{stats['payload_bytes'] / 1e9:,.3f} GB"
    )
    refused = {name: stats[name] for name in ("duplicated", "out_of_order", "corrupt")}
    if any(refused.values()):
        found = ", ".join(f"{count:,} {name}" for name, count in refused.items())
        console.print(f"[yellow]did not accept:[/yellow] {found.replace('_', ' ')} batches")
    if stats["reaped_subscribers"]:
        console.print(f"{stats['reaped_subscribers']:,} subscribers died without closing")
    if stats["reaped_publishers"]:
        console.print(
            f"{stats['reaped_publishers']:,} publishers died without closing; "
            f"{stats['reaped_slots']:,} slots of theirs were given back"
        )
    sys.stdout.flush()


def json_line(found: Mapping[str, Any]) -> None:
    """One object for programs, at once."""
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
