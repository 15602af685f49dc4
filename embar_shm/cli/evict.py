"""``embar-shm evict``: ends a process that is alive and does not get on."""

from __future__ import annotations

import json
import sys

import click

from embar_shm.cli import render_evict
from embar_shm.errors import EmbarError
from embar_shm.inspection import files
from embar_shm.inspection.eviction import evict, plan
from embar_shm.inspection.segments import opened

__all__ = ["evict_command"]

_SCHEMA = "embar-shm.evict/1"


@click.command("evict")
@click.argument("name", metavar="CLUSTER/BROKER")
@click.argument("participant", nargs=-1, required=True)
@click.option(
    "--grace",
    type=click.FloatRange(min=0, max=3600),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Time to end in order after SIGTERM, before SIGKILL. A stopped process gets none.",
)
@click.option("--yes", is_flag=True, help="Do not ask. Needed where there is no terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: docs/operating.md.")
def evict_command(
    name: str, participant: tuple[str, ...], grace: float, yes: bool, as_json: bool
) -> None:
    """End the process of a stuck participant, and see that what it held comes back.

    \b
        embar-shm evict demo/0 publisher 3
        embar-shm evict demo/0 subscriber 0
        embar-shm evict demo/0 4711            # a pid
        embar-shm evict demo/0 my-subscriber   # its name
        embar-shm evict demo/0 broker

    Nothing is taken from a process that is alive: it is ended, by SIGTERM and then SIGKILL, and the
    broker frees its slots once the kernel says that it is gone. Which process that is, the kernel
    tells, too: the one that holds the lock of that row.

    Exit code 1 when the broker is alive and has not freed them.
    """
    file = files.ring_named(name)
    try:
        segment = opened(file)
    except FileNotFoundError:
        raise files.no_such_segment(file) from None
    with segment:
        agreed = plan(segment, " ".join(participant))
        if not yes:
            if not sys.stdin.isatty():
                raise click.UsageError(
                    f"evict would end process {agreed.pid}; without a terminal to ask on it "
                    "needs --yes"
                )
            render_evict.planned(agreed)
            if not click.confirm(f"End process {agreed.pid}?", err=True):
                raise EmbarError("nothing was done")
        done = evict(segment, agreed, grace)
    if as_json:
        click.echo(json.dumps({"schema": _SCHEMA, **done.as_json()}, indent=2))
    else:
        render_evict.evicted(done)
    sys.stdout.flush()
    if done.broker_alive and not done.reaped and "broker" not in done.rows:
        sys.exit(1)
