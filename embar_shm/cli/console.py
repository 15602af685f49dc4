"""The console that everything is printed with."""

from __future__ import annotations

from rich.console import Console

__all__ = ["open_console"]


def open_console(stderr: bool = False) -> Console:
    """A console for tables: as wide as the terminal, or as tables need it in files and pipes."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = 110  # files and pipes: do not break lines at an arbitrary 80
    return console
