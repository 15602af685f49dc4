"""Raw loopback TCP by socket buffer size: the measurement behind embar_shm/socket_buffers.py.

    python tools/bench_socket_buffers.py [--rounds 7] [--total 2GiB] [--batch 2MiB]

Sender processes, one connection each, and receiver processes with a thread per connection move
batches with send(2) and recv(2, MSG_WAITALL), natively. Time from the start signal to the moment
the last receiver has everything. A size that the kernel does not grant in full is not measured.
"""

from __future__ import annotations

import argparse
import mmap
import os
import socket
import threading
import time
from collections.abc import Callable
from functools import partial

from bench_common import interleave, machine, spread, table

from embar_shm import _core
from embar_shm.shared_memory import prefault_memory
from embar_shm.units import format_size, parse_size

KIB = 1024
SIZES = [64 * KIB, 208 * KIB, 512 * KIB, 1024 * KIB, 2048 * KIB, 4096 * KIB]
PLACES = 2  # batches in flight of one connection
LAYOUTS = {"12 connections": (4, 3), "1 connection": (1, 1)}  # receivers, connections of each


def places(batch: int) -> tuple[mmap.mmap, list[int]]:
    memory = mmap.mmap(-1, PLACES * batch)
    prefault_memory(memory)
    return memory, [place * batch for place in range(PLACES)]


def set_buffers(sock: socket.socket, nbytes: int | None) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        if nbytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, option, nbytes)


def granted(nbytes: int) -> bool:
    with socket.socket() as sock:
        set_buffers(sock, nbytes)
        options = (socket.SO_SNDBUF, socket.SO_RCVBUF)
        return all(sock.getsockopt(socket.SOL_SOCKET, o) >= 2 * nbytes for o in options)


def in_child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def receive(listener: socket.socket, connections: int, batch: int, ready: int) -> None:
    threads = []
    for _ in range(connections):
        sock, _ = listener.accept()
        memory, offsets = places(batch)
        loop = partial(_core.tcp_receive_loop, sock.fileno(), memory, offsets, batch)
        threads.append((threading.Thread(target=loop), sock))
    for thread, _ in threads:
        thread.start()
    os.write(ready, b".")
    for thread, _ in threads:
        thread.join()


def send(
    address: tuple[str, int], nbytes: int | None, batch: int, batches: int, ready: int, go: int
) -> None:
    with socket.socket() as sock:
        set_buffers(sock, nbytes)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect(address)
        memory, offsets = places(batch)
        os.write(ready, b".")
        os.read(go, 1)
        _core.tcp_send_loop(sock.fileno(), memory, offsets, batch, batches)


def measure(receivers: int, each: int, nbytes: int | None, batch: int, total: int) -> float:
    """GB/s of all connections together."""
    batches = max(1, total // batch // (receivers * each))
    ready, say_ready = os.pipe()
    go, say_go = os.pipe()
    listeners = []
    for _ in range(receivers):
        listener = socket.socket()
        set_buffers(listener, nbytes)
        listener.bind(("127.0.0.1", 0))
        listener.listen(each)
        listeners.append(listener)
    sinks = [in_child(partial(receive, s, each, batch, say_ready)) for s in listeners]
    senders = [
        in_child(partial(send, s.getsockname(), nbytes, batch, batches, say_ready, go))
        for s in listeners
        for _ in range(each)
    ]
    for listener in listeners:
        listener.close()
    waiting = receivers + len(senders)
    while waiting:
        waiting -= len(os.read(ready, waiting))
    begin = time.monotonic()
    os.write(say_go, b"." * len(senders))
    codes = [os.waitpid(pid, 0)[1] for pid in sinks]
    seconds = time.monotonic() - begin
    codes += [os.waitpid(pid, 0)[1] for pid in senders]
    for fd in (ready, say_ready, go, say_go):
        os.close(fd)
    if any(codes):
        raise SystemExit("a process failed; see above")
    return batches * batch * len(senders) / seconds / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--total", default="2GiB")
    parser.add_argument("--batch", default="2MiB")
    arguments = parser.parse_args()
    batch, total = parse_size(arguments.batch), parse_size(arguments.total)
    machine()
    sizes = {"autotuning": None} | {format_size(size): size for size in SIZES if granted(size)}
    candidates = {
        f"{layout}: {name}": partial(measure, *shape, size, batch, total)
        for layout, shape in LAYOUTS.items()
        for name, size in sizes.items()
    }
    found = interleave(arguments.rounds, candidates)
    rows = []
    for name in sizes:
        row = [name]
        for layout in LAYOUTS:
            rates = found[f"{layout}: {name}"]
            automatic = found[f"{layout}: autotuning"]
            ratios = [a / b for a, b in zip(rates, automatic, strict=True)]
            row += [spread(rates), spread(ratios, digits=2)]
        rows.append(row)
    print(f"batches of {format_size(batch)}")
    columns = [f"{layout}, {what}" for layout in LAYOUTS for what in ("GB/s", "to autotuning")]
    table(["SO_SNDBUF, SO_RCVBUF", *columns], rows)


if __name__ == "__main__":
    main()
