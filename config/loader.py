"""Merges every source of configuration into one `RunConfig`, and remembers where values came from.

Sources, each overriding those before it:

    defaults < profile file < workload file < --config files in order < EMBAR_<KEY> < flags

A source is read into entries ("this name has this value, at this place"); the merge looks names up,
checks values one by one, and lets the later entry win. A mistake never stops the reading: all of
them are reported together, even one in a value that a later source overrides, because a wrong line
that happens to have no effect today will have one tomorrow.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypedDict

import yaml
from yaml.constructor import SafeConstructor

from embar_shm.config.schema import (
    KEYS,
    OF_OWN_BROKERS,
    Key,
    RunConfig,
    broken_rules,
    check_value,
)
from embar_shm.errors import ConfigurationError

__all__ = ["IGNORED_VARIABLES", "LoadedConfig", "Parameter", "builtin_names", "load"]

IGNORED_VARIABLES: Final = ("EMBAR_TEST_",)
"""Prefixes of EMBAR_* variables that are not configuration (the test suite uses EMBAR_TEST_*)."""

Kind = Literal["profile", "workload"]

_PREFIX: Final = "EMBAR_"
_DEFAULT_NAMES: Final[dict[Kind, str]] = {"profile": "default", "workload": "report"}
_KEY_OF: Final = {name: key for key in KEYS for name in (key.name, *key.aliases)}
_SELECTORS: Final = frozenset({"profile", "workload", "config"})
_INT_TAG: Final = "tag:yaml.org,2002:int"
_FLOAT_TAG: Final = "tag:yaml.org,2002:float"
# YAML 1.1 also reads 010 as 8, 1_000 as 1000 and 1:30 as 90. Nobody means that here.
_PLAIN_NUMBER: Final = re.compile(
    r"[-+]?(0|[1-9][0-9]{0,18})?(\.[0-9]*(e[-+]?[0-9]+)?)?|[-+]?\.(inf|nan)", re.IGNORECASE
)


class Parameter(TypedDict):
    """One effective parameter of a run."""

    value: object
    origin: str


@dataclass(frozen=True)
class LoadedConfig:
    """A checked configuration and its history."""

    values: RunConfig
    origins: dict[str, str]
    """Where each key came from: "default", "my.yaml:3", "environment EMBAR_SLOTS", "flag --slots",
    "derived: ..." for what follows from other keys, or "not used: ..." for what has no effect
    because of another key. Keyed and ordered as `parameters`."""

    def parameters(self) -> dict[str, Parameter]:
        """Every effective parameter with its origin, ready for JSON.

        The order is that of `KEYS`, with the derived `publishers` after `publishers_per_broker`.
        Sizes are bytes; `slot_size` is the effective number.
        """
        shown: dict[str, object] = {key.name: getattr(self.values, key.field) for key in KEYS}
        shown["slot_size"] = self.values.effective_slot_size
        shown["publishers"] = self.values.publishers
        return {name: {"value": shown[name], "origin": self.origins[name]} for name in self.origins}


def builtin_names(kind: Kind) -> list[str]:
    """Names of the profiles or workloads that ship with the library, sorted."""
    return sorted(path.stem for path in _builtin_directory(kind).glob("*.yaml"))


def load(
    profile: str | None,
    workload: str | None,
    files: Sequence[str],
    environ: Mapping[str, str],
    flags: Mapping[str, object],
) -> LoadedConfig:
    """Merges all sources; raises one `ConfigurationError` that lists every mistake, one per line.

    `profile` and `workload` are the name of a shipped file or a path (it contains "/" or ends in
    .yaml or .yml); None takes "default" and "report". `flags` holds the flags that were given, by
    key or alias with underscores. Only EMBAR_* is read from `environ`.
    """
    merge = _Merge()
    merge.add(_read_selected("profile", profile, merge.mistakes))
    merge.add(_read_selected("workload", workload, merge.mistakes))
    for file in files:
        merge.add(_read_file(Path(file), file, merge.mistakes))
    merge.add(_read_environment(environ), spell=_variable)
    merge.add(_read_flags(flags), spell=_flag)
    return merge.finish()


@dataclass(frozen=True)
class _Entry:
    """A name and a value as one source holds them, before either is looked at."""

    name: str
    written: str
    """The name in the spelling of its source: slots, EMBAR_SLOTS, --slots."""
    name_place: str
    value_place: str
    """Where mistakes are reported: "my.yaml:3:1" and "my.yaml:3:12: slots"."""
    origin: str
    read: Callable[[], object]
    """Gives the value, or raises `ValueError` with a sentence."""


@dataclass(frozen=True)
class _Setting:
    """A checked value in effect. `turn` counts settings: the larger one was set later."""

    value: object
    entry: _Entry
    turn: int


class _Merge:
    """Collects settings and mistakes over all sources, in order of precedence."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []
        self._settings: dict[str, _Setting] = {}
        self._doubtful: set[str] = set()  # keys with a mistake: rules about them would only guess
        self._turn = 0

    def add(self, source: Iterable[_Entry], spell: Callable[[str], str] = str) -> None:
        """Takes one source; `spell` writes a key the way this source does."""
        seen: dict[str, _Entry] = {}
        for entry in source:
            key = _KEY_OF.get(entry.name)
            if key is None:
                self.mistakes.append(f"{entry.name_place}: {_unknown_key(entry, spell)}")
            elif key.name in seen:
                self.mistakes.append(f"{entry.name_place}: {_set_again(entry, seen[key.name])}")
                self._doubtful.add(key.name)
            else:
                seen[key.name] = entry
                self._set(key, entry)

    def _set(self, key: Key, entry: _Entry) -> None:
        try:
            value = check_value(key, entry.read())
        except ValueError as error:
            self.mistakes.append(f"{entry.value_place}: {error}")
            self._doubtful.add(key.name)
        else:
            self._turn += 1
            self._settings[key.name] = _Setting(value, entry, self._turn)

    def finish(self) -> LoadedConfig:
        self._count_brokers()
        self._check_rules()
        if self.mistakes:
            raise ConfigurationError(
                "\n".join(self.mistakes),
                hint="`embar-shm run --help` lists every key with its meaning and default",
            )
        chosen = {key.field: self._value(key) for key in KEYS if key.name in self._settings}
        values = RunConfig.model_validate(chosen)
        return LoadedConfig(values, self._origins(values))

    def _count_brokers(self) -> None:
        """Brokers that run elsewhere are as many as addresses are given."""
        connect = self._settings.get("connect")
        if connect is None or not isinstance(connect.value, str):
            return
        count = len(connect.value.split(","))
        brokers = self._settings.get("brokers")
        if brokers is not None and brokers.turn > connect.turn and brokers.value != count:
            self.mistakes.append(
                f"{brokers.entry.value_place}: {brokers.value} brokers, and connect "
                f"({connect.entry.origin}) names {count}"
            )
        entry = replace(
            connect.entry, origin=f"derived: addresses in connect ({connect.entry.origin})"
        )
        self._settings["brokers"] = _Setting(count, entry, connect.turn)

    def _check_rules(self) -> None:
        """Reports each broken rule once, at whichever of its two keys was set last."""
        certain = {key.name: self._value(key) for key in KEYS if key.name not in self._doubtful}
        for rule in broken_rules(certain):
            low, high = _KEY_OF[rule.low], _KEY_OF[rule.high]
            low_is_later = self._turn_of(low) > self._turn_of(high)
            blamed, other = (low, high) if low_is_later else (high, low)
            self.mistakes.append(
                f"{self._settings[blamed.name].entry.value_place}: "
                f"{blamed.show(certain[blamed.name])} is {'above' if low_is_later else 'below'} "
                f"{other.name} {other.show(certain[other.name])} ({self._origin(other)}): "
                f"{rule.because}"
            )

    def _value(self, key: Key) -> object:
        setting = self._settings.get(key.name)
        return key.default if setting is None else setting.value

    def _turn_of(self, key: Key) -> int:
        setting = self._settings.get(key.name)
        return 0 if setting is None else setting.turn

    def _origin(self, key: Key) -> str:
        setting = self._settings.get(key.name)
        return "default" if setting is None else setting.entry.origin

    def _origins(self, values: RunConfig) -> dict[str, str]:
        origins: dict[str, str] = {}
        for key in KEYS:
            origins[key.name] = self._origin(key)
            if key.name == "publishers_per_broker":
                origins["publishers"] = (
                    f"derived: brokers ({origins['brokers']}) x "
                    f"publishers_per_broker ({origins['publishers_per_broker']})"
                )
        if values.slot_size is None:
            origins["slot_size"] = f"derived: = batch_size ({origins['batch_size']})"
        if values.addresses:
            for name in OF_OWN_BROKERS:
                setter = f" ({origins[name]})" if name in self._settings else ""
                origins[name] = f"not used: the brokers run elsewhere{setter}"
        return origins


