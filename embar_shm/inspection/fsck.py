"""Checking the invariants of a ring, read-only.

First the header against this version and the file, then every word behind it, with the same code
that a broker runs before it takes a ring over (``_native/invariants.hpp``), on a private copy.

While a broker is at work its words change between two reads of a copy. So a copy is preferred in
which it has not moved, and what is found has to be found again, in copies some time apart: damage
stays, and what was only seen in passing does not.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

from embar_shm import _core
from embar_shm.errors import ResourceError
from embar_shm.inspection.copies import Cut, Words
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

_LOOKS: Final = 6  # copies in which a finding has to be there
_APART: Final = 0.02  # seconds between them: a broker accepts hundreds of batches meanwhile
_COPIES: Final = 50  # tries to copy a ring between two steps of its broker
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
    looks: int  # copies that were checked: more than one when something was found

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

    Takes milliseconds for a sound ring, and a fraction of a second where something is found.
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
    last: dict[str, str] = {}
    for look in range(_LOOKS):
        if look:
            time.sleep(_APART)
        found = dict(_core.check_ring(_still_copy(segment).memory))
        # By the field alone: at work, the values that do not fit together are others each time.
        last = found if look == 0 else {f: text for f, text in found.items() if f in last}
        if not last:
            return [], look + 1
    return [_finding(field, text) for field, text in last.items()], _LOOKS


def _still_copy(segment: OpenSegment) -> Words:
    """A copy during which the broker did nothing, if that can be had."""
    for _ in range(_COPIES):
        words = segment.words(headers=True)
        if words.is_still():
            break
    return words


def _finding(field: str, problem: str) -> Finding:
    advice = next((advice for what, advice in _ADVICE if field.startswith(what)), _MAKE_ANEW)
    return Finding(field, printable(problem), advice)
