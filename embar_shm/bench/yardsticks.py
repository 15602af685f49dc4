"""What the processes of a run do when a ceiling is measured; `ceilings` is who tells them to.

All move whole batches between as many places as a publisher has slots in flight, in memory like
that of a ring (shared, prefaulted), natively.
"""

from __future__ import annotations

import mmap
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypedDict

from embar_shm import _core
from embar_shm.cpus import available_cpus
from embar_shm.options import WAIT_MODES
from embar_shm.shared_memory import prefault_memory
from embar_shm.socket_buffers import LOOPBACK_BYTES, request

__all__ = [
    "CopyAndReadShape",
    "CopyAndReadSide",
    "LoopbackReceiver",
    "LoopbackSender",
    "MemoryCopy",
    "Places",
]

_HOST = "127.0.0.1"
_SETUP_TIMEOUT = 5.0  # seconds; over loopback, a connection takes microseconds


@dataclass(frozen=True, slots=True)
class Places:
    """Memory for as many batches as a publisher has in flight, laid out like slots."""

    memory: mmap.mmap
    offsets: list[int]
    batch_bytes: int

    @classmethod
    def prefaulted(cls, spec: dict[str, Any]) -> Places:
        stride: int = spec["slot_stride"]
        count = min(spec["in_flight"], spec["slots"])
        memory = mmap.mmap(-1, count * stride)  # shared and anonymous: the same kind of pages
        prefault_memory(memory)
        offsets = [place * stride + mmap.PAGESIZE for place in range(count)]
        batch = spec["batch_size"] // spec["message_size"] * spec["message_size"]
        return cls(memory, offsets, batch)


class MemoryCopy:
    """A publisher's copies without ring, from `source` into the places in turn."""

    def __init__(self, places: Places, source: bytes) -> None:
        self._places = places
        self._source = source

    def copy(self, batches: int, nontemporal: bool) -> None:
        p = self._places
        _core.memory_copy(p.memory, p.offsets, self._source, p.batch_bytes, batches, nontemporal)


class CopyAndReadShape(TypedDict):
    """One broker's publishers and subscribers, without the broker; `fd` is their memory."""

    fd: int
    writers: int
    places: int
    readers: int
    batch_bytes: int
    wait: str
    spin_us: float


class CopyAndReadSide:
    """A publisher's copies that a subscriber reads, and the subscriber's reads."""

    def __init__(self, shape: CopyAndReadShape) -> None:
        self._side = _core.CopyAndRead(
            mmap.mmap(shape["fd"], 0),
            shape["writers"],
            shape["places"],
            shape["readers"],
            shape["batch_bytes"],
            WAIT_MODES[shape["wait"]],
            shape["spin_us"],
            available_cpus(),
        )

    @staticmethod
    @contextmanager
    def memory(shape: CopyAndReadShape) -> Iterator[CopyAndReadShape]:
        """The shape with memory, which is nobody's when all its processes have ended."""
        size = _core.CopyAndRead.bytes(
            shape["writers"], shape["places"], shape["readers"], shape["batch_bytes"]
        )
        fd = os.memfd_create("embar-shm copy and read")
        try:
            os.ftruncate(fd, size)
            with mmap.mmap(fd, size) as memory:
                prefault_memory(memory)
            yield {**shape, "fd": fd}
        finally:
            os.close(fd)

    def write(self, writer: int, source: bytes, batches: int, nontemporal: bool) -> None:
        self._side.write(writer, source, batches, nontemporal)

    def read(self, batches: int) -> None:
        self._side.read(batches)


