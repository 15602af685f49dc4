"""What the benchmarks share: interleaved rounds, medians, Markdown tables, the machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from embar_shm.bench import environment

T = TypeVar("T")

__all__ = ["interleave", "machine", "machine_line", "markdown", "spread", "table"]


def interleave(rounds: int, candidates: dict[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Runs all candidates in turn, A B C A B C ...: drift of the machine hits all alike."""
    found: dict[str, list[T]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, measure in candidates.items():
            found[name].append(measure())
    return found


def spread(values: Sequence[float], unit: str = "", digits: int = 1) -> str:
    """Median (least to most)."""
    middle = statistics.median(values)
    return f"{middle:.{digits}f}{unit} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    lines.insert(1, "|" + "|".join("---" for _ in header) + "|")
    return "\n".join(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a Markdown table."""
    print(markdown(header, rows) + "\n")


def machine_line(e: dict[str, Any]) -> str:
    """One line about the machine that `environment.describe` described."""
    return (
        f"{e['cpu_model']}, {e['cpus_available']} CPUs, last-level cache "
        f"{e['last_level_cache_bytes'] // 2**20} MiB, {e['memory_bytes'] / 2**30:.0f} GiB; "
        f"{e['kernel']}; Python {e['python']}; embar-shm {e['embar_shm']}; "
        f"load {e['load_average_1m']:.1f}"
    )


def machine() -> None:
    """Prints one line about this machine."""
    print(machine_line(environment.describe()) + "\n")
