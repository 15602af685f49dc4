"""Merges every source of configuration into one `RunConfig`, and remembers where values came from.

Sources, each overriding those before it:

    defaults < profile file < workload file < --config files in order < EMBAR_<KEY> < flags

A source is read into entries ("this name has this value, at this place"); `merge` looks names up,
checks values one by one, and lets the later entry win.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, TypedDict

from embar_shm.config.entries import Entry, FileError, entries_of, flag, plain_entry, read_lines
from embar_shm.config.merge import Setting, Settings, did_you_mean
from embar_shm.config.schema import (
    KEYS,
    OF_OWN_BROKERS,
    OF_PACED,
    OF_SUBSCRIBERS,
    OF_UNPACED,
    RunConfig,
    broken_rules,
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
        shown["subscribers_per_broker"] = self.values.effective_subscribers_per_broker
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
    merge.add(_read_flags(flags), spell=flag)
    return merge.finish()


class _Merge(Settings):
    """The settings of a run."""

    def __init__(self) -> None:
        super().__init__(KEYS)

    def unknown_key(self, entry: Entry, spell: Callable[[str], str]) -> str:
        if entry.name in _SELECTORS:
            return f"{entry.written!r} is not a key: choose it with --{entry.name}"
        return super().unknown_key(entry, spell)

    def finish(self) -> LoadedConfig:
        self._count_brokers()
        certain = {key.name: self.value(key) for key in KEYS if key.name not in self.doubtful}
        for rule in broken_rules(certain):
            self.report(rule)
        if self.mistakes:
            raise ConfigurationError(
                "\n".join(self.mistakes),
                hint="`embar-shm run --help` lists every key with its meaning and default",
            )
        chosen = {key.field: self.value(key) for key in KEYS if key.name in self.settings}
        values = RunConfig.model_validate(chosen)
        return LoadedConfig(values, self._origins(values))

    def _count_brokers(self) -> None:
        """Brokers that run elsewhere are as many as addresses are given."""
        connect = self.settings.get("connect")
        if connect is None or not isinstance(connect.value, str):
            return
        count = len(connect.value.split(","))
        brokers = self.settings.get("brokers")
        if brokers is not None and brokers.turn > connect.turn and brokers.value != count:
            self.mistakes.append(
                f"{brokers.entry.value_place}: {brokers.value} brokers, and connect "
                f"({connect.entry.origin}) names {count}"
            )
        entry = replace(
            connect.entry, origin=f"derived: addresses in connect ({connect.entry.origin})"
        )
        self.settings["brokers"] = Setting(count, entry, connect.turn)

    def _origins(self, values: RunConfig) -> dict[str, str]:
        origins: dict[str, str] = {}
        for key in KEYS:
            origins[key.name] = self.origin(key)
            if key.name == "publishers_per_broker":
                origins["publishers"] = (
                    f"derived: brokers ({origins['brokers']}) x "
                    f"publishers_per_broker ({origins['publishers_per_broker']})"
                )
        if values.slot_size is None:
            origins["slot_size"] = f"derived: = batch_size ({origins['batch_size']})"
        if values.subscribers_per_broker is None:
            origins["subscribers_per_broker"] = f"derived: scenario ({origins['scenario']})"
        for why, names in _unused(values):
            for name in names:
                setter = f" ({origins[name]})" if name in self.settings else ""
                origins[name] = f"not used: {why}{setter}"
        return origins


def _unused(values: RunConfig) -> Iterator[tuple[str, Sequence[str]]]:
    """Keys without effect, by the reason."""
    if values.addresses:
        yield "the brokers run elsewhere", OF_OWN_BROKERS
    if not values.subscribers:
        yield "there are no subscribers", OF_SUBSCRIBERS
    if values.scenario == "broker-failure":
        yield "every batch is filled, so that it is known what is in it", ("linger_ms",)
    if values.is_paced:
        yield "each message is sent by itself", OF_UNPACED
    else:
        yield "no scenario but latency has a pace", OF_PACED


# ---- sources -------------------------------------------------------------------------------------


def _read_selected(kind: Kind, name: str | None, mistakes: list[str]) -> Iterator[Entry]:
    name = _DEFAULT_NAMES[kind] if name is None else name
    if "/" in name or name.endswith((".yaml", ".yml")):
        yield from _read_file(Path(name), name, mistakes)
        return
    existing = builtin_names(kind)
    if name not in existing:
        mistakes.append(
            f"{kind} {name!r} does not exist{did_you_mean(name, existing)}; "
            f"{kind}s: {', '.join(existing)}, or the path of a .yaml file"
        )
        return
    path = _builtin_directory(kind) / f"{name}.yaml"
    yield from _read_file(path, f"config/{kind}s/{name}.yaml", mistakes)


def _builtin_directory(kind: Kind) -> Path:
    return Path(__file__).parent / f"{kind}s"


def _read_file(path: Path, shown: str, mistakes: list[str]) -> Iterator[Entry]:
    """The entries of a YAML file; whatever keeps it from having any goes to `mistakes`."""
    try:
        lines = read_lines(path, shown)
    except FileError as error:
        mistakes.append(str(error))
        return
    yield from entries_of(lines, shown, mistakes)


def _read_environment(environ: Mapping[str, str]) -> Iterator[Entry]:
    for variable in sorted(environ):
        if not variable.startswith(_PREFIX) or variable.startswith(IGNORED_VARIABLES):
            continue
        name = variable.removeprefix(_PREFIX)
        yield plain_entry(
            # EMBAR_slots is another variable than EMBAR_SLOTS, and not a key.
            name=name.lower() if name == name.upper() else variable,
            written=variable,
            origin=f"environment {variable}",
            value=environ[variable],
        )


def _read_flags(flags: Mapping[str, object]) -> Iterator[Entry]:
    for name, value in flags.items():
        key = _KEY_OF.get(name)
        negated = key is not None and key.is_boolean and value is False
        written = flag(f"no_{name}" if negated else name)
        yield plain_entry(name=name, written=written, origin=f"flag {written}", value=value)


def _variable(name: str) -> str:
    return _PREFIX + name.upper()
