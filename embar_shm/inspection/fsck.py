"""Checking the invariants of a ring, read-only.

First the header against this version and the file, then every word behind it, with the same code
that a broker runs before it takes a ring over (``_native/invariants.hpp``), on a private copy.

While a broker is at work its words change between two reads of a copy, and much that is found in
one is not so. What counts is found in several copies, one after the other, of the same words with
the same values: why that is never wrong, ``invariants.hpp`` explains. Damage that somebody writes
over meanwhile is not found, and need not be; what stays is, however busy the ring.

One thing cannot be seen in a copy at all: a slot that a living publisher owns, and of which it
knows nothing. It fills one slot at a time, so one that it owns while it commits others is lost.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

from embar_shm import _core
from embar_shm.errors import ResourceError
from embar_shm.inspection.copies import Cut
from embar_shm.inspection.files import SegmentFile
from embar_shm.inspection.segments import OpenSegment, SegmentView, State, examined, opened
from embar_shm.inspection.segments import examine as examine_file
from embar_shm.inspection.text import printable

__all__ = ["VERDICTS", "Checked", "Finding", "Verdict", "check"]

Verdict: TypeAlias = Literal["sound", "damaged", "empty", "not checked"]

VERDICTS: Final[dict[Verdict, str]] = {
    "sound": "every invariant holds",
    "damaged": "some process wrote where it must not, or somebody changed the file",
    "empty": "it is not complete: there is nothing to check yet",
    "not checked": "this process cannot read it",
}
"""Every verdict, and what it means."""

_LOOKS: Final = 6  # copies in which a finding has to be there; three would do
_APART: Final = 0.02  # seconds between them: a broker accepts hundreds of batches meanwhile
_EMPTY: Final[tuple[State, ...]] = ("creating", "unfinished")
_NOT_CHECKED: Final[tuple[State, ...]] = ("other version", "other boot", "closed to us")

_MAKE_ANEW = "stop what uses it; then embar-shm clean --force removes it, with all that is in it"
# What to do, by the beginning of the field's name.
_ADVICE: Final = (
    ("header.magic", "it is no segment, or its first bytes were overwritten: look what it is"),
    ("header.name", "it was renamed or copied: a segment has the name it was created with"),
    ("header.", _MAKE_ANEW),
    ("file.", f"somebody truncated it, and whoever uses it will crash: {_MAKE_ANEW}"),
    (
        "control.",
        "a broker does not go on with it: subscribers can read what they have, then stop what uses "
        "it; embar-shm clean --force removes it",
    ),
    (
        "tickets",
        "the log is damaged from there on, and a broker does not go on with it: stop what uses it; "
        "embar-shm clean --force removes it",
    ),
    (
        "slot_words",
        "no batch is affected, but the slot is not used any more until the ring is made anew",
    ),
    ("slots", "whoever reads that batch gets CorruptBatch; the others are not affected"),
    ("publishers", "end that publisher (embar-shm evict), which frees its row"),
    ("subscribers", "end that subscriber (embar-shm evict), which frees its row"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One word that cannot be as it is."""

    field: str  # "control.tail", "tickets[3]", "header.slots"
    problem: str  # the value, and what could be there
    advice: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found in a segment."""

    segment: SegmentView
    verdict: Verdict
    findings: tuple[Finding, ...]
    looks: int  # copies that were checked: more than one when there was something to confirm

    def as_json(self) -> dict[str, Any]:
        """Without what ls tells."""
        return {
            "name": self.segment.name,
            "file": self.segment.file,
            "state": self.segment.state,
            "detail": self.segment.detail,
            "verdict": self.verdict,
            "findings": [asdict(finding) for finding in self.findings],
            "looks": self.looks,
        }


def check(file: SegmentFile) -> Checked | None:
    """Checks a segment. None: it has vanished. Changes nothing; takes no lock.

    Takes milliseconds for a sound ring, and a fraction of a second where something is found, or a
    publisher keeps a slot.
    """
    seen = examine_file(file)
    if seen is None:
        return None
    if seen.state in _EMPTY:
        return Checked(seen, "empty", (), 0)
    if seen.state in _NOT_CHECKED or file.ring is None:
        return Checked(seen, "not checked", (), 0)
    try:
        with opened(file) as segment:
            return _checked(segment)
    except FileNotFoundError:
        return None
    except ResourceError:  # a directory, a link, a FIFO
        return Checked(seen, "not checked", (), 0)


def _checked(segment: OpenSegment) -> Checked:
    seen = examined(segment)
    if segment.geometry is None:
        return Checked(seen, "damaged", tuple(_in_header(segment)), 1)
    try:
        findings, looks = _in_words(segment)
    except Cut as error:
        findings, looks = [_finding("file.size", error.message)], 1
    if seen.state == "quarantined":
        damage = segment.words().monitor().damage if not findings else ""
        told = f"4 (quarantined), by a broker that found: {damage}"
        findings = findings or [_finding("control.state", printable(told))]
    return Checked(seen, "damaged" if findings else "sound", tuple(findings), looks)


def _in_header(segment: OpenSegment) -> list[Finding]:
    size, least = segment.facts.size, _core.SEGMENT_HEADER_BYTES
    if size < least:
        return [_finding("file.size", f"{size} bytes; a segment's header alone has {least}")]
    return [
        _finding(
            f"header.{difference.field.replace(' ', '_')}",
            ", ".join(filter(None, (difference.found, difference.expected))),
        )
        for difference in segment.differences
    ]


def _in_words(segment: OpenSegment) -> tuple[list[Finding], int]:
    """What every one of several copies has, and how many were looked at. Raises `Cut`."""
    found: dict[tuple[str, tuple[int, ...] | str], str] = {}
    kept: dict[tuple[int, ...], list[int]] = {}  # slots of no ticket: see _lost()
    for look in range(_LOOKS):
        if look:
            time.sleep(_APART)
        wrong, unfinished = _core.look_at_ring(segment.words(headers=True).memory)
        found = {
            (field, words or text): text
            for field, text, words in wrong
            if look == 0 or (field, words or text) in found
        }
        kept = {
            (slot, *whose): [*kept.get((slot, *whose), ()), committed]
            for slot, *whose, committed in unfinished
            if look == 0 or (slot, *whose) in kept
        }
        if not found and not kept:
            return [], look + 1
    findings = [_finding(field, text) for (field, _), text in found.items()]
    return findings + _lost(kept), _LOOKS


def _lost(kept: dict[tuple[int, ...], list[int]]) -> list[Finding]:
    """Of slots that are of no ticket in all copies, those whose publisher has committed others.

    By slot, owner, slot word and time of attachment: how many batches it had committed, in each.
    """
    # Not in the outer copies: others may be committed before the slot word was copied for the first
    # time, and its own after the tickets were for the last, or, if it is released at once, the last
    # but one.
    return [
        _finding(
            f"slot_words[{slot}]",
            f"publisher {owner} has committed others since, and no ticket refers to it: "
            "the slot is lost",
        )
        for (slot, owner, *_), committed in kept.items()
        if committed[1] != committed[-3]
    ]


def _finding(field: str, problem: str) -> Finding:
    advice = next((advice for what, advice in _ADVICE if field.startswith(what)), _MAKE_ANEW)
    return Finding(field, printable(problem), advice)
