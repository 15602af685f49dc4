"""TCP, the broker's side: batches are received straight into slots of the ring.

One thread accepts connections. Each connection has a thread that receives, and once it is greeted
one that waits for the broker and sends acknowledgements. What a publisher has in the ring, its row
and the number of its last batch, outlives its connections: that is how a batch gets into the log
exactly once. It is kept until the publisher says goodbye, or has been gone for a minute, or a new
publisher needs the row. Of those that are forgotten, the last number is still remembered for a
while, so that a publisher whose goodbye was not answered can ask again.

It outlives this process, too, because all of it is in the ring: when the broker is killed, the next
one keeps the rows (`kept_rows`), and whichever of its listeners the publisher connects to goes on.

A connection that stalls or ends in the middle of a batch gives its slot back.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import OrderedDict, deque
from contextlib import suppress
from typing import TYPE_CHECKING

from embar_shm import _core, protocol
from embar_shm.errors import BrokerGone, ConnectionLost, EmbarError, NotEnoughSpace
from embar_shm.kept_rows import Key
from embar_shm.net import SocketCounters, Stream, format_endpoint
from embar_shm.protocol import Hello, Kind, State, Welcome
from embar_shm.segment import Segment
from embar_shm.subscribe_frames import Subscribe
from embar_shm.tls import TlsStream, check_context
from embar_shm.transports.base import Listener, ListenOptions
from embar_shm.transports.tcp_feed import Feeds
from embar_shm.transports.tcp_remote import (
    LAST_WORDS,
    Limits,
    Link,
    Remote,
    listening_socket,
    receive_batches,
    send_acks,
)
from embar_shm.transports.tcp_session import read_control

if TYPE_CHECKING:
    from embar_shm.broker import Broker

__all__ = ["Limits", "TcpListener"]

_LIMITS = Limits()
_REMEMBERED = 4096  # publishers without a row whose last number is still known
_ROW_TIME, _ROW_POLL = 2.0, 0.02  # seconds the broker gets to free a row; between two looks
_RETURN_TIME = (
    1.5  # seconds before those of the last broker have to make room: they try each second
)

_log = logging.getLogger("embar_shm.tcp")


class TcpListener(Listener):
    """Listens on one address for one broker."""

    def __init__(
        self,
        broker: Broker,
        endpoint: tuple[str, int],
        options: ListenOptions,
        limits: Limits = _LIMITS,
    ) -> None:
        if options.tls is not None:
            check_context(options.tls, None)
        self._broker = broker
        self._options = options
        self._limits = limits
        self._lock = threading.Lock()  # around the next five, and the taking of rows
        self._remotes: dict[tuple[int, int], Remote] = {}
        # Key and received_seq. No dictionary: one that loses an entry for each new one is made anew
        # every now and then, in the memory pool of whichever connection's thread it happens to.
        self._forgotten: deque[tuple[Key, int]] = deque(maxlen=_REMEMBERED)
        self._newcomers: OrderedDict[Link, None] = OrderedDict()
        self._links: set[Link] = set()
        self._threads: set[threading.Thread] = set()
        self._past = SocketCounters()  # of connections that have ended
        self._stopping = False
        self._ending = threading.Lock()  # held by whoever is in stop()
        self._ended = False
        self._socket, self._buffers = listening_socket(endpoint, options)
        self._address = format_endpoint(*self._socket.getsockname()[:2])
        try:
            self._segment = Segment.attach(broker.segment.name)
        except BaseException:
            self._socket.close()
            raise
        self._memory = memoryview(self._segment.memory)
        self._feeds = Feeds(self._segment, broker.kept_rows, self._address, limits)
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
        total.add(self._feeds.sockets())
        return total

    def stop(self) -> None:
        with self._ending:
            if not self._ended:
                self._stop()  # when Ctrl-C interrupts it, the next call goes on with it
                self._ended = True

    @property
    def is_stopped(self) -> bool:
        return self._ended

    def _stop(self) -> None:
        self._feeds.drain()
        feeding = self._feeds.stop()
        with self._lock:
            self._stopping = True
            for remote in self._remotes.values():
                remote.core.interrupt()  # its connection says goodbye
            for link in self._links - {remote.link for remote in self._remotes.values()} - feeding:
                link.stream.shutdown()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._acceptor.join()
        self._socket.close()
        for thread in list(self._threads):
            thread.join()
        with self._lock:
            for remote in list(self._remotes.values()):
                self._forget(remote)  # what its sockets did is still asked for
        self._feeds.forget_all()
        self._memory.release()
        self._segment.close()

    def after_fork_in_child(self) -> None:
        self._ended = True  # the rows and the segment are the parent's
        self._lock, self._ending = threading.Lock(), threading.Lock()  # perhaps held there
        self._feeds.after_fork_in_child()
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
        link = Link(stream)
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

    def _serve(self, link: Link) -> None:
        """The thread of one connection: whatever happens in it stays in it."""
        try:
            self._greet_and_serve(link)
        except EmbarError as error:
            level = logging.INFO if isinstance(error, ConnectionLost) else logging.WARNING
            _log.log(level, "connection of %s ended: %s", link.stream.peer, error.message)
            link.refuse(error)
        except Exception:  # a bug of ours: the others are served all the same
            _log.exception("connection of %s failed", link.stream.peer)
            link.refuse(BrokerGone(f"the broker at {self._address} failed, see its log"))
        finally:
            if link.connection.state is State.CLOSED:
                link.stream.finish(LAST_WORDS)
            link.stream.close()
            with self._lock:
                self._newcomers.pop(link, None)
                self._links.discard(link)
                self._past.add(link.stream.counters)
                self._threads.discard(threading.current_thread())

    def _greet_and_serve(self, link: Link) -> None:
        link.stream.set_deadline(self._limits.handshake)
        if isinstance(link.stream, TlsStream):
            link.stream.handshake()
        kind, greeting = self._greet(link)
        if kind is Kind.SUBSCRIBE:
            subscribe = Subscribe.unpack(greeting)
            self._feeds.serve(link, subscribe, lambda: self._is_no_newcomer(link))
        else:
            hello = Hello.unpack(greeting)
            protocol.check_hello(hello, self._segment.geometry.slot_bytes)
            self._receive_from(link, hello)

    def _is_no_newcomer(self, link: Link) -> None:
        with self._lock:
            self._newcomers.pop(link, None)

    def _receive_from(self, link: Link, hello: Hello) -> None:
        """A publisher's connection, until its end."""
        stream = link.stream
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

    def _greet(self, link: Link) -> tuple[Kind, bytes]:
        """Kind and body of the first frame, of somebody who knows the token."""
        first = read_control(link.stream, link.connection)
        if self._options.token is not None:
            nonce = protocol.new_nonce()
            link.say(Kind.CHALLENGE, nonce)
            proof = read_control(link.stream, link.connection).body
            protocol.check_proof(self._options.token, nonce, first.body, proof)
        return first.kind, first.body

    def _take_over(self, link: Link, hello: Hello) -> Remote | None:
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

    def _remote_of(self, hello: Hello) -> Remote | None:
        """The publisher that introduces itself; None: it is forgotten, and has nothing to send."""
        if self._stopping or not self._broker.is_open:
            raise self._stopped()
        key = (hello.publisher_id, hello.incarnation)
        known = self._remotes.get(key) or self._take_kept(key)
        if known is not None:
            return known
        if hello.sent_seq:
            if hello.sent_seq == self._last_seq_of(key):
                return None
            raise BrokerGone(
                f"the broker at {self._address} does not know this publisher, which has sent "
                f"{hello.sent_seq} batches: it was started anew, or has given its place away",
                "connect a new publisher, and publish what was not acknowledged",
            )
        timed = self._broker.takes_stage_times
        remote = self._remotes[key] = Remote.new(self._segment, hello, timed)
        return remote

    def _last_seq_of(self, key: Key) -> int | None:
        """Of a publisher that was forgotten; None: that is too long ago, or was never known."""
        return next((seq for known, seq in reversed(self._forgotten) if known == key), None)

    def _take_kept(self, key: Key) -> Remote | None:
        """A publisher of the broker before this one; None: it had none with this key."""
        kept = self._broker.kept_rows.take_publisher(key, self._segment.lock_fd)
        if kept is None:
            return None
        remote = Remote(self._segment, kept, self._broker.takes_stage_times)
        remote.gone_since = self._broker.kept_rows.since
        self._remotes[key] = remote
        return remote

    def _make_room(self) -> None:
        """Gives away the row of the publisher that has been gone longest, if any is gone.

        Not while a row is being freed: that one is for whoever comes first, and for the next one
        there is another turn.
        """
        monitor, rows = self._segment.monitor(), self._segment.geometry.max_publishers
        if any(monitor.publisher(row)["state"] == "closed" for row in range(rows)):
            return
        kept = self._broker.kept_rows
        if time.monotonic() - kept.since > _RETURN_TIME:
            for key in kept.publishers()[:1]:
                self._take_kept(key)
        gone = [r for r in self._remotes.values() if r.link is None]
        if gone:
            self._forget(min(gone, key=lambda r: r.gone_since))

    def _forget(self, remote: Remote) -> None:
        del self._remotes[remote.key]
        self._past.add(SocketCounters(**remote.core.socket_calls()))
        self._forgotten.append((remote.key, remote.received_seq))
        remote.leave(self._segment)

    def _forget_the_gone(self) -> None:
        """Gives away the rows of those that have had no connection for a while."""
        self._feeds.forget_the_gone()
        with self._lock:
            until = time.monotonic() - self._limits.forget_after
            if self._broker.kept_rows.since < until:
                for key in self._broker.kept_rows.publishers():
                    self._take_kept(key)
            gone = [r for r in self._remotes.values() if r.link is None and r.gone_since < until]
            for remote in gone:
                after = self._limits.forget_after
                _log.info("publisher %d has been gone for %g s", remote.key[0], after)
                self._forget(remote)

    def _stopped(self) -> BrokerGone:
        return BrokerGone(f"the broker at {self._address} has stopped", "connect to another one")

    # --- batches --------------------------------------------------------------------------------

    def _part(self, link: Link, received_seq: int) -> None:
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

    def _receive(self, link: Link, remote: Remote, hello: Hello) -> None:
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
            said_goodbye = receive_batches(link, remote, hello, self._limits, self._memory)
        finally:
            remote.core.interrupt()
            acks.join()
        if said_goodbye:
            link.say(Kind.GOODBYE)  # first: should this process be killed, the next one has the row
            with self._lock:
                self._forget(remote)

    def _send_acks(self, link: Link, remote: Remote, wanted: bool) -> None:
        """The thread that tells what the broker has accepted, and that it stopped."""
        try:
            send_acks(link, remote, wanted)
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
