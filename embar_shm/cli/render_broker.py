"""Prints what a broker in the foreground has to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from embar_shm.cli.render import open_console

__all__ = ["ended", "ready"]


def ready(addresses: Sequence[str]) -> None:
    """Where publishers can connect, a line each."""
    console = open_console()
    for address in addresses:
        console.print(f"ready: {address}", markup=False)


def ended(stats: Mapping[str, int]) -> None:
    """What the broker did, from its counters."""
    console = open_console()
    console.print(
        f"accepted {stats['messages']:,} messages in {stats['batches']:,} batches, "
        f"{stats['payload_bytes'] / 1e9:,.3f} GB"
    )
    refused = {name: stats[name] for name in ("duplicated", "out_of_order", "corrupt")}
    if any(refused.values()):
        found = ", ".join(f"{count:,} {name}" for name, count in refused.items())
        console.print(f"[yellow]did not accept:[/yellow] {found.replace('_', ' ')} batches")
    if stats["reaped_publishers"]:
        console.print(
            f"{stats['reaped_publishers']:,} publishers died without closing; "
            f"{stats['reaped_slots']:,} slots of theirs were given back"
        )
