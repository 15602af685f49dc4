"""Queue and Pipe of Python's multiprocessing."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

from peers.peer import Consume, End, Peer, Produce
from peers.workloads import Reader, Workload

_CONTEXT = multiprocessing.get_context("fork")  # Linux's default until Python 3.14
_HELD = 8  # batches in a queue at a time: unbounded queues of 2 MiB fill the memory


class Queue(Peer):
    """multiprocessing.Queue: pickles in a thread, a pipe, and a lock at each end."""

    name = "mp.Queue"
    documentation = "https://docs.python.org/3/library/multiprocessing.html#multiprocessing.Queue"

    @classmethod
    def settings(cls, work: Workload) -> str:
        if work.kind == "batches":
            return f"put and get of bytes, maxsize {_HELD}, one queue per consumer"
        if work.kind == "messages":
            return "put and get of bytes, no maxsize"
        return "put, get_nowait" if work.spin else "put, get"

    def prepare(self) -> None:
        held = _HELD if self.work.kind == "batches" else 0
        count = 2 if self.work.kind == "trips" else self.work.consumers
        self.queues: list[Any] = [_CONTEXT.Queue(held) for _ in range(count)]

    def clean(self) -> None:
        for each in self.queues:
            each.close()

    @contextmanager
    def producer(self, index: int) -> Iterator[Produce]:
        put, message = self.queues[index % self.work.consumers].put, self.message

        def produce(count: int) -> None:
            for _ in range(count):
                put(message)

        yield produce
        self._flush(index % self.work.consumers)

    def _flush(self, index: int) -> None:
        self.queues[index].close()
        self.queues[index].join_thread()  # it writes what was put

    @contextmanager
    def consumer(self, index: int) -> Iterator[Consume]:
        get, read = self.queues[index].get, Reader(self.work.size)

        def consume(count: int) -> int:
            total = 0
            for _ in range(count):
                total += read(get())
            return total

        def consume_messages(count: int) -> int:
            total = 0
            for _ in range(count):
                total += len(get())
            return total

        yield consume if self.work.kind == "batches" else consume_messages

    @contextmanager
    def end(self, index: int) -> Iterator[End]:
        message, put, get = self.message, self.queues[index].put, self.queues[1 - index].get

        def send() -> object:
            return put(message)

        def receive() -> int:
            return len(get())

        def receive_spinning() -> int:
            while True:
                try:
                    return len(get(False))
                except queue.Empty:
                    pass

        yield send, receive_spinning if self.work.spin else receive
        self._flush(index)


class Pipe(Peer):
    """multiprocessing.Pipe: bytes with their length in front, over a pipe or a socket pair."""

    name = "mp.Pipe"
    documentation = (
        "https://docs.python.org/3/library/multiprocessing.html"
        "#multiprocessing.connection.Connection.recv_bytes_into"
    )

    @classmethod
    def settings(cls, work: Workload) -> str:
        if work.kind == "trips":
            return "two one-way, send_bytes, recv_bytes" + (
                " after poll() in a loop" if work.spin else ""
            )
        if work.kind == "messages":
            return "one-way, send_bytes, recv_bytes"
        many = ", connection.wait" if work.each > 1 else ""
        return f"duplex, send_bytes, recv_bytes_into{many}"

    def prepare(self) -> None:
        count = 2 if self.work.kind == "trips" else self.work.producers
        # A duplex pipe is a pair of sockets: 4 times as fast with batches, slower with messages.
        duplex = self.work.kind == "batches"
        self.pipes: list[tuple[Connection, Connection]] = [
            _CONTEXT.Pipe(duplex) for _ in range(count)
        ]

    def clean(self) -> None:
        for pair in self.pipes:
            for connection in pair:
                connection.close()

    @contextmanager
    def producer(self, index: int) -> Iterator[Produce]:
        send, message = self.pipes[index][1].send_bytes, self.message

        def produce(count: int) -> None:
            for _ in range(count):
                send(message)

        yield produce

    @contextmanager
    def consumer(self, index: int) -> Iterator[Consume]:
        mine = [pair[0] for pair in self.pipes[index :: self.work.consumers]]
        receive = mine[0].recv_bytes
        batch, read = bytearray(self.work.size), Reader(self.work.size)

        def consume_messages(count: int) -> int:
            total = 0
            for _ in range(count):
                total += len(receive())
            return total

        def consume(count: int) -> int:
            total = 0
            for _ in range(count):
                mine[0].recv_bytes_into(batch)
                total += read(batch)
            return total

        def consume_from_all(count: int) -> int:
            total = 0
            while count:
                for connection in wait(mine):
                    assert isinstance(connection, Connection)
                    connection.recv_bytes_into(batch)
                    total += read(batch)
                    count -= 1
            return total

        if self.work.kind == "messages":
            yield consume_messages
        else:
            yield consume if len(mine) == 1 else consume_from_all

    @contextmanager
    def end(self, index: int) -> Iterator[End]:
        message = self.message
        there, back = self.pipes[index][1].send_bytes, self.pipes[1 - index][0]
        take, poll = back.recv_bytes, back.poll

        def send() -> object:
            return there(message)

        def receive() -> int:
            return len(take())

        def receive_spinning() -> int:
            while not poll():
                pass
            return len(take())

        yield send, receive_spinning if self.work.spin else receive
