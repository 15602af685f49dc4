"""TCP, the broker's side: batches are received straight into slots of the ring.

One thread accepts connections. Each connection has a thread that receives, and once it is greeted
one that waits for the broker and sends acknowledgements. What a publisher has in the ring, its row
and the number of its last batch, outlives its connections: that is how a batch gets into the log
exactly once. It is kept until the publisher says goodbye, or has been gone for a minute, or a new
publisher needs the row. Of those that are forgotten, the last number is still remembered for a
while, so that a publisher whose goodbye was not answered can ask again.

A connection that stalls or ends in the middle of a batch gives its slot back.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embar_shm import _core, protocol, socket_buffers
from embar_shm.errors import (
    BrokerGone,
    CannotListen,
    ConfigurationError,
    ConnectionLost,
    EmbarError,
    NotEnoughSpace,
)
from embar_shm.net import SocketCounters, Stream, format_endpoint
from embar_shm.participants import take_row
from embar_shm.protocol import Connection, Hello, Kind, Role, State, Welcome
from embar_shm.segment import Segment
from embar_shm.tls import TlsStream, check_context
from embar_shm.transports.base import Listener, ListenOptions
from embar_shm.transports.tcp import read_control

if TYPE_CHECKING:
    from embar_shm.broker import Broker

__all__ = ["Limits", "TcpListener"]

_LAST_WORDS = 1.0  # seconds the other side gets to read why
_REMEMBERED = 4096  # publishers without a row whose last number is still known
_ROW_TIME, _ROW_POLL = 2.0, 0.02  # seconds the broker gets to free a row; between two looks
_BACKLOG = 128
_SAMPLE_QUEUES_EVERY = 16  # batches

_log = logging.getLogger("embar_shm.tcp")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a listener bears with. Times in seconds."""

    handshake: float = 10.0  # for all of it, TLS included
    stall: float = 10.0  # that a connection may stand still in the middle of a batch
    least_rate: float = 64 * 1024  # bytes/s that a body has to come with, after `stall`
    newcomers: int = 64  # connections that are not greeted; one more, and the oldest has to go
    forget_after: float = 60.0  # without a connection until a publisher's row is given away
    housekeeping: float = 1.0  # between two looks at who is gone


class _Remote:
    """A remote publisher: what is known of it from one connection to the next."""

    def __init__(self, segment: Segment, hello: Hello, timed: bool) -> None:
        """Takes a row for it. Raises `NotEnoughSpace` at once when there is none."""
        row = take_row(segment, patience=0)
        self.key = (hello.publisher_id, hello.incarnation)
        self.received_seq = 0  # batches that are committed to the ring
        self.link: _Link | None = None  # the connection that has it, or is about to
        self.gone_since = 0.0  # time.monotonic() at which the last connection ended
        self.turn = threading.Lock()  # held by the connection that uses `core`
        self.core = _core.ReceiverCore(
            context=segment,
            buffer=segment.memory,
            index=row,
            lock_fd=segment.lock_fd,
            publisher_id=hello.publisher_id,
            incarnation=hello.incarnation,
            quota=min(hello.in_flight, segment.geometry.slots),
            ack=hello.ack,
            timed=timed,
        )

    def leave(self, segment: Segment) -> None:
        """Gives the row back: the broker frees it when its batches are released."""
        self.core.close()
        _core.unlock(segment.lock_fd, _core.publisher_lock(self.core.index))


