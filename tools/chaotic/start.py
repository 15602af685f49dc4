"""How the commands of this folder find the library; before anything else is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["find_library"]


def find_library() -> None:
    """Goes on with this checkout's virtual environment where the library is not installed."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # no threads before forks
    try:
        import embar_shm._core  # noqa: F401
    except ImportError:
        environment = Path(__file__).resolve().parents[2] / ".venv"
        python = environment / "bin" / "python"
        if not python.exists() or Path(sys.prefix) == environment:
            raise
        os.execv(python, [str(python), *sys.argv])  # noqa: S606 - this program
