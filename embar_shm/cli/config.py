"""``embar-shm config show``: the configuration a run would have."""

from __future__ import annotations

import json
from typing import Any

import click

from embar_shm.cli import render
from embar_shm.cli.options import config_options, load_from_flags

__all__ = ["config_command"]


@click.group("config")
def config_command() -> None:
    """Look at the configuration."""


@config_command.command("show")
@config_options
@click.option("--origin", is_flag=True, help="Also tell where each value came from.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with origins.")
def show(origin: bool, as_json: bool, **flags: Any) -> None:
    """Print every parameter that `run` would use with the same options."""
    parameters = load_from_flags(flags).parameters()
    if as_json:
        click.echo(json.dumps(parameters, indent=2))
    else:
        render.parameters(parameters, origins=origin)
