"""``embar-shm run``: one workload over one transport."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from embar_shm.bench.coordinator import run
from embar_shm.bench.csvfile import append_row, check_file
from embar_shm.cli import render
from embar_shm.cli.options import config_options, load_from_flags
from embar_shm.cli.output import check_writable, replace

__all__ = ["run_command"]


@click.command("run")
@config_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and only that.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the result as JSON into this file.",
)
@click.option(
    "--csv",
    "csv_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Append the result as one row to this CSV file.",
)
def run_command(as_json: bool, output: Path | None, csv_path: Path | None, **flags: Any) -> None:
    """Run a workload and print what it reached, as a number and as a share of the machine's limit.

    Starts the brokers and publishers as processes of their own. Without options it is the
    workload of the report: 4 brokers, 12 publishers, 10 GiB in messages of 1 KiB. A run that fails
    exits non-zero and writes no result.
    """
    config = load_from_flags(flags)
    for path in (output, csv_path):
        if path is not None:
            check_writable(path)
    if csv_path is not None:
        check_file(csv_path)
    if not as_json:
        render.parameters(config.parameters())
    with render.progress() as on_progress:
        result = run(config, on_progress)
    text = json.dumps(result, indent=2)
    if as_json:
        click.echo(text)
    else:
        render.result(result)
    sys.stdout.flush()
    if output is not None:
        replace(output, text + "\n")
    if csv_path is not None:
        append_row(csv_path, result)
