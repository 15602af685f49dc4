"""``embar-shm publish``: lines or records from a file or a pipe into a ring."""

from __future__ import annotations

import time
from typing import Any

import click

import embar_shm as es
from embar_shm.cli import render_pipe
from embar_shm.cli.connection import connection_options, connection_settings, seconds, size
from embar_shm.pipes.pacer import Pacer
from embar_shm.pipes.publishing import (
    Feed,
    LineFeed,
    OnProgress,
    RecordFeed,
    check_size,
)
from embar_shm.pipes.source import Source
from embar_shm.stopping import StopSignals

__all__ = ["publish_command"]


@click.command("publish")
@click.argument("address")
@click.argument("file", default="-")
@click.option(
    "--record-size",
    callback=size,
    metavar="SIZE",
    help="A message is so many bytes of the input, and not a line.",
)
@click.option(
    "--partial",
    is_flag=True,
    help="The last record may be shorter. Otherwise it is an error, and not published.",
)
@click.option(
    "--count", type=click.IntRange(min=1), metavar="N", help="Stop after so many messages."
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Messages per second, on a schedule that does not wait for the broker: who is late "
    "catches up. Time without input is not caught up. [default: as fast as possible]",
)
@click.option(
    "--batch-size",
    callback=size,
    metavar="SIZE",
    help="A batch is committed when no further message fits into so many bytes. "
    "[default: the broker's slot size]",
)
@click.option(
    "--linger-ms",
    "--linger",
    "linger_ms",
    type=click.FloatRange(min=0),
    metavar="MS",
    default=5.0,
    show_default=True,
    help="The longest time a message waits in a batch that does not fill up; 0: until the end.",
)
@click.option(
    "--ack",
    type=click.IntRange(0, 1),
    default=1,
    show_default=True,
    help="1: wait in the end until the broker has everything in its log; 0: do not.",
)
@click.option(
    "--timeout",
    callback=seconds,
    metavar="SECONDS",
    default="30",
    show_default=True,
    help="How long to wait for the broker: for space in the ring, for acknowledgements; 'none' for "
    "no limit. Input may take any time.",
)
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON, on stdout.")
def publish_command(
    address: str,
    file: str,
    record_size: int | None,
    partial: bool,
    count: int | None,
    rate: float | None,
    batch_size: int | None,
    linger_ms: float,
    ack: int,
    timeout: float | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Publish the lines of FILE, or of stdin, to the broker at ADDRESS.

    \b
        embar-shm publish shm://demo/0 events.log
        tail -f events.log | embar-shm publish shm://demo/0
        embar-shm publish tcp://HOST:7400 frames.bin --record-size 64KiB --token-file embar.token

    A line is published as it is, byte by byte, without its "\\n"; the last one may lack it. A
    message cannot be empty: empty lines are skipped, and counted. To keep each byte of the input,
    publish records.

    Ends with the input. On Ctrl-C or SIGTERM it reads no further, publishes the messages that it
    has read, waits until they are acknowledged, and exits with 130 or 143; part of a message, whose
    end it has not read, is not published, and the summary tells. A second Ctrl-C ends it at once.
    The summary goes to stderr.
    """
    if partial and record_size is None:
        raise click.UsageError("--partial has no effect without --record-size")
    settings = connection_settings(address, flags)
    with Source(file) as source:
        if record_size is not None and not partial:
            check_size(source, record_size, count)
        publisher = es.Publisher.connect(
            address,
            message_size=None if partial else record_size,
            batch_size=batch_size,
            ack=ack,
            linger_ms=linger_ms,
            timeout=timeout,
            **settings,
        )
        with StopSignals() as stop:  # from here on: Ctrl-C while it connects just ends it
            feed: Feed
            pacer = None if rate is None else Pacer(rate, stop.wait)
            if record_size is None:
                feed = LineFeed(source, publisher, stop, count=count, pacer=pacer)
            else:
                feed = RecordFeed(
                    source, publisher, stop, record_size, partial=partial, count=count, pacer=pacer
                )
            started = time.monotonic()
            try:
                with render_pipe.progress("published", source.size()) as on_progress, publisher:
                    _publish(feed, publisher, ack, on_progress)
            finally:
                render_pipe.published(
                    _summary(address, feed, publisher, ack, time.monotonic() - started), as_json
                )
    stop.take_effect()


def _publish(feed: Feed, publisher: es.Publisher, ack: int, on_progress: OnProgress) -> None:
    """Feeds, and sees to it that what was published is in the log, also when the input is bad."""
    try:
        feed.run(on_progress)
    except (es.PeerError, es.WaitTimeout):
        raise  # there is nobody to wait for
    except (es.EmbarError, OSError):
        _finish(publisher, ack)
        raise
    _finish(publisher, ack)


def _finish(publisher: es.Publisher, ack: int) -> None:
    publisher.flush()
    if ack:
        publisher.wait_acked()


def _summary(
    address: str, feed: Feed, publisher: es.Publisher, ack: int, seconds: float
) -> dict[str, Any]:
    stats = publisher.stats()
    return {
        "address": address,
        "messages": stats.messages,
        "payload_bytes": stats.payload_bytes,
        "batches": stats.committed,
        "acknowledged_batches": stats.accepted if ack else None,
        "skipped_empty_lines": feed.skipped,
        "left_over_bytes": feed.left_over,
        "elapsed_seconds": seconds,
        "messages_per_second": stats.messages / seconds,
        "bytes_per_second": stats.payload_bytes / seconds,
    }
