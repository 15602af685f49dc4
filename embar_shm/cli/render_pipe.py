"""Prints what ``embar-shm publish`` and ``embar-shm subscribe`` have to say, on stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TextIO

import click
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TransferSpeedColumn,
)

from embar_shm.cli.console import open_console
from embar_shm.units import format_duration, format_rate, format_size

__all__ = ["Gaps", "progress", "published", "subscribed"]


@contextmanager
def progress(
    what: str, total_bytes: int | None, shown: bool = True
) -> Iterator[Callable[[int, int], None]]:
    """Gives a function for messages and bytes so far. Shows them when stderr is a terminal.

    Not `shown`: never, because the messages themselves go to that terminal.
    """
    console = open_console(stderr=True)
    columns: list[ProgressColumn] = [TextColumn("{task.description}")]
    if total_bytes:
        columns.append(BarColumn())
    bar = Progress(
        *columns,
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    )
    with bar:
        task = bar.add_task(what, total=total_bytes)

        def show(messages: int, nbytes: int) -> None:
            bar.update(task, description=f"{what} {messages:,} messages", completed=nbytes)

        yield show


class Gaps:
    """Tells which batches were lost, once a second at most: who is overrun is so again and again.

    A context manager: what was not told yet is told at its end.
    """

    def __init__(self) -> None:
        self._lost = self._before = 0
        self._told_at = -math.inf

    def add(self, lost: int, ticket: int) -> None:
        """So many batches before that ticket."""
        self._lost += lost
        self._before = ticket
        if time.monotonic() - self._told_at >= 1:
            self._tell()

    def _tell(self) -> None:
        lost = _count(self._lost, "batch", "batches")
        click.echo(f"lost {lost} before ticket {self._before}: overwritten before read", err=True)
        self._lost = 0
        self._told_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._lost:
            self._tell()


def subscribed(found: Mapping[str, Any], as_json: bool, file: TextIO | None) -> None:
    """The summary of a subscriber; JSON goes to `file`, None: stderr."""
    if as_json:
        click.echo(json.dumps(found), file, err=file is None)
        return
    click.echo(_amount("read", found), err=True)
    if lost := found["lost_batches"]:
        click.echo(f"lost: {_count(lost, 'batch', 'batches')}", err=True)


def published(found: Mapping[str, Any], as_json: bool) -> None:
    """The summary of a publisher."""
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
        return
    lines = [_amount("published", found)]
    acknowledged, batches = found["acknowledged_batches"], found["batches"]
    if acknowledged is not None and acknowledged < batches:
        lines.append(f"acknowledged: {acknowledged:,} of {_count(batches, 'batch', 'batches')}")
    if skipped := found["skipped_empty_lines"]:
        lines.append(f"skipped: {_count(skipped, 'empty line')}")
    if left := found["left_over_bytes"]:
        lines.append(f"not published: {_count(left, 'byte')} of a message whose end was not read")
    for line in lines:
        click.echo(line, err=True)


def _amount(what: str, found: Mapping[str, Any]) -> str:
    return (
        f"{what} {_count(found['messages'], 'message')}, "
        f"{format_size(found['payload_bytes'])}, in {_count(found['batches'], 'batch', 'batches')} "
        f"and {format_duration(found['elapsed_seconds'])}: "
        f"{found['messages_per_second']:,.0f} messages/s, {format_rate(found['bytes_per_second'])}"
    )


def _count(number: int, what: str, several: str | None = None) -> str:
    return f"{number:,} {what if number == 1 else several or what + 's'}"
