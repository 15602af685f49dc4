"""The tables of docs/layout.md: field, offset, size and type as the compiler laid them out.

The last column, what a field means, is written by hand and kept.

    python tools/layout_doc.py          says what is wrong, exit code 1
    python tools/layout_doc.py --fix    writes the tables anew
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from embar_shm import _core

__all__ = ["DOCUMENT", "STRUCT", "problems", "rewritten"]

DOCUMENT = Path(__file__).parents[1] / "docs" / "layout.md"
# A mark and the table after it.
STRUCT = re.compile(r"<!-- struct: (?P<name>\w+) -->\n\n(?P<table>(?:\|.*\n)*)")
_HEAD = ["field", "offset", "bytes", "type", "meaning"]

Structs = Mapping[str, tuple[int, Sequence[tuple[str, int, int, str]]]]


def rewritten(text: str, structs: Structs) -> str:
    """The document with its tables made anew; meanings stay with their fields."""

    def table(found: re.Match[str]) -> str:
        if found["name"] not in structs:
            raise SystemExit(f"{DOCUMENT.name}: no struct has the name {found['name']}")
        meanings = {
            cells[0].strip("`"): cells[-1] for cells in map(_cells, found["table"].splitlines()[2:])
        }
        size, fields = structs[found["name"]]
        rows = [_HEAD, ["---"] * len(_HEAD)]
        rows += [
            [f"`{name}`", str(offset), str(count), kind, meanings.get(name, "")]
            for name, offset, count, kind in fields
        ]
        rows.append(["", str(size), "", "", "the size of all"])
        lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
        return f"<!-- struct: {found['name']} -->\n\n{lines}"

    return STRUCT.sub(table, text)


def problems(text: str, structs: Structs) -> list[str]:
    """What is wrong with the document, in sentences."""
    found = []
    documented = [match["name"] for match in STRUCT.finditer(text)]
    found += [f"{name} has no table" for name in structs if name not in documented]
    fresh = rewritten(text, structs)
    if fresh != text:
        found.append("a table does not match the native structs: run tools/layout_doc.py --fix")
    for match in STRUCT.finditer(fresh):
        for cells in map(_cells, match["table"].splitlines()[2:]):
            if not cells[-1]:
                found.append(f"{match['name']}: nothing is said about {cells[0]}")
    return found


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def main(arguments: Sequence[str]) -> int:
    """The exit code."""
    text = DOCUMENT.read_text()
    structs = _core.structs()
    if arguments == ["--fix"]:
        text = rewritten(text, structs)
        DOCUMENT.write_text(text)
    elif arguments:
        print(__doc__, file=sys.stderr)
        return 2
    wrong = problems(text, structs)
    for problem in wrong:
        print(f"docs/layout.md: {problem}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
