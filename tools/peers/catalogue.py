"""All peers, and which of them can take part here."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from typing import Any

from peers.over_embar_shm import EmbarShm
from peers.over_faster_fifo import FasterFifo
from peers.over_iceoryx2 import Iceoryx2
from peers.over_multiprocessing import Pipe, Queue
from peers.over_pyzmq import Zmq
from peers.over_sockets import Tcp, Unix
from peers.over_zenoh import Zenoh, ZenohShm
from peers.peer import Peer

__all__ = ["PEERS", "describe"]

PEERS: dict[str, type[Peer]] = {
    kind.name: kind
    for kind in (
        *(EmbarShm, Iceoryx2, Zmq, Zenoh, ZenohShm),
        *(FasterFifo, Queue, Pipe, Unix, Tcp),
    )
}
_INSTALL = "python -m pip install --group peers"


def describe(kind: type[Peer]) -> dict[str, Any]:
    """Version, documentation, and why it cannot take part: `unavailable`, None when it can."""
    found: dict[str, Any] = {
        "documentation": kind.documentation,
        "distribution": kind.distribution,
        "version": platform.python_version(),
        "unavailable": None,
    }
    if kind.distribution is None:
        return found
    try:
        found["version"] = metadata.version(kind.distribution)
    except metadata.PackageNotFoundError:
        here = f"{platform.python_implementation()} {platform.python_version()}"
        why = f"{kind.distribution} is not installed for {here} on {platform.machine()}: {_INSTALL}"
        found |= {"version": None, "unavailable": f"{why}; {kind.wheels}".removesuffix("; ")}
        return found
    # In a process of its own: a library that was imported here would be in all forked workers.
    done = subprocess.run(
        [sys.executable, "-c", f"import {kind.module}"], capture_output=True, text=True, timeout=60
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        found["unavailable"] = f"{kind.distribution} is installed, and cannot be imported: {last}"
    return found
