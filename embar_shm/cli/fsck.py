"""``embar-shm fsck``: do the words of a ring fit together?"""

from __future__ import annotations

import json
import sys

import click

from embar_shm.cli import render_fsck
from embar_shm.errors import IntegrityError
from embar_shm.inspection import files
from embar_shm.inspection.fsck import check

__all__ = ["fsck_command"]

_SCHEMA = "embar-shm.fsck/1"


@click.command("fsck")
@click.argument("names", metavar="[CLUSTER/BROKER]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All segments of this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: docs/operating.md.")
def fsck_command(names: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Check what must hold in a ring, whoever died in it. Changes nothing, dead or alive.

    Looks at the header, the broker's words, every ticket, slot word, row and batch header. While a
    broker is at work it looks several times, and tells what stays.

    Exit code 3 when something is wrong, 1 when a segment could not be checked.
    """
    if bool(names) == everything:
        raise click.UsageError("give either the names of segments or --all")
    found = [files.ring_named(name) for name in names]
    if everything:
        found = [file for file in files.segment_files() if file.ring is not None]
    done = files.looked_at(found, check, named=bool(names))
    if as_json:
        listed = [checked.as_json() for checked in done]
        click.echo(json.dumps({"schema": _SCHEMA, "segments": listed}, indent=2))
    else:
        render_fsck.checked(done)
    sys.stdout.flush()
    verdicts = {checked.verdict for checked in done}
    if "damaged" in verdicts:
        sys.exit(IntegrityError.exit_code)
    if "not checked" in verdicts:
        sys.exit(1)
