"""A TCP proxy that cuts connections where a test says: at a byte, not at a time.

    with Proxy("tcp://127.0.0.1:7400", [Cut("up", 200), None]) as proxy:
        Publisher.connect(proxy.address)     # is cut off after its 200th byte; the next one is not

"up" is from whoever connects to the target, "down" the way back.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Self

from embar_shm.net import format_endpoint, parse_endpoint
from embar_shm.testing.conditions import DEADLINE, wait_until

__all__ = ["Cut", "Proxy"]

Direction = Literal["up", "down"]
Side = Literal["both", "client", "target"]

_CHUNK = 65536  # bytes
_POLL = 0.1  # seconds between two looks at whether the thread lives
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST, and drops what is not sent


@dataclass(frozen=True, slots=True)
class Cut:
    """The end of a connection: as soon as so many bytes have been forwarded in one direction."""

    direction: Direction
    after: int
    reset: bool = True
    """RST, at which both sides get an error; else FIN, and both read an orderly end."""
    side: Side = "both"
    """Which side is told; the connection to the other one stays, and hears nothing more."""


class Proxy:
    """Forwards connections to `target` ("tcp://host:port"). A context manager.

    The connections take what happens to them from `cuts`, in the order in which they are accepted;
    when it is used up, and for None, nothing happens. Everything is done by one thread; what the
    methods ask of it is done when they return.
    """

    def __init__(self, target: str, cuts: Iterable[Cut | None] = ()) -> None:
        self.connections: int = 0
        """How many were accepted."""
        self.cuts_made = 0
        """How many of them were cut as planned."""
        self.passed: dict[Direction, int] = {"up": 0, "down": 0}
        """Bytes forwarded, over all connections."""
        self._target = parse_endpoint(target.removeprefix("tcp://"))
        self._cuts: Iterator[Cut | None] = iter(cuts)
        self._pipes: set[_Pipe] = set()
        self._allowed: dict[Direction, int] = {}  # bytes that may still pass; not there: any
        self._selector = selectors.DefaultSelector()
        # This one keeps the port when nobody listens on it: whoever connects then is refused.
        self._port = _bound(("127.0.0.1", 0))
        self._listening: socket.socket | None = None
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, self._obey)
        self._orders: list[tuple[Callable[[], None], threading.Event]] = []
        self._ending = False
        self._failure: BaseException | None = None
        self._admit()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where to connect to: "tcp://127.0.0.1:port"."""
        return format_endpoint(*self._port.getsockname())

    def cut(self, side: Side = "both", *, reset: bool = True) -> None:
        """Ends the connections of now; with a `side`, the other one does not learn it."""

        def order() -> None:
            for pipe in list(self._pipes):
                pipe.cut(side, reset)

        self._do(order)

    def plan(self, cuts: Iterable[Cut | None]) -> None:
        """What happens to the next connections, in place of what was planned for them."""

        def order() -> None:
            self._cuts = iter(cuts)

        self._do(order)

    def hold(self, *directions: Direction, after: int = 0) -> None:
        """Forwards nothing more in these directions (none given: in both), until `go_on`.

        `after`: so many bytes pass before that in each of them, over all connections.
        """
        self._do(lambda: self._hold(dict.fromkeys(directions or ("up", "down"), after)))

    def go_on(self) -> None:
        """Forwards in both directions again."""
        self._do(lambda: self._hold({}))

    def refuse(self) -> None:
        """Whoever connects is refused, until `admit`. Present connections go on."""
        self._do(self._refuse)

    def admit(self) -> None:
        """Takes connections again."""
        self._do(self._admit)

    def close(self) -> None:
        """Resets what is open, and ends the thread. Idempotent. Raises what went wrong in it."""

        def order() -> None:
            self._ending = True

        if self._thread.is_alive():
            self._do(order)
        self._thread.join(DEADLINE)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- the thread -------------------------------------------------------------------------------

    def _do(self, order: Callable[[], None]) -> None:
        done = threading.Event()
        self._orders.append((order, done))
        with suppress(OSError):  # it has ended
            self._wake.send(b"!")
        wait_until(lambda: done.wait(_POLL) or not self._thread.is_alive(), "what the proxy does")
        if not done.is_set():
            raise AssertionError("the proxy has failed, or is closed") from self._failure

    def _run(self) -> None:
        try:
            while not self._ending:
                for key, _ in self._selector.select():
                    if isinstance(key.fileobj, socket.socket) and key.fileobj.fileno() >= 0:
                        key.data()  # not closed by one before it
        except BaseException as failure:  # told by close()
            self._failure = failure
        finally:
            for pipe in list(self._pipes):
                pipe.close(reset=True)
            self._refuse()
            self._selector.close()
            for sock in (self._port, self._wake, self._woken):
                sock.close()

    def _obey(self) -> None:
        self._woken.recv(_CHUNK)
        while self._orders:
            order, done = self._orders.pop(0)
            order()
            done.set()

    def _hold(self, allowed: dict[Direction, int]) -> None:
        self._allowed = allowed
        for pipe in list(self._pipes):
            pipe.go_on()

    def _admit(self) -> None:
        if self._listening is None:
            self._listening = _bound(self._port.getsockname())
            self._listening.listen(128)
            self._selector.register(self._listening, selectors.EVENT_READ, self._accept)

    def _refuse(self) -> None:
        if self._listening is not None:
            self._selector.unregister(self._listening)
            self._listening.close()  # resets those that are not accepted yet
            self._listening = None

    def _accept(self) -> None:
        if self._listening is None:
            return
        client, _ = self._listening.accept()
        self.connections += 1
        fate = next(self._cuts, None)
        try:
            target = socket.create_connection(self._target, timeout=DEADLINE)
        except OSError:
            _end(client, reset=True)
            return
        pipe = _Pipe(self, client, target, fate)
        self._pipes.add(pipe)
        pipe.go_on()


