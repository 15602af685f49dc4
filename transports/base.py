"""The contract of a transport: how a batch reaches a slot of a broker's ring, and a reader.

A transport has three sides. `Transport.connect` makes the publisher's side, a `PublisherLink`;
`Transport.subscribe` the subscriber's, a `SubscriberLink`; `Transport.listen` the broker's, a
`Listener`. Everything behind the slot (accept,
acknowledge, order, statistics) exists once, in the broker, whatever the transport.

Transports register under the entry-point group ``embar_shm.transports``, named by their URL scheme.
`embar_shm.testing.TransportContract` is the test suite each of them has to pass.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from embar_shm.errors import ConfigurationError, EmbarError, WaitTimeout
from embar_shm.options import CopyMode, StartPlace, SubscribeMode, WaitMode

if TYPE_CHECKING:
    import ssl
    from typing import TypeAlias

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from embar_shm._core import Batch
    from embar_shm.broker import Broker
    from embar_shm.net import SocketCounters

    # numpy's arrays are Buffers for type checkers from Python 3.12 on only.
    Message: TypeAlias = Buffer | NDArray[Any]

__all__ = [
    "ListenOptions",
    "Listener",
    "Position",
    "PublisherLink",
    "PublisherOptions",
    "PublisherStats",
    "SubscriberLink",
    "SubscriberOptions",
    "SubscriberStats",
    "Transport",
    "WouldWait",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherOptions:
    """What a publisher asked for; checked by `Publisher.connect`. Sizes in bytes."""

    message_size: int | None  # None: messages of any size
    batch_size: int | None  # None: as large as the broker's slots
    in_flight: int | None  # None: the transport's default
    ack: int
    linger_ms: float  # 0: a partial batch waits for flush()
    timeout: float | None  # seconds; None: waits forever
    connect_timeout: float  # seconds
    restart_timeout: float = 0.0  # seconds that a broker that died may take to be started again
    wait: WaitMode
    spin_us: float
    copy: CopyMode
    sample_every: int  # 0: no stage times
    publisher_id: int
    # For transports with a network in between; others take no notice of them.
    token: str | None = field(default=None, repr=False)  # shared secret: never shown
    tls: ssl.SSLContext | None = None  # None: not encrypted
    socket_buffer: int | None = None  # None: what the transport thinks best


class Position(NamedTuple):
    """A place in the log of one broker: where a subscriber begins, or goes on."""

    log: int  # identifies the log; a broker that is started anew has another
    ticket: int  # the next ticket to read


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriberOptions:
    """What a subscriber asked for; checked by `Subscriber.connect`."""

    mode: SubscribeMode
    start: StartPlace | int | Position  # int: a ticket
    name: str
    timeout: float | None  # seconds; None: waits forever
    connect_timeout: float  # seconds
    restart_timeout: float = 0.0  # seconds that a broker that died may take to be started again
    wait: WaitMode
    spin_us: float
    # For transports with a network in between; others take no notice of them.
    in_flight: int | None = None  # batches on their way or in use here; None: a default
    token: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    socket_buffer: int | None = None


@dataclass(frozen=True, slots=True)
class SubscriberStats:
    """Counters of one subscriber since it connected. Bytes are message bytes."""

    batches: int  # read
    messages: int
    payload_bytes: int
    lost: int  # batches overwritten before they were read; lossy only
    held: int  # batches read and not released
    lag: int  # batches in the log that are not read, as far as known here
    waits: int  # times a batch had to be waited for


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenOptions:
    """What a broker asks of a listener. A transport without a network takes no notice of it."""

    token: str | None = field(default=None, repr=False)  # publishers must know it
    tls: ssl.SSLContext | None = None  # None: not encrypted
    insecure: bool = False  # listen beyond this machine with neither of them
    socket_buffer: int | None = None  # bytes; None: what the transport thinks best


@dataclass(frozen=True, slots=True)
class PublisherStats:
    """Counters of one publisher since it connected. Bytes are message bytes."""

    messages: int  # in committed batches
    payload_bytes: int
    committed: int  # batches
    accepted: int  # batches acknowledged: 1..accepted are wholly in the log
    in_flight: int  # batches committed whose slots are not free yet
    space_waits: int  # times a slot had to be waited for


class WouldWait(WaitTimeout):
    """A call on a link that is not `PublisherLink.blocking` would have to wait.

    `message` is for what: "space" (a slot), "ack", or "lock" (a commit in the background, which
    takes microseconds).
    """

    appended = 0  # messages, by `publish_many`


class PublisherLink(abc.ABC):
    """A connected publisher. Its methods do what `Publisher`'s of the same name promise."""

    @property
    @abc.abstractmethod
    def publish(self) -> Callable[[Message], None]:
        """The function that appends one message: called once per message, so a native one."""

    @abc.abstractmethod
    def publish_many(self, messages: Message, message_size: int | None = None) -> None:
        """Appends many messages of one size."""

    @abc.abstractmethod
    def reserve(self, nbytes: int) -> AbstractContextManager[memoryview]:
        """Writable memory for the next message."""

    @abc.abstractmethod
    def flush(self) -> int:
        """Commits the open batch; the sequence number of the last committed batch."""

    @abc.abstractmethod
    def wait_acked(self, timeout: float | None, seq: int | None) -> None:
        """Waits until batch `seq` (None: everything published so far) is in the log."""

    @property
    @abc.abstractmethod
    def message_size(self) -> int | None:
        """Bytes of every message; None: any size."""

    @property
    @abc.abstractmethod
    def blocking(self) -> bool:
        """May calls wait? If not, those that would have to raise `WouldWait`, and `wait` is for
        another thread. Nothing is appended, but by `publish_many`: see its ``appended``."""

    @blocking.setter
    @abc.abstractmethod
    def blocking(self, blocking: bool) -> None: ...

    @abc.abstractmethod
    def wait(self, space: bool, seq: int | None, timeout: float | None) -> bool:
        """Waits until a call that raised `WouldWait` is worth another try: True.

        Either because there may be a slot (`space`; nobody else publishes meanwhile), or batch
        `seq` is in the log, or the call would raise. False after `timeout` seconds, or `interrupt`.
        """

    @abc.abstractmethod
    def interrupt(self) -> None:
        """Ends a `wait` of another thread, or else the next one, once: it returns False."""

    @abc.abstractmethod
    def accepted(self) -> int:
        """Batches 1 to this one are in the log, as far as known here."""

    @abc.abstractmethod
    def timed_out(self, what: str, seq: int, waited: float) -> EmbarError:
        """The error that tells whom this publisher has been waiting for: "space" or "ack"."""

    @abc.abstractmethod
    def stats(self) -> PublisherStats:
        """The counters now."""

    @abc.abstractmethod
    def stages(self) -> dict[str, dict[str, Any]]:
        """Histograms of the publisher's stages in ns, by name: buffer_write, wait_space,
        send_payload, wait_ack; each with count, sum, max and buckets as `Monitor` gives them."""

    def sockets(self) -> SocketCounters | None:
        """What its sockets did; None: it has none."""
        return None

    def hurry(self) -> None:  # noqa: B027 - most do not wait in close()
        """The program was interrupted (Ctrl-C): `close`, which follows, waits for nobody long."""

    @abc.abstractmethod
    def close(self) -> None:
        """Commits the open batch and disconnects. Idempotent."""

    @property
    @abc.abstractmethod
    def is_closed(self) -> bool:
        """Has `close` given everything back, whatever it raised?"""

    @abc.abstractmethod
    def after_fork_in_child(self) -> None:
        """Makes this copy of a forked child raise `ClosedError`, touching nothing shared."""


