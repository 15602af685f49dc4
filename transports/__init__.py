"""Transports, found by the scheme of their URL.

`base` is the contract, each other module one transport. A third party adds one by registering a
`Transport` class under the entry-point group ``embar_shm.transports``.
"""

from __future__ import annotations

if __name__ != "embar_shm.transports":
    # The folder stands at the top of the source tree, so `import transports` finds it when Python
    # runs there. A second copy of the classes under that name would fail every isinstance check.
    raise ImportError(f"import this package as embar_shm.transports, not as {__name__}")

from typing import TYPE_CHECKING

from embar_shm.errors import ConfigurationError
from embar_shm.transports.base import (
    Listener,
    ListenOptions,
    PublisherLink,
    PublisherOptions,
    PublisherStats,
    Transport,
)

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

__all__ = [
    "ENTRY_POINT_GROUP",
    "ListenOptions",
    "Listener",
    "PublisherLink",
    "PublisherOptions",
    "PublisherStats",
    "Transport",
    "available",
    "get",
]

ENTRY_POINT_GROUP = "embar_shm.transports"


def available() -> list[str]:
    """The schemes of all registered transports."""
    return sorted({point.name for point in _entry_points()})


def get(scheme: str) -> Transport:
    """The transport of a scheme. Raises `ConfigurationError` listing those that exist."""
    for point in _entry_points().select(name=scheme):
        try:
            found = point.load()
            if isinstance(found, type) and issubclass(found, Transport):
                return found()
        except Exception as error:  # somebody else's module: it can raise anything
            raise ConfigurationError(
                f"the transport {scheme!r} ({point.value}) cannot be loaded: {error}",
                "reinstall the package that provides it",
            ) from error
        raise ConfigurationError(
            f"the transport {scheme!r} ({point.value}) is no subclass of Transport"
        )
    import difflib

    names = available()
    close = difflib.get_close_matches(scheme, names, n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigurationError(
        f"there is no transport {scheme!r}", f"{meant}installed: {', '.join(names) or 'none'}"
    )


def _entry_points() -> EntryPoints:
    from importlib.metadata import entry_points  # a quarter of `import embar_shm`, if always

    return entry_points(group=ENTRY_POINT_GROUP)