class _Link:
    """One connection: its stream, and what was said on it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.connection = Connection(Role.BROKER)
        self._saying = threading.Lock()

    def say(self, kind: Kind, body: bytes = b"") -> None:
        """Sends a control frame, unless the last word was said. From any thread."""
        with self._saying:
            if self.connection.state is not State.CLOSED:
                self.stream.write(self.connection.send(kind, body))

    def refuse(self, error: EmbarError) -> None:
        """Tells the other side why this is the end, if it is still there to hear it."""
        if isinstance(error, ConnectionLost):
            return
        with suppress(EmbarError):
            self.stream.set_timeouts(_LAST_WORDS, _LAST_WORDS)
            self.say(Kind.ERROR, protocol.error_body(error))


class TcpListener(Listener):
    """Listens on one address for one broker."""

    def __init__(
        self,
        broker: Broker,
        endpoint: tuple[str, int],
        options: ListenOptions,
        limits: Limits = Limits(),
    ) -> None:
        if options.tls is not None:
            check_context(options.tls, None)
        self._broker = broker
        self._options = options
        self._limits = limits
        self._lock = threading.Lock()  # around the next five, and the taking of rows
        self._remotes: dict[tuple[int, int], _Remote] = {}
        self._forgotten: OrderedDict[tuple[int, int], int] = OrderedDict()  # their received_seq
        self._newcomers: OrderedDict[_Link, None] = OrderedDict()
        self._links: set[_Link] = set()
        self._threads: set[threading.Thread] = set()
        self._past = SocketCounters()  # of connections that have ended
        self._stopping = False
        self._ending = threading.Lock()  # held by whoever is in stop()
        self._ended = False
        self._socket, self._buffers = _listen(endpoint, options)
        self._address = format_endpoint(*self._socket.getsockname()[:2])
        try:
            self._segment = Segment.attach(broker.segment.name)
        except BaseException:
            self._socket.close()
            raise
        self._memory = memoryview(self._segment.memory)
        self._acceptor = threading.Thread(
            target=self._accept, name=f"accept {self._address}", daemon=True
        )
        self._acceptor.start()

    @property
    def address(self) -> str:
        return self._address

    def sockets(self) -> SocketCounters:
        """What the sockets of all connections so far did."""
        total = SocketCounters()
        with self._lock:
            total.add(self._past)
            for remote in self._remotes.values():
                total.add(SocketCounters(**remote.core.socket_calls()))
            for link in self._links:
                total.add(link.stream.count())
        return total

    def stop(self) -> None:
        with self._ending:
            if not self._ended:
                self._stop()  # when Ctrl-C interrupts it, the next call goes on with it
                self._ended = True

    def _stop(self) -> None:
        with self._lock:
            self._stopping = True
            for remote in self._remotes.values():
                remote.core.interrupt()  # its connection says goodbye
            for link in self._links - {remote.link for remote in self._remotes.values()}:
                link.stream.shutdown()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._acceptor.join()
        self._socket.close()
        for thread in list(self._threads):
            thread.join()
        for remote in self._remotes.values():
            remote.leave(self._segment)
        self._remotes.clear()
        self._memory.release()
        self._segment.close()

    def after_fork_in_child(self) -> None:
        self._ended = True  # the rows and the segment are the parent's
        self._lock, self._ending = threading.Lock(), threading.Lock()  # perhaps held there
        self._socket.close()
        for link in self._links:
            link.stream.abandon()

    # --- connections --------------------------------------------------------------------------

    def _accept(self) -> None:
        """The accepting thread."""
        self._socket.settimeout(self._limits.housekeeping)
        while True:
            try:
                sock, address = self._socket.accept()
            except TimeoutError:
                self._forget_the_gone()
                continue
            except OSError as error:
                if self._stopping:
                    return
                _log.warning("%s cannot accept a connection: %s", self._address, error)
                time.sleep(0.1)  # out of descriptors: others must end first
                continue
            self._forget_the_gone()
            peer = format_endpoint(*address[:2])
            try:
                self._admit(sock, peer)
            except (OSError, RuntimeError) as error:  # it is gone already; no more threads
                sock.close()
                _log.warning("connection of %s could not be served: %s", peer, error)

    def _admit(self, sock: socket.socket, peer: str) -> None:
        tls = self._options.tls
        stream = Stream(sock, peer) if tls is None else TlsStream(sock, peer, tls, None)
        stream.counters.note_buffers(self._buffers)
        link = _Link(stream)
        thread = threading.Thread(
            target=self._serve, args=(link,), name=f"serve {stream.peer}", daemon=True
        )
        with self._lock:
            if self._stopping:
                stream.close()
                return
            if len(self._newcomers) >= self._limits.newcomers:
                oldest, _ = self._newcomers.popitem(last=False)
                oldest.stream.shutdown()
                _log.warning("%s was not greeted yet and made room for others", oldest.stream.peer)
            thread.start()  # it needs the lock before it ends
            self._newcomers[link] = None
            self._links.add(link)
            self._threads.add(thread)

    def _serve(self, link: _Link) -> None:
        """The thread of one connection: whatever happens in it stays in it."""
        try:
            self._greet_and_receive(link)
        except EmbarError as error:
            level = logging.INFO if isinstance(error, ConnectionLost) else logging.WARNING
            _log.log(level, "connection of %s ended: %s", link.stream.peer, error.message)
            link.refuse(error)
        except Exception:  # a bug of ours: the others are served all the same
            _log.exception("connection of %s failed", link.stream.peer)
            link.refuse(BrokerGone(f"the broker at {self._address} failed, see its log"))
        finally:
            if link.connection.state is State.CLOSED:
                link.stream.finish(_LAST_WORDS)
            link.stream.close()
            with self._lock:
                self._newcomers.pop(link, None)
                self._links.discard(link)
                self._past.add(link.stream.counters)
                self._threads.discard(threading.current_thread())

    def _greet_and_receive(self, link: _Link) -> None:
        stream = link.stream
        stream.set_deadline(self._limits.handshake)
        if isinstance(stream, TlsStream):
            stream.handshake()
        hello = self._greet(link)
        remote = self._take_over(link, hello)
        stream.set_deadline(None)
        stream.set_timeouts(self._limits.stall, self._limits.stall)
        if remote is None:
            self._part(link, hello.sent_seq)
            return
        with remote.turn:
            try:
                self._receive(link, remote, hello)
            finally:
                with self._lock:
                    if remote.link is link:
                        remote.link = None
                        remote.gone_since = time.monotonic()

    def _greet(self, link: _Link) -> Hello:
        frame = read_control(link.stream, link.connection)
        greeting = frame.body
        if self._options.token is not None:
            nonce = protocol.new_nonce()
            link.say(Kind.CHALLENGE, nonce)
            proof = read_control(link.stream, link.connection).body
            protocol.check_proof(self._options.token, nonce, greeting, proof)
        hello = Hello.unpack(greeting)
        protocol.check_hello(hello, self._segment.geometry.slot_bytes)
        return hello

    def _take_over(self, link: _Link, hello: Hello) -> _Remote | None:
        """Makes this the connection of its publisher; None: that one only wants to leave.

        Waits, without the lock, until the broker has freed a row.
        """
        patience = time.monotonic() + _ROW_TIME
        while True:
            with self._lock:
                try:
                    remote = self._remote_of(hello)
                except NotEnoughSpace:
                    if time.monotonic() >= patience:
                        raise
                    self._make_room()
                else:
                    if remote is not None:
                        self._newcomers.pop(link, None)
                        older, remote.link = remote.link, link
                        if older is not None:  # its publisher has given it up
                            older.stream.shutdown()
                            remote.core.interrupt()
                    return remote
            time.sleep(_ROW_POLL)

    # --- publishers, with self._lock --------------------------------------------------------------

    def _remote_of(self, hello: Hello) -> _Remote | None:
        """The publisher that introduces itself; None: it is forgotten, and has nothing to send."""
        if self._stopping or not self._broker.is_open:
            raise self._stopped()
        key = (hello.publisher_id, hello.incarnation)
        known = self._remotes.get(key)
        if known is not None:
            return known
        if hello.sent_seq:
            if hello.sent_seq == self._forgotten.get(key):
                return None
            raise BrokerGone(
                f"the broker at {self._address} does not know this publisher, which has sent "
                f"{hello.sent_seq} batches: it was started anew, or has given its place away",
                "connect a new publisher, and publish what was not acknowledged",
            )
        timed = self._broker.takes_stage_times
        remote = self._remotes[key] = _Remote(self._segment, hello, timed)
        return remote

    def _make_room(self) -> None:
        """Gives away the row of the publisher that has been gone longest, if any is gone.

        Not while a row is being freed: that one is for whoever comes first, and for the next one
        there is another turn.
        """
        monitor, rows = self._segment.monitor(), self._segment.geometry.max_publishers
        if any(monitor.publisher(row)["state"] == "closed" for row in range(rows)):
            return
        gone = [r for r in self._remotes.values() if r.link is None]
        if gone:
            self._forget(min(gone, key=lambda r: r.gone_since))

    def _forget(self, remote: _Remote) -> None:
        del self._remotes[remote.key]
        self._past.add(SocketCounters(**remote.core.socket_calls()))
        self._forgotten[remote.key] = remote.received_seq
        while len(self._forgotten) > _REMEMBERED:
            self._forgotten.popitem(last=False)
        remote.leave(self._segment)

    def _forget_the_gone(self) -> None:
        """Gives away the rows of publishers that have had no connection for a while."""
        with self._lock:
            until = time.monotonic() - self._limits.forget_after
            gone = [r for r in self._remotes.values() if r.link is None and r.gone_since < until]
            for remote in gone:
                after = self._limits.forget_after
                _log.info("publisher %d has been gone for %g s", remote.key[0], after)
                self._forget(remote)

    def _stopped(self) -> BrokerGone:
        return BrokerGone(f"the broker at {self._address} has stopped", "connect to another one")

    # --- batches --------------------------------------------------------------------------------

    def _part(self, link: _Link, received_seq: int) -> None:
        """Answers a publisher that only wants its goodbye answered."""
        slot_bytes = self._segment.geometry.slot_bytes
        link.say(Kind.WELCOME, Welcome(slot_bytes, received_seq).pack())
        header = bytearray(_core.BATCH_HEADER_BYTES)
        if not link.stream.read_into(memoryview(header), idle=True):
            return
        if not protocol.is_goodbye(bytes(header)):
            raise BrokerGone(
                f"the broker at {self._address} has given the place of this publisher away",
                "connect a new publisher",
            )
        link.connection.received(Kind.GOODBYE)
        link.say(Kind.GOODBYE)

    def _receive(self, link: _Link, remote: _Remote, hello: Hello) -> None:
        """Receives batches until the goodbye or the end of the connection."""
        with self._lock:
            if remote.link is not link:
                return  # a newer connection has taken over while this one waited for its turn
            if self._stopping:
                raise self._stopped()
            if forgotten := self._remotes.get(remote.key) is not remote:
                remote.link = None  # it said goodbye on the connection before, and asks again
            else:
                remote.core.resume()
        if forgotten:
            self._part(link, remote.received_seq)
            return
        slot_bytes = self._segment.geometry.slot_bytes
        link.say(Kind.WELCOME, Welcome(slot_bytes, remote.received_seq).pack())
        acks = threading.Thread(
            target=self._send_acks, args=(link, remote, hello.ack != 0), name="acks", daemon=True
        )
        acks.start()
        try:
            said_goodbye = self._receive_batches(link, remote, hello)
        finally:
            remote.core.interrupt()
            acks.join()
        if said_goodbye:
            with self._lock:
                self._forget(remote)
            link.say(Kind.GOODBYE)

    def _receive_batches(self, link: _Link, remote: _Remote, hello: Hello) -> bool:
        """Until the goodbye (True), or an orderly end of the connection without one."""
        limit = self._segment.geometry.slot_bytes
        while (header := self._next_header(link, remote)) is not None:
            if protocol.is_goodbye(header):
                link.connection.received(Kind.GOODBYE)
                return True
            batch = link.connection.batch(header, hello, limit, remote.received_seq)
            self._receive_body(link.stream, remote, header, batch)
            remote.received_seq = batch.seq
        return False

    def _next_header(self, link: _Link, remote: _Remote) -> bytes | None:
        """The next header that has to be looked at; None: an orderly end of the connection.

        On a plain socket batches are received natively, until one comes that is not the next.
        """
        stream = link.stream
        if (fd := stream.plain_fd) is None:
            space = bytearray(_core.BATCH_HEADER_BYTES)
            return bytes(space) if stream.read_into(memoryview(space), idle=True) else None
        seq, why, header, got, size, number, status = remote.core.receive(
            fd,
            self._segment.geometry.slot_bytes,
            remote.received_seq,
            self._limits.stall,
            self._limits.least_rate,
        )
        remote.received_seq = seq
        if why == "interrupted":
            raise _given_up()
        if why == "ring":
            raise remote.core.ring_error(status)
        if why not in ("ended", "header"):
            raise stream.lost(why, got, size, number)
        return header

    def _receive_body(
        self, stream: Stream, remote: _Remote, header: bytes, batch: protocol.BatchHead
    ) -> None:
        place = remote.core.claim(None)
        if place is None:
            raise _given_up()
        try:
            begin = time.monotonic_ns()
            # Whoever sends a byte now and then would hold the slot for days.
            within = self._limits.stall + batch.body_bytes / self._limits.least_rate
            stream.read_into(self._memory[place : place + batch.body_bytes], within=within)
            took = time.monotonic_ns() - begin
        except BaseException:
            remote.core.give_back()
            raise
        remote.core.commit(header, took)
        if self._broker.takes_stage_times and batch.seq % _SAMPLE_QUEUES_EVERY == 0:
            stream.sample_queues()

    def _send_acks(self, link: _Link, remote: _Remote, wanted: bool) -> None:
        """The thread that tells what the broker has accepted, and that it stopped."""
        try:
            if wanted and (fd := link.stream.plain_fd) is not None:
                self._send_acks_natively(link.stream, remote, fd)
            else:
                self._send_acks_one_by_one(link, remote, wanted)
            if not self._stopping:
                return
            error: EmbarError = self._stopped()
        except EmbarError as caught:  # the broker has stopped, or the connection is lost
            error = caught
        _log.info("connection of %s ended: %s", link.stream.peer, error.message)
        if not wanted:  # now it is told all the same: the publisher can say what is in doubt
            with suppress(EmbarError):
                link.say(Kind.ACK, protocol.ack_body(remote.core.accepted_seq))
        link.refuse(error)
        link.stream.end_reading()

    def _send_acks_natively(self, stream: Stream, remote: _Remote, fd: int) -> None:
        _, why, number, status = remote.core.send_acks(fd, protocol.ACK_HEAD, 0)
        if why == "ring":
            raise remote.core.ring_error(status)
        if why != "interrupted":
            raise stream.lost(why, 0, len(protocol.ACK_HEAD), number)

    def _send_acks_one_by_one(self, link: _Link, remote: _Remote, wanted: bool) -> None:
        acked = 0
        while (accepted := remote.core.wait_accepted(acked + 1, None)) > acked:
            acked = accepted
            if wanted:
                link.say(Kind.ACK, protocol.ack_body(acked))


def _given_up() -> ConnectionLost:
    return ConnectionLost("the connection was given up for another one, or the broker stops")


def _listen(
    endpoint: tuple[str, int], options: ListenOptions
) -> tuple[socket.socket, socket_buffers.Buffers]:
    """A listening socket. Raises `CannotListen`, `ConfigurationError`."""
    address = format_endpoint(*endpoint)
    try:
        family, kind, number, _, where = socket.getaddrinfo(
            *endpoint, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"{address}: {error}", "is the name of the host right?") from error
    protected = options.token is not None or options.tls is not None
    if not (protected or options.insecure or ipaddress.ip_address(where[0]).is_loopback):
        raise ConfigurationError(
            f"other machines can reach {address}, and neither a token nor TLS protects it",
            "give a token (--token-file), TLS (--tls-cert and --tls-key), or say that everybody "
            "may write (--insecure)",
        )
    sock: socket.socket | None = None
    try:
        sock = socket.socket(family, kind, number)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        wanted = options.socket_buffer
        if wanted is None:
            wanted = socket_buffers.default_for(str(where[0]))
        buffers = socket_buffers.request(sock, wanted)  # accepted connections inherit it
        sock.bind(where)
        sock.listen(_BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise CannotListen(
            f"cannot listen on {address}: {error}",
            "choose another port (0: any free one), or stop what uses this one",
        ) from error
    return sock, buffers
