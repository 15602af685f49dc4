"""Prints the doctor's report for people. Like `render`: computes nothing but its presentation.

A block per check rather than a row: sentences need the whole width, and a command must stay on one
line to be copied.
"""

from __future__ import annotations

from itertools import groupby
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from embar_shm.doctor import VERDICTS, Check, Report, Verdict
from embar_shm.units import format_size

__all__ = ["report"]

_STYLES: Final[dict[Verdict, str]] = {
    "ok": "green",
    "note": "cyan",
    "warning": "yellow",
    "problem": "bold red",
    "unknown": "magenta",
}
_WORST_FIRST: Final[tuple[Verdict, ...]] = ("problem", "warning", "note", "unknown")
_INDENT: Final = 2
_NAME: Final = _INDENT + max(map(len, VERDICTS)) + 2  # the column in which names begin
_WIDTH: Final = 100  # longer lines of text are hard to read, however wide the terminal is


def report(found: Report) -> None:
    """Every check by group, then what is not ok."""
    console = Console(highlight=False, soft_wrap=False)
    console.width = min(console.width, _WIDTH) if console.is_terminal else _WIDTH
    console.print(_introduction(found))
    # Text, never markup: values come from files and may have brackets.
    name_width = max(len(check.name) for check in found.checks)
    for group, checks in groupby(found.checks, key=lambda check: check.group):
        console.print(Text(f"\n{group}", "bold"))
        for check in checks:
            _block(console, check, name_width)
    console.print(_conclusion(found))


def _block(console: Console, check: Check, name_width: int) -> None:
    head = Text(" " * _INDENT)
    head.append(check.verdict.ljust(_NAME - _INDENT), _STYLES[check.verdict])
    value = "?" if check.verdict == "unknown" else check.value
    head.append(check.name.ljust(name_width), "bold").append(f"  {value}")
    console.print(head, soft_wrap=True)
    console.print(Padding(Text(check.why), (0, 0, 0, _NAME), expand=False))
    if check.fix is not None:
        command = Text(" " * _NAME).append("$ ", "dim").append(check.fix, "bold")
        console.print(command, soft_wrap=True)


def _introduction(found: Report) -> Text:
    run = found.run
    return Text(
        "What this machine means for embar-shm, which moves batches of messages between processes. "
        f"The default run has {run.brokers} brokers and {run.publishers} publishers; each broker "
        f"has {run.slots} slots of {format_size(run.batch_bytes)} in shared memory. Lines that "
        "begin with $ are commands that change something; this command changes nothing."
    )


def _conclusion(found: Report) -> Text:
    text = Text(f"\n{len(found.checks)} checks, {found.summary['ok']} of them ok.\n")
    for verdict in _WORST_FIRST:
        names = [check.name for check in found.checks if check.verdict == verdict]
        if names:
            text.append(verdict, _STYLES[verdict])
            text.append(f" ({VERDICTS[verdict]}): {', '.join(names)}\n")
    if any(check.fix for check in found.checks):
        text.append(
            "Most changes last until the next boot, those of a shell until it ends; "
            "docs/doctor.md tells how to keep them.\n"
        )
    if found.default_run_possible:
        return text.append("The default run is possible here.", "green")
    return text.append("The default run cannot work here.", "bold red")
