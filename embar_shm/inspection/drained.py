"""Is a dead ring drained: would nobody miss it? For who removes it, and for its next broker.

Only where nobody is alive in it, and nothing moves.
"""

from __future__ import annotations

from embar_shm import _core
from embar_shm.inspection.copies import Words
from embar_shm.inspection.ring import RingView

__all__ = ["batches", "wanted"]


def wanted(words: Words, ring: RingView) -> str | None:
    """Why a ring in which nobody is alive should stay, in words, or None: it is drained.

    `words`: with the headers of the batches. What is damaged stays: it is evidence, and what it
    seems to hold says nothing.
    """
    if words.monitor().damage or _core.check_ring(words.memory):
        return "it is damaged: embar-shm fsck tells more; --force removes it"
    counts = (
        (ring.log.unread, "that nobody is known to have read"),
        (ring.log.unaccepted, "not accepted"),
    )
    left = [f"{batches(count)} {what}" for count, what in counts if count]
    if left:
        return f"it has {' and '.join(left)}: start the broker again, or give them up with --force"
    # Their locks are free, as the broker's process held them.
    absent = [p.remote and p.state == "active" for p in ring.publishers].count(True)
    absent += [s.remote and s.state == "active" for s in ring.subscribers].count(True)
    if absent:
        return (
            f"{absent} participants on a network will come back to it: start the broker again, "
            "or give them up with --force"
        )
    return None


def batches(count: int) -> str:
    """So many of them, in words."""
    return f"{count:,} {'batch' if count == 1 else 'batches'}"
