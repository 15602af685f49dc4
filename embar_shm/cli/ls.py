"""``embar-shm ls``: the segments of this machine, who is in them, and who holds what."""

from __future__ import annotations

import json
import sys

import click

from embar_shm.cli import render_ls
from embar_shm.inspection import files
from embar_shm.inspection.segments import examine

__all__ = ["ls_command"]

_SCHEMA = "embar-shm.ls/1"


@click.command("ls")
@click.argument("names", metavar="[CLUSTER/BROKER]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: docs/operating.md.")
def ls_command(names: tuple[str, ...], as_json: bool) -> None:
    """List the segments in /dev/shm: state, owner, size, age, who takes part, what is unread.

    With names, these in detail: every participant, and who holds which slot for how long. Alive is
    who holds its lock in the kernel. Looks only: changes nothing, and costs the brokers nothing.
    """
    found = files.segment_files() if not names else [files.ring_named(name) for name in names]
    segments = files.looked_at(found, examine, named=bool(names))
    if as_json:
        listed = [segment.as_json() for segment in segments]
        click.echo(json.dumps({"schema": _SCHEMA, "segments": listed}, indent=2))
    elif names:
        render_ls.details(segments)
    else:
        render_ls.overview(segments)
    sys.stdout.flush()
