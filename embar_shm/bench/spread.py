"""A figure over several rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TypedDict

__all__ = ["Spread", "spread"]


class Spread(TypedDict):
    """The middle of several rounds, and how far they lie apart."""

    median: float
    least: float
    most: float


def spread(values: Sequence[float | None]) -> Spread | None:
    """None when a round does not have the figure: rounds are compared as a whole or not at all."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return {"median": statistics.median(known), "least": min(known), "most": max(known)}
