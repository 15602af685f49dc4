"""What the processes of a chaos run do. Each is a fork of the conductor, and tells `records`.

They end on SIGTERM in good order, and on an error of the library, which they tell; SIGUSR1 makes
their wall clock jump, SIGUSR2 has them write their stacks to stderr.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import random
import signal
import struct
import sys
import time
import traceback
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import embar_shm as es
from chaotic.plan import mode_of
from chaotic.records import Kind, Writer
from embar_shm import _core
from embar_shm.errors import NotEnoughSpace, PositionLost
from embar_shm.transports.base import ListenOptions, Position
from embar_shm.transports.tcp_listener import Limits, TcpListener

__all__ = [
    "FAILED",
    "FORGET_AFTER",
    "GEOMETRY",
    "PATIENCE",
    "SIGNALS",
    "WORK",
    "Spec",
    "Stop",
    "Work",
    "run",
]

# Small ones, so that they are full most of the time and lap often.
GEOMETRY: dict[str, Any] = {
    "slots": 6,
    "slot_size": 16384,
    "max_publishers": 16,
    "max_subscribers": 8,
}
PATIENCE = 20.0  # seconds the library may wait for somebody, who is never away for a second
FORGET_AFTER = 3.0  # seconds that a TCP peer which was killed is remembered, and holds what it has
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
FAILED = 4  # exit code of a process that an error of the library has ended
_LOOK = 0.05  # seconds a subscriber waits before it looks whether it should end
_MESSAGE_SIZES = (None, 256, 1000, 48)
_NUMBER_AT = 16  # offset of the number within a stamp (verify.hpp)
_SOURCE = random.Random(0).randbytes(1 << 16)  # noqa: S311 - what messages are filled with


@dataclass(frozen=True, slots=True)
class Spec:
    """Who a process is."""

    role: str  # "publisher 3"
    life: int  # the how manieth process in this role
    seed: int
    address: str  # of the broker, for a broker: the name of its ring
    number: int = 0  # a publisher: its id; a broker: the port it listens on
    place: tuple[int, int] | None = None  # a subscriber: log and ticket where it goes on
    rest: float = 0.0  # a publisher: the longest pause between two bursts, in seconds

    @property
    def chance(self) -> random.Random:
        return random.Random(f"{self.seed} {self.role} {self.life}")  # noqa: S311 - to be repeated


Work: TypeAlias = Mapping[str, Callable[[Spec, Writer], None]]
"""By the first word of a role: what a process in it does."""


class Stop:
    """SIGTERM, as a wish."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self.asked = True


def run(work: Work, spec: Spec, fd: int, errors: int) -> int:
    """The life of a forked process: its exit code. `fd`: the pipe; `errors`: where stderr goes.

    `SIGNALS` are blocked until there are handlers.
    """
    os.dup2(errors, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the conductor
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format=f"{spec.role}: %(message)s"
    )
    _let_the_clock_jump(spec.chance)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    out = Writer(fd)
    try:
        work[spec.role.split()[0]](spec, out)
    except es.EmbarError as error:
        out.tell(Kind.ENDED, text=f"{type(error).__name__}: {error.message}")
        return FAILED
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
        out.tell(Kind.ENDED, text="crashed: " + traceback.format_exc()[-1800:])
        return 5
    return 0


def _let_the_clock_jump(chance: random.Random) -> None:
    """On SIGUSR1, by up to ten years in either direction. The machine's clock stays as it is."""
    ahead = 0
    clock, clock_ns = time.time, time.time_ns

    def jump(*_: object) -> None:
        nonlocal ahead
        ahead = chance.randint(-(10**8), 3 * 10**8) * 10**9

    signal.signal(signal.SIGUSR1, jump)
    time.time = lambda: clock() + ahead / 1e9
    time.time_ns = lambda: clock_ns() + ahead


# --- publishers -----------------------------------------------------------------------------------


