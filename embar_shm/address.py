"""Names of rings and addresses of brokers.

A ring is named ``cluster/broker``; its segment is the POSIX shared memory object
``/embar.<cluster>.<broker>``, which Linux shows as ``/dev/shm/embar.<cluster>.<broker>``.
An address is a URL: ``shm://cluster/broker``, with ``?group=NAME`` after it where several users
share the ring (`embar_shm.access`); other transports have their own form after ``://``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote

from embar_shm.errors import ConfigurationError

__all__ = ["SHM_DIRECTORY", "RingAddress", "RingName", "existing_rings", "split_address"]

SHM_DIRECTORY = Path("/dev/shm")  # where Linux mounts the file system of shm_open(3)
_PREFIX = "embar."
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # no dots: they separate the parts


@dataclass(frozen=True, slots=True)
class RingName:
    """The name of one broker's ring."""

    cluster: str
    broker: str

    @classmethod
    def parse(cls, text: str) -> RingName:
        """Reads "cluster/broker". Raises `ConfigurationError` for anything else."""
        parts = text.split("/") if isinstance(text, str) else []
        if len(parts) != 2 or not all(_PART.fullmatch(part) for part in parts):
            shown = repr(text) if len(repr(text)) <= 80 else f"{text!r:.77}..."
            raise ConfigurationError(
                f"{shown} is not the name of a ring",
                'a name is "cluster/broker", for example "demo/0"; each part has 1 to 64 letters, '
                "digits, '-' or '_', and begins with a letter or digit",
            )
        return cls(*parts)

    @property
    def posix_name(self) -> str:
        """The argument of shm_open(3)."""
        return f"/{_PREFIX}{self.cluster}.{self.broker}"

    @property
    def path(self) -> Path:
        """Where the segment's file is, for people and for os.stat()."""
        return _path_in(SHM_DIRECTORY, self.posix_name[1:])

    def __str__(self) -> str:
        return f"{self.cluster}/{self.broker}"


@dataclass(frozen=True, slots=True)
class RingAddress:
    """What follows "shm://": a ring, and the group whose members are trusted with it, if any."""

    ring: RingName
    group: str | None = None
    """Its name, or its number in digits."""

    @classmethod
    def parse(cls, text: str) -> RingAddress:
        """Reads "cluster/broker" or "cluster/broker?group=NAME". Raises `ConfigurationError`."""
        name, question, query = text.partition("?") if isinstance(text, str) else (text, "", "")
        ring = RingName.parse(name)
        if not question:
            return cls(ring)
        key, _, value = query.partition("=")
        group = unquote(value)
        if key != "group" or not group or not group.isprintable() or "&" in value:
            raise ConfigurationError(
                f"{query!r} says nothing about the ring {ring}",
                f'"shm://{ring}?group=NAME" is for a ring that several users share',
            )
        return cls(ring, group)

    def __str__(self) -> str:
        if self.group is None:
            return str(self.ring)
        return f"{self.ring}?group={quote(self.group, safe='')}"


@lru_cache(maxsize=256)
def _path_in(folder: Path, name: str) -> Path:
    """Made once, not at each connection: `cgroups` tells what new paths cost a process."""
    return folder / name


def existing_rings() -> list[RingName]:
    """The rings of this machine, in the order of their names. Says nothing about who is alive."""
    rings = []
    for path in sorted(SHM_DIRECTORY.glob(f"{_PREFIX}*.*")):
        parts = path.name[len(_PREFIX) :].split(".")
        if len(parts) == 2 and all(_PART.fullmatch(part) for part in parts):
            rings.append(RingName(*parts))
    return rings


def split_address(url: str) -> tuple[str, str]:
    """Splits "scheme://rest". Raises `ConfigurationError` when one of them is missing."""
    scheme, _, rest = url.partition("://") if isinstance(url, str) else ("", "", "")
    if not scheme or not rest:
        raise ConfigurationError(
            f"{url!r} is not an address",
            'an address is a URL such as "shm://demo/0" (transport, "://", what it connects to)',
        )
    return scheme, rest
