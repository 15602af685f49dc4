"""shm against tcp on the report's workload, and what tcp could reach at best.

    python tools/bench_transports.py [--rounds 5] [--total 10GiB]

Every round runs shm and tcp, one message and many messages a call, and between them two loops of
bare send and recv with the same processes and sizes: one as the run's own ceiling is measured (the
same bytes again and again), one that fills each batch before it sends it, as a publisher has to.
"""

from __future__ import annotations

import argparse
import mmap
import os
import socket
import threading
import time
from functools import partial
from typing import Any

from bench_common import interleave, machine, spread, table
from bench_runs import REPORT, rate, run

from embar_shm import _core
from embar_shm.bench.usage import by_role
from embar_shm.shared_memory import prefault_memory
from embar_shm.socket_buffers import LOOPBACK_BYTES, request

BROKERS, PUBLISHERS_EACH, IN_FLIGHT = 4, 3, 2
BATCH = 2 * 2**20
BLOCK = 64 * 1024  # bytes of messages in a call of publish_many
OFFSETS = [place * BATCH for place in range(IN_FLIGHT)]
BATCHES = 300  # of each publisher


def memory() -> mmap.mmap:
    made = mmap.mmap(-1, IN_FLIGHT * BATCH)
    prefault_memory(made)
    return made


def receive(listener: socket.socket) -> None:
    """The process of a broker: a thread per connection."""
    connections = [listener.accept()[0] for _ in range(PUBLISHERS_EACH)]
    work = [(sock.fileno(), memory(), OFFSETS, BATCH) for sock in connections]
    threads = [threading.Thread(target=_core.tcp_receive_loop, args=args) for args in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def send(address: tuple[str, int], ready: int, go: int, fill: bool) -> None:
    """The process of a publisher."""
    place, source = memory(), os.urandom(BLOCK)
    with socket.socket() as sock:
        request(sock, LOOPBACK_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect(address)
        os.write(ready, b".")
        os.read(go, 1)  # ends with the end of file
        if not fill:
            _core.tcp_send_loop(sock.fileno(), place, OFFSETS, BATCH, BATCHES)
            return
        for batch in range(BATCHES):
            offset = [OFFSETS[batch % IN_FLIGHT]]
            _core.memory_copy(place, offset, source, BATCH, 1, False)
            _core.tcp_send_loop(sock.fileno(), place, offset, BATCH, 1)


def loop(fill: bool) -> float:
    """GB/s of all connections together."""
    ready, tell_ready = os.pipe()
    go, tell_go = os.pipe()
    children = []
    for _ in range(BROKERS):
        listener = socket.socket()
        request(listener, LOOPBACK_BYTES)
        listener.bind(("127.0.0.1", 0))
        listener.listen(PUBLISHERS_EACH)
        children.append(child(partial(receive, listener), tell_go))
        for _ in range(PUBLISHERS_EACH):
            work = partial(send, listener.getsockname(), tell_ready, go, fill)
            children.append(child(work, tell_go))
        listener.close()
    for _ in range(BROKERS * PUBLISHERS_EACH):
        os.read(ready, 1)
    begin = time.monotonic()
    os.close(tell_go)
    statuses = [os.waitpid(pid, 0)[1] for pid in children]
    seconds = time.monotonic() - begin
    for fd in (ready, tell_ready, go):
        os.close(fd)
    if any(statuses):
        raise SystemExit("a process of the bare loop failed")
    return BROKERS * PUBLISHERS_EACH * BATCHES * BATCH / seconds / 1e9


def child(work: Any, not_ours: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.close(not_ours)  # whoever kept it open would keep the others waiting
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--total", default="10GiB")
    arguments = parser.parse_args()
    machine()
    found: dict[str, Any] = interleave(
        arguments.rounds,
        {
            **{
                f"{transport} {producer}": partial(
                    run,
                    [*REPORT, "--transport", transport, "--producer", producer],
                    arguments.total,
                )
                for producer in ("many", "one")
                for transport in ("shm", "tcp")
            },
            "bare": partial(loop, False),
            "filled": partial(loop, True),
        },
    )
    rows = []
    for producer in ("many", "one"):
        for transport, ceiling in (("shm", "memory_copy"), ("tcp", "tcp_loopback")):
            results = found[f"{transport} {producer}"]
            roles = [by_role(r["system"]).values() for r in results]
            cpu = [sum(u["cpu_seconds"] for u in of) for of in roles]
            user = [sum(u["user_seconds"] for u in of) for of in roles]
            size = [r["throughput"]["bytes"] / 1e9 for r in results]
            rows.append([
                f"{transport}, {producer}",
                spread([rate(r) for r in results]),
                spread([r["ceilings"][ceiling]["share"] for r in results], digits=2),
                spread([c / s for c, s in zip(cpu, size, strict=True)], digits=3),
                spread([100 * u / c for u, c in zip(user, cpu, strict=True)], " %", 0),
            ])  # fmt: skip
    table(["run", "GB/s", "of its ceiling", "CPU s per GB", "outside the kernel"], rows)
    for producer in ("many", "one"):
        pairs = zip(found[f"shm {producer}"], found[f"tcp {producer}"], strict=True)
        print(f"shm / tcp, {producer}: {spread([rate(a) / rate(b) for a, b in pairs])}")
    bare, filled = found["bare"], found["filled"]
    print(f"bare loop: {spread(bare)} GB/s; that fills each batch: {spread(filled)} GB/s")
    shares = [f / b for f, b in zip(filled, bare, strict=True)]
    print(f"a loop that fills, of one that does not: {spread(shares, digits=2)}")
    for producer in ("many", "one"):
        of = [rate(r) / f for r, f in zip(found[f"tcp {producer}"], filled, strict=True)]
        print(f"tcp {producer}, of the loop that fills: {spread(of, digits=2)}")


if __name__ == "__main__":
    main()
