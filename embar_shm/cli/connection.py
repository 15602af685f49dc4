"""What ``embar-shm publish`` and ``embar-shm subscribe`` need to know to connect."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from embar_shm.address import split_address
from embar_shm.bench import access
from embar_shm.units import parse_size

__all__ = ["connection_options", "connection_settings", "seconds", "size"]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FOREVER = 1e9  # seconds
_OF_TCP = ("token_file", "tls_ca", "tls_cert", "tls_key")


def seconds(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """Callback of an option: a number of seconds, or None for "none"."""
    if value is None or value.strip().lower() == "none":
        return None
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not 0 <= found <= _FOREVER:
        raise click.BadParameter(f"{value!r} is neither a number of seconds nor 'none'")
    return found


def size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    """Callback of an option: a number of bytes, at least one."""
    if value is None:
        return None
    try:
        found = parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if found == 0:
        raise click.BadParameter("it must be at least 1 byte")
    return found


def connection_options(command: _Command) -> _Command:
    """Adds --connect-timeout, --restart-timeout and what a broker on a network asks for."""
    options = [
        click.option(
            "--connect-timeout",
            callback=seconds,
            metavar="SECONDS",
            default="0",
            show_default=True,
            help="How long to wait for the broker to appear.",
        ),
        click.option(
            "--restart-timeout",
            callback=seconds,
            metavar="SECONDS",
            default="5",
            show_default=True,
            help="How long to wait for a broker that died to be started again.",
        ),
        click.option(
            "--token-file",
            metavar="PATH",
            help="tcp: a file with the broker's secret; readable by you only.",
        ),
        click.option(
            "--tls-ca",
            metavar="PATH",
            help="tcp: PEM certificates by which the broker is trusted; turns TLS on.",
        ),
        click.option(
            "--tls-cert",
            metavar="PATH",
            help="tcp: PEM certificate to show to a broker that asks for one.",
        ),
        click.option("--tls-key", metavar="PATH", help="tcp: PEM file with its key."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def connection_settings(address: str, flags: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments for `connect` from what `connection_options` added.

    Raises `ConfigurationError`, and `click.UsageError` for flags that do not go together.
    """
    scheme, _ = split_address(address)
    given = [f"--{name.replace('_', '-')}" for name in _OF_TCP if flags[name] is not None]
    if given and scheme == "shm":
        raise click.UsageError(f"{', '.join(given)}: shared memory has no use for it")
    if (flags["tls_cert"] is None) != (flags["tls_key"] is None):
        raise click.UsageError("a certificate needs both --tls-cert and --tls-key")
    if flags["tls_cert"] is not None and flags["tls_ca"] is None:
        raise click.UsageError("--tls-cert has no effect without --tls-ca")
    connect, restart = flags["connect_timeout"], flags["restart_timeout"]
    return {
        "connect_timeout": _FOREVER if connect is None else connect,
        "restart_timeout": _FOREVER if restart is None else restart,
        "token": access.token(flags),
        "tls": access.publisher_tls(flags),
    }
