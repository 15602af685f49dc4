"""ZeroMQ over ipc://, with pyzmq."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peers.peer import Consume, End, Peer, Produce
from peers.workloads import Reader, Workload

# The high-water mark, in messages at either end. The default would be 2 GB of batches for each
# connection; and 0, no limit, is a third faster with messages of 64 B, and slower with 1 KiB.
BATCHES, DEFAULT, NO_LIMIT = 4, 1000, 0


class Zmq(Peer):
    """PUSH and PULL, one PULL socket per consumer; PAIR for round trips."""

    name = "pyzmq"
    distribution = "pyzmq"
    module = "zmq"
    # copy=False below, and only for what is large: messages up to zmq.COPY_THRESHOLD (64 KiB) are
    # copied in any case, since that is faster.
    documentation = "https://pyzmq.readthedocs.io/en/latest/api/zmq.html#zmq.Socket.send"

    @classmethod
    def settings(cls, work: Workload) -> str:
        if work.kind == "batches":
            return f"PUSH/PULL, ipc://, copy=False, SNDHWM and RCVHWM {BATCHES}"
        if work.kind == "messages":
            limit = DEFAULT if work.size > 64 else "0 (no limit)"
            return f"PUSH/PULL, ipc://, SNDHWM and RCVHWM {limit}"
        return "PAIR, ipc://, " + ("recv with NOBLOCK and sched_yield" if work.spin else "recv")

    @contextmanager
    def _socket(self, kind: str, index: int, bind: bool) -> Iterator[Any]:
        import zmq

        limit = BATCHES if self.work.kind == "batches" else DEFAULT
        if self.work.size <= 64:
            limit = NO_LIMIT
        with zmq.Context() as context, context.socket(getattr(zmq, kind)) as sock:
            # http://api.zeromq.org/master:zmq-setsockopt
            sock.setsockopt(zmq.SNDHWM, limit)
            sock.setsockopt(zmq.RCVHWM, limit)
            address = f"ipc://{self.directory}/{index}"
            (sock.bind if bind else sock.connect)(address)
            yield sock

    @contextmanager
    def producer(self, index: int) -> Iterator[Produce]:
        message, copy = self.message, self.work.kind != "batches"
        with self._socket("PUSH", index % self.work.consumers, bind=False) as sock:
            send = sock.send

            def produce(count: int) -> None:
                for _ in range(count):
                    send(message, copy=False)

            def produce_messages(count: int) -> None:
                for _ in range(count):
                    send(message)

            yield produce_messages if copy else produce

    @contextmanager
    def consumer(self, index: int) -> Iterator[Consume]:
        read = Reader(self.work.size)
        with self._socket("PULL", index, bind=True) as sock:
            receive = sock.recv

            def consume(count: int) -> int:
                total = 0
                for _ in range(count):
                    total += read(receive(copy=False).buffer)
                return total

            def consume_messages(count: int) -> int:
                total = 0
                for _ in range(count):
                    total += len(receive())
                return total

            yield consume if self.work.kind == "batches" else consume_messages

    @contextmanager
    def end(self, index: int) -> Iterator[End]:
        import zmq

        message, noblock, again = self.message, zmq.NOBLOCK, zmq.Again
        with self._socket("PAIR", 0, bind=index == 1) as sock:
            there, take = sock.send, sock.recv

            def send() -> object:
                return there(message)

            def receive() -> int:
                return len(take())

            def receive_spinning() -> int:
                while True:
                    try:
                        return len(take(noblock))
                    except again:
                        os.sched_yield()  # to the threads of ZeroMQ: without, it may stall

            yield send, receive_spinning if self.work.spin else receive
