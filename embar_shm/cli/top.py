"""``embar-shm top``: what the rings of this machine do, as they do it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence

import click

from embar_shm.cli import render_top
from embar_shm.cli.keys import Keys
from embar_shm.inspection import files
from embar_shm.inspection.files import SegmentFile
from embar_shm.inspection.sampling import Activity, activity, sample

__all__ = ["top_command"]

_SCHEMA = "embar-shm.top/1"


@click.command("top")
@click.argument("names", metavar="[CLUSTER/BROKER]...", nargs=-1)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.01, max=3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks.",
)
@click.option("--once", is_flag=True, help="Print what is done in one interval, and end.")
@click.option(
    "--count",
    type=click.IntRange(min=1),
    metavar="N",
    help="Print that of so many intervals, and end.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print an object per line; without --count one."
)
def top_command(
    names: tuple[str, ...], interval: float, once: bool, count: int | None, as_json: bool
) -> None:
    """Watch rings at work: rates, slots, the slowest subscriber, waits, losses, wake-ups.

    On a terminal a view that is drawn again every interval; q or Ctrl-C ends it. Elsewhere, and
    with --once, --count or --json, it prints. It reads the counters in shared memory: no lock is
    taken, nothing is written, and no slot is touched, so it costs the brokers nothing.
    """
    chosen = [files.ring_named(name) for name in names] if names else None
    if once and count is not None:
        raise click.UsageError("--once is --count 1: give one of them")
    if count is None and (once or as_json or not sys.stdout.isatty()):
        count = 1
    if count is None:
        _watch(chosen, interval)
        return
    for found in _intervals(chosen, interval, count):
        if as_json:
            click.echo(json.dumps({"schema": _SCHEMA, **found.as_json()}))
        else:
            render_top.printed(found)
        sys.stdout.flush()


def _intervals(
    chosen: Sequence[SegmentFile] | None, interval: float, count: int
) -> Iterator[Activity]:
    before = sample(chosen)
    for _ in range(count):
        time.sleep(interval)
        now = sample(chosen)
        yield activity(before, now)
        before = now


def _watch(chosen: Sequence[SegmentFile] | None, interval: float) -> None:
    before = sample(chosen)
    with Keys() as keys, render_top.live() as show:
        show(activity([], before))
        due = time.monotonic()
        while True:
            due = max(due + interval, time.monotonic())
            while (left := due - time.monotonic()) > 0:
                if keys.wait(left) in ("q", "Q"):
                    return
            now = sample(chosen)
            show(activity(before, now))
            before = now
