"""TCP, the subscriber's side: batches arrive in a ring of its own and are read there.

The ring is private memory with as many slots as batches may be on their way or in use, so reading,
pinning and waiting are the same code as over shared memory. A thread receives header and body
straight into a slot. A slot that comes free is a credit: the broker sends no more than it has
credits for, so a slow subscriber stops nobody but (if it is reliable) the publishers.

A connection that is lost is opened again, and goes on with the ticket after the last one that
arrived. One connection is a `tcp_session`; the broker's side is `tcp_feed`; frames and their order
are `embar_shm.protocol`.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import replace

from embar_shm import _core, protocol
from embar_shm.errors import (
    BrokerGone,
    BrokerRestarted,
    ConnectionLost,
    EmbarError,
    NoSuchBroker,
    ProtocolError,
    WaitTimeout,
)
from embar_shm.net import SocketCounters, Stream
from embar_shm.private_ring import PrivateRing
from embar_shm.protocol import Kind
from embar_shm.subscribe_frames import Credit, Mode, Start, Subscribe
from embar_shm.tls import check_context
from embar_shm.transports.base import Position, SubscriberOptions
from embar_shm.transports.reading import ReadingLink
from embar_shm.transports.tcp_session import (
    Attempt,
    Farewell,
    SubscriberSession,
    read_among_batches,
)

__all__ = ["TcpSubscriberLink"]

_HANDSHAKE_TIMEOUT = 10.0  # seconds
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0  # seconds between two attempts to connect, doubling
_LAST_WORDS = 1.0  # seconds that close() gives the broker to hear the goodbye
_RECONNECT = 30.0  # seconds for which it tries to connect again
_STALL, _LEAST_RATE = 10.0, 64 * 1024  # what a batch may take: seconds, and bytes/s
_IN_FLIGHT = 4

# What may pass: connecting again is worth it. Everything else a broker says is final.
_PASSING = (ConnectionLost, NoSuchBroker, WaitTimeout)


class TcpSubscriberLink(ReadingLink):
    """A connection to a broker, and the ring in which its batches arrive."""

    def __init__(self, endpoint: tuple[str, int], options: SubscriberOptions) -> None:
        if options.tls is not None:
            check_context(options.tls, endpoint[0])
        self._endpoint = endpoint
        self._options = options
        self._slots = options.in_flight or _IN_FLIGHT
        self._reliable = options.mode == "reliable"
        self._subscribe = _introduction(options, self._slots)
        self._intake: _core.IntakeCore | None = None
        self._hanging_up = threading.Event()
        # is_alive() cannot tell: an interrupted join() believes that the thread has ended.
        self._receiver_ended = threading.Event()
        self._patience = _LAST_WORDS  # of close(), in seconds
        self._opening: list[Stream] = []  # of a session that is being opened
        self._stuck_since: float | None = None  # time.monotonic(); sessions since got nothing done
        self._pause = _FIRST_PAUSE
        self._telling = threading.Lock()  # held while a CREDIT is made and sent
        self._parted: SubscriberSession | None = None  # to which the goodbye was said
        self._has_all = False  # the log has ended
        self._past = SocketCounters()  # of connections that have ended
        self._session = self._connect(options.connect_timeout, options.connect_timeout)
        try:
            self._begin()
        except BaseException:
            with suppress(EmbarError):
                self._session.stream.write(self._session.protocol.send(Kind.GOODBYE))
            self._session.stream.close()
            raise

    def _begin(self) -> None:
        peer, subscribed = self._session.stream.peer, self._session.subscribed
        ring = PrivateRing(peer, self._slots, subscribed.slot_bytes)
        self._private = ring
        self._memory = memoryview(ring.memory)
        self._first = subscribed.first
        self._head = subscribed.head
        super().__init__(
            ring,
            self._options,
            log=subscribed.log,
            memory=ring.memory,
            slots=None,
            row=0,
            lock_fd=-1,
            on_left=_nothing,
            sole=True,
        )
        self._intake = _core.IntakeCore(ring, ring.memory, self._reliable, subscribed.first)
        self._intake.connect()
        self._receiver = threading.Thread(target=self._run, name=f"receive {peer}", daemon=True)
        self._receiver.start()

    # --- connecting -------------------------------------------------------------------------------

    def _connect(self, patience: float, refused: float) -> SubscriberSession:
        """Tries again for `patience` seconds what may pass, and for `refused` seconds where nobody
        listens; what the broker refuses is final.
        """
        began = time.monotonic()
        answered = began  # when it was not the case last that nobody listens
        while True:
            try:
                return SubscriberSession(self._attempt(_HANDSHAKE_TIMEOUT), self._introduce())
            except _PASSING as error:
                now = time.monotonic()
                if not isinstance(error, NoSuchBroker):
                    answered = now
                left = min(began + patience, answered + refused) - now
                if left <= 0 or self._hanging_up.is_set():
                    raise
            self._wait_a_moment(left)

    def _attempt(self, seconds: float) -> Attempt:
        return Attempt(self._endpoint, self._options, seconds, self._opening)

    def _introduce(self) -> Subscribe:
        """As at first, until a connection was answered: the broker may have heard it, or not."""
        if (intake := self._intake) is None:
            return self._subscribe
        return replace(
            self._subscribe,
            credit=intake.connect(),
            start=Start.RESUME,
            log=self._log,
            ticket=intake.next_ticket,
        )

    def _wait_a_moment(self, left: float = _LONGEST_PAUSE) -> None:
        """Between two attempts, longer each time."""
        self._hanging_up.wait(min(self._pause, left))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _reconnect(self, why: EmbarError) -> SubscriberSession:
        """A new session in place of a broken one. Raises `BrokerGone` when there will be none."""
        now, refused = time.monotonic(), self._options.restart_timeout
        longest = max(_RECONNECT, refused)
        if self._stuck_since is None:
            self._stuck_since, self._pause = now, _FIRST_PAUSE
        elif now - self._stuck_since >= longest:
            raise self._gone(why, why)
        else:  # the last session achieved nothing
            self._wait_a_moment()
        if self._hanging_up.is_set():
            raise self._gone(why, why)
        try:
            session = self._connect(self._stuck_since + longest - now, refused)
        except _PASSING as error:
            raise self._gone(why, error) from error
        try:
            self._check_that_it_goes_on(session)
        except BaseException:
            session.stream.close()
            raise
        return session

    def _check_that_it_goes_on(self, session: SubscriberSession) -> None:
        subscribed, intake = session.subscribed, self._known_intake()
        if subscribed.log != self._log:
            raise BrokerRestarted(
                f"{session.stream.peer} has another log than before: it was started anew",
                "connect a new subscriber",
            )
        if subscribed.first < intake.next_ticket or (
            self._reliable and subscribed.first > intake.next_ticket
        ):
            raise ProtocolError(
                f"{session.stream.peer} goes on with ticket {subscribed.first}, and "
                f"{intake.next_ticket} was asked for"
            )
        if subscribed.slot_bytes > self._private.geometry.slot_bytes:
            raise ProtocolError(f"{session.stream.peer} has larger slots than before")

    def _gone(self, why: EmbarError, why_no_other: EmbarError) -> BrokerGone:
        return BrokerGone(
            f"the connection to {self._private.name} was lost ({why.message}) and there is no "
            f"other that lasts: {why_no_other.message}",
            "connect again when the broker is back, at the position of this subscriber",
        )

    def _known_intake(self) -> _core.IntakeCore:
        if self._intake is None:
            raise RuntimeError("no connection was answered yet")
        return self._intake

    # --- the receiving thread ---------------------------------------------------------------------

    def _run(self) -> None:
        """One session after the other, until the end of the log or an end that is final."""
        try:
            while (error := self._serve(self._session)) is not None:
                if not isinstance(error, _PASSING):
                    self._fail(error)
                    self._say_goodbye_again()  # that broker need keep nothing
                    return
                self._private.lost_because = error.message
                self._private.lost_at = time.monotonic()
                done = self._hanging_up.is_set() or self._has_all
                if done or (session := self._next_session(error)) is None:
                    self._say_goodbye_again()
                    return
                self._session = session
                self._private.lost_at = None
        except EmbarError as error:
            self._fail(error)
        except Exception as error:  # a bug of ours, or no thread can be started
            failure = BrokerGone(f"receiving from {self._private.name} failed: {error!r}")
            self._private.failure = failure
            raise
        finally:
            self._core.end()
            self._receiver_ended.set()

    def _fail(self, error: EmbarError) -> None:
        # Without its traceback: the frames in there refer back to this object.
        self._private.failure = type(error)(error.message, error.hint)
        self._core.end()  # the reader hears it now

    def _next_session(self, why: EmbarError) -> SubscriberSession | None:
        """None: it is not needed any more."""
        try:
            return self._reconnect(why)
        except EmbarError:
            if not self._hanging_up.is_set():
                raise
            return None

    def _serve(self, session: SubscriberSession) -> EmbarError | None:
        """Receives until the session ends; why it did. None: after a goodbye."""
        intake = self._known_intake()
        began, received = time.monotonic(), intake.next_ticket
        stream = session.stream
        telling = threading.Thread(
            target=self._send_credits, args=(session,), name="credits", daemon=True
        )
        error: EmbarError | None = None
        try:
            stream.set_timeouts(_STALL, _STALL)
            telling.start()
            if self._hanging_up.is_set():  # close() may have met the session before
                self._say_goodbye(session)
            self._receive(session)
        except EmbarError as caught:
            error = caught
        finally:
            intake.disconnect()
            stream.shutdown()
            if telling.is_alive():
                telling.join()
            stream.close()
            self._past.add(stream.counters)
            stream.counters = SocketCounters()  # they are in the past now
        if intake.next_ticket > received or time.monotonic() - began > _LONGEST_PAUSE:
            self._stuck_since = None
        return error

    def _receive(self, session: SubscriberSession) -> None:
        """Until the broker has answered the goodbye. Raises what else ends the connection."""
        stream, intake = session.stream, self._known_intake()
        while True:
            header = self._next_header(stream, intake)
            frame = read_among_batches(stream, session.protocol, header)
            if frame is not None and frame.kind is Kind.GOODBYE:
                return
            if frame is not None:  # END
                self._has_all = True
                self._core.end()
                self._say_goodbye(session)
                continue
            found = session.protocol.delivery(
                header, self._private.geometry.slot_bytes, intake.next_ticket, self._reliable
            )
            place = intake.claim()
            if place is None:
                raise ProtocolError(f"{stream.peer} sent more batches than it had credit for")
            try:
                within = _STALL + found.body_bytes / _LEAST_RATE
                stream.read_into(self._memory[place : place + found.body_bytes], within=within)
            except BaseException:
                intake.give_back()
                raise
            intake.commit(header)
            self._tell(session, received=True)

    def _next_header(self, stream: Stream, intake: _core.IntakeCore) -> bytes:
        """The next header that has to be looked at: on a plain socket batches arrive natively."""
        if (fd := stream.plain_fd) is None:
            space = bytearray(_core.BATCH_HEADER_BYTES)
            if not stream.read_into(memoryview(space), idle=True):
                raise ConnectionLost(f"{stream.peer} closed the connection")
            return bytes(space)
        slot_bytes = self._private.geometry.slot_bytes
        why, header, got, size, number, status = intake.receive(
            fd, slot_bytes, _STALL, _LEAST_RATE, protocol.CREDIT_HEAD
        )
        if header is not None:
            return header
        if why in ("ended", "interrupted"):
            raise ConnectionLost(f"{stream.peer} closed the connection")
        if why == "ring":
            raise RuntimeError(f"a private ring is {status}")
        raise stream.lost(why, got, size, number)

    def _tell(self, session: SubscriberSession, *, received: bool) -> None:
        """Says what has come and what may come, if there is anything new."""
        with self._telling:
            if (news := self._known_intake().next_credit(received)) is not None:
                body = Credit(*news).pack()
                session.stream.write(session.protocol.send(Kind.CREDIT, body))

    def _send_credits(self, session: SubscriberSession) -> None:
        """The thread that tells a broker that waits of slots that came free."""
        stream, intake = session.stream, self._known_intake()
        try:
            if (fd := stream.plain_fd) is not None:
                how, number = intake.send_credits(fd, protocol.CREDIT_HEAD)
                if how != "whole":
                    raise stream.lost(how, 0, 0, number)
            else:
                while intake.wait_credit():
                    self._tell(session, received=False)
        except EmbarError as error:
            if session.error is None:
                session.end(error)
            stream.shutdown()  # the thread that receives learns it

    # --- the end ----------------------------------------------------------------------------------

    def _say_goodbye(self, session: SubscriberSession) -> None:
        self._known_intake().disconnect()  # no CREDIT comes after it, nor
        self._known_intake().settle()  # one that another thread was about to send
        with self._telling:
            if self._parted is not session:
                session.stream.write(session.protocol.send(Kind.GOODBYE))
                self._parted = session

    def _say_goodbye_again(self) -> None:
        """The connection was lost, and the broker keeps batches for a subscriber that is closed."""
        if not self._reliable:
            return
        give_up = time.monotonic() + self._patience
        while (left := give_up - time.monotonic()) > 0:
            try:
                Farewell(self._attempt(left), self._subscribe)
                return
            except _PASSING:
                time.sleep(min(_FIRST_PAUSE, left))
            except EmbarError:
                return  # that is another broker

    def hurry(self) -> None:
        self._patience = _LAST_WORDS / 4

    def close(self) -> None:
        """Waits for a second at most, until the broker has heard that it need keep nothing."""
        if self.is_closed:
            return
        super().close()
        self._hanging_up.set()
        with suppress(EmbarError, RuntimeError):  # the connection is gone, or has ended
            if not self._receiver_ended.is_set():
                self._say_goodbye(self._session)
        self._receiver_ended.wait(self._patience)
        while not self._receiver_ended.is_set():  # it may be about to open another connection
            for stream in (*self._opening, self._session.stream):
                stream.shutdown()
            self._receiver_ended.wait(0.1)
        self._receiver.join()

    def after_fork_in_child(self) -> None:
        super().after_fork_in_child()
        for stream in (*self._opening, self._session.stream):
            stream.abandon()

    # --- looking ----------------------------------------------------------------------------------

    def position(self) -> Position:
        return Position(self._log, max(self._core.position, self._first))

    def _newest(self) -> int:
        known = max(self._head, self._known_intake().next_ticket)
        return self._core.next_place + known - self.position().ticket

    def sockets(self) -> SocketCounters:
        """What the sockets of all connections so far did."""
        total = replace(self._past)
        total.add(SocketCounters(**self._known_intake().socket_calls()))
        if not self._receiver_ended.is_set():
            total.add(self._session.stream.count())
        return total


def _introduction(options: SubscriberOptions, credit: int) -> Subscribe:
    start, log, ticket = Start.LATEST, 0, 0
    match options.start:
        case Position():
            start, (log, ticket) = Start.POSITION, options.start
        case int():
            start, ticket = Start.TICKET, options.start
        case "earliest":
            start = Start.EARLIEST
    return Subscribe(
        int.from_bytes(os.urandom(8)),
        time.time_ns(),
        credit,
        Mode.RELIABLE if options.mode == "reliable" else Mode.LOSSY,
        start,
        log,
        ticket,
        options.name,
    )


def _nothing() -> None:
    """The private ring goes with its last view."""
