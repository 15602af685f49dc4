"""Prints what is wrong in rings, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.text import Text

from embar_shm.cli.console import open_console
from embar_shm.inspection.fsck import VERDICTS, Checked, Verdict
from embar_shm.inspection.text import printable

__all__ = ["checked"]

_STYLES: Final[dict[Verdict, str]] = {
    "sound": "green",
    "damaged": "bold red",
    "empty": "yellow",
    "not checked": "yellow",
}
_SHOWN: Final = 20  # findings of a segment; one overwritten page can make hundreds


def checked(done: Sequence[Checked]) -> None:
    """A line for each segment, and its findings below."""
    console = open_console()
    if not done:
        console.print("There are no segments in /dev/shm.")
    for one in done:
        line = Text(one.verdict, _STYLES[one.verdict])
        line.append(f" {printable(one.segment.title)}", "bold")
        told = one.segment.detail if one.verdict == "not checked" else VERDICTS[one.verdict]
        console.print(line.append(f": {printable(told)}"), soft_wrap=True)
        for finding in one.findings[:_SHOWN]:
            text = Text("  ").append(finding.field, "bold").append(f"  {finding.problem}")
            console.print(text, soft_wrap=True)
        if len(one.findings) > _SHOWN:
            console.print(f"  and {len(one.findings) - _SHOWN} more; --json has all")
        for advice in dict.fromkeys(finding.advice for finding in one.findings):
            console.print(Text(f"  try: {advice}"), soft_wrap=True)
