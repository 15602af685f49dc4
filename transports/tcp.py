"""TCP, the publisher's side: it fills batches in a ring of its own and sends them to the broker.

The address is "host:port". The ring is private memory with as many slots as batches may be in
flight, so `publish` and all else that fills batches is the same code as over shared memory. A
sender thread takes committed batches and sends header and body with one gathered call. A batch
stays in its slot until the broker acknowledges it: after a reconnection, whatever has not reached
the broker's ring is sent again.

With ack=0 nothing comes back: a batch is forgotten once the kernel has it. A connection that is
lost with such batches on their way cannot be continued, and the publisher fails.

One connection is a `tcp_session`; the broker's side is `tcp_listener`; frames and their order are
`embar_shm.protocol`.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from embar_shm import _core, protocol
from embar_shm.cpus import available_cpus
from embar_shm.errors import (
    BrokerGone,
    ConnectionLost,
    EmbarError,
    NoSuchBroker,
    ProtocolError,
    WaitTimeout,
)
from embar_shm.net import SocketCounters, Stream, parse_endpoint
from embar_shm.options import WAIT_MODES
from embar_shm.private_ring import PrivateRing
from embar_shm.protocol import Hello, Kind
from embar_shm.tls import check_context
from embar_shm.transports.base import (
    Listener,
    ListenOptions,
    PublisherLink,
    PublisherOptions,
    SubscriberLink,
    SubscriberOptions,
    Transport,
)
from embar_shm.transports.ring import RingLink, batch_size_for
from embar_shm.transports.tcp_session import Attempt, PublisherSession, read_control

if TYPE_CHECKING:
    from embar_shm.broker import Broker

__all__ = ["TcpLink", "TcpTransport"]

_HANDSHAKE_TIMEOUT = 10.0  # seconds
_SHORTEST_HANDSHAKE = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0  # seconds between two attempts to connect, doubling
_LAST_WORDS = 1.0  # seconds a broken connection gets to tell why
_IN_FLIGHT = 2

# What may pass: connecting again is worth it. Everything else a broker says is final.
_PASSING = (ConnectionLost, NoSuchBroker, WaitTimeout)


class TcpTransport(Transport):
    """``tcp://host:port``."""

    scheme = "tcp"

    def connect(self, address: str, options: PublisherOptions) -> PublisherLink:
        return TcpLink(parse_endpoint(address), options)

    def subscribe(self, address: str, options: SubscriberOptions) -> SubscriberLink:
        from embar_shm.transports.tcp_subscriber import TcpSubscriberLink

        return TcpSubscriberLink(parse_endpoint(address), options)

    def listen(
        self,
        broker: Broker,
        address: str | None = None,
        options: ListenOptions = ListenOptions(),  # noqa: B008 - it is frozen
    ) -> Listener:
        from embar_shm.transports.tcp_listener import TcpListener

        return TcpListener(broker, parse_endpoint(address or "127.0.0.1:0"), options)


def _lie(stream: Stream, seq: int) -> ProtocolError:
    return ProtocolError(f"{stream.peer} acknowledged batch {seq}, which was never sent")


