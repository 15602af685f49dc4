"""A publisher process of test_stress_processes.py: sends messages that can be checked bit for bit.

usage: stress_publisher.py PARENT ADDRESS ID KIND COUNT [hold]

Message `number` of publisher `ID` is a pure function of both, see `message`. COUNT 0: publishes
until it is killed. hold: after COUNT messages it keeps a batch open until it is killed.
"""

from __future__ import annotations

import random
import signal
import struct
import sys
import zlib

from embar_shm import Publisher, _core

HEAD = struct.Struct("<IIQ")  # publisher, crc32 of the rest, number
FIXED_SIZE = 64
LARGEST = 120
BATCH_SIZE = 256


def message(publisher: int, number: int, kind: str) -> bytes:
    """Message 1, 2, 3, ... of a publisher; `kind` is "fixed" or "variable"."""
    source = random.Random(publisher << 32 | number)  # noqa: S311
    size = FIXED_SIZE if kind == "fixed" else source.randint(HEAD.size, LARGEST)
    body = source.randbytes(size - HEAD.size)
    return HEAD.pack(publisher, zlib.crc32(body, number & 0xFFFFFFFF), number) + body


def main() -> None:
    parent, address, publisher, kind, count = sys.argv[1:6]
    hold = "hold" in sys.argv[6:]
    _core.die_with_parent(int(parent), signal.SIGKILL)
    source = random.Random(publisher)  # noqa: S311
    with Publisher.connect(
        address,
        message_size=FIXED_SIZE if kind == "fixed" else None,
        batch_size=BATCH_SIZE,
        in_flight=2,
        linger_ms=0 if hold else source.choice([0, 1]),
        timeout=60,
        publisher_id=int(publisher),
    ) as pub:
        number = 0
        while number < int(count) or int(count) == 0:
            number += 1
            pub.publish(message(int(publisher), number, kind))
            if source.random() < 0.1:
                pub.flush()
        pub.wait_acked()
        if hold:
            pub.publish(message(int(publisher), number + 1, kind))
            signal.pause()


if __name__ == "__main__":
    main()
