"""``embar-shm subscribe``: what is published, to stdout or into a file."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import click

import embar_shm as es
from embar_shm.cli import render_pipe
from embar_shm.cli.connection import connection_options, connection_settings, seconds
from embar_shm.cli.output import check_writable
from embar_shm.pipes.output import Output
from embar_shm.pipes.subscribing import Drain
from embar_shm.pipes.writers import FORMATS
from embar_shm.stopping import StopSignals

__all__ = ["subscribe_command"]

_POSITION = re.compile(r"(?:([0-9]{1,20}):)?([0-9]{1,20})", re.ASCII)


def _start(_ctx: click.Context, _param: click.Parameter, value: str) -> str | int | es.Position:
    if value in ("latest", "earliest"):
        return value
    match = _POSITION.fullmatch(value)
    if match is None:
        raise click.BadParameter(
            f"{value!r} is neither 'latest' nor 'earliest', a ticket, nor LOG:TICKET"
        )
    ticket = int(match[2])
    return ticket if match[1] is None else es.Position(int(match[1]), ticket)


@click.command("subscribe")
@click.argument("address")
@click.option(
    "--output",
    default="-",
    metavar="FILE",
    help="Write into this file, which is emptied first. [default: stdout]",
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(list(FORMATS)),
    default="lines",
    show_default=True,
    help="lines: each message and a newline; raw: the messages and nothing else; json: an object "
    "for each message, with its ticket, publisher, seq, index in the batch, and text or base64.",
)
@click.option(
    "--count", type=click.IntRange(min=1), metavar="N", help="Stop after so many messages."
)
@click.option(
    "--start",
    callback=_start,
    metavar="WHERE",
    default="latest",
    show_default=True,
    help="latest: what is published from now on; earliest: what is in the ring still; TICKET; or "
    "LOG:TICKET, the position of a summary, which a broker that was started anew refuses.",
)
@click.option(
    "--mode",
    type=click.Choice(["reliable", "lossy"]),
    default="reliable",
    show_default=True,
    help="reliable: no batch is lost, publishers wait for it when it is slow; lossy: nobody waits, "
    "and batches that are overwritten before it reads them are told on stderr, and counted.",
)
@click.option("--name", help="How the broker and those who wait call it. [default: embar-shm]")
@click.option(
    "--timeout",
    callback=seconds,
    metavar="SECONDS",
    default="none",
    show_default=True,
    help="How long to wait for a batch; exit code 1 when none comes.",
)
@connection_options
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="The summary as JSON; with --output on stdout, otherwise on stderr.",
)
def subscribe_command(
    address: str,
    output: str,
    format_name: str,
    count: int | None,
    start: Any,
    mode: Any,
    name: str | None,
    timeout: float | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Write what is published to the broker at ADDRESS to stdout, or into a file.

    \b
        embar-shm subscribe shm://demo/0
        embar-shm subscribe shm://demo/0 --start earliest --format json | jq .text
        embar-shm subscribe shm://demo/0 --format raw --count 1000 --output frames.bin

    Ends when the broker has stopped in order and everything is read. On Ctrl-C or SIGTERM it writes
    the batch it has in hand, and exits with 130 or 143. It ends, quietly and with 0, when nobody
    reads its output any more (| head). The summary goes to stderr.
    """
    settings = connection_settings(address, flags)
    if output != "-":
        _check_writable(output)
    subscriber = es.Subscriber.connect(
        address, start=start, mode=mode, name=name or "embar-shm", **settings
    )
    with subscriber, Output(output) as written:
        drain = Drain(subscriber, written, FORMATS[format_name], count=count, timeout=timeout)
        shown = output != "-" or not sys.stdout.isatty()
        with StopSignals(subscriber.interrupt) as stop:
            try:
                with (
                    render_pipe.Gaps() as gaps,
                    render_pipe.progress("read", None, shown) as on_progress,
                ):
                    drain.run(stop, on_progress, gaps.add)
            finally:
                if as_json or not drain.reader_is_gone:
                    found = _summary(address, drain, subscriber)
                    render_pipe.subscribed(found, as_json, sys.stdout if output != "-" else None)
    stop.take_effect()


def _check_writable(output: str) -> None:
    """Before it connects; a FIFO has a reader that would take this for the end."""
    path = Path(output)
    if path.exists() and not path.is_file():
        return
    try:
        check_writable(path)
    except OSError as error:
        raise es.ConfigurationError(
            f"{output} cannot be written: {error.strerror or error}"
        ) from error


def _summary(address: str, drain: Drain, subscriber: es.Subscriber) -> dict[str, Any]:
    position = subscriber.position
    elapsed = 0.0 if drain.first_at is None else time.monotonic() - drain.first_at
    return {
        "address": address,
        "mode": subscriber.mode,
        "messages": drain.messages,
        "payload_bytes": drain.payload_bytes,
        "batches": drain.batches,
        "lost_batches": drain.lost,
        # The rest of a batch that `count` has cut comes again from there, rather than never.
        "position": f"{position.log}:{position.ticket if drain.cut_at is None else drain.cut_at}",
        "elapsed_seconds": elapsed,  # since the first batch
        "messages_per_second": drain.messages / elapsed if elapsed else 0.0,
        "bytes_per_second": drain.payload_bytes / elapsed if elapsed else 0.0,
    }