class TcpLink(RingLink):
    """A connection to a broker, and the ring whose batches it sends."""

    def __init__(self, endpoint: tuple[str, int], options: PublisherOptions) -> None:
        self._endpoint = endpoint
        self._options = options
        in_flight = options.in_flight or _IN_FLIGHT
        self._hello = Hello(
            options.publisher_id,
            time.time_ns(),
            options.batch_size or 0,
            ack=options.ack,
            in_flight=in_flight,
        )
        if options.tls is not None:
            check_context(options.tls, endpoint[0])
        self._closing = threading.Event()  # deliver everything, and then say goodbye
        self._hanging_up = threading.Event()  # deliver nothing more
        # is_alive() cannot tell: an interrupted join() believes that the thread has ended.
        self._sender_ended = threading.Event()
        self._patience = options.timeout  # of close(), in seconds
        self._opening: list[Stream] = []  # of a session that is being opened
        self._stuck_since: float | None = None  # time.monotonic(); sessions since got nothing done
        self._pause = _FIRST_PAUSE
        self._sent = 0  # batches given to the kernel, on this connection or one before
        self._confirmed = 0  # batches that the broker said it has
        self._past = SocketCounters()  # of connections that have ended
        self._session = self._connect(options.connect_timeout)
        try:
            self._begin(options, in_flight)
        except BaseException:
            self._take_leave()
            raise

    def _begin(self, options: PublisherOptions, in_flight: int) -> None:
        peer = self._session.stream.peer
        batch_size = batch_size_for(options, self._session.welcome.slot_bytes, peer)
        self._hello = replace(self._hello, max_batch=batch_size)
        ring = PrivateRing(peer, in_flight, batch_size)
        super().__init__(
            ring,
            options,
            batch_size=batch_size,
            in_flight=in_flight,
            row=0,
            lock_fd=-1,
            incarnation=self._hello.incarnation,
        )
        self._private = ring
        self._memory = memoryview(ring.memory)
        self._relay = _core.RelayCore(
            ring.memory,
            WAIT_MODES[options.wait],
            options.spin_us,
            available_cpus(),
            options.sample_every != 0,
        )
        self._sender = threading.Thread(target=self._run, name=f"send {peer}", daemon=True)
        self._sender.start()

    # --- connecting ---------------------------------------------------------------------------

    def _connect(self, patience: float | None, attempt: float | None = None) -> PublisherSession:
        """Tries again for `patience` seconds what may pass; what the broker refuses is final.

        `attempt`: seconds for the connection of one try, and again for its handshake. A publisher
        that is closed, and has nothing to deliver any more, tries once more only.
        """
        attempt = _HANDSHAKE_TIMEOUT if attempt is None else attempt
        give_up = None if patience is None else time.monotonic() + patience
        while True:
            try:
                how = Attempt(self._endpoint, self._options, attempt, self._opening)
                return PublisherSession(how, self._hello)
            except _PASSING:
                left = self._pause if give_up is None else give_up - time.monotonic()
                done = self._closing.is_set() and self._has_delivered()
                if left <= 0 or done or self._hanging_up.is_set():
                    raise
            self._wait_a_moment(left)

    def _wait_a_moment(self, left: float = _LONGEST_PAUSE) -> None:
        """Between two attempts, longer each time; close() ends the first such wait."""
        until = self._hanging_up if self._closing.is_set() else self._closing
        until.wait(min(self._pause, left))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _has_delivered(self) -> bool:
        """Is everything that was committed known to be in the log?"""
        return self._options.ack != 0 and self._relay.acknowledged == self._core.committed_seq

    def _reconnect(self, why: EmbarError) -> PublisherSession:
        """A new session in place of a broken one. Raises `BrokerGone` when there will be none."""
        now, timeout = time.monotonic(), self._options.timeout
        if self._stuck_since is None:
            self._stuck_since, self._pause = now, _FIRST_PAUSE
        elif timeout is not None and now - self._stuck_since >= timeout:
            raise self._gone(why, why)
        else:  # the last session achieved nothing
            self._wait_a_moment()
        if self._hanging_up.is_set():
            raise self._gone(why, why)
        self._hello = replace(self._hello, sent_seq=self._sent)
        try:
            if timeout is None:
                return self._connect(None)
            # Not much longer than the user waits; nor so short that no handshake can succeed.
            attempt = min(_HANDSHAKE_TIMEOUT, max(_SHORTEST_HANDSHAKE, timeout))
            return self._connect(self._stuck_since + timeout - now, attempt)
        except _PASSING as error:
            raise self._gone(why, error) from error

    def _gone(self, why: EmbarError, why_no_other: EmbarError) -> BrokerGone:
        return BrokerGone(
            f"the connection to {self._private.name} was lost ({why.message}) and there is no "
            f"other that lasts: {why_no_other.message}{self._doubt()}",
            "connect again when the broker is back, and publish what was not acknowledged",
        )

    def _doubt(self) -> str:
        """With ack=0: how many batches the broker may not have, for an error message."""
        count = 0 if self._options.ack else self._core.committed_seq - self._confirmed
        return f"; {count} batches are in doubt: nothing tells with ack=0" if count else ""

    def _take_leave(self) -> None:
        """Ends a session that was never used, so that the broker does not keep a place for it."""
        with suppress(EmbarError):
            self._session.stream.write(self._session.protocol.send(Kind.GOODBYE))
        self._session.stream.close()

    # --- the sender thread ----------------------------------------------------------------------

    def _run(self) -> None:
        """One session after the other, until the goodbye or an end that is final."""
        try:
            while (error := self._serve(self._session)) is not None:
                if not isinstance(error, _PASSING) or self._hanging_up.is_set():
                    raise error
                self._private.lost_because = error.message
                self._private.lost_at = time.monotonic()
                self._session = self._reconnect(error)
                self._private.lost_at = None
        except EmbarError as error:
            # Without its traceback: the frames in there refer back to this object.
            self._fail(type(error)(error.message, error.hint))
        except Exception as error:  # a bug of ours, or no thread can be started
            self._fail(BrokerGone(f"sending to {self._private.name} failed: {error!r}"))
            raise
        finally:
            self._sender_ended.set()

    def _fail(self, failure: EmbarError) -> None:
        self._private.failure = failure
        self._relay.abandon()

    def _serve(self, session: PublisherSession) -> EmbarError | None:
        """Sends until the session ends; why it did. None: after a goodbye, all is delivered."""
        began, acknowledged = time.monotonic(), self._relay.acknowledged
        self._sent = session.welcome.received_seq
        self._confirmed = max(self._confirmed, self._sent)
        final: EmbarError | None = None
        acks = threading.Thread(target=self._read_acks, args=(session,), name="acks", daemon=True)
        try:
            acks.start()
            self._send_batches(session)
        except _PASSING as error:
            if not session.wait_for_end(_LAST_WORDS):  # it may have said why
                session.end(error)
        except EmbarError as error:
            session.end(error)
            final = error
        finally:
            session.stream.shutdown()
            if acks.is_alive():
                acks.join()
            session.stream.close()
            self._past.add(session.stream.counters)
            session.stream.counters = SocketCounters()  # they are in the past now
        if self._relay.acknowledged > acknowledged or time.monotonic() - began > _LONGEST_PAUSE:
            self._stuck_since = None
        return final or session.error

    def _send_batches(self, session: PublisherSession) -> None:
        if self._sent > self._core.committed_seq:
            raise ProtocolError(f"{session.stream.peer} has batches that were never sent")
        if (lost := self._relay.acknowledged - self._sent) > 0:
            peer, known = session.stream.peer, self._relay.acknowledged
            if self._options.ack:
                raise BrokerGone(
                    f"{peer} has batches up to {self._sent} only, and had acknowledged those up to "
                    f"{known}, which this publisher has not kept",
                    "is it another broker? Connect a new publisher",
                )
            raise BrokerGone(
                f"{lost} batches were on their way to {peer} when the connection was lost: it has "
                f"those up to {self._sent} only, and this publisher has not kept the others",
                "with ack=1 a publisher keeps what the broker may not have, and sends it again",
            )
        while not session.has_ended and not self._hanging_up.is_set():
            if self._closing.is_set() and self._sent == self._core.committed_seq:
                session.stream.write(session.protocol.send(Kind.GOODBYE))
                session.wait_for_end(None)
                return
            fd = session.stream.plain_fd
            if fd is not None:
                self._send_natively(session.stream, fd)
            elif (place := self._relay.next(self._sent + 1, None)) is not None:
                self._send_batch(session.stream, *place)

    def _send_natively(self, stream: Stream, fd: int) -> None:
        """All batches, until something else is to be done."""
        last = self._core.committed_seq if self._closing.is_set() else 0
        self._sent, how, number = self._relay.send(fd, self._sent, last, self._options.ack == 0)
        if how != "whole":
            raise stream.lost(how, 0, 0, number)

    def _send_batch(self, stream: Stream, header: int, body: int, size: int) -> None:
        timed = self._options.sample_every != 0
        begin = time.monotonic_ns() if timed else 0
        stream.write(
            self._memory[header : header + _core.BATCH_HEADER_BYTES],
            self._memory[body : body + size],
        )
        self._sent += 1
        if timed:
            self._relay.record_send(time.monotonic_ns() - begin)
            if self._sent % _core.LOOK_AT_QUEUES_EVERY == 0:
                stream.sample_queues()
        if not self._options.ack:
            self._relay.acknowledge(self._sent)

    def _read_acks(self, session: PublisherSession) -> None:
        """The thread that reads a session; ends with it."""
        error: EmbarError | None = ConnectionLost("the thread that reads acknowledgements failed")
        try:
            while True:
                frame = self._read_frame(session)
                if frame.kind is Kind.GOODBYE:
                    self._confirmed = self._sent
                    error = None
                    break
                self._acknowledge(session, protocol.acked_seq(frame.body))
        except EmbarError as caught:
            error = caught
        finally:
            session.end(error)
            self._relay.wake()

    def _read_frame(self, session: PublisherSession) -> protocol.Frame:
        """The next frame that is more than an acknowledgement, where those are read natively."""
        stream, begun = session.stream, b""
        if self._options.ack and (fd := stream.plain_fd) is not None:
            how, begun, got, number, lie = self._relay.read_acks(fd, protocol.ACK_HEAD)
            if how == "lie":
                raise _lie(stream, lie)
            if how == "closed" and not got:
                raise ConnectionLost(f"{stream.peer} closed the connection")
            if how != "whole":
                raise stream.lost(how, got, protocol.HEAD_BYTES, number)
        return read_control(stream, session.protocol, idle=True, begun=begun)

    def _acknowledge(self, session: PublisherSession, seq: int) -> None:
        try:
            self._relay.acknowledge(seq)
        except ValueError:
            raise _lie(session.stream, seq) from None
        self._confirmed = max(self._confirmed, seq)

    # --- the rest of PublisherLink --------------------------------------------------------------

    def stages(self) -> dict[str, dict[str, Any]]:
        return super().stages() | {"send_payload": self._relay.send_times()}

    def sockets(self) -> SocketCounters:
        """What the sockets of all connections so far did."""
        total = replace(self._past)
        total.add(SocketCounters(**self._relay.socket_calls()))
        if not self._sender_ended.is_set():
            total.add(self._session.stream.count())
        return total

    def hurry(self) -> None:
        timeout = self._options.timeout
        self._patience = _LAST_WORDS if timeout is None else min(timeout, _LAST_WORDS)

    def close(self) -> None:
        if self.is_closed:
            return
        try:
            self._flush_before_close()
            self._deliver()
        finally:
            try:
                self._close_core()
            finally:
                if self.is_closed:
                    self._hang_up()

    def _deliver(self) -> None:
        """Waits until everything is in the broker's ring. Raises why it is not."""
        self._closing.set()
        self._relay.wake()
        ended = self._sender_ended.wait(self._patience)
        row = self._monitor.publisher(self._core.index)
        missing = row["messages"] - row["accepted_messages"]
        failure = self._private.failure
        if failure is not None and not self._private.failure_was_told:
            if missing:
                raise type(failure)(
                    f"{failure.message}; {missing} messages were not acknowledged", failure.hint
                )
            if doubt := self._doubt():
                told = "" if doubt in failure.message else doubt
                raise type(failure)(f"{failure.message}{told}", failure.hint)
        if not ended and (missing or not self._options.ack):
            raise WaitTimeout(
                f"{self._private.describe_broker()} has not taken everything within "
                f"{self._patience:.3g} s"
                f"{self._doubt() or f'; {missing} messages were not acknowledged'}",
                "look at that broker; what it has not taken is lost with this publisher",
            )

    def _hang_up(self) -> None:
        """Ends the sender thread, wherever it is."""
        self._hanging_up.set()
        self._closing.set()
        while not self._sender_ended.is_set():  # it may be about to open another connection
            for stream in (*self._opening, self._session.stream):
                stream.shutdown()
            self._session.end(ConnectionLost("the publisher was closed"))
            self._relay.wake()
            self._sender_ended.wait(0.1)
        self._sender.join()

    def after_fork_in_child(self) -> None:
        self._core.after_fork_in_child()
        for stream in (*self._opening, self._session.stream):
            stream.abandon()
