"""The command line: ``embar-shm COMMAND``.

One module per command; commands compute, `render` prints. Data goes to stdout, progress and errors
to stderr. Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 integrity, 130 interrupted,
143 terminated.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import click

from embar_shm.cli.broker import broker_command
from embar_shm.cli.compare import compare_command
from embar_shm.cli.config import config_command
from embar_shm.cli.doctor import doctor_command
from embar_shm.cli.publish import publish_command
from embar_shm.cli.run import run_command
from embar_shm.cli.subscribe import subscribe_command
from embar_shm.errors import EmbarError

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="embar-shm", prog_name="embar-shm")
def cli() -> None:
    """Move batches between processes at memory speed, and see what limits them."""


cli.add_command(run_command)
cli.add_command(broker_command)
cli.add_command(publish_command)
cli.add_command(subscribe_command)
cli.add_command(compare_command)
cli.add_command(config_command)
cli.add_command(doctor_command)


def main() -> NoReturn:
    """Runs a command and exits with its code; an error becomes one message on stderr."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        cli.main(standalone_mode=False)
    except EmbarError as error:
        click.echo(f"embar-shm: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("embar-shm: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        click.echo(f"embar-shm: {error}", err=True)
        sys.exit(1)
    sys.exit(0)


def _terminated(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # through the 'finally' and 'with' blocks, which clean up
