"""TCP, one remote subscriber: batches go to it out of the slots of the ring, credits come back.

The path of a batch: `FeedCore.send` on a thread of the connection, credits on another.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from embar_shm import _core, protocol
from embar_shm.errors import (
    BrokerGone,
    CorruptBatch,
    CorruptSegment,
    EmbarError,
    NotEnoughSpace,
    ProtocolError,
)
from embar_shm.kept_rows import Key
from embar_shm.protocol import Kind, State
from embar_shm.subscribe_frames import Credit, check_credit
from embar_shm.transports.tcp_remote import LAST_WORDS, Link
from embar_shm.transports.tcp_session import read_control

__all__ = ["RemoteSubscriber", "feed"]

Stopping = Callable[[], EmbarError | None]
"""Why the listener lets go of its connections; None: it does not."""

_log = logging.getLogger("embar_shm.tcp")


class RemoteSubscriber:
    """A remote subscriber: what is known of it from one connection to the next."""

    def __init__(self, core: _core.FeedCore, name: str, key: Key, *, reliable: bool) -> None:
        self.core = core
        self.name = name
        self.key = key
        self.reliable = reliable
        self.link: Link | None = None  # the connection that has it, or is about to
        self.gone_since = 0.0  # time.monotonic() at which the last connection ended
        self.turn = threading.Lock()  # held by the connection that uses `core`


def feed(link: Link, remote: RemoteSubscriber, place: str, stopping: Stopping) -> bool:
    """Sends batches until the subscriber's goodbye (True), or an orderly end of the connection.

    `place`: where the broker listens. Raises what else ends the connection.
    """
    with _sending(link, remote, place, stopping):
        return _hear(link, remote)


@contextmanager
def _sending(
    link: Link, remote: RemoteSubscriber, place: str, stopping: Stopping
) -> Iterator[None]:
    """Sends batches on a thread of its own meanwhile."""
    sender = threading.Thread(
        target=_send, args=(link, remote, place, stopping), name="feed", daemon=True
    )
    sender.start()
    try:
        yield
    finally:
        remote.core.interrupt()
        sender.join(LAST_WORDS)
        if sender.is_alive():  # in the middle of a batch that nobody takes
            link.stream.end_writing()
            sender.join()


def _hear(link: Link, remote: RemoteSubscriber) -> bool:
    """Takes note of credits until a goodbye (True), or an orderly end of the connection."""
    stream, core = link.stream, remote.core
    while True:
        begun = b""
        if (fd := stream.plain_fd) is not None:
            how, begun, got, number = core.read_credits(fd, protocol.CREDIT_HEAD)
            if how == "closed" and not got:
                return False
            if how != "whole":
                raise stream.lost(how, got, protocol.HEAD_BYTES, number)
        else:
            space = bytearray(protocol.HEAD_BYTES)
            if not stream.read_into(memoryview(space), idle=True):
                return False
            begun = bytes(space)
        frame = read_control(stream, link.connection, begun=begun)
        if frame.kind is Kind.GOODBYE:
            return True
        _take_credit(core, Credit.unpack(frame.body))


def _take_credit(core: _core.FeedCore, credit: Credit) -> None:
    if not core.credit(credit.received, credit.granted):
        received, granted, sent, sent_to = core.known()
        check_credit(credit, Credit(received, granted), sent, sent_to)
        raise ProtocolError(f"a subscriber said {credit}, which cannot be")


def _send(link: Link, remote: RemoteSubscriber, place: str, stopping: Stopping) -> None:
    """The thread that sends."""
    try:
        _send_batches(link, remote, place, stopping)
    except EmbarError as error:
        if link.connection.state is not State.CLOSED:
            _log.info("subscriber %r is sent nothing more: %s", remote.name, error.message)
        link.refuse(error)
        link.stream.end_reading()
    except Exception:  # a bug of ours: the others are served all the same
        _log.exception("sending to the subscriber %r failed", remote.name)
        link.stream.shutdown()


def _send_batches(link: Link, remote: RemoteSubscriber, place: str, stopping: Stopping) -> None:
    stream, core = link.stream, remote.core
    if (fd := stream.plain_fd) is not None:
        why, ticket, how, number = core.send(fd)
        if why == "batch":
            raise stream.lost(how, 0, 0, number)
    else:
        while True:
            why, ticket, header, body = core.next()
            if header is None or body is None:
                break
            stream.write(header, body)
    if why == "end":
        link.say(Kind.END)
    elif why != "interrupted":
        raise _ended(place, why, ticket)
    elif (error := stopping()) is not None:
        raise error


def _ended(place: str, why: str, ticket: int) -> EmbarError:
    match why:
        case "damaged":
            return CorruptBatch(
                f"batch {ticket} of {place} was changed after the broker had accepted it",
                "some process writes where it must not; stop everything that uses this ring",
            )
        case "corrupt":
            return CorruptSegment(f"the ring of the broker at {place} is damaged")
        case "no_memory":
            return NotEnoughSpace(f"the broker at {place} is out of memory")
        case _:
            return BrokerGone(f"the broker at {place} died", "connect to another one")
