"""What the sockets of a run did: ``system.sockets`` of its result."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypedDict

from embar_shm.net import SocketCounters
from embar_shm.units import format_size

__all__ = ["Sockets", "collect", "warnings"]


class Sockets(TypedDict, total=False):
    """See docs/result.md. What brokers alone know is missing when they run elsewhere."""

    recv_calls_per_batch: float
    send_calls_per_batch: float
    eagain: int
    requested_sndbuf: int
    granted_sndbuf: int
    requested_rcvbuf: int
    granted_rcvbuf: int
    max_inq_bytes: int
    max_outq_bytes: int
    retransmits: int


_SETTINGS: Final = {
    "sndbuf": ("send", "net.core.wmem_max"),
    "rcvbuf": ("receive", "net.core.rmem_max"),
}


def collect(
    publishers: Iterable[dict[str, Any] | None],
    brokers: Iterable[dict[str, Any] | None],
    batches: int,
) -> Sockets | None:
    """From the `SocketCounters` of each process, as dictionaries; None: there were no sockets."""
    sending, receiving = _total(publishers), _total(brokers)
    if sending is None:
        return None
    found: Sockets = {
        "eagain": sending.eagain,
        "requested_sndbuf": sending.requested_sndbuf,
        "granted_sndbuf": sending.granted_sndbuf,
        "max_outq_bytes": sending.max_outq_bytes,
        "retransmits": sending.retransmits,
    }
    if batches:  # else none was accepted, and the run has failed
        found["send_calls_per_batch"] = sending.send_calls / batches
    if receiving is not None:
        if batches:
            found["recv_calls_per_batch"] = receiving.recv_calls / batches
        found["eagain"] += receiving.eagain
        found["requested_rcvbuf"] = receiving.requested_rcvbuf
        found["granted_rcvbuf"] = receiving.granted_rcvbuf
        found["max_inq_bytes"] = receiving.max_inq_bytes
    return found


def _total(processes: Iterable[dict[str, Any] | None]) -> SocketCounters | None:
    total = None
    for counters in processes:
        if counters is not None:
            total = total or SocketCounters()
            total.add(SocketCounters(**counters))
    return total


def warnings(sockets: Sockets | None) -> list[str]:
    """Requests for buffers that the kernel did not grant, and the setting that limits them."""
    found = []
    known: dict[str, Any] = {**(sockets or {})}
    for kind, (direction, setting) in _SETTINGS.items():
        requested, granted = known.get(f"requested_{kind}", 0), known.get(f"granted_{kind}", 0)
        if not requested or granted == requested:
            continue
        instead = "at most" if granted < requested else "and sizes them by itself"
        gives = "does not grant that" if granted > requested else f"gives {format_size(granted)}"
        found.append(
            f"{direction} buffers of sockets: {format_size(requested)} were wanted, the kernel "
            f"{gives} {instead}: sudo sysctl -w {setting}={requested}"
        )
    return found