def _publisher(spec: Spec, out: Writer) -> None:
    stop, chance = Stop(), spec.chance
    number = int(spec.role.split()[1])
    size = _MESSAGE_SIZES[(number + number // 4) % len(_MESSAGE_SIZES)]
    publisher = es.Publisher.connect(
        spec.address,
        message_size=size,
        publisher_id=spec.number,
        in_flight=chance.randint(1, 3),
        linger_ms=chance.choice([0.0, 1.0, 5.0]),
        timeout=PATIENCE,
        connect_timeout=PATIENCE,
        sample_every=0,
        restart_timeout=PATIENCE,
    )
    source = _Source(spec.number, size, chance)
    try:
        out.tell(Kind.READY)
        while not stop.asked:
            _burst(publisher, source, out, chance)
            time.sleep(chance.random() ** 3 * spec.rest)
        publisher.wait_acked()
        out.tell(Kind.ACKED, spec.number, publisher.stats().accepted, source.published)
        publisher.close()
        out.tell(Kind.ENDED, text="done")
    except es.EmbarError:
        out.tell(Kind.ACKED, spec.number, publisher.stats().accepted)
        raise
    finally:
        with contextlib.suppress(es.EmbarError):
            publisher.close()


def _burst(publisher: es.Publisher, source: _Source, out: Writer, chance: random.Random) -> None:
    """A few batches, as fast as they go, and a rest."""
    calls = chance.randint(1, 8)
    counts = [chance.randint(1, 5) for _ in range(calls)]
    out.tell(Kind.INTENT, source.id, source.published + sum(counts))
    for count in counts:
        source.publish(publisher, count, chance)
        if chance.random() < 0.8:
            publisher.flush()
    messages = 0
    if chance.random() < 0.2:
        publisher.wait_acked()
        messages = source.published
    out.tell(Kind.ACKED, source.id, publisher.stats().accepted, messages)


class _Source:
    """The messages of one publisher: they say who sent them, and which one it is."""

    def __init__(self, publisher: int, size: int | None, chance: random.Random) -> None:
        self.id = publisher
        self.published = 0
        self._size = size
        self._chance = chance

    def publish(self, publisher: es.Publisher, count: int, chance: random.Random) -> None:
        """The next `count` messages, in one of the ways there are."""
        if self._size is None:
            for _ in range(count):
                publisher.publish(self._next(chance.randint(_core.STAMP_BYTES, 3000), 1))
            return
        match chance.randrange(3):
            case 0:
                for _ in range(count):
                    publisher.publish(self._next(self._size, 1))
            case 1:
                publisher.publish_many(self._next(self._size, count))
            case 2:
                with publisher.reserve(self._size * count) as view:
                    self._fill(view, self._size, count)
        # only now: what raised has left no part of a message behind

    def _next(self, size: int, count: int) -> bytearray:
        block = bytearray(size * count)
        self._fill(block, size, count)
        return block

    def _fill(self, block: bytearray | memoryview, size: int, count: int) -> None:
        at = self._chance.randrange(len(_SOURCE) - len(block))
        block[:] = _SOURCE[at : at + len(block)]
        _core.stamp(block, size, self.id, self.published + 1)
        self.published += count


# --- subscribers ----------------------------------------------------------------------------------


def _subscriber(spec: Spec, out: Writer) -> None:
    stop = Stop()
    options: dict[str, Any] = {
        "mode": mode_of(spec.role),
        "name": spec.role,
        "timeout": PATIENCE,
        "connect_timeout": PATIENCE,
        "restart_timeout": PATIENCE,
    }
    start: Any = "earliest" if spec.place is None else Position(*spec.place)
    lost = 0
    try:
        subscriber = es.Subscriber.connect(spec.address, start=start, **options)
    except (PositionLost, es.BrokerRestarted):
        lost = 1
        subscriber = es.Subscriber.connect(spec.address, start="earliest", **options)
    with subscriber:
        place = subscriber.position
        out.tell(Kind.JOINED, *place, lost)
        reading = _Reading(out, place.ticket == 0, int(spec.role.split()[1]) % 3)
        while not stop.asked:
            try:
                batch = subscriber.next(timeout=_LOOK)
            except es.WaitTimeout:
                reading.release(all_of_them=True)
            else:
                reading.take(batch)
                reading.release(all_of_them=False)
        reading.release(all_of_them=True)
    out.tell(Kind.ENDED, text="done")


class _Reading:
    """Checks batches when they come, and those it keeps for a while again when it lets them go."""

    def __init__(self, out: Writer, from_the_beginning: bool, keeps: int) -> None:
        self._out = out
        self._keeps = keeps
        self._kept: deque[tuple[Any, memoryview, int, int, int]] = deque()
        self._verifier = _core.Verifier()
        if not from_the_beginning:
            self._verifier.restart()

    def take(self, batch: Any) -> None:
        publisher, ticket = batch.publisher_id, batch.ticket
        view = memoryview(batch)
        crc = zlib.crc32(view)
        if batch.gap:
            self._out.tell(Kind.GAP, batch.gap)
        first = 0
        if size := batch.message_size:
            (first,) = struct.unpack_from("<Q", view, _NUMBER_AT)
            self._verifier.check(view, size, publisher, ticket, batch.gap > 0)
        else:
            gap = batch.gap > 0
            for message in batch.messages():
                if not first:
                    (first,) = struct.unpack_from("<Q", message, _NUMBER_AT)
                self._verifier.check(message, len(message), publisher, ticket, gap)
                gap = False
        if (wrong := self._verifier.first) is not None:
            self._out.tell(Kind.WRONG, publisher, ticket, text=str(wrong))
            raise AssertionError(f"a message is wrong: {wrong}")
        self._out.tell(
            Kind.DELIVERED, ticket, publisher, batch.seq, first, size=batch.count, crc=crc
        )
        self._kept.append((batch, view, crc, publisher, ticket))

    def release(self, *, all_of_them: bool) -> None:
        """What is kept too long by now."""
        while len(self._kept) > (0 if all_of_them else self._keeps):
            batch, view, crc, publisher, ticket = self._kept.popleft()
            now = zlib.crc32(view)
            view.release()
            batch.release()
            if now != crc:
                self._out.tell(Kind.WRONG, publisher, ticket, text="it changed while it was held")
                raise AssertionError(f"batch {ticket} changed while it was held")


# --- brokers --------------------------------------------------------------------------------------


def _broker(spec: Spec, out: Writer) -> None:
    begin = time.monotonic_ns()
    with _patiently(lambda: es.Broker.open_or_recover(spec.address, **GEOMETRY)) as broker:
        _patiently(lambda: _listen(broker, spec.number))
        epoch = broker.segment.monitor().control()["epoch"]
        took = time.monotonic_ns() - begin
        out.tell(Kind.READY, broker.segment.log, epoch, took, int(broker.recovery is not None))
        broker.serve()


def _listen(broker: es.Broker, port: int) -> None:
    limits = Limits(forget_after=FORGET_AFTER, housekeeping=0.1)
    listener = TcpListener(broker, ("127.0.0.1", port), ListenOptions(), limits)
    broker._listeners.append(listener)  # as Broker.listen does, which has no option for limits


def _patiently(action: Callable[[], Any]) -> Any:
    """While /dev/shm is full there is no place for a ring."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return action()
        except (NotEnoughSpace, es.errors.CannotListen):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


# --- others ---------------------------------------------------------------------------------------


def _intruder(spec: Spec, out: Writer) -> None:
    """Wants a ring while /dev/shm is full: gets an error, and leaves nothing."""
    with es.Broker.create(spec.address, slots=256, slot_size="1MiB"):
        out.tell(Kind.ENDED, text="it got a ring")


def _hog(spec: Spec, _out: Writer) -> None:
    """Uses a CPU, for `number` ms."""
    until = time.monotonic() + spec.number / 1e3
    while time.monotonic() < until:
        pass


WORK: Work = {
    "publisher": _publisher,
    "subscriber": _subscriber,
    "witness": _subscriber,
    "broker": _broker,
    "intruder": _intruder,
    "hog": _hog,
}
