"""Reads the documents: their code blocks, and the marks that say how a test treats them.

A mark is an HTML comment, ``<!-- key: value; key -->``. The blocks under a ``##`` heading make one
session: they share a folder and run in order, as a reader types them. Marks of a block stand right
before it:

=====================  =============================================================================
none                   ``sh`` and ``python`` run, and have to succeed. ``text`` is what the block
                       before it prints: ``...`` stands for anything in a line, or for lines
``exit: N``            the block fails with this code; ``text`` is then how its output ends
``file: NAME``         the block is this file; a later block of the session has to name it
``terminal: NAME``     the block runs beside those that follow; with ``text``: what it prints next
``until: TEXT``        of a terminal: go on when a line begins like this
``numbers differ``     of ``text``: every number may be another one
``wrapped``            of ``text``: lines may be broken elsewhere
``made by: NAME ...``  of ``text``: what ``programs/NAME.py ...`` prints: failures, for example
``not run: REASON``    is only checked for its syntax, where there is a check
``illustration: WHY``  of ``text``: not compared with anything
``main line``          is run by CI as it stands, as is ``test line``
=====================  =============================================================================

Marks that stand alone: ``one session`` (the whole document is one), ``stop: NAME`` (Ctrl-C in a
terminal), ``kill: NAME`` (SIGKILL), ``ends: NAME`` (it ends by itself, in order), ``struct: NAME``
(a table of tools/layout_doc.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

__all__ = ["DOCUMENTS", "ROOT", "Act", "Block", "MarkError", "Session", "sessions"]

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")])

_RUNS = {"sh", "python"}
_OF_BLOCKS = {
    *(
        "exit",
        "file",
        "terminal",
        "until",
        "numbers differ",
        "wrapped",
        "made by",
        "not run",
        "illustration",
    ),
    *("main line", "test line", "certificates"),  # by these names .ci/run and tests find a block
}
_NOT_HERE = {"file", "not run", "main line", "test line"}
_VALUED = {"exit", "file", "terminal", "until", "made by", "not run", "illustration"}
_ACTS = ("stop", "kill", "ends")
_ALONE = {"one session": False, "struct": True} | dict.fromkeys(_ACTS, True)  # with a value?


class MarkError(AssertionError):
    """A document has a block that no test would look at, or a mark that makes no sense."""


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    line: int
    language: str
    text: str
    marks: dict[str, str]

    @property
    def runs(self) -> bool:
        """Is it a program that runs by itself?"""
        return self.language in _RUNS and not _NOT_HERE & self.marks.keys()


@dataclass(frozen=True)
class Act:
    """What happens to a terminal: `what` is "stop", "kill" or "ends"."""

    line: int
    what: str
    terminal: str


@dataclass
class Session:
    """Blocks that run in one folder, in order."""

    document: Path
    title: str
    steps: list[Block | Act] = field(default_factory=list)

    @property
    def blocks(self) -> Iterator[Block]:
        """Its blocks."""
        return (step for step in self.steps if isinstance(step, Block))

    def __str__(self) -> str:
        return (
            f"{self.document.relative_to(ROOT) if self._ours else self.document.name}, {self.title}"
        )

    @property
    def _ours(self) -> bool:
        return self.document.is_relative_to(ROOT)


def sessions(document: Path) -> list[Session]:
    """The sessions of a document that have blocks. Raises `MarkError`."""
    found = [Session(document, "beginning")]
    marks: dict[str, str] = {}
    whole = False
    tokens = MarkdownIt("commonmark").enable("table").parse(document.read_text())
    for i, token in enumerate(tokens):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "html_block":
            here = dict(_marks(document, line, token.content))
            if here.keys() <= _ALONE.keys():
                if "one session" in here:
                    whole = True
                for what in here.keys() & set(_ACTS):
                    found[-1].steps.append(Act(line, what, here[what]))
            elif tokens[i + 1 : i + 2] and tokens[i + 1].type == "fence":
                marks = here
            else:
                raise MarkError(f"{document.name}:{line}: no block follows {token.content.strip()}")
        elif token.type == "fence":
            block = Block(line, token.info.strip(), token.content, marks)
            _check(document, block)
            found[-1].steps.append(block)
            marks = {}
        elif token.type == "code_block":
            raise MarkError(
                f"{document.name}:{line}: an indented block: fence it, name its language"
            )
        elif token.type == "heading_open" and token.tag in ("h1", "h2") and not whole:
            found.append(Session(document, tokens[i + 1].content))
        elif token.type == "inline" and "<!--" in token.content:
            raise MarkError(f"{document.name}:{line}: a mark needs lines of its own")
    found = [session for session in found if session.steps]
    for session in found:
        _check_files(session)
    return found


def _marks(document: Path, line: int, comment: str) -> Iterator[tuple[str, str]]:
    inside = re.fullmatch(r"<!-- (.*) -->\n?", comment)
    if inside is None:
        raise MarkError(f"{document.name}:{line}: {comment.strip()!r} is not a mark")
    for mark in inside[1].split("; "):
        key, colon, value = mark.partition(": ")
        needs_value = key in _VALUED or _ALONE.get(key, False)
        if key not in _OF_BLOCKS | _ALONE.keys() or needs_value is not bool(colon):
            raise MarkError(f"{document.name}:{line}: {mark!r} is not a mark")
        yield key, value


def _check(document: Path, block: Block) -> None:
    """Is there something that this block is tested by?"""
    marks = block.marks.keys()
    if block.language == "text":
        good = not marks or bool(
            marks & {"numbers differ", "wrapped", "made by", "illustration", "terminal"}
        )
    elif block.language in _RUNS:
        good = not marks & {"made by", "illustration", "numbers differ", "wrapped"}
    else:
        good = bool(marks & {"file", "not run"})
    if not good:
        raise MarkError(
            f"{document.name}:{block.line}: nothing tests this {block.language or 'nameless'} "
            f"block with the marks {dict(block.marks)}"
        )


def _check_files(session: Session) -> None:
    """A file that no later block uses is a block that nobody has run."""
    blocks = list(session.blocks)
    for i, block in enumerate(blocks):
        name = block.marks.get("file")
        if name and not any(
            name in later.text and (later.runs or "file" in later.marks)
            for later in blocks[i + 1 :]
        ):
            raise MarkError(f"{session.document.name}:{block.line}: no later block uses {name}")
