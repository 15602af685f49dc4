"""The command line: ``embar-shm COMMAND``.

One module per command; commands compute, `render` prints. Data goes to stdout, progress and errors
to stderr. Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 integrity, 130 interrupted,
143 terminated.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType
from typing import Final, NoReturn, cast

import click

from embar_shm.errors import EmbarError

__all__ = ["cli", "main"]


# In the order of the help. `embar_shm.cli.NAME` has the command `NAME_command`: imported when it is
# used, because brokers shall start quickly, and what `run` needs takes longer than they do.
_COMMANDS: Final = (
    "run",
    "broker",
    "publish",
    "subscribe",
    "compare",
    "ls",
    "top",
    "fsck",
    "clean",
    "evict",
    "config",
    "doctor",
)


class _Commands(click.Group):
    """The commands, each in a module of its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"embar_shm.cli.{cmd_name}")
        return cast(click.Command, getattr(module, f"{cmd_name}_command"))


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="embar-shm", prog_name="embar-shm")
def cli() -> None:
    """Move batches between processes at memory speed, and see what limits them."""


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
