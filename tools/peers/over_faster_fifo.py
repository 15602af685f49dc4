"""faster-fifo: a circular buffer in shared memory behind a process-shared mutex."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peers.peer import Consume, End, Peer, Produce
from peers.workloads import Reader, Workload

HELD = 2  # batches that fit into a queue: more do not stay in the cache, and are slower
SMALL = 4 * 2**20  # bytes of a queue of small messages
MANY = 100  # messages in a put_many, as in its README
WAIT = 60.0  # seconds; the harness ends the process long before


def as_they_are(data: Any) -> Any:
    """Neither pickled nor copied: what `loads` gets is the queue's receive buffer."""
    return data


class FasterFifo(Peer):
    """One queue per consumer; two for round trips."""

    name = "faster-fifo"
    distribution = "faster-fifo"
    module = "faster_fifo"
    wheels = "version 1.5.2 has wheels for CPython up to 3.13"
    # get_many and put_many, and `loads` and `dumps` of one's own (since 1.3.0): its README.
    documentation = "https://github.com/alex-petrenko/faster-fifo#usage-example"

    @classmethod
    def settings(cls, work: Workload) -> str:
        if work.kind == "batches":
            return f"put, get without pickle, a buffer of {HELD} batches per consumer"
        if work.kind == "messages":
            return f"put_many of {MANY}, get_many without pickle, a buffer of {SMALL >> 20} MiB"
        return "without pickle; put, " + ("get_nowait" if work.spin else "get")

    def prepare(self) -> None:
        from faster_fifo import Queue

        held = SMALL if self.work.kind != "batches" else HELD * (self.work.size + 64)
        count = 2 if self.work.kind == "trips" else self.work.consumers
        self.queues: list[Any] = [
            Queue(max_size_bytes=held, loads=as_they_are, dumps=as_they_are) for _ in range(count)
        ]

    @contextmanager
    def producer(self, index: int) -> Iterator[Produce]:
        mine = self.queues[index % self.work.consumers]
        put, put_many, message = mine.put, mine.put_many, self.message

        def produce(count: int) -> None:
            for _ in range(count):
                put(message, timeout=WAIT)

        def produce_messages(count: int) -> None:
            waiting: list[bytes] = []
            for _ in range(count):
                waiting.append(message)
                if len(waiting) == MANY:
                    put_many(waiting, timeout=WAIT)
                    waiting.clear()
            if waiting:
                put_many(waiting, timeout=WAIT)

        yield produce if self.work.kind == "batches" else produce_messages

    @contextmanager
    def consumer(self, index: int) -> Iterator[Consume]:
        mine, read = self.queues[index], Reader(self.work.size)
        get, get_many = mine.get, mine.get_many
        mine.reallocate_msg_buffer(mine.max_size_bytes)  # it would grow to that, bit by bit

        def consume(count: int) -> int:
            total = 0
            for _ in range(count):
                total += read(get(timeout=WAIT))
            return total

        def consume_messages(count: int) -> int:
            total = 0
            while count:
                messages = get_many(timeout=WAIT, max_messages_to_get=count)
                for message in messages:
                    total += len(message)
                count -= len(messages)
            return total

        yield consume if self.work.kind == "batches" else consume_messages

    @contextmanager
    def end(self, index: int) -> Iterator[End]:
        message, put = self.message, self.queues[index].put
        get, get_nowait = self.queues[1 - index].get, self.queues[1 - index].get_nowait

        def send() -> object:
            return put(message)

        def receive() -> int:
            return len(get(timeout=WAIT))

        def receive_spinning() -> int:
            while True:
                try:
                    return len(get_nowait())
                except queue.Empty:
                    pass

        yield send, receive_spinning if self.work.spin else receive
