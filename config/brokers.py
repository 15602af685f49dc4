"""Brokers to run: the keys of each, and the YAML file that describes several of them.

    slots: 16                       # keys outside the list are for all brokers of the file
    token_file: /etc/embar/token
    brokers:
      - name: demo/0
        listen: tcp://0.0.0.0:7400
      - name: demo/1
        listen: [tcp://0.0.0.0:7401, "tcp://[::]:7401"]
        slot_size: 4MiB

The flags of ``embar-shm broker`` are the same keys. As in a run, the later source wins: defaults,
what is for all brokers, what is for one, flags; and all mistakes are told at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, Literal

import yaml
from pydantic import BeforeValidator, Field

from embar_shm.config.entries import (
    Entry,
    FileError,
    Lines,
    entries_of,
    flag,
    plain_entry,
    position,
    read_lines,
)
from embar_shm.config.fields import AtMost, Boolean, Fields, FilePath, Shown, Size, Whole, keys_of
from embar_shm.config.merge import Setting, Settings
from embar_shm.config.values import listen_urls, optional_group, optional_size, ring_name
from embar_shm.errors import ConfigurationError
from embar_shm.token import read_token

__all__ = ["BROKER_KEYS", "BrokerConfig", "load_broker", "load_brokers"]


class BrokerConfig(Fields):
    """One broker. Sizes are bytes; files are paths as written, relative to where we run."""

    name: Annotated[str, BeforeValidator(ring_name), Shown("CLUSTER/BROKER")] = Field(
        default="", description="Its ring; programs of this machine use shm://CLUSTER/BROKER."
    )
    listen: Annotated[tuple[str, ...], BeforeValidator(listen_urls), Shown("URL")] = Field(
        default=(),
        description="Also take publishers and subscribers over a network: tcp://127.0.0.1:7400 for "
        "this machine only, tcp://0.0.0.0:7400 for others, too; port 0: any free one. Repeat it "
        "for several.",
    )
    slots: Whole = Field(default=8, ge=1, le=4096, description="Batch slots in the ring.")
    slot_size: Size = Field(default=2 * 1024**2, ge=1, description="Bytes that a batch can have.")
    max_publishers: Whole = Field(
        default=64, ge=1, le=1000, description="Publishers connected at a time."
    )
    max_subscribers: Whole = Field(
        default=64, ge=1, le=1000, description="Subscribers connected at a time."
    )
    retain: Whole = Field(
        default=0,
        ge=0,
        le=4096,
        description="Batches kept after everybody has read them, for subscribers that start at the "
        "earliest or are lossy; given up when a publisher needs their slots.",
    )
    wait: Literal["adaptive", "spin", "block"] = Field(
        default="adaptive",
        description="How it waits for batches: spin, block in the kernel, or spin first and then "
        "block.",
    )
    spin_us: Whole = Field(
        default=50, ge=0, le=1000, description="Microseconds it spins before it blocks."
    )
    socket_buffer: Annotated[
        int | None, BeforeValidator(optional_size), Shown("SIZE", "what suits the address")
    ] = Field(
        default=None,
        ge=1,
        description="Bytes that the kernel should hold for a connection, in each direction.",
    )
    group: Annotated[
        str | None, BeforeValidator(optional_group), Shown("NAME", "its user only")
    ] = Field(
        default=None,
        description="A group whose members may use the ring, too; a name or number. Their "
        "address is shm://CLUSTER/BROKER?group=NAME.",
    )
    token_file: FilePath = Field(
        default=None,
        description="A file with the secret that publishers and subscribers must know.",
    )
    tls_cert: FilePath = Field(
        default=None, description="PEM certificate of the broker: turns TLS on."
    )
    tls_key: FilePath = Field(default=None, description="PEM file with its key.")
    tls_client_ca: FilePath = Field(
        default=None,
        description="Those who connect need a certificate signed by one of these (PEM).",
    )
    insecure: Boolean = Field(
        default=False, description="Listen beyond this machine with neither token nor TLS."
    )
    replace_dead: Boolean = Field(
        default=False,
        description="Replace the ring of a broker that was killed, instead of going on with it.",
    )


BROKER_KEYS: Final = keys_of(BrokerConfig)
"""All keys, in the order in which they are documented."""

_KEY: Final = {key.name: key for key in BROKER_KEYS}
_TLS: Final = ("tls_cert", "tls_key", "tls_client_ca")
_RULES: Final = (AtMost("retain", "slots", "only what is in a slot can be kept"),)
_OF_LISTENERS: Final = ("token_file", *_TLS, "socket_buffer", "insecure")


def load_broker(name: str, flags: Mapping[str, object]) -> BrokerConfig:
    """The broker that flags describe, by key with underscores; None is one that was not given.

    Raises one `ConfigurationError` with every mistake, as does `load_brokers`. Reads the token and
    TLS files, to see that they can be used.
    """
    mistakes: list[str] = []
    broker = _settings(mistakes, _flag_entries({"name": name} | dict(flags)), spell=flag)
    return _checked([broker], Settings(BROKER_KEYS), mistakes)[0]


def load_brokers(file: str, flags: Mapping[str, object]) -> list[BrokerConfig]:
    """The brokers of a YAML file, in its order. `flags` are for all of them."""
    mistakes: list[str] = []
    above = _settings(mistakes, _flag_entries(flags), spell=flag)
    try:
        lines = read_lines(Path(file), file)
    except FileError as error:
        raise ConfigurationError("\n".join([*mistakes, str(error)])) from None
    rest = [line for line in lines if not _is_list_of_brokers(line)]
    common = _settings(mistakes, entries_of(rest, file, mistakes))
    if (setting := common.settings.pop("name", None)) is not None:
        mistakes.append(f"{setting.entry.name_place}: a name is for one broker: put it there")
    brokers = []
    for item in _items(lines, file, mistakes):
        own = _settings(mistakes, entries_of(item.value, file, mistakes))
        if not {"name"} & (own.settings.keys() | own.doubtful):
            mistakes.append(f"{position(file, item.start_mark)}: this broker has no name")
        broker = _settings(mistakes, ())
        for source in (common, own, above):
            broker.overlay(source)
        brokers.append(broker)
    common.overlay(above)  # from here on: what nobody said of one broker
    return _checked(brokers, common, mistakes)


# ---- sources -------------------------------------------------------------------------------------


def _settings(
    mistakes: list[str], source: Iterable[Entry], spell: Callable[[str], str] = str
) -> Settings:
    settings = Settings(BROKER_KEYS)
    settings.mistakes = mistakes
    settings.add(source, spell)
    return settings


def _flag_entries(flags: Mapping[str, object]) -> Iterator[Entry]:
    for name, value in flags.items():
        if value is None or value == ():
            continue
        written = flag(f"no_{name}" if value is False else name)
        origin = "CLUSTER/BROKER" if name == "name" else f"flag {written}"
        entry = plain_entry(name, written, origin, value)
        if isinstance(value, tuple):
            items = tuple(plain_entry(name, written, origin, item) for item in value)
            entry = replace(entry, items=items)
        yield entry


def _is_list_of_brokers(line: tuple[yaml.Node, yaml.Node]) -> bool:
    return isinstance(line[0], yaml.ScalarNode) and line[0].value == "brokers"


def _items(lines: Lines, file: str, mistakes: list[str]) -> Iterator[yaml.MappingNode]:
    """The mappings below `brokers`."""
    found = [line for line in lines if _is_list_of_brokers(line)]
    if not found:
        mistakes.append(f"{file}: there is no list 'brokers'")
        return
    first, node = found[0]
    for again, _ in found[1:]:
        mistakes.append(
            f"{position(file, again.start_mark)}: 'brokers' is set twice "
            f"(first at {file}:{first.start_mark.line + 1})"
        )
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        place = position(file, node.start_mark)
        mistakes.append(f"{place}: brokers: expected a list of brokers, each with a name")
        return
    for item in node.value:
        if isinstance(item, yaml.MappingNode):
            yield item
        else:
            place = position(file, item.start_mark)
            mistakes.append(f"{place}: expected lines of 'key: value', such as 'name: demo/0'")


# ---- what has to fit together --------------------------------------------------------------------


def _checked(
    brokers: Sequence[Settings], common: Settings, mistakes: list[str]
) -> list[BrokerConfig]:
    someone_listens = any(_listens(broker) for broker in brokers)
    for broker in brokers:
        certain = {key.name: broker.value(key) for key in BROKER_KEYS}
        for rule in _RULES:
            if rule.is_broken_by(certain) and not broker.doubtful & {rule.low, rule.high}:
                broker.report(rule)
        if not _listens(broker):
            forgiven = common.settings if someone_listens else {}
            mistakes += _without_effect(broker, forgiven)
        else:
            mistakes += _unusable_files(broker)
    mistakes += _taken_twice(brokers)
    if mistakes:
        raise ConfigurationError(
            "\n".join(dict.fromkeys(mistakes)),  # what is for all brokers is told once
            hint="`embar-shm broker --help` lists every key with its meaning and default",
        )
    return [
        BrokerConfig.model_validate({name: found.value for name, found in broker.settings.items()})
        for broker in brokers
    ]


def _listens(broker: Settings) -> bool:
    return bool(broker.value(_KEY["listen"])) or "listen" in broker.doubtful


def _without_effect(broker: Settings, forgiven: Mapping[str, Setting]) -> Iterator[str]:
    """What only listeners need; `forgiven` is what is there for other brokers."""
    for name in _OF_LISTENERS:
        setting = broker.settings.get(name)
        if setting is None or not setting.value:
            continue
        if name in forgiven and forgiven[name].entry is setting.entry:
            continue
        yield (
            f"{setting.entry.value_place}: nothing is protected or sized without "
            f"{_spelled('listen', setting.entry)}"
        )


def _unusable_files(broker: Settings) -> Iterator[str]:
    """Reads the token and the TLS files, to tell now what is wrong with them."""
    token = broker.settings.get("token_file")
    if token is not None and token.value is not None:
        try:
            read_token(str(token.value))
        except ConfigurationError as error:
            yield f"{token.entry.value_place}: {error.message}{_hint(error)}"
    given = [broker.settings[name] for name in _TLS if name in broker.settings]
    given = [setting for setting in given if setting.value is not None]
    if not given or broker.doubtful & {*_TLS}:
        return
    cert, key, ca = (_text(broker.value(_KEY[name])) for name in _TLS)
    place = given[0].entry.value_place
    if cert is None or key is None:
        pair = (_spelled(name, given[0].entry) for name in _TLS[:2])
        yield f"{place}: TLS needs both {' and '.join(pair)}"
        return
    from embar_shm import tls  # most brokers have none, and would load OpenSSL

    try:
        tls.server_context(cert, key, ca)
    except ConfigurationError as error:
        yield f"{place}: {error.message}{_hint(error)}"


def _taken_twice(brokers: Sequence[Settings]) -> Iterator[str]:
    """Names and addresses that two brokers would have."""
    for name in ("name", "listen"):
        first: dict[object, Setting] = {}
        for broker in brokers:
            setting = broker.settings.get(name)
            if setting is None:
                continue
            values = setting.value if isinstance(setting.value, tuple) else (setting.value,)
            for value in values:
                if name == "listen" and str(value).endswith(":0"):  # each gets one of its own
                    continue
                if value in first:
                    yield (
                        f"{setting.entry.value_place}: {value!r} is taken twice "
                        f"(first at {first[value].entry.origin})"
                    )
                first.setdefault(value, setting)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _spelled(name: str, entry: Entry) -> str:
    """`name` as the source of `entry` writes keys."""
    return flag(name) if entry.written.startswith("--") else name


def _hint(error: ConfigurationError) -> str:
    return f" ({error.hint})" if error.hint else ""
