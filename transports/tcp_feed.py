"""TCP, the broker's side of subscribers: who they are, and what is kept for them.

Each connection has a thread that sends, and one that reads what the subscriber has received and
how much more it has room for (`tcp_remote_subscriber`). What a reliable one has not received stays
in the ring, and holds the publishers back as its own slowness would. Its row and position outlive
its connections, so that a lost connection loses nothing: until it says goodbye, or has been gone
for a minute. They outlive this process as well: should the broker be killed, the next one keeps
them (`kept_rows`). A lossy one holds nobody back, and is forgotten with its connection.

A broker that stops waits for subscribers that still get on: they come to the end of the log.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from embar_shm import _core
from embar_shm.cpus import available_cpus
from embar_shm.diagnose_subscriber import position_lost
from embar_shm.errors import (
    BrokerGone,
    BrokerRestarted,
    NotEnoughSpace,
    PositionLost,
    ProtocolError,
    WaitTimeout,
)
from embar_shm.kept_rows import KeptRows, Key
from embar_shm.net import SocketCounters, parse_endpoint
from embar_shm.options import WAIT_MODES
from embar_shm.participants import take_subscriber_row
from embar_shm.protocol import Kind
from embar_shm.quarantine import quarantined
from embar_shm.segment import Segment
from embar_shm.subscribe_frames import Mode, Start, Subscribe, Subscribed
from embar_shm.transports.reading import fitting_name
from embar_shm.transports.tcp_remote import LAST_WORDS, Limits, Link
from embar_shm.transports.tcp_remote_subscriber import RemoteSubscriber, feed

__all__ = ["Feeds"]

_SPIN_US = 50.0
_STOPPED = 3  # BrokerState::Stopped of layout.hpp
_POLL = 0.02  # seconds between two looks at how subscribers get on
_log = logging.getLogger("embar_shm.tcp")


class Feeds:
    """The remote subscribers of one listener."""

    def __init__(self, segment: Segment, before: KeptRows, address: str, limits: Limits) -> None:
        """`before`: what the broker before this one has left."""
        self._segment = segment
        self._before = before
        self._address = address
        self._limits = limits
        self._cpus = available_cpus()  # once, as the broker does, and not at each connection
        self._lock = threading.Lock()  # around the rest, and the taking of rows
        self._remotes: set[RemoteSubscriber] = set()
        # Those that outlive their connections.
        self._kept: dict[tuple[int, int], RemoteSubscriber] = {}
        self._links: set[Link] = set()
        self._past = SocketCounters()  # of those that are forgotten
        self._stopping = False

    def sockets(self) -> SocketCounters:
        """What was done natively for all subscribers so far."""
        total = SocketCounters()
        with self._lock:
            total.add(self._past)
            for remote in self._remotes:
                total.add(SocketCounters(**remote.core.socket_calls()))
        return total

    def serve(self, link: Link, subscribe: Subscribe, admitted: Callable[[], None]) -> None:
        """A connection whose subscriber has introduced itself, until its end.

        `admitted` is called when it has its place. Raises why it ended.
        """
        with self._lock:
            self._links.add(link)
        try:
            if subscribe.start is Start.LEAVE:
                self._let_go(subscribe)
                link.say(Kind.GOODBYE)
                return
            remote = self._take_over(link, subscribe)
            said_goodbye = False
            try:
                admitted()
                link.stream.set_deadline(None)
                link.stream.set_timeouts(self._limits.stall, self._limits.stall)
                with remote.turn:
                    said_goodbye = self._feed(link, remote, subscribe)
            finally:
                self._part(link, remote, said_goodbye)
            if said_goodbye:
                link.say(Kind.GOODBYE)
        finally:
            with self._lock:
                self._links.discard(link)

    def _part(self, link: Link, remote: RemoteSubscriber, said_goodbye: bool) -> None:
        with self._lock:
            if remote.link is link:
                remote.link = None
                remote.gone_since = time.monotonic()
                if said_goodbye or not remote.reliable:
                    self._forget(remote)

    def _let_go(self, subscribe: Subscribe) -> None:
        """Of a subscriber whose goodbye was lost, or the answer to it."""
        with self._lock:
            remote = self._known((subscribe.subscriber_id, subscribe.incarnation))
            if remote is None:
                return
            older, remote.link = remote.link, None
            remote.gone_since = time.monotonic()
            if older is not None:
                older.stream.shutdown()
                remote.core.interrupt()
        with remote.turn, self._lock:
            if remote in self._remotes:
                self._forget(remote)

    def drain(self) -> None:
        """After the broker's end: waits for subscribers that still get on to come to the end, too.

        Those whose connection is lost meanwhile, or was a moment ago, may come back.
        """
        if self._segment.monitor().control()["state"] != _STOPPED:
            return
        farewell = self._limits.farewell
        began = moved = time.monotonic()
        seen: list[object] = []
        while time.monotonic() - moved < farewell:
            with self._lock:
                left = [
                    remote
                    for remote in self._remotes
                    if remote.link is not None or remote.gone_since > began - farewell
                ]
                now: list[object] = [(remote.key, remote.core.known()) for remote in left]
                served = len(self._links)
            awaited = self._before.subscribers() if self._before.since > began - farewell else []
            if not left and not served and not awaited:
                return
            if now != seen:
                seen, moved = now, time.monotonic()
            time.sleep(_POLL)
        for remote in left:
            _log.warning(
                "subscriber %r takes nothing more, and has not read everything", remote.name
            )

    def stop(self) -> set[Link]:
        """Ends all connections, which it returns. Their subscribers are told, if they listen."""
        with self._lock:
            self._stopping = True
            for remote in self._remotes:
                remote.core.interrupt()  # its connection says why
            found = set(self._links)
        give_up = time.monotonic() + LAST_WORDS
        while self._links and time.monotonic() < give_up:
            time.sleep(_POLL)
        with self._lock:
            for link in self._links:
                link.stream.shutdown()
        return found

    def forget_all(self) -> None:
        """Gives all rows back. No connection may be left."""
        with self._lock:
            for remote in list(self._remotes):
                self._forget(remote)

    def forget_the_gone(self) -> None:
        """Lets go of subscribers that have had no connection for a while."""
        with self._lock:
            after = self._limits.forget_after
            until = time.monotonic() - after
            if self._before.since < until:
                for key in self._before.subscribers():
                    self._known(key)
            for remote in list(self._remotes):
                if remote.link is None and remote.gone_since < until:
                    _log.warning(
                        "subscriber %r has been gone for %g s: it holds nobody back any more",
                        remote.name,
                        after,
                    )
                    self._forget(remote)

    def after_fork_in_child(self) -> None:
        """In a forked child: the lock may have been held in the parent."""
        self._lock = threading.Lock()

    # --- who it is --------------------------------------------------------------------------------

    def _take_over(self, link: Link, subscribe: Subscribe) -> RemoteSubscriber:
        """Makes this the connection of its subscriber. Waits for the broker, without the lock."""
        log = self._segment.log
        if subscribe.start in (Start.POSITION, Start.RESUME) and subscribe.log != log:
            raise BrokerRestarted(
                f"ticket {subscribe.ticket} is of another log than the one of the broker at "
                f"{self._address}: it was started anew",
                "subscribe from the earliest or the latest batch of the new log",
            )
        key = (subscribe.subscriber_id, subscribe.incarnation)
        with self._lock:
            if self._stopping:
                raise self._stopped()
            remote = self._known(key) if subscribe.mode is Mode.RELIABLE else None
            if remote is not None:
                older, remote.link = remote.link, link
                if older is not None:  # its subscriber has given it up
                    older.stream.shutdown()
                    remote.core.interrupt()
                return remote
        return self._join(link, subscribe)

    def _known(self, key: Key) -> RemoteSubscriber | None:
        """The reliable subscriber of that key, also one of the broker before. With the lock."""
        if (remote := self._kept.get(key)) is not None:
            return remote
        segment = self._segment
        if (before := self._before.take_subscriber(key, segment.lock_fd)) is None:
            return None
        name = segment.monitor().subscriber(before.row)["name"]
        core = self._feed_core(before.row, name, key=key, resumes_at=before.cursor)
        remote = self._kept[key] = RemoteSubscriber(core, name, key, reliable=True)
        remote.gone_since = self._before.since
        self._remotes.add(remote)
        return remote

    def _join(self, link: Link, subscribe: Subscribe) -> RemoteSubscriber:
        """A place in the log for a new subscriber, or one that was forgotten."""
        try:
            core = self._admit(link, subscribe, min(subscribe.start, Start.TICKET))
        except PositionLost:
            if subscribe.mode is not Mode.LOSSY or subscribe.start is not Start.RESUME:
                raise
            core = self._admit(link, subscribe, Start.EARLIEST)
        key = (subscribe.subscriber_id, subscribe.incarnation)
        reliable = subscribe.mode is Mode.RELIABLE
        remote = RemoteSubscriber(core, subscribe.name, key, reliable=reliable)
        remote.link = link
        try:
            with self._lock:
                if self._stopping:
                    raise self._stopped()
                if remote.reliable:
                    if remote.key in self._kept:  # the one before was admitted only now
                        raise WaitTimeout("another connection of this subscriber was being opened")
                    self._kept[remote.key] = remote
                self._remotes.add(remote)
        except BaseException:
            self._give_back(core)
            raise
        return remote

    def _admit(self, link: Link, subscribe: Subscribe, start: int) -> _core.FeedCore:
        """Waits for a row of the table, and for the broker to answer."""
        patience = time.monotonic() + self._limits.handshake
        while True:
            with self._lock:
                if self._stopping or self._segment.monitor().control()["state"] == _STOPPED:
                    raise self._stopped()
                try:
                    core = self._take_row(link, subscribe, start)
                    break
                except NotEnoughSpace:
                    if time.monotonic() >= patience:
                        raise
            time.sleep(_POLL)
        try:
            # What a lossy subscriber has missed since it was here last is a gap.
            missed_from = subscribe.ticket if subscribe.start is Start.RESUME else 2**64 - 1
            self._check(core.join(max(patience - time.monotonic(), 0.0), missed_from), subscribe)
        except BaseException:
            self._give_back(core)
            raise
        return core

    def _take_row(self, link: Link, subscribe: Subscribe, start: int) -> _core.FeedCore:
        segment = self._segment
        host, _ = parse_endpoint(link.stream.peer.removeprefix("tcp://"))
        lossy = subscribe.mode is Mode.LOSSY
        row = take_subscriber_row(segment, patience=0)
        try:
            return self._feed_core(
                row,
                fitting_name(subscribe.name, f" on {host}"),  # the row has the pid of the broker
                lossy=lossy,
                start=start,
                ticket=subscribe.ticket,
                key=(0, 0) if lossy else (subscribe.subscriber_id, subscribe.incarnation),
            )
        except BaseException:
            _core.unlock(segment.lock_fd, _core.subscriber_lock(row))
            raise

    def _feed_core(
        self,
        row: int,
        name: str,
        *,
        lossy: bool = False,
        start: int = Start.TICKET,
        ticket: int = 0,
        key: Key,
        resumes_at: int | None = None,
    ) -> _core.FeedCore:
        return _core.FeedCore(
            self._segment.memory,
            row,
            self._segment.lock_fd,
            name,
            lossy,
            start,
            ticket,
            WAIT_MODES["adaptive"],
            _SPIN_US,
            self._cpus,
            comes_back=key,
            resumes_at=resumes_at,
        )

    def _check(self, answer: str, subscribe: Subscribe) -> None:
        """Raises why the broker has not admitted a subscriber."""
        match answer:
            case "yes":
                return
            case "quarantined":
                raise quarantined(self._segment.name, self._segment.monitor().damage)
            case "no":
                raise position_lost(self._segment, subscribe.ticket)
            case "timeout":
                raise WaitTimeout(
                    f"the broker {self._segment.name} has not admitted the subscriber within "
                    f"{self._limits.handshake:g} s",
                    "subscribers are admitted by Broker.serve(): is it running?",
                )
            case _:
                raise self._stopped()

    def _forget(self, remote: RemoteSubscriber) -> None:
        """With the lock."""
        self._remotes.discard(remote)
        if self._kept.get(remote.key) is remote:
            del self._kept[remote.key]
        self._past.add(SocketCounters(**remote.core.socket_calls()))
        self._give_back(remote.core)

    def _give_back(self, core: _core.FeedCore) -> None:
        core.close()
        _core.unlock(self._segment.lock_fd, _core.subscriber_lock(core.index))

    def _stopped(self) -> BrokerGone:
        return BrokerGone(f"the broker at {self._address} has stopped", "connect to another one")

    # --- batches ----------------------------------------------------------------------------------

    def _feed(self, link: Link, remote: RemoteSubscriber, subscribe: Subscribe) -> bool:
        """Sends batches until the subscriber's goodbye (True), or the connection ends without."""
        with self._lock:
            if remote.link is not link or remote not in self._remotes:
                return False  # a newer connection has taken over, or the last one said goodbye
            if self._stopping:
                raise self._stopped()
        received, _, _, sent_to = remote.core.known()
        # Without a RESUME it never heard the answer to its first introduction; a lossy one begins
        # where its new feed does.
        resumes = remote.reliable and subscribe.start is Start.RESUME
        first = subscribe.ticket if resumes else received
        if not remote.core.resume(first, subscribe.credit):
            raise ProtocolError(
                f"a subscriber wants to go on with ticket {first}: it said that it has received "
                f"those before {received}, and those from {sent_to} on were never sent to it"
            )
        head = self._segment.monitor().control()["head"]
        slot_bytes = self._segment.geometry.slot_bytes
        answer = Subscribed(self._segment.log, first, head, slot_bytes)
        link.say(Kind.SUBSCRIBED, answer.pack())
        return feed(link, remote, self._address, self._why_stopping)

    def _why_stopping(self) -> BrokerGone | None:
        return self._stopped() if self._stopping else None
