"""``embar-shm clean``: removes what dead brokers left, if nothing in it is wanted any more."""

from __future__ import annotations

import json
import sys

import click

from embar_shm.cli import render_clean
from embar_shm.inspection import files
from embar_shm.inspection.cleaning import clean

__all__ = ["clean_command"]

_SCHEMA = "embar-shm.clean/1"


@click.command("clean")
@click.argument("names", metavar="[CLUSTER/BROKER]...", nargs=-1)
@click.option(
    "--force",
    is_flag=True,
    help="Remove the named segments with batches that nobody has read, and quarantined or damaged "
    "ones. Never one in which a process is alive.",
)
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: docs/operating.md.")
def clean_command(names: tuple[str, ...], force: bool, dry_run: bool, as_json: bool) -> None:
    """Remove segments that are dead and drained; without names, all of them.

    Dead: the kernel says that no broker, publisher or subscriber of it is alive. Drained: every
    committed batch is accepted, and every accepted one is read. What has to stay, says why. A
    broker that died can be started again instead, with everything that is in its ring.

    Exit code 1 when a segment that was named is still there, or somebody else has removed it.
    """
    if force and not names:
        raise click.UsageError("--force needs the names of the segments to give up")
    found = [files.ring_named(name) for name in names] if names else files.segment_files()
    judged = [(file, clean(file, force=force, dry_run=dry_run)) for file in found]
    done = [cleaned for _, cleaned in judged if cleaned is not None]
    if as_json:
        listed = [cleaned.as_json() for cleaned in done]
        click.echo(
            json.dumps({"schema": _SCHEMA, "dry_run": dry_run, "segments": listed}, indent=2)
        )
    else:
        render_clean.cleaned(done)
    sys.stdout.flush()
    if names:
        for file, cleaned in judged:  # only now: what became of the others has to be told
            if cleaned is None:
                raise files.no_such_segment(file)
    if names and any(cleaned.action == "kept" for cleaned in done):
        sys.exit(1)
