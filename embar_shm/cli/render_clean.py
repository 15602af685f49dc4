"""Prints what was removed, and why the rest was not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.text import Text

from embar_shm.cli.console import open_console
from embar_shm.doctor.report import about
from embar_shm.inspection.cleaning import Action, Cleaned
from embar_shm.inspection.text import printable

__all__ = ["cleaned"]

_STYLES: Final[dict[Action, str]] = {"removed": "green", "would remove": "cyan", "kept": "yellow"}


def cleaned(done: Sequence[Cleaned]) -> None:
    """A line for each segment, and how much memory came back."""
    console = open_console()
    for one in done:
        line = Text(one.action, _STYLES[one.action])
        line.append(f" {printable(one.segment.title)}", "bold").append(f": {printable(one.why)}")
        console.print(line, soft_wrap=True)
    gone = [one.segment.allocated_bytes for one in done if one.action != "kept"]
    would = any(one.action == "would remove" for one in done)
    verb = "would be removed" if would else "removed"
    noun = "segment" if len(gone) == 1 else "segments"
    console.print(f"{len(gone)} {noun} {verb}, {about(sum(gone))} of memory")
