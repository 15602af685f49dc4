"""Ourselves: a broker per consumer, in the consumer's process, and a publisher per producer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import embar_shm as es
from peers.peer import Consume, End, Peer, Produce
from peers.workloads import Reader, Workload

WAIT = 30.0  # seconds to wait for anybody; the harness has a limit of its own
SPIN = 1e6  # microseconds: practically always
BATCH = "2MiB"  # what small messages are collected in: the default


class EmbarShm(Peer):
    """What the others are compared with."""

    name = "embar-shm"
    distribution = "embar-shm"
    module = "embar_shm"
    documentation = "README.md"

    @classmethod
    def settings(cls, work: Workload) -> str:
        if work.kind == "trips":
            how = "spin" if work.spin else "block"
            return f"publish and flush, next; wait {how}, ack 0"
        what = "np.frombuffer(batch)" if work.kind == "batches" else "batch.messages()"
        return f"publish, {what}, broker.subscribe() in the consumer, defaults"

    @contextmanager
    def producer(self, index: int) -> Iterator[Produce]:
        message = self.message
        address = f"shm://{self.tag}/{index % self.work.consumers}"
        with es.Publisher.connect(
            address, message_size=len(message), connect_timeout=WAIT, timeout=WAIT
        ) as publisher:
            publish, flush = publisher.publish, publisher.flush

            def produce(count: int) -> None:
                for _ in range(count):
                    publish(message)
                flush()

            yield produce

    @contextmanager
    def consumer(self, index: int) -> Iterator[Consume]:
        read = Reader(self.work.size)
        size = self.work.size if self.work.kind == "batches" else BATCH
        with (
            es.Broker.create(f"{self.tag}/{index}", slot_size=size) as broker,
            broker.subscribe(timeout=WAIT) as subscriber,
        ):
            following = subscriber.next

            def consume(count: int) -> int:
                total = 0
                for _ in range(count):
                    with following() as batch:
                        total += read(batch)
                return total

            def consume_messages(count: int) -> int:
                total = 0
                while count:
                    batch = following()
                    for message in batch.messages():
                        total += len(message)
                    count -= batch.count
                    del message, batch  # gives the slot back before the next wait
                return total

            yield consume if self.work.kind == "batches" else consume_messages

    @contextmanager
    def end(self, index: int) -> Iterator[End]:
        message = self.message
        wait: Literal["spin", "block"] = "spin" if self.work.spin else "block"
        spin = SPIN if self.work.spin else 0.0
        with (
            es.Broker.create(f"{self.tag}/{index}", slot_size=4096, wait=wait, spin_us=spin) as b,
            b.subscribe(timeout=WAIT) as subscriber,
            es.Publisher.connect(
                f"shm://{self.tag}/{1 - index}",
                message_size=len(message),
                connect_timeout=WAIT,
                ack=0,
                wait=wait,
                spin_us=spin,
            ) as publisher,
        ):
            publish, flush, following = publisher.publish, publisher.flush, subscriber.next

            def send() -> object:
                publish(message)
                return flush()

            def receive() -> int:
                with following() as batch:
                    return int(batch.nbytes)

            yield send, receive
