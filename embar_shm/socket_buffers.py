"""How large the kernel's buffers of a TCP socket should be, and what can be had.

Four rules, the others measured (docs/performance.md, "Socket buffers"):

- A size that was set is fixed: the kernel no longer grows that buffer by itself ("autotuning").
- The kernel cuts a request at net.core.wmem_max or rmem_max without a word. A cut request is small
  *and* fixed, so a size is set only where the kernel grants all of it.
- Between machines a buffer has to cover bandwidth times delay, which autotuning finds out.
- Over loopback a buffer does not have to hold a batch. What lies in it has left the cache by the
  time it is read, if all connections together hold more than the cache does: `LOOPBACK_BYTES`.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["LOOPBACK_BYTES", "Buffer", "Buffers", "default_for", "request"]

LOOPBACK_BYTES: Final = 512 * 1024
"""What to request for a connection inside one machine, for batches of any size."""

_SETTINGS = {
    socket.SO_SNDBUF: ("net.core.wmem_max", Path("/proc/sys/net/ipv4/tcp_wmem")),
    socket.SO_RCVBUF: ("net.core.rmem_max", Path("/proc/sys/net/ipv4/tcp_rmem")),
}


@dataclass(frozen=True, slots=True)
class Buffer:
    """One direction of a socket. Sizes in bytes of payload: the kernel's figures are twice that."""

    requested: int
    """0: nothing, the kernel shall size it."""
    granted: bool
    """Was the size set? Otherwise the kernel goes on sizing the buffer by itself."""
    at_most: int
    """What it can hold at best: `requested`; where that cannot be had, the most that a request or
    autotuning gives; where nothing was requested, autotuning."""
    setting: str
    """The sysctl that limits requests."""


@dataclass(frozen=True, slots=True)
class Buffers:
    """Both directions of a socket."""

    send: Buffer
    receive: Buffer


def default_for(host: str) -> int:
    """What to request for connections with this numeric address; 0: leave it to the kernel."""
    return LOOPBACK_BYTES if ipaddress.ip_address(host).is_loopback else 0


def request(sock: socket.socket, nbytes: int) -> Buffers:
    """Sizes both buffers of a TCP socket for `nbytes` bytes of payload, where that can be had.

    Call it before connect() or listen(): the window that a connection announces is scaled by it,
    and accepted sockets inherit it. Does not block. Raises OSError for a closed socket.
    """
    # Asked on a socket of its own: a request that was cut cannot be taken back on every kernel.
    with socket.socket(sock.family, sock.type) as probe:
        return Buffers(
            send=_request(sock, probe, socket.SO_SNDBUF, nbytes),
            receive=_request(sock, probe, socket.SO_RCVBUF, nbytes),
        )


def _request(sock: socket.socket, probe: socket.socket, option: int, nbytes: int) -> Buffer:
    setting, autotuning = _SETTINGS[option]
    probe.setsockopt(socket.SOL_SOCKET, option, nbytes or 2**31 - 1)
    limit = probe.getsockopt(socket.SOL_SOCKET, option) // 2
    if 0 < nbytes <= limit:
        sock.setsockopt(socket.SOL_SOCKET, option, nbytes)
        return Buffer(nbytes, True, nbytes, setting)
    grown = _grown(autotuning)
    at_most = max(limit, grown) if nbytes else grown or limit  # a smaller request was possible
    return Buffer(nbytes, False, at_most, setting)


def _grown(autotuning: Path) -> int:
    """The most that autotuning makes of a buffer; the file has least, first and largest size."""
    try:
        return int(autotuning.read_text().split()[2]) // 2
    except FileNotFoundError:  # no /proc: then only the limit of requests is known
        return 0
