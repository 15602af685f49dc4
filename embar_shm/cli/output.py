"""Files that commands write: checked before the work, replaced as a whole after it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

__all__ = ["check_writable", "replace"]


def check_writable(path: Path) -> None:
    """Finds out before the run, not after it. Leaves nothing behind."""
    if not path.parent.is_dir():
        raise click.UsageError(f"the folder {str(path.parent)!r} does not exist")
    if path.exists():
        with path.open("a"):
            return
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
        pass


def replace(path: Path, text: str) -> None:
    """Whoever reads the file sees the old result or the new one, never half of one."""
    if path.exists() and not path.is_file():  # a device, a pipe
        path.write_text(text)
        return
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        file.write(text)
    temporary = Path(file.name)
    temporary.chmod(0o666 & ~_umask())
    temporary.replace(path)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
