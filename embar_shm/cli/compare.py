"""``embar-shm compare``: the same work over several transports."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import click

from embar_shm.bench.compare import compare, configurations
from embar_shm.cli import render, render_compare
from embar_shm.cli.options import config_options_without, load_from_flags
from embar_shm.cli.output import check_writable, replace
from embar_shm.config.loader import Parameter

__all__ = ["compare_command"]

_DEFAULT: Final = "shm,tcp"
_FLAG: Final = "flag --transports"


@click.command("compare")
@click.option(
    "--transports",
    "names",
    metavar="NAME,NAME",
    help=f"What to compare: two or more transports. Default: {_DEFAULT}.",
)
@click.option(
    "--repeat",
    "rounds",
    type=click.IntRange(min=1),
    metavar="N",
    default=5,
    show_default=True,
    help="Rounds; in each one every transport runs once.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON, only that.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the comparison as JSON into this file.",
)
@config_options_without("transport", "connect")
def compare_command(
    names: str | None, rounds: int, as_json: bool, output: Path | None, **flags: Any
) -> None:
    """Run a workload over several transports and answer: is it the code or the network?

    Each round runs every transport once, in turn, with the same parameters; without options that is
    the workload of `embar-shm run`. `transport` in a file or in the environment has no effect. When
    a run fails, the comparison fails, exits non-zero and writes nothing.
    """
    config = load_from_flags(flags)
    origin = "default of compare" if names is None else _FLAG
    wanted = [name.strip() for name in (names or _DEFAULT).split(",")]
    configs = configurations(config, wanted, origin)
    if output is not None:
        check_writable(output)
    warnings = []
    if (ignored := config.origins["transport"]) != "default":
        warnings.append(
            f"transport {config.values.transport} ({ignored}) has no effect here: --transports "
            "names what is compared"
        )
    if not as_json:
        compared: Parameter = {"value": ", ".join(wanted), "origin": origin}
        render.parameters(config.parameters() | {"transport": compared})
    with render.progress() as on_progress:
        comparison = compare(configs, rounds, on_progress, warnings=warnings)
    text = json.dumps(comparison, indent=2)
    if as_json:
        click.echo(text)
    else:
        render_compare.comparison(comparison)
    sys.stdout.flush()
    if output is not None:
        replace(output, text + "\n")
