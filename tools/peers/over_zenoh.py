"""Eclipse Zenoh between two sessions, without a router; with and without its shared memory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from peers.peer import Consume, End, Peer, Produce
from peers.workloads import Reader, Workload

HELD = 8  # batches that a publisher's shared memory, and a subscriber's channel, hold
CHANNEL = 1024  # small messages in a subscriber's channel
WAIT = 30.0  # seconds until both ends know each other


def _how(work: Workload) -> str:
    return "try_recv and sched_yield" if work.spin else "recv"


class Zenoh(Peer):
    """Messages over a link between the sessions."""

    name = "zenoh"
    distribution = "eclipse-zenoh"
    module = "zenoh"
    documentation = "https://github.com/eclipse-zenoh/zenoh/blob/main/DEFAULT_CONFIG.json5"
    shared: ClassVar[bool] = False

    @classmethod
    def settings(cls, work: Workload) -> str:
        how = "peer to peer, Unix socket link, BLOCK, shared_memory off"
        if work.kind == "trips":
            return f"{how}, express, lowlatency; " + _how(work)
        queue = "queue/size/data 16, " if work.kind == "batches" else ""
        return f"{how}, {queue}recv from a FifoChannel"

    @contextmanager
    def _session(self, index: int, listen: bool) -> Iterator[Any]:
        import zenoh

        zenoh.init_log_from_env_or("error")
        endpoint = f"unixsock-stream/{self.directory}/{index}.sock"
        config = zenoh.Config()
        for key, value in {
            "mode": "peer",
            "scouting/multicast/enabled": False,
            "scouting/gossip/enabled": False,
            "listen/endpoints": [endpoint] if listen else [],
            "connect/endpoints": [] if listen else [endpoint],
            "transport/shared_memory/enabled": self.shared,
            **self._tuning(),
        }.items():
            config.insert_json5(key, json.dumps(value))
        with zenoh.open(config) as session:
            yield session

    def _tuning(self) -> dict[str, Any]:
        """What helps; each key is explained in the documentation above."""
        if self.work.kind == "batches":  # 1.3 times; no help for small messages
            return {"transport/link/tx/queue/size/data": 16}
        if self.work.kind == "trips":  # 1.4 to 2 times
            return {"transport/unicast/lowlatency": True, "transport/unicast/qos/enabled": False}
        return {}

    def _publisher(self, session: Any, key: str) -> Any:
        import zenoh

        return session.declare_publisher(
            key,
            congestion_control=zenoh.CongestionControl.BLOCK,
            express=self.work.kind == "trips",
        )

    def _put(self, publisher: Any) -> Callable[[], object]:
        """Publishes one message."""
        put, message = publisher.put, self.message
        return lambda: put(message)

    @staticmethod
    def _wait_until_matched(publisher: Any) -> None:
        deadline = time.monotonic() + WAIT
        while not publisher.matching_status.matching:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no subscriber appeared for {WAIT:g} s")
            time.sleep(0.001)

    @contextmanager
    def producer(self, index: int) -> Iterator[Produce]:
        place = index % self.work.consumers
        with self._session(place, listen=False) as session:
            publisher = self._publisher(session, f"{self.tag}/{place}")
            self._wait_until_matched(publisher)
            put = self._put(publisher)

            def produce(count: int) -> None:
                for _ in range(count):
                    put()

            yield produce

    @contextmanager
    def consumer(self, index: int) -> Iterator[Consume]:
        import zenoh

        read = Reader(self.work.size)
        channel: Any = zenoh.handlers.FifoChannel(HELD if self.work.kind == "batches" else CHANNEL)
        with self._session(index, listen=True) as session:
            receive = session.declare_subscriber(f"{self.tag}/{index}", channel).recv

            def consume(count: int) -> int:
                total = 0
                for _ in range(count):
                    # A payload, in shared memory or not, can only be read as a copy: to_bytes().
                    total += read(receive().payload.to_bytes())
                return total

            def consume_messages(count: int) -> int:
                total = 0
                for _ in range(count):
                    total += len(receive().payload)
                return total

            yield consume if self.work.kind == "batches" else consume_messages

    @contextmanager
    def end(self, index: int) -> Iterator[End]:
        with self._session(0, listen=index == 1) as session:
            subscriber = session.declare_subscriber(f"{self.tag}/to/{index}")
            publisher = self._publisher(session, f"{self.tag}/to/{1 - index}")
            self._wait_until_matched(publisher)
            take, poll = subscriber.recv, subscriber.try_recv

            def receive() -> int:
                return len(take().payload)

            def receive_spinning() -> int:
                while (sample := poll()) is None:
                    os.sched_yield()  # to the session's own threads: without, it stalls for 8 ms
                return len(sample.payload)

            yield self._put(publisher), receive_spinning if self.work.spin else receive


class ZenohShm(Zenoh):
    """Messages in shared memory of the publisher's."""

    name = "zenoh-shm"
    # As its example z_pub_shm.py does.
    documentation = "https://github.com/eclipse-zenoh/zenoh-python/blob/main/examples/z_pub_shm.py"
    shared = True

    @classmethod
    def cannot(cls, work: Workload) -> str | None:
        if work.kind == "batches":
            return None
        return (
            "zenoh uses its shared memory from 3072 bytes on (message_size_threshold); with "
            "messages as small as here it is slower than zenoh without"
        )

    @classmethod
    def settings(cls, work: Workload) -> str:
        del work
        return (
            f"peer to peer, ShmProvider of {HELD} batches, BlockOn(GarbageCollect), recv from a "
            "FifoChannel"
        )

    def _put(self, publisher: Any) -> Callable[[], object]:
        import zenoh

        put, message, size = publisher.put, self.message, self.work.size
        alloc = zenoh.shm.ShmProvider.default_backend(HELD * size).alloc
        policy = zenoh.shm.BlockOn(zenoh.shm.GarbageCollect())

        def allocate_and_put() -> object:
            buffer = alloc(size, policy=policy)
            buffer[:] = message
            return put(buffer)

        return allocate_and_put