class LoopbackSender:
    """A publisher's connection to the process of its broker. Obeys

    loopback-connect -> loopback-connected;  loopback-send -> loopback-ended;  loopback-close
    """

    def __init__(self, places: Places, say: Callable[..., None]) -> None:
        self._places = places
        self._say = say
        self._sock: socket.socket | None = None

    def obey(self, command: dict[str, Any]) -> None:
        """Does what the coordinator wants; what goes wrong is told it as `failed`."""
        match command["do"]:
            case "loopback-connect":
                port, failed = 0, ""
                try:
                    port = self._connect(command["address"])
                except OSError as error:
                    failed = f"no connection to {_HOST}: {error}"
                self._say("loopback-connected", port=port, failed=failed)
            case "loopback-send":
                failed = ""
                try:
                    self._send(command["batches"])
                except OSError as error:
                    failed = f"sending: {error}"
                self._say("loopback-ended", failed=failed)
            case "loopback-close":
                self._close()

    def _connect(self, address: list[Any]) -> int:
        self._sock = sock = socket.socket()
        request(sock, LOOPBACK_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(_SETUP_TIMEOUT)
        sock.connect(tuple(address))
        sock.settimeout(None)
        port: int = sock.getsockname()[1]
        return port

    def _send(self, batches: int) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            raise ConnectionError("there is no connection")
        p = self._places
        with sock:
            _core.tcp_send_loop(sock.fileno(), p.memory, p.offsets, p.batch_bytes, batches)

    def _close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


class LoopbackReceiver:
    """A broker's side: a thread per connection, each in the native loop. Obeys

    loopback-listen -> loopback-listening;  loopback-receive -> loopback-receiving,
    loopback-ended;  loopback-close

    `close`, from another thread, ends whatever is going on. A process must not end before: a thread
    that comes back from native code then has no interpreter to come back to.
    """

    def __init__(self, spec: dict[str, Any], say: Callable[..., None]) -> None:
        self._spec = spec
        self._say = say
        self._lock = threading.Lock()  # guards the sockets and the threads
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._closed = False

    def obey(self, command: dict[str, Any]) -> None:
        """Does what the coordinator wants; what goes wrong is told it as `failed`."""
        match command["do"]:
            case "loopback-listen":
                address, failed = None, ""
                try:
                    address = self._listen(command["connections"])
                except OSError as error:
                    failed = f"cannot listen on {_HOST}: {error}"
                self._tell("loopback-listening", address=address, failed=failed)
            case "loopback-receive":
                try:
                    connections = self._accept(set(command["ports"]))
                except OSError as error:
                    self._tell("loopback-receiving", failed=f"no connection accepted: {error}")
                else:
                    self._receive(connections)
            case "loopback-close":
                self._close_sockets()

    def close(self) -> None:
        """Ends what is going on, and waits for it. Idempotent; any thread."""
        with self._lock:
            self._closed = True
            for sock in self._sockets:
                with suppress(OSError):  # its own thread has closed it, or it is not connected
                    sock.shutdown(socket.SHUT_RDWR)
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def _tell(self, event: str, **fields: Any) -> None:
        if not self._closed:  # else the main thread speaks: the process is ending
            self._say(event, **fields)

    def _listen(self, connections: int) -> tuple[str, int]:
        sock = self._ours(socket.socket())
        request(sock, LOOPBACK_BYTES)
        sock.bind((_HOST, 0))
        sock.listen(connections + 64)  # also for strangers, until we look at them
        sock.settimeout(_SETUP_TIMEOUT)
        address: tuple[str, int] = sock.getsockname()
        return address

    def _accept(self, ports: set[int]) -> list[socket.socket]:
        """The connections from these ports; others are closed. The listening socket is, too."""
        [listener] = self._sockets
        connections = []
        with listener:
            while ports:
                sock, (_, port) = listener.accept()
                if port in ports:
                    ports.remove(port)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    connections.append(self._ours(sock))
                else:
                    sock.close()
        return connections

    def _receive(self, connections: list[socket.socket]) -> None:
        ended: list[tuple[int, int, str]] = []
        # Made here, one after the other and before the clock starts.
        work = [(sock, Places.prefaulted(self._spec), ended) for sock in connections]
        threads = [threading.Thread(target=_receive, args=a, daemon=True) for a in work]
        with self._lock:
            if self._closed:
                return
            self._threads = threads
            for thread in threads:
                thread.start()
        self._tell("loopback-receiving", failed="")
        for thread in threads:
            thread.join()
        self._close_sockets()
        self._tell(
            "loopback-ended",
            bytes=sum(received for received, _, _ in ended),
            end_ns=max(end_ns for _, end_ns, _ in ended),
            failed=next((failed for _, _, failed in ended if failed), ""),
        )

    def _ours(self, sock: socket.socket) -> socket.socket:
        """Makes `close` know it."""
        with self._lock:
            self._sockets.append(sock)
            if self._closed:
                raise ConnectionAbortedError("this process is ending")
        return sock

    def _close_sockets(self) -> None:
        with self._lock:
            for sock in self._sockets:
                sock.close()
            self._sockets.clear()
            self._threads.clear()


def _receive(sock: socket.socket, places: Places, ended: list[tuple[int, int, str]]) -> None:
    p, received, failed = places, 0, ""
    try:
        with sock:
            received = _core.tcp_receive_loop(sock.fileno(), p.memory, p.offsets, p.batch_bytes)
    except (OSError, EOFError) as error:
        failed = f"receiving: {error}"
    ended.append((received, time.monotonic_ns(), failed))
