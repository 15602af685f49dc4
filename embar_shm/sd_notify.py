"""Tells the service manager how it is going: sd_notify(3), for whoever sets NOTIFY_SOCKET.

The protocol is one datagram of lines to a Unix socket. It is written out here because the packages
that do it either need libsystemd or have not been looked after for years, and drop every error.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping
from typing import Self

from embar_shm.errors import ConfigurationError

__all__ = ["Notifier"]

_PATIENCE = 2.0  # seconds that a manager whose queue is full may take, before we go on without it
_log = logging.getLogger(__name__)


class Notifier:
    """The manager, or nobody: then all of this does nothing."""

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        """`address` as in NOTIFY_SOCKET; `watchdog`: seconds after which we count as hung.

        Raises `ConfigurationError`.
        """
        self.watchdog_period = None if watchdog is None else watchdog / 4
        """Seconds between two calls of `alive`; None: they are not wanted. A quarter of the limit,
        so that one that comes late, or that waits for several processes, is still in time."""
        self._address: str | None = None
        if address is None:
            return
        if address[:1] not in ("/", "@") or len(address) < 2:
            raise ConfigurationError(
                f"NOTIFY_SOCKET={address!r} is neither a path nor the @name of a Unix socket",
                "unset it when no service manager started this",
            )
        self._address = "\0" + address[1:] if address[0] == "@" else address

    @classmethod
    def take(cls, environ: MutableMapping[str, str] = os.environ) -> Self:
        """Whom the environment names. Removes it there: our children do not speak for us.

        Raises `ConfigurationError`.
        """
        address = environ.pop("NOTIFY_SOCKET", None)
        limit = environ.pop("WATCHDOG_USEC", None)
        process = environ.pop("WATCHDOG_PID", None)
        if address is None or limit is None or process not in (None, str(os.getpid())):
            return cls(address)
        if not (limit.isascii() and limit.isdigit() and int(limit) > 0):
            raise ConfigurationError(f"WATCHDOG_USEC={limit!r} is not a number of microseconds")
        return cls(address, int(limit) / 1e6)

    def ready(self, status: str) -> None:
        """The start is complete. `status`: one line for people."""
        self._send("READY=1", f"STATUS={status}")

    def alive(self) -> None:
        """Not hung."""
        self._send("WATCHDOG=1")

    def stopping(self, status: str) -> None:
        """The end has begun."""
        self._send("STOPPING=1", f"STATUS={status}")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        message = "\n".join(line.replace("\n", " ") for line in lines).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(_PATIENCE)
                sock.connect(self._address)
                sock.send(message)
        except OSError as error:  # what we do matters more than who hears of it
            _log.warning("the service manager was not told %s: %s", lines[0], error)
