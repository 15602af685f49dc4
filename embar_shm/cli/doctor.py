"""``embar-shm doctor``: what of this machine helps or hinders a run."""

from __future__ import annotations

import json
import sys

import click

from embar_shm.cli import render_doctor
from embar_shm.config.schema import RunConfig
from embar_shm.doctor import Machine, examine
from embar_shm.units import format_size, parse_size

__all__ = ["doctor_command"]

_DEFAULT = format_size(RunConfig().batch_size)


def _size(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command("doctor")
@click.option(
    "--batch-size",
    metavar="SIZE",
    callback=_size,
    default=_DEFAULT,
    help=f"Judge the machine for batches of this size. Default: {_DEFAULT}.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def doctor_command(batch_size: int, as_json: bool) -> None:
    """Look at this machine: what limits a run here, why it matters, and how to change it.

    Changes nothing itself. Exits with 1 only if the default run (`embar-shm run` without options)
    cannot work here; notes and warnings are no failure.
    """
    report = examine(Machine(), batch_size)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        render_doctor.report(report)
    sys.stdout.flush()
    if not report.default_run_possible:
        sys.exit(1)
