"""The flags that configure a run, made from the schema: each key has exactly one, and its aliases.

Flags carry text. The loader parses it together with the YAML files and the environment, so that one
run reports every mistake of all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from embar_shm.cli.flags import alias_option, key_option
from embar_shm.config.loader import LoadedConfig, builtin_names, load
from embar_shm.config.schema import KEYS

__all__ = ["config_options", "config_options_without", "load_from_flags"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def config_options(command: _Command) -> _Command:
    """Adds --profile, --workload, --config and one flag per key to a click command.

    The command receives them as keyword arguments; pass all of those to `load_from_flags`.
    """
    return config_options_without()(command)


def config_options_without(*names: str) -> Callable[[_Command], _Command]:
    """`config_options` for a command that decides some keys itself: these have no flags."""
    options = [*_source_options()]
    for key in KEYS:
        if key.name not in names:
            options += [key_option(key), *(alias_option(key, alias) for alias in key.aliases)]

    def add(command: _Command) -> _Command:
        for option in reversed(options):  # decorators apply from the bottom up; help from the top
            command = option(command)
        return command

    return add


def load_from_flags(
    kwargs: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> LoadedConfig:
    """The configuration that a command's keyword arguments, the files and the environment make.

    Ignores keyword arguments that `config_options` did not add. `environ` replaces the process's
    environment. Raises `ConfigurationError` with every mistake at once.
    """
    names = [name for key in KEYS for name in (key.name, *key.aliases)]
    return load(
        profile=kwargs.get("profile"),
        workload=kwargs.get("workload"),
        files=kwargs.get("config_files") or (),
        environ=os.environ if environ is None else environ,
        flags={name: kwargs[name] for name in names if kwargs.get(name) is not None},
    )


def _source_options() -> list[Callable[[_Command], _Command]]:
    return [
        click.option(
            "--profile",
            metavar="NAME|PATH",
            help=f"Ring and machine settings: {', '.join(builtin_names('profile'))}, or a YAML "
            "file. Default: default.",
        ),
        click.option(
            "--workload",
            metavar="NAME|PATH",
            help=f"What is sent: {', '.join(builtin_names('workload'))}, or a YAML file. "
            "Default: report.",
        ),
        click.option(
            "--config",
            "config_files",
            metavar="PATH",
            multiple=True,
            help="A YAML file that sets any keys; repeat it and the later file wins.",
        ),
    ]
