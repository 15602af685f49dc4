"""The broker: owns one ring, accepts what publishers commit, acknowledges and releases it.

The path of a batch through the broker is ``_native/log.hpp``; this module owns the resources.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Self

from embar_shm import _core, lifecycle, signals, transports
from embar_shm.address import RingName, split_address
from embar_shm.broker_start import Begun, Start, corrupt
from embar_shm.broker_stats import BrokerStats
from embar_shm.errors import ClosedError, MisuseError
from embar_shm.kept_rows import KeptRows
from embar_shm.layout import DEFAULT_SUBSCRIBERS
from embar_shm.options import (
    SUBSCRIBE_MODES,
    StartPlace,
    SubscribeMode,
    WaitMode,
    choose,
    number,
    secret,
    size,
)
from embar_shm.segment import Segment
from embar_shm.subscriber import OwnSubscriber, Subscriber, start_place, subscriber_name
from embar_shm.takeover import Recovery
from embar_shm.transports.base import Listener, ListenOptions, Position, SubscriberOptions
from embar_shm.transports.shm import ShmTransport

if TYPE_CHECKING:
    import ssl

__all__ = ["Broker", "BrokerStats"]


class Broker:
    """One broker and its ring. A context manager: leaving it unlinks the segment.

    Use it from one thread; `stop` and `stats` may be called from any.
    """

    def __init__(self, begun: Begun, stage_times: bool) -> None:
        """Use `Broker.create` or `Broker.open_or_recover`."""
        self.takes_stage_times = stage_times
        self.recovery: Recovery | None = begun.recovery
        """What was found, when it took over the ring of a broker that had died; else None."""
        self._segment = begun.segment
        self._core: _core.BrokerCore | None = begun.core
        self._monitor = begun.segment.monitor()
        self.kept_rows: KeptRows = KeptRows(begun.core)
        """For listeners: participants on a network that the broker before has served."""
        self._listeners: list[Listener] = []
        self._reader: weakref.ref[OwnSubscriber] | None = None
        self._serving = threading.Lock()  # held by the thread that is in serve(), or closes
        self._serving_thread: threading.Thread | None = None
        self._closing_thread: threading.Thread | None = None
        self._background: threading.Thread | None = None
        self._background_error: BaseException | None = None
        lifecycle.register_broker(self)

    @classmethod
    def create(
        cls,
        name: str,
        *,
        slots: int = 8,
        slot_size: int | str = "2MiB",
        max_publishers: int = 64,
        max_subscribers: int = DEFAULT_SUBSCRIBERS,
        retain: int = 0,
        wait: WaitMode = "adaptive",
        spin_us: float = 50,
        replace_dead: bool = False,
        stage_times: bool = True,
        group: str | int | None = None,
    ) -> Self:
        """Creates the ring `name` ("cluster/broker") and becomes its broker.

        `slots` batches of at most `slot_size` bytes each fit into the ring at a time; at most
        `max_publishers` and `max_subscribers` can be connected. All memory is reserved and touched
        now.
        `retain` batches stay readable after every subscriber has released them, for those that
        start at "earliest" or are lossy; they are given up when a publisher finds no free slot.
        While a lossy subscriber is connected, it is half of the slots at least.
        `wait` says how the broker waits for work: "block" sleeps at once, "spin" first spins for
        `spin_us` microseconds, "adaptive" spins only while everybody in the ring has a CPU.
        `replace_dead` removes the segment of a broker that was killed, if no publisher is left;
        `open_or_recover` goes on with it.
        Without `stage_times` the broker's share of the stage statistics is not taken.
        `group`, a name or number, lets all its members publish and subscribe, at `address`; else
        only this process' user can (SECURITY.md).

        Raises `BrokerExists`, `NotEnoughSpace`, `ConfigurationError`. Does not block.
        """
        start = Start.checked(
            slots=slots,
            slot_size=slot_size,
            max_publishers=max_publishers,
            max_subscribers=max_subscribers,
            retain=retain,
            wait=wait,
            spin_us=spin_us,
            stage_times=stage_times,
            group=group,
        )
        ring = RingName.parse(name)
        with signals.deferred():  # until somebody is there who unlinks the segment
            return cls(start.create(ring, replace_dead=replace_dead), stage_times)

    @classmethod
    def open_or_recover(
        cls,
        name: str,
        *,
        slots: int = 8,
        slot_size: int | str = "2MiB",
        max_publishers: int = 64,
        max_subscribers: int = DEFAULT_SUBSCRIBERS,
        retain: int = 0,
        wait: WaitMode = "adaptive",
        spin_us: float = 50,
        stage_times: bool = True,
        group: str | int | None = None,
    ) -> Self:
        """Becomes the broker of the ring `name`: creates it, or goes on where one that died was.

        What the last broker had accepted stays in the log, what was committed since is accepted
        now. Publishers and subscribers that live stay connected and go on by themselves; those over
        a network connect again. What is half done is finished, what belongs to the dead is freed.
        `recovery` then tells what was found. Arguments as for `create`; a ring that was left keeps
        its sizes, unless nobody is connected to it and everything in it was read. It is for `group`
        from then on; who has it open keeps it.

        Raises what `create` does; `BrokerExists` when the broker is alive, or the ring another
        user's, `AccessDenied` when it was opened to more than a group, `IncompatibleSegment`
        when this version cannot use what is there, and `CorruptSegment` when a word in it has a
        value that cannot be: it is quarantined then, and stays for whoever looks into it. Does not
        block.
        """
        start = Start.checked(
            slots=slots,
            slot_size=slot_size,
            max_publishers=max_publishers,
            max_subscribers=max_subscribers,
            retain=retain,
            wait=wait,
            spin_us=spin_us,
            stage_times=stage_times,
            group=group,
        )
        ring = RingName.parse(name)
        with signals.deferred():
            return cls(start.open_or_recover(ring), stage_times)

    @property
    def name(self) -> str:
        """ "cluster/broker"."""
        return str(self._segment.name)

    @property
    def address(self) -> str:
        """Where publishers of this machine connect to: "shm://cluster/broker".

        With "?group=NAME" if the ring is for a group.
        """
        return f"shm://{self._segment.address}"

    @property
    def segment(self) -> Segment:
        """The mapped segment."""
        return self._segment

    @property
    def first_accept(self) -> float | None:
        """time.monotonic() at which this broker accepted its first batch; None: it has not yet."""
        ns = None if self._core is None else self._core.first_accept_ns
        return None if ns is None else ns / 1e9

    @property
    def is_open(self) -> bool:
        """Has `close` not been called, and is this the process that created it?"""
        return self._core is not None

    def listen(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        insecure: bool = False,
        socket_buffer: int | str | None = None,
    ) -> Listener:
        """Lets publishers and subscribers of other machines reach it, too: "tcp://127.0.0.1:7400".

        Port 0 takes a free one; the listener's `address` tells it. Its threads run until `stop()`
        of the listener or `close` of the broker; accepting is still `serve`'s. Does not block.

        token: a secret that they have to know. It is never sent, but batches are readable
            on the way without `tls`, a context made by `embar_shm.tls.server_context`.
        insecure: listen on an address that others can reach, with neither token nor `tls`.
        socket_buffer: bytes that the kernel should hold for a connection, in each direction;
            None: what was found best for the address (docs/performance.md).

        Raises `CannotListen`, `ConfigurationError`.
        """
        self._open_core()
        scheme, rest = split_address(address)
        options = ListenOptions(
            token=secret("token", token),
            tls=tls,
            insecure=insecure,
            socket_buffer=None if socket_buffer is None else size("socket_buffer", socket_buffer),
        )
        listener = transports.get(scheme).listen(self, rest, options)
        self._listeners = [kept for kept in self._listeners if not kept.is_stopped] + [listener]
        return listener

    def serve(self, timeout: float | None = None) -> None:
        """Accepts batches until `stop`, SIGTERM (in the main thread) or `timeout` seconds.

        Blocks without the GIL. Before it returns on `stop` it accepts what is committed. Raises
        KeyboardInterrupt on Ctrl-C, `CorruptSegment` when the ring's words make no sense, and
        `MisuseError` when another thread is serving.
        """
        if timeout is not None:
            timeout = number("timeout", timeout)
        core = self._open_core()
        self._check_no_reader()
        try:
            self._begin_serving()
            outcome = core.serve(timeout)
        finally:
            self._end_serving()
        if outcome == "corrupt":
            raise corrupt(self._segment, str(core.corruption))
        if outcome == "stopped":
            core.resume()  # a later serve() is a new one

    def subscribe(
        self,
        *,
        mode: SubscribeMode = "reliable",
        start: StartPlace | int | Position = "latest",
        name: str | None = None,
        timeout: float | None = None,
    ) -> Subscriber:
        """A subscriber of the broker's own process and thread, whose waits serve the broker.

        Takes the place of `serve` and `start`: while it is open, batches are accepted in its
        `next`, `poll` and iteration, and only there. Between the commit and the reader there is no
        other process then, which is the shortest way there is. `stop` and SIGTERM end the wait
        like the end of the log. Options as for `Subscriber.connect`. Raises `MisuseError` when a
        thread is serving, or another such subscriber is open.
        """
        core = self._open_core()
        self._check_no_reader()
        if self._background is not None:
            raise MisuseError(
                f"{self.name} is served by its background thread",
                f"Subscriber.connect({self.address!r}) reads beside it",
            )
        choose("mode", mode, SUBSCRIBE_MODES)
        options = SubscriberOptions(
            mode=mode,
            start=start_place(start),
            name=subscriber_name(name),
            timeout=None if timeout is None else number("timeout", timeout),
            connect_timeout=0.0,
            wait="block",  # it does not wait by itself
            spin_us=0.0,
        )
        thread = threading.current_thread()
        self._begin_serving()
        try:
            core.reap()  # nobody else frees the row of the last one
            link = ShmTransport().subscribe(str(self._segment.name), options, core)
            reader = OwnSubscriber(link, lambda: self._end_reading(thread))
        except BaseException:
            self._end_serving()
            raise
        self._reader = weakref.ref(reader)
        return reader

    def start(self) -> Self:
        """Serves in a background thread until `stop` or `close`; returns at once."""
        self._open_core()
        self._check_no_reader()
        if self._background is not None:
            raise MisuseError(f"{self.name} was started already")
        self._background = threading.Thread(
            target=self._serve_in_background, name=f"broker {self.name}", daemon=True
        )
        self._background.start()
        return self

    def stop(self) -> None:
        """Ends `serve` in whatever thread it runs. Of a broker that does not serve: the next one.

        Waits for the background thread, if there is one, and raises what ended it.
        """
        if self._core is None:
            return
        self._end_background(self._core)
        self._raise_background_error()

    def stats(self) -> BrokerStats:
        """The counters now; costs the broker nothing. Works after `close`, too."""
        return BrokerStats.of(self._monitor)

    def close(self) -> None:
        """Accepts what is committed, tells everybody, unlinks the segment. Idempotent.

        A segment that was found damaged is quarantined: it stays, for whoever looks into it.

        Subscribers on this machine read on by themselves; those of a listener get a few seconds.
        Waits for the thread that is in `serve`. Raises what ended the background thread. A SIGTERM
        or Ctrl-C meanwhile takes effect afterwards; a second one ends that wait, if it is for a
        thread that does not come back, and the segment is unlinked without it.
        """
        core = self._core
        if core is None or self._closing_thread is threading.current_thread():
            return  # a signal handler that closes meets a close() that goes on after it
        if self._reader is not None and (reader := self._reader()) is not None:
            reader.close()
        if self._serving_thread is threading.current_thread():
            raise MisuseError(f"close() of {self.name} was called inside its serve()", "use stop()")
        with signals.deferred() as deferral:
            ended = False
            try:
                with deferral.second_at_once():
                    self._end_background(core)
                    self._serving.acquire()  # who serves was told to end; nobody begins any more
                    self._closing_thread = threading.current_thread()
                ended = True
                core.retire()
                for listener in self._listeners:  # now: they tell what was accepted, and the end
                    listener.stop()
            finally:
                self._give_back(ended)
        self._raise_background_error()

    def interrupt_serve(self) -> bool:
        """Part of `lifecycle`: ends serve() if the main thread is in it."""
        if self._core is None or self._serving_thread is not threading.main_thread():
            return False
        self._core.stop()
        return True

    def after_fork_in_child(self) -> None:
        """Part of `lifecycle`: the ring stays the parent's."""
        self._core = None
        for listener in self._listeners:
            listener.after_fork_in_child()
        self._segment.after_fork_in_child()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_core", None) is not None:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"<Broker {self.name}{'' if self._core else ', closed'}>"

    def _open_core(self) -> _core.BrokerCore:
        if self._core is None:
            raise ClosedError(
                f"the broker {self.name} is closed, or belongs to the parent of this process"
            )
        return self._core

    def _begin_serving(self) -> None:
        with signals.deferred():  # the lock is held if, and only if, the thread is known
            if not self._serving.acquire(blocking=False):
                raise MisuseError(f"another thread is serving {self.name} already")
            self._serving_thread = threading.current_thread()

    def _end_serving(self, thread: threading.Thread | None = None) -> None:
        """Undoes `_begin_serving`, if `thread` (None: this one) did that."""
        with signals.deferred():
            if self._serving_thread is (thread or threading.current_thread()):
                self._serving_thread = None
                self._serving.release()

    def _check_no_reader(self) -> None:
        if self._reader is not None and self._reader() is not None:
            raise MisuseError(
                f"{self.name} is served by its own subscriber", "close that, or read from it"
            )

    def _end_reading(self, thread: threading.Thread) -> None:
        """The own subscriber that `thread` made is closed, by whichever thread."""
        self._reader = None
        self._end_serving(thread)

    def _serve_in_background(self) -> None:
        try:
            self.serve()
        except BaseException as error:  # told to whoever calls stop() or close()
            self._background_error = error

    def _end_background(self, core: _core.BrokerCore) -> None:
        """Ends `serve` in whatever thread it runs, and waits for the background thread."""
        core.stop()
        background = self._background
        if background is not None and background is not threading.current_thread():
            background.join()
            self._background = None

    def _give_back(self, ended: bool) -> None:
        """Unlinks the segment. Unless serve() has `ended`, its thread keeps what it uses."""
        try:
            if self._core is not None and self._core.corruption is None:
                self._segment.unlink()
            if ended:
                self._segment.close()
        finally:
            self._core = None
            self._closing_thread = None
            if ended:
                self._serving.release()
            lifecycle.unregister_broker(self)

    def _raise_background_error(self) -> None:
        error, self._background_error = self._background_error, None
        if error is not None:
            raise error
