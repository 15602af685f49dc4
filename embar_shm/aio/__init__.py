"""Publishers and subscribers for asyncio: what has to be waited for is awaited.

    import asyncio
    from embar_shm import aio

    async def read(address):
        async with await aio.Subscriber.connect(address, start="earliest") as sub:
            async for batch in sub:
                with batch:
                    print([bytes(message) for message in batch.messages()])

    async def main(address):
        async with await aio.Publisher.connect(address) as pub:
            await pub.publish(b"hello")
            await pub.wait_acked()

One object belongs to the event loop it was connected in; tasks of that loop may share it.

How it waits.  A batch that is there already is taken, and a message for which there is room is
written, on the loop's own thread, which takes a microsecond. Only when there is nothing to take,
no slot, or no acknowledgement yet, a thread sleeps in the ring's own wait and then tells the loop;
what was waited for is then done by the loop again. So a cancelled call has taken nothing, and
nothing is lost. No file descriptor stands for a word in shared memory, so a thread it must be:
one for each object that is waiting at the moment, whatever the number of its tasks. Threads that
are done serve the next wait of any object, and end after a second without one: a thread per batch
would cost more than the batch, and one that stayed with its object would have to be found and
ended for every object that is forgotten.

How it shares the loop.  A task that always finds something to do gives the others a turn every
fraction of a millisecond. Many messages, and large ones, are copied in pieces with turns in
between. Two copies are made in one go, at the speed of memory: one message of `publish_many`, and
one batch of a lossy subscriber.
"""

from __future__ import annotations

from embar_shm.aio.publisher import Publisher
from embar_shm.aio.subscriber import Subscriber

__all__ = ["Publisher", "Subscriber"]
