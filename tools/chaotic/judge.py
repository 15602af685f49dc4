"""Whether something grows: the judgement of a soak, apart from what it was sampled from.

The beginning does not count: caches fill, and memory of a forked process becomes its own. To the
rest of each series a line is fitted (least squares). It grows if the line rises by more than a
tolerance, and if the medians of the four quarters rise, too: a single step is no leak.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["TOLERANCES", "ZEROS", "Judgement", "Series", "judge", "warm_up"]

# By the last part of a series' name: by how much its line may rise.
TOLERANCES: dict[str, float] = {
    "rss": 2 << 20,  # bytes
    "pss": 2 << 20,
    "fds": 1.0,
    "threads": 1.0,
    "slots": 1.0,  # owned by somebody
    "rows": 1.0,  # of publishers and subscribers
    "shm_bytes": 4096.0,
    "shm_files": 0.5,
}
# What must not happen at all.
ZEROS = ("missed_wakeups", "corrupt", "duplicated", "out_of_order")
_LEAST = 8  # samples that a line is fitted to
_LONGEST_WARM_UP = 60.0  # seconds

Series = Sequence[tuple[float, float]]  # seconds since the beginning, value


@dataclass(frozen=True, slots=True)
class Judgement:
    """Of one series."""

    name: str
    samples: int  # that count
    first: float  # of those that count
    last: float
    growth: float  # of the line, from the first of them to the last
    per_hour: float
    wrong: str = ""  # why it is not as it should be; "": it is

    @property
    def flat(self) -> bool:
        return not self.wrong


def warm_up(seconds: float) -> float:
    """How much of a soak of so many seconds does not count."""
    return min(_LONGEST_WARM_UP, seconds / 3)


def judge(series: Mapping[str, Series], skip: float) -> list[Judgement]:
    """Of each series ("who.what"); `skip`: seconds at the beginning that do not count.

    Raises `ValueError` when there are too few samples for a judgement.
    """
    return [_judge(name, samples, skip) for name, samples in sorted(series.items())]


def _judge(name: str, samples: Series, skip: float) -> Judgement:
    what = name.rpartition(".")[2]
    if what in ZEROS:
        last = samples[-1][1]
        worst = max(value for _, value in samples)
        wrong = f"{name} is {worst:g}, and must be 0" if worst else ""
        return Judgement(name, len(samples), samples[0][1], last, last, 0.0, wrong)
    counting = [(second, value) for second, value in samples if second >= skip]
    if len(counting) < _LEAST:
        raise ValueError(
            f"{name} has {len(counting)} samples after the first {skip:.3g} s, and {_LEAST} are "
            "needed: let it run longer"
        )
    times = [second for second, _ in counting]
    values = [value for _, value in counting]
    slope = statistics.linear_regression(times, values).slope
    growth = slope * (times[-1] - times[0])
    tolerance = TOLERANCES[what]
    wrong = ""
    if growth > tolerance and _rises(values):
        wrong = (
            f"{name} grows: from {values[0]:.10g} to {values[-1]:.10g} within "
            f"{times[-1] - times[0]:.0f} s, {slope * 3600:.4g} an hour"
        )
    return Judgement(name, len(counting), values[0], values[-1], growth, slope * 3600, wrong)


def _rises(values: Sequence[float]) -> bool:
    """From each quarter to the next."""
    count = len(values)
    quarters = [values[count * q // 4 : count * (q + 1) // 4] for q in range(4)]
    medians = [statistics.median(quarter) for quarter in quarters]
    return all(after > before for before, after in itertools.pairwise(medians))
