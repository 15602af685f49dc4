"""What a source of configuration holds, before anything is looked at: names, values, and places.

YAML files are read as nodes, which know their line and column. `merge` checks what is found here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import yaml
from yaml.constructor import SafeConstructor

__all__ = [
    "Entry",
    "FileError",
    "Lines",
    "entries_of",
    "flag",
    "plain_entry",
    "position",
    "read_lines",
    "read_value",
]

Lines = list[tuple[yaml.Node, yaml.Node]]
"""The nodes of the names and values of a mapping."""

_INT_TAG: Final = "tag:yaml.org,2002:int"
_FLOAT_TAG: Final = "tag:yaml.org,2002:float"
# YAML 1.1 also reads 010 as 8, 1_000 as 1000 and 1:30 as 90. Nobody means that here.
_PLAIN_NUMBER: Final = re.compile(
    r"[-+]?(0|[1-9][0-9]{0,18})?(\.[0-9]*(e[-+]?[0-9]+)?)?|[-+]?\.(inf|nan)", re.IGNORECASE
)


@dataclass(frozen=True)
class Entry:
    """A name and a value as one source holds them."""

    name: str
    written: str
    """The name in the spelling of its source: slots, EMBAR_SLOTS, --slots."""
    name_place: str
    value_place: str
    """Where mistakes are reported: "my.yaml:3:1" and "my.yaml:3:12: slots"."""
    origin: str
    read: Callable[[], object]
    """Gives the value, or raises `ValueError` with a sentence."""
    items: tuple[Entry, ...] | None = None
    """Of a list: its elements, each with a place of its own."""


class FileError(Exception):
    """A file that has no lines to read. Its text is the mistake, with the place."""


def read_lines(path: Path, shown: str) -> Lines:
    """The lines of a file with a mapping. Raises `FileError`."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise FileError(f"{shown}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{shown}: is not UTF-8 text (byte {error.start} of the file)") from error
    except yaml.MarkedYAMLError as error:
        place = position(shown, error.problem_mark)
        raise FileError(f"{place}: YAML: {error.problem}") from error
    except yaml.YAMLError as error:  # a character YAML forbids: the position is in the text
        raise FileError(f"{shown}: YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise FileError(f"{shown}: is nested too deeply for a list of 'key: value'") from error
    if root is None:  # only comments
        return []
    if not isinstance(root, yaml.MappingNode):
        place = position(shown, root.start_mark)
        raise FileError(f"{place}: expected lines of 'key: value'")
    lines: Lines = root.value
    return lines


def entries_of(lines: Lines, shown: str, mistakes: list[str]) -> Iterator[Entry]:
    """The entries of a mapping; a key that is none goes to `mistakes`."""
    for name_node, value_node in lines:
        place = position(shown, name_node.start_mark)
        if not isinstance(name_node, yaml.ScalarNode):
            mistakes.append(f"{place}: a key is one word, not a list or a mapping")
            continue
        name = name_node.value
        items = None
        if isinstance(value_node, yaml.SequenceNode):
            items = tuple(_entry(name, node, shown, place) for node in value_node.value)
        yield _entry(name, value_node, shown, place, items)


def _entry(
    name: str, node: yaml.Node, shown: str, place: str, items: tuple[Entry, ...] | None = None
) -> Entry:
    return Entry(
        name=name,
        written=name,
        name_place=place,
        value_place=f"{position(shown, node.start_mark)}: {name}",
        origin=place.rpartition(":")[0],  # without the column
        read=partial(read_value, node),
        items=items,
    )


def read_value(node: yaml.Node) -> object:
    """The Python value of one node. Raises `ValueError` with a sentence when it has none."""
    if not isinstance(node, yaml.ScalarNode):
        shape = "list" if isinstance(node, yaml.SequenceNode) else "mapping"
        raise ValueError(f"expected one value, not a {shape}")
    text: str = node.value
    if node.tag in (_INT_TAG, _FLOAT_TAG) and not _PLAIN_NUMBER.fullmatch(text):
        raise ValueError(
            f"{text[:60]!r} is not a plain decimal number "
            "(no leading zeros, underscores, colons or base prefixes)"
        )
    try:
        value: object = SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError, LookupError):
        # An explicit tag that does not suit its text (!!bool x), or one that safe YAML refuses.
        raise ValueError(f"{text[:60]!r} cannot be read as {node.tag}") from None
    return value


def position(shown: str, mark: yaml.Mark | None) -> str:
    """ "file:line:column", counted from 1."""
    return shown if mark is None else f"{shown}:{mark.line + 1}:{mark.column + 1}"


def plain_entry(name: str, written: str, origin: str, value: object) -> Entry:
    """An entry of a source without lines: everything about it is reported at its origin."""
    return Entry(name, written, origin, origin, origin, lambda: value)


def flag(name: str) -> str:
    """How the command line writes a key."""
    return "--" + name.replace("_", "-")
