"""Where the messages of a run come from: each producer hands a publisher as many as it is told.

`Plain` is the workload as users write it. `Stamped` makes messages that can be checked. `Paced`
sends each message at the time it is due, by a clock that waits for nobody: what was sent late has
the delay in its latency (G. Tene calls leaving that out "coordinated omission").
"""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from typing import Any, Final, Protocol

from embar_shm import _core
from embar_shm.errors import WaitTimeout
from embar_shm.publisher import Publisher

__all__ = ["Paced", "Plain", "Producer", "Stamped", "block_of", "producer"]

_STAMPED_BLOCK: Final = 64 * 1024  # bytes that are stamped at a time; they stay in the cache
_POLL_NS: Final = 200_000  # a wait for an acknowledgement that would be shorter is a loop


class Producer(Protocol):
    """Calls of `produce` follow each other; the stream of messages goes on."""

    def produce(self, messages: int) -> None:
        """Publishes so many. Raises what the publisher raises."""


def producer(publisher: Publisher, spec: dict[str, Any], first: int = 1) -> Producer:
    """What `spec` asks for; `first` is the number of the next message."""
    if spec["rate"] is not None:
        return Paced(publisher, spec)
    return Stamped(publisher, spec, first) if spec["stamped"] else Plain(publisher, spec)


def block_of(spec: dict[str, Any]) -> bytes:
    """What the producer copies from: the messages of one call."""
    calls = 1 if spec["producer"] == "one" else int(spec["messages_per_call"])
    return os.urandom(spec["message_size"]) * calls


class Plain:
    """The same message again and again, one at a time or `messages_per_call` at a time."""

    def __init__(self, publisher: Publisher, spec: dict[str, Any]) -> None:
        self._publisher = publisher
        self._one = spec["producer"] == "one"
        self._size: int = spec["message_size"]
        self._block = block_of(spec)

    def produce(self, messages: int) -> None:
        if self._one:
            publish, message = self._publisher.publish, self._block
            for _ in itertools.repeat(None, messages):
                publish(message)
            return
        publish_many, block = self._publisher.publish_many, self._block
        calls, rest = divmod(messages, len(block) // self._size)
        for _ in itertools.repeat(None, calls):
            publish_many(block)
        if rest:
            publish_many(memoryview(block)[: rest * self._size])


class Stamped:
    """Numbered messages with a checksum."""

    def __init__(self, publisher: Publisher, spec: dict[str, Any], first: int) -> None:
        self._publisher = publisher
        self._one = spec["producer"] == "one"
        self._size: int = spec["message_size"]
        self._id: int = spec["publisher_id"]
        self._next = first
        count = max(1, _STAMPED_BLOCK // self._size)
        if not self._one:
            count = spec["messages_per_call"]
        self._block = memoryview(bytearray(os.urandom(self._size) * count))
        self._messages = [self._block[n * self._size :][: self._size] for n in range(count)]

    def produce(self, messages: int) -> None:
        publish = self._publisher.publish
        while messages:
            count = min(messages, len(self._messages))
            block = self._block[: count * self._size]
            _core.stamp(block, self._size, self._id, self._next)
            if self._one:
                for message in self._messages[:count]:
                    publish(message)
            else:
                self._publisher.publish_many(block)
            self._next += count
            messages -= count


class Paced:
    """One message at a time, flushed, when it is due. Times are counted from then.

    Acknowledgements are looked for while it waits for the next one, and after each message.
    """

    def __init__(self, publisher: Publisher, spec: dict[str, Any]) -> None:
        self._publisher = publisher
        self._message = bytearray(os.urandom(spec["message_size"]))
        self._id: int = spec["publisher_id"]
        self._acks: bool = spec["ack"] > 0
        self._spin_us: float = 0 if spec["wait"] == "block" else spec["spin_us"]
        self._interval_ns = 1e9 / spec["rate"]
        # Publishers take turns.
        self._offset_ns = self._interval_ns * self._id / spec["publishers"]
        self._unacked: deque[tuple[int, int]] = deque()  # sequence number of the batch, due
        self.sent = _core.Delays()
        self.acked = _core.Delays()
        self.reached = 0.0  # messages per second

    def produce(self, messages: int) -> None:
        begin = time.monotonic_ns() + round(self._offset_ns)
        publish, flush, size = self._publisher.publish, self._publisher.flush, len(self._message)
        for n in range(messages):
            due = begin + round(n * self._interval_ns)
            self._wait_until(due)
            _core.stamp(self._message, size, self._id, n + 1, due)
            publish(self._message)
            seq = flush()
            self.sent.record(due)
            if self._acks:
                self._unacked.append((seq, due))
                self._take_acks()
        took = time.monotonic_ns() - begin + self._interval_ns  # the last one's time is over, too
        self.reached = messages * 1e9 / took
        while self._unacked:
            self._publisher.wait_acked(seq=self._unacked[0][0])
            self._take_acks()

    def _wait_until(self, due: int) -> None:
        while self._unacked and (left := due - time.monotonic_ns()) > 0:
            if left > _POLL_NS:
                try:
                    self._publisher.wait_acked((left - _POLL_NS) / 1e9, seq=self._unacked[0][0])
                except WaitTimeout:
                    continue  # not acknowledged so far: it will be late
            self._take_acks()
        _core.wait_until(due, self._spin_us)

    def _take_acks(self) -> None:
        accepted = self._publisher.stats().accepted
        while self._unacked and self._unacked[0][0] <= accepted:
            self.acked.record(self._unacked.popleft()[1])