class _Pipe:
    """A connection through the proxy."""

    def __init__(
        self, proxy: Proxy, client: socket.socket, target: socket.socket, fate: Cut | None
    ) -> None:
        self._proxy = proxy
        self._fate = fate
        self._flows: dict[Direction, _Flow] = {
            "up": _Flow(client, target),
            "down": _Flow(target, client),
        }
        self._sides: dict[Side, socket.socket] = {"client": client, "target": target}
        self._silent = False  # one side is gone, and the other one shall not notice
        for sock in (client, target):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def go_on(self) -> None:
        """Moves what can be moved, and waits for the rest."""
        if self._silent:
            self._drain()
            return
        try:
            for direction in self._flows:
                self._move(direction)
                if self._silent or not self._sides:
                    return  # it was cut
        except OSError:  # one side is gone: so is the other
            self.close(reset=True)
            return
        if all(flow.ended for flow in self._flows.values()):
            self.close()
        else:
            self._watch()

    def _drain(self) -> None:
        """What the side that is left says goes nowhere, until it ends."""
        (sock,) = self._sides.values()
        try:
            while sock.recv(_CHUNK):
                pass
        except BlockingIOError:
            _select(self._proxy._selector, sock, selectors.EVENT_READ, self.go_on)
            return
        except OSError:
            pass  # that, too, is an end
        self.close()

    def _move(self, direction: Direction) -> None:
        proxy, flow = self._proxy, self._flows[direction]
        limit = self._limit(direction)
        if self._fate is not None and limit == 0:
            proxy.cuts_made += 1
            self.cut(self._fate.side, self._fate.reset)
            return
        if (allowed := proxy._allowed.get(direction)) is not None:
            limit = allowed if limit is None else min(limit, allowed)
        if limit == 0:
            return
        sent = flow.move(limit)
        proxy.passed[direction] += sent
        if allowed is not None:
            proxy._allowed[direction] = allowed - sent
        if sent and self._limit(direction) == 0:
            self._move(direction)  # to the cut

    def _limit(self, direction: Direction) -> int | None:
        """Bytes that may still pass; None: any number."""
        if self._fate is None or self._fate.direction != direction:
            return None
        return self._fate.after - self._flows[direction].sent

    def _watch(self) -> None:
        for sock in self._sides.values():
            events = 0
            for direction, flow in self._flows.items():
                if self._proxy._allowed.get(direction) == 0:
                    continue
                if flow.source is sock and flow.wants_to_read:
                    events |= selectors.EVENT_READ
                if flow.target is sock and flow.buffer:
                    events |= selectors.EVENT_WRITE
            _select(self._proxy._selector, sock, events, self.go_on)

    def cut(self, side: Side, reset: bool) -> None:
        """Ends one side, or both."""
        self._fate = None
        if side != "both" and not self._silent:
            _select(self._proxy._selector, self._sides[side], 0, self.go_on)
            _end(self._sides.pop(side), reset)
            self._silent = True
            self.go_on()
        elif side != "both" and side not in self._sides:
            return  # it is cut already
        elif reset or side != "both":
            self.close(reset)
        else:
            for flow in self._flows.values():
                flow.discard()
            self.go_on()

    def close(self, reset: bool = False) -> None:
        """Lets go of what is left of it."""
        for sock in self._sides.values():
            _select(self._proxy._selector, sock, 0, self.go_on)
            _end(sock, reset)
        self._sides = {}
        self._proxy._pipes.discard(self)


class _Flow:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source = source
        self.target = target
        self.buffer = b""
        self.sent = 0
        self._discards = False
        self._at_end = False  # the source has said that nothing more comes

    @property
    def wants_to_read(self) -> bool:
        return not self._at_end and not self.buffer

    @property
    def ended(self) -> bool:
        return self._at_end and not self.buffer

    def discard(self) -> None:
        """Tells the target that this was all; what else comes from the source goes nowhere."""
        self._discards, self.buffer = True, b""
        with suppress(OSError):  # it may be gone
            self.target.shutdown(socket.SHUT_WR)

    def move(self, limit: int | None) -> int:
        """Forwards what is there, `limit` bytes at most; how many bytes that were."""
        moved = 0
        while limit is None or moved < limit:
            if not self.buffer:
                room = _CHUNK if limit is None else min(_CHUNK, limit - moved)
                if not self._read(room):
                    break
            try:
                count = self.target.send(self.buffer)
            except BlockingIOError:
                break
            self.buffer = self.buffer[count:]
            self.sent += count
            moved += count
        return moved

    def _read(self, room: int) -> bool:
        while not self._at_end:
            try:
                self.buffer = self.source.recv(room)
            except BlockingIOError:
                return False
            if not self.buffer:
                self._at_end = True
                if not self._discards:
                    self.target.shutdown(socket.SHUT_WR)
            elif self._discards:
                self.buffer = b""
            else:
                return True
        return False


def _bound(address: tuple[str, int]) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # two of ours have the port
    sock.bind(address)
    return sock


def _end(sock: socket.socket, reset: bool) -> None:
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def _select(
    selector: selectors.BaseSelector, sock: socket.socket, events: int, call: Callable[[], None]
) -> None:
    """Registers, modifies or unregisters, whatever is needed."""
    known = sock.fileno() >= 0 and sock in selector.get_map()
    if events and known:
        selector.modify(sock, events, call)
    elif events:
        selector.register(sock, events, call)
    elif known:
        selector.unregister(sock)
