"""The publisher: sends messages to one broker, in batches.

The path of a message: `Publisher.publish` is the native method ``PublisherCore.publish``
(``_native/bind_publisher.cpp``), which copies the message into a slot of the broker's ring and
commits the slot when it is full (``_native/publisher.hpp``).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from embar_shm import lifecycle, transports
from embar_shm.address import split_address
from embar_shm.errors import ConfigurationError, MisuseError, PeerError, WaitTimeout
from embar_shm.options import (
    COPY_MODES,
    WAIT_MODES,
    CopyMode,
    WaitMode,
    choose,
    number,
    secret,
    size,
    whole,
)
from embar_shm.transports.base import PublisherLink, PublisherOptions, PublisherStats

if TYPE_CHECKING:
    import ssl

    from embar_shm.net import SocketCounters
    from embar_shm.transports.base import Message

__all__ = ["Publisher"]


class Publisher:
    """A connection to one broker. A context manager: leaving it commits the open batch.

    Several threads may share a publisher; their calls take turns. After a fork the child's copy
    raises `ClosedError`: connect in the child.
    """

    closes_at_exit: ClassVar[int] = 1  # part of `lifecycle`

    publish: Callable[[Message], None]
    """``publish(message)`` appends one message (bytes, bytearray, memoryview, numpy array ...).

    The bytes are copied before it returns. Batches are committed when full, after `linger_ms`, by
    `flush`, `wait_acked` and `close`. Blocks, without the GIL, while the ring is full, for at most
    `timeout` seconds. Raises `MessageSizeError` (empty, or larger than a batch, or not of the fixed
    size), `BufferTypeError`, `WaitTimeout`, `BrokerGone`, `ClosedError`; after any of them no part
    of the message is in a batch. Ctrl-C interrupts it.
    """

    def __init__(self, link: PublisherLink, ack: int) -> None:
        """Use `Publisher.connect`."""
        self._link = link
        self._ack = ack
        self._closed = False
        self.publish = link.publish
        lifecycle.register_client(self)

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        message_size: int | str | None = None,
        batch_size: int | str | None = None,
        in_flight: int | None = None,
        ack: int = 1,
        linger_ms: float = 5.0,
        timeout: float | None = 30.0,
        connect_timeout: float = 0.0,
        restart_timeout: float = 5.0,
        wait: WaitMode = "adaptive",
        spin_us: float = 50,
        copy: CopyMode = "auto",
        sample_every: int = 256,
        publisher_id: int | None = None,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        socket_buffer: int | str | None = None,
    ) -> Self:
        """Connects to the broker at `address`, for example "shm://demo/0".

        "shm://demo/0?group=NAME" is the ring of another user, who is a member of that group, as are
        all who may use it. Without that, only this process' user and root are trusted.

        message_size: bytes of every message; they are then stored back to back. None: any size,
            each message with 8 bytes of length and padding to 8.
        batch_size: a batch is committed when no further message fits into so many bytes. None: the
            broker's slot size.
        in_flight: slots this publisher may hold at a time, the open batch included. Small numbers
            keep the ring in the cache; 1 waits for the broker after each batch. It must exceed the
            batches that a reliable subscriber keeps at a time, of which a ``for`` loop keeps one;
            with one publisher and one subscriber 3 is the fastest. None: 2, or 1 if the broker has
            no more slots.
        ack: 1: the broker acknowledges what is in its log, `wait_acked` waits for it; 0: nothing
            comes back.
        linger_ms: the longest time a message waits in a batch that does not fill up; 0: until
            `flush`.
        timeout: seconds that `publish`, `flush` and `wait_acked` may block. None: forever.
        connect_timeout: seconds to wait for the broker to appear.
        restart_timeout: shm: seconds to wait for a broker that died to be started again, within
            `timeout`; then `BrokerGone`. Over tcp it is waited for as for any lost connection.
        wait, spin_us: see `Broker.create`.
        copy: how messages are copied: "plain" or "nontemporal" stores; "auto" decides per batch.
        sample_every: one in so many messages is timed for the stage statistics, and each batch;
            0: nothing is.
        publisher_id: 64-bit number by which the log knows this publisher; None: a random one.
        token: tcp: the broker's secret. It is not sent, and does not encrypt what is.
        tls: tcp: a context made by `embar_shm.tls.client_context`; None: not encrypted.
        socket_buffer: tcp: bytes that the kernel should hold in each direction; None: what was
            found best for the address (docs/performance.md).

        Raises `ConfigurationError`, `NoSuchBroker`, `BrokerGone`, `IncompatibleSegment`,
        `AccessDenied`, `NotEnoughSpace` (too many publishers); over tcp also `ConnectionLost` and
        `ProtocolError`.
        """
        scheme, rest = split_address(address)
        choose("wait", wait, WAIT_MODES)
        choose("copy", copy, COPY_MODES)
        if publisher_id is None:
            publisher_id = int.from_bytes(os.urandom(8))
        options = PublisherOptions(
            message_size=None if message_size is None else size("message_size", message_size),
            batch_size=None if batch_size is None else size("batch_size", batch_size),
            in_flight=None if in_flight is None else whole("in_flight", in_flight, 1, 4096),
            ack=whole("ack", ack, 0, 1),
            linger_ms=number("linger_ms", linger_ms),
            timeout=None if timeout is None else number("timeout", timeout),
            connect_timeout=number("connect_timeout", connect_timeout),
            restart_timeout=number("restart_timeout", restart_timeout),
            wait=wait,
            spin_us=number("spin_us", spin_us),
            copy=copy,
            sample_every=whole("sample_every", sample_every, 0, 2**31 - 1),
            publisher_id=whole("publisher_id", publisher_id, 0, 2**64 - 1),
            token=secret("token", token),
            tls=tls,
            socket_buffer=None if socket_buffer is None else size("socket_buffer", socket_buffer),
        )
        if options.message_size == 0:
            raise ConfigurationError("message_size must be at least 1 byte; None means any size")
        return cls(transports.get(scheme).connect(rest, options), ack)

    def publish_many(self, messages: Message, message_size: int | None = None) -> None:
        """Appends many messages of one size in one call.

        `messages` is a C-contiguous 2-D array (shape: messages x values of a message) or, with
        `message_size` in bytes (default: the publisher's), any buffer of a multiple of it. Blocks
        and raises like `publish`; `timeout` is for each batch. When it raises after it began, the
        exception's attribute `appended` tells how many messages are in batches already.
        """
        self._link.publish_many(messages, message_size)

    def reserve(self, nbytes: int) -> AbstractContextManager[memoryview]:
        """Writable memory in the slot for one message of `nbytes` bytes: nothing is copied.

            with pub.reserve(1024) as view:
                view[:] = ...              # or numpy.frombuffer(view, dtype=...)[:] = ...

        The message is appended when the block ends, dropped when it raises. With a fixed
        `message_size`, `nbytes` may be a multiple of it: that many messages. No array or view of
        the memory may be alive at the end of the block: `BufferError` (delete it first). Until
        then the publisher refuses everything else with `MisuseError`. Blocks like `publish`.
        """
        return self._link.reserve(nbytes)

    def flush(self) -> int:
        """Commits the open batch, if any message is in it. Does not wait for the acknowledgement.

        Returns the sequence number of the last committed batch (0: none), for `wait_acked`.
        """
        return self._link.flush()

    def wait_acked(self, timeout: float | None = None, *, seq: int | None = None) -> None:
        """Waits until the broker has everything published so far in its log.

        Commits the open batch first. With `seq` (from `flush`) it waits for the batches up to
        that one only. `timeout` in seconds; None: the publisher's. Raises `WaitTimeout`,
        `BrokerGone`, and `MisuseError` when connected with ack=0.
        """
        if self._ack == 0:
            raise MisuseError(
                "this publisher was connected with ack=0: nothing is acknowledged",
                "connect with ack=1",
            )
        if timeout is not None:
            timeout = number("timeout", timeout)
        self._link.wait_acked(timeout, seq)

    def stats(self) -> PublisherStats:
        """The counters now."""
        return self._link.stats()

    def stages(self) -> dict[str, dict[str, Any]]:
        """Histograms of this publisher's stages in nanoseconds, by name (docs/result.md)."""
        return self._link.stages()

    def sockets(self) -> SocketCounters | None:
        """What its sockets did; None: it has none."""
        return self._link.sockets()

    def close(self) -> None:
        """Commits the open batch and disconnects. Idempotent; does not wait for acknowledgements.

        Over a network it waits, for `timeout` at most, until all batches are in the broker's ring.
        Calls of other threads that need a slot, or wait for one, raise `ClosedError`; it waits till
        they have come out. Raises `BufferError` while a view of reserved memory is alive,
        `BrokerGone` when messages could not be brought into the ring any more, and `WaitTimeout`
        when they are not yet. After Ctrl-C it waits for a second at most.
        """
        try:
            self._link.close()
        finally:
            self._closed = self._link.is_closed

    def hurry(self) -> None:
        """Part of `lifecycle`: the program was interrupted, `close` shall not wait long."""
        self._link.hurry()

    def after_fork_in_child(self) -> None:
        """Part of `lifecycle`: the connection stays the parent's."""
        self._closed = True
        self._link.after_fork_in_child()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            if issubclass(kind, KeyboardInterrupt):
                self.hurry()
            with suppress(PeerError, WaitTimeout):  # the error that is on its way tells more
                self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()