class SubscriberLink(abc.ABC):
    """A connected subscriber. Its methods do what `Subscriber`'s of the same name promise."""

    name: str
    mode: SubscribeMode

    @property
    @abc.abstractmethod
    def next(self) -> Callable[..., Batch]:
        """``next(timeout=...)``, called once per batch: a native function."""

    @property
    @abc.abstractmethod
    def poll(self) -> Callable[[], Batch | None]:
        """``poll()``, a native function."""

    @abc.abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """A native iterator."""

    @abc.abstractmethod
    def wait(self, timeout: float | None) -> bool:
        """Waits until `poll` has something to tell (True), `timeout` seconds at most (False)."""

    @abc.abstractmethod
    def interrupt(self) -> None:
        """Ends a `wait` of another thread, or else the next one, once: it returns False."""

    @abc.abstractmethod
    def timed_out(self, waited: float) -> EmbarError:
        """The error that tells why no batch came within `waited` seconds."""

    @abc.abstractmethod
    def position(self) -> Position:
        """The place after the last batch that was read."""

    @abc.abstractmethod
    def stats(self) -> SubscriberStats:
        """The counters now, or at the end."""

    def sockets(self) -> SocketCounters | None:
        """What its sockets did; None: it has none."""
        return None

    def hurry(self) -> None:  # noqa: B027 - most do not wait in close()
        """The program was interrupted (Ctrl-C): `close`, which follows, waits for nobody long."""

    @abc.abstractmethod
    def close(self) -> None:
        """Reads no more; what is in use by a view is kept until that is gone. Idempotent."""

    @property
    @abc.abstractmethod
    def is_closed(self) -> bool:
        """Was `close` called?"""

    @abc.abstractmethod
    def after_fork_in_child(self) -> None:
        """Makes this copy of a forked child raise `ClosedError`, touching nothing shared."""


class Listener(abc.ABC):
    """The broker's side of a transport, between `Transport.listen` and `stop`."""

    @property
    @abc.abstractmethod
    def address(self) -> str:
        """The URL publishers connect to."""

    def sockets(self) -> SocketCounters | None:
        """What its sockets did; None: it has none."""
        return None

    @abc.abstractmethod
    def stop(self) -> None:
        """Accepts no new publishers and lets go of the present ones. Idempotent."""

    @property
    def is_stopped(self) -> bool:
        """Has `stop` done everything? Then the broker need not keep it, and what it uses."""
        return False

    def after_fork_in_child(self) -> None:  # noqa: B027 - most have nothing to let go of
        """In a forked child: lets go of what is the parent's, touching nothing shared."""


class Transport(abc.ABC):
    """One way to move batches. Has no state: its methods may be called any number of times."""

    scheme: ClassVar[str]

    @abc.abstractmethod
    def connect(self, address: str, options: PublisherOptions) -> PublisherLink:
        """Connects to the broker at `address` (what follows "scheme://")."""

    def subscribe(self, address: str, options: SubscriberOptions) -> SubscriberLink:  # noqa: ARG002
        """Reads the log of the broker at `address`."""
        raise ConfigurationError(
            f"the transport {self.scheme!r} has no subscribers, only publishers",
            "subscribe over another transport",
        )

    @abc.abstractmethod
    def listen(
        self,
        broker: Broker,
        address: str | None = None,
        options: ListenOptions = ListenOptions(),
    ) -> Listener:
        """Lets publishers reach `broker`; `address` (what follows "scheme://") None: a default.

        `Broker.listen` calls this, and stops the listener when the broker closes.
        """
