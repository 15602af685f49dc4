"""The flag of a configuration key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from embar_shm.config.fields import Key

__all__ = ["alias_option", "key_option"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def key_option(key: Key) -> Callable[[_Command], _Command]:
    """The flag of one key. It carries text, or nothing; of a list: a tuple of texts."""
    text = key.description
    if key.aliases:
        text += f" Also written {', '.join(_flag(alias) for alias in key.aliases)}."
    text += f" Default: {key.default_text}."
    if key.is_boolean:
        declaration = f"{_flag(key.name)}/{_flag('no_' + key.name)}"
        return click.option(declaration, key.name, default=None, help=text)
    return click.option(
        _flag(key.name),
        key.name,
        type=str,
        metavar=key.metavar,
        multiple=key.is_list,
        help=text,
    )


def alias_option(key: Key, alias: str) -> Callable[[_Command], _Command]:
    # A hidden option of its own rather than a second spelling of the same one: click would not tell
    # which was used, so the origin would name a flag nobody wrote and giving both would go unseen.
    return click.option(_flag(alias), alias, type=str, metavar=key.metavar, hidden=True)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