# ---- sources -------------------------------------------------------------------------------------


def _read_selected(kind: Kind, name: str | None, mistakes: list[str]) -> Iterator[_Entry]:
    name = _DEFAULT_NAMES[kind] if name is None else name
    if "/" in name or name.endswith((".yaml", ".yml")):
        yield from _read_file(Path(name), name, mistakes)
        return
    existing = builtin_names(kind)
    if name not in existing:
        mistakes.append(
            f"{kind} {name!r} does not exist{_did_you_mean(name, existing)}; "
            f"{kind}s: {', '.join(existing)}, or the path of a .yaml file"
        )
        return
    path = _builtin_directory(kind) / f"{name}.yaml"
    yield from _read_file(path, f"config/{kind}s/{name}.yaml", mistakes)


def _builtin_directory(kind: Kind) -> Path:
    return Path(__file__).parent / f"{kind}s"


def _read_file(path: Path, shown: str, mistakes: list[str]) -> Iterator[_Entry]:
    """The entries of a YAML file; whatever keeps it from having any goes to `mistakes`."""
    try:
        lines = _compose(path, shown)
    except _FileError as error:
        mistakes.append(str(error))
        return
    for name_node, value_node in lines:
        place = _position(shown, name_node.start_mark)
        if not isinstance(name_node, yaml.ScalarNode):
            mistakes.append(f"{place}: a key is one word, not a list or a mapping")
            continue
        name = name_node.value
        yield _Entry(
            name=name,
            written=name,
            name_place=place,
            value_place=f"{_position(shown, value_node.start_mark)}: {name}",
            origin=f"{shown}:{name_node.start_mark.line + 1}",
            read=partial(_scalar, value_node),
        )


