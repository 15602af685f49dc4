"""Type checkers read this file, nobody runs it: the types that asyncio programs rely on."""

from __future__ import annotations

from typing import assert_type

import numpy as np

import embar_shm as es
from embar_shm import aio


async def publish(address: str) -> None:
    async with await aio.Publisher.connect(address, message_size="1KiB", wait="block") as pub:
        assert_type(pub, aio.Publisher)
        await pub.publish(np.arange(8))
        await pub.publish_many(b"aabb", message_size=2)
        async with pub.reserve(64) as view:
            assert_type(view, memoryview)
        assert_type(await pub.flush(), int)
        await pub.wait_acked(timeout=5)
        assert_type(pub.stats(), es.PublisherStats)


async def read(address: str) -> None:
    async with await aio.Subscriber.connect(address, mode="lossy", start="earliest") as sub:
        assert_type(sub, aio.Subscriber)
        assert_type(await sub.next(timeout=1), es.Batch)
        assert_type(sub.poll(), es.Batch | None)
        async for batch in sub:
            assert_type(batch, es.Batch)
        assert_type(sub.position, es.Position)


async def wrong() -> None:
    """Each of these is an error that a checker has to find."""
    await aio.Publisher.connect("shm://demo/0", wait="maybe")  # type: ignore[arg-type]
    await aio.Subscriber.connect("shm://demo/0", retain=4)  # type: ignore[call-arg]
