"""Reads what reached a broker, message by message, by doing the broker's work by hand."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from embar_shm import _core
from embar_shm.broker import Broker
from embar_shm.segment import Segment
from embar_shm.testing.conditions import DEADLINE, wait_until

__all__ = ["Batch", "Log"]

_FRAME = struct.Struct("<II")  # length, zero: in front of each message of a batch of any sizes
_FIXED, _VARIABLE = 0, 1


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch as the broker accepted it."""

    publisher_id: int
    seq: int
    verdict: str  # "accepted", "duplicate", "out_of_order", "bad_header"
    messages: tuple[bytes, ...]


class Log:
    """The batches of a ring whose broker does not serve; the calling thread is the broker.

    `batches` grows with `accept` and `take`; nothing happens by itself.
    """

    def __init__(self, core: _core.BrokerCore, segment: Segment) -> None:
        self._core = core
        self._memory = segment.memory
        self.batches: list[Batch] = []

    @classmethod
    def of(cls, broker: Broker) -> Log:
        """The log of a broker that was created, and neither started nor told to serve."""
        return cls(broker._open_core(), broker.segment)

    @property
    def messages(self) -> list[bytes]:
        """All messages of the accepted batches so far, in the order of the log."""
        accepted = (batch for batch in self.batches if batch.verdict == "accepted")
        return [message for batch in accepted for message in batch.messages]

    def accept(self) -> Batch | None:
        """Accepts, and so acknowledges, the next batch; its slot stays taken until `release`."""
        found = self._core.accept()
        if found is None:
            return None
        start = found["payload_offset"]
        body = bytes(memoryview(self._memory)[start : start + found["body_bytes"]])
        batch = Batch(
            found["publisher_id"], found["seq"], found["verdict"], _messages_of(found, body)
        )
        self.batches.append(batch)
        return batch

    def release(self) -> bool:
        """Frees the slot of the oldest batch that was accepted; False when there is none."""
        return self._core.release()

    def take(self) -> int:
        """Accepts and releases everything that is committed; how many batches that were."""
        count = 0
        while self.accept() is not None:
            self.release()
            count += 1
        return count

    def wait_for(self, messages: int, timeout: float = DEADLINE) -> list[bytes]:
        """Takes until so many messages are in the log. All of them; there may be more."""
        wait_until(
            lambda: self.take() >= 0 and len(self.messages) >= messages,
            f"the arrival of {messages} messages",
            timeout,
        )
        return self.messages


def _messages_of(header: dict[str, int], body: bytes) -> tuple[bytes, ...]:
    if header["format"] == _FIXED:
        size = header["message_size"]
        found = [body[at : at + size] for at in range(0, len(body), size)]
    elif header["format"] == _VARIABLE:
        found = []
        at = 0
        while at < len(body):
            length, zero = _FRAME.unpack_from(body, at)
            end = at + _FRAME.size + length
            at = (end + 7) & ~7
            if zero or any(body[end:at]) or at > len(body):
                raise AssertionError(f"the frame of message {len(found)} is damaged")
            found.append(body[end - length : end])
    else:
        raise AssertionError(f"a batch has the unknown format {header['format']}")
    if len(found) != header["messages"] or sum(map(len, found)) != header["payload_bytes"]:
        raise AssertionError(f"{len(found)} messages in a batch whose header says {header}")
    return tuple(found)