class _FileError(Exception):
    """A file that has no lines to read. Its text is the mistake, with the place."""


def _compose(path: Path, shown: str) -> list[tuple[yaml.Node, yaml.Node]]:
    """The nodes of the names and values in a file; nodes know their line and column."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise _FileError(f"{shown}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise _FileError(f"{shown}: is not UTF-8 text (byte {error.start} of the file)") from error
    except yaml.MarkedYAMLError as error:
        place = _position(shown, error.problem_mark)
        raise _FileError(f"{place}: YAML: {error.problem}") from error
    except yaml.YAMLError as error:  # a character YAML forbids: the position is in the text
        raise _FileError(f"{shown}: YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise _FileError(f"{shown}: is nested too deeply for a list of 'key: value'") from error
    if root is None:  # only comments
        return []
    if not isinstance(root, yaml.MappingNode):
        place = _position(shown, root.start_mark)
        raise _FileError(f"{place}: expected lines of 'key: value'")
    lines: list[tuple[yaml.Node, yaml.Node]] = root.value
    return lines


def _scalar(node: yaml.Node) -> object:
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


def _position(shown: str, mark: yaml.Mark | None) -> str:
    return shown if mark is None else f"{shown}:{mark.line + 1}:{mark.column + 1}"


def _read_environment(environ: Mapping[str, str]) -> Iterator[_Entry]:
    for variable in sorted(environ):
        if not variable.startswith(_PREFIX) or variable.startswith(IGNORED_VARIABLES):
            continue
        name = variable.removeprefix(_PREFIX)
        yield _plain_entry(
            # EMBAR_slots is another variable than EMBAR_SLOTS, and not a key.
            name=name.lower() if name == name.upper() else variable,
            written=variable,
            origin=f"environment {variable}",
            value=environ[variable],
        )


def _read_flags(flags: Mapping[str, object]) -> Iterator[_Entry]:
    for name, value in flags.items():
        key = _KEY_OF.get(name)
        negated = key is not None and key.is_boolean and value is False
        flag = _flag(f"no_{name}" if negated else name)
        yield _plain_entry(name=name, written=flag, origin=f"flag {flag}", value=value)


def _plain_entry(name: str, written: str, origin: str, value: object) -> _Entry:
    """An entry of a source without lines: everything about it is reported at its origin."""
    return _Entry(name, written, origin, origin, origin, lambda: value)


def _variable(name: str) -> str:
    return _PREFIX + name.upper()


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


# ---- sentences -----------------------------------------------------------------------------------


def _unknown_key(entry: _Entry, spell: Callable[[str], str]) -> str:
    if entry.name in _SELECTORS:
        return f"{entry.written!r} is not a key: choose it with --{entry.name}"
    return f"unknown key {entry.written!r}" + _did_you_mean(
        entry.written, [spell(name) for name in _KEY_OF]
    )


def _set_again(entry: _Entry, first: _Entry) -> str:
    if entry.name == first.name:
        return f"{entry.written!r} is set twice (first at {first.origin})"
    return f"{entry.written!r} is another name of {first.written!r} ({first.origin}): keep one"


def _did_you_mean(name: str, existing: Sequence[str]) -> str:
    by_lower = {candidate.lower(): candidate for candidate in existing}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""
