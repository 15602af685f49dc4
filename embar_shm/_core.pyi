"""
Native core of embar-shm: ring, broker, publisher, subscriber. Use embar_shm, not this module.
"""

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import DTypeLike, NDArray
from typing_extensions import Buffer

MAGIC: int = 3552575203764751685

LAYOUT_VERSION: int = 3

FEATURES: int = 0

SEGMENT_HEADER_BYTES: int = 4096

BATCH_HEADER_BYTES: int = 128

FRAME_HEADER_BYTES: int = 8

BROKER_LOCK: int = 0

MAX_PUBLISHERS: int = 1000

MAX_SUBSCRIBERS: int = 1000

LOG_OWNER: int = 32767

MAX_SLOTS: int = 4096

MAX_SLOT_BYTES: int = 2147483648

HAS_NONTEMPORAL: bool = True

def plan(slots: int, slot_bytes: int, max_publishers: int, max_subscribers: int) -> dict[str, int]:
    """
    Offsets and sizes in bytes of a segment with this geometry. Raises ValueError beyond the limits.
    """

def format_segment(
    buffer: Buffer,
    slots: int,
    slot_bytes: int,
    max_publishers: int,
    max_subscribers: int,
    name: str,
    boot_id: str,
    unix_ns: int,
) -> None:
    """Writes the segment header, all but its magic, into zeroed memory."""

def publish_segment(buffer: Buffer) -> None:
    """Sets the magic: from now on the segment can be attached."""

def read_header(buffer: Buffer) -> dict[str, Any]:
    """The fields of a segment header, unchecked."""

def publisher_lock(index: int) -> int:
    """Byte offset of the liveness lock of a publishers row."""

def subscriber_lock(index: int) -> int:
    """Byte offset of the liveness lock of a subscribers row."""

def try_lock(fd: int, offset: int) -> bool:
    """
    Takes the liveness lock of one byte for this open file description. False: somebody else holds it.
    """

def unlock(fd: int, offset: int) -> None:
    """Gives a liveness lock back."""

def is_locked(fd: int, offset: int) -> bool:
    """
    Does another open file description hold the byte? (Own locks do not show.)
    """

def die_with_parent(parent: int, signal: int) -> None:
    """Asks the kernel to send `signal` when the parent process is gone."""

def last_level_cache() -> int:
    """Size in bytes of the last-level cache, as the copy rule sees it."""

def check_ring(buffer: Buffer) -> list[tuple[str, str]]:
    """
    The invariants of a ring (invariants.hpp) that do not hold: (field, what is wrong). Only reads. The caller keeps the broker from moving: beside one at work it finds what is not so.
    """

def look_at_ring(
    buffer: Buffer,
) -> tuple[list[tuple[str, str, tuple[int, ...]]], list[tuple[int, int, int, int, int]]]:
    """
    One look at the copy of a ring that may be at work. First what seems wrong: (field, what is wrong, the words that make it so; none: the text has all). It is so when it is found three times in a row with the same words. Then the slots that are owned and of no ticket: (slot, owner, slot word, attached_ns and committed_seq of its row).
    """

class Monitor:
    """
    Read-only look at the counters of a mapped ring; costs its users nothing.
    """

    def __init__(self, buffer: Buffer) -> None: ...
    def control(self) -> dict[str, int]:
        """The broker's words and counters."""

    def publisher(self, index: int) -> dict[str, Any]:
        """One row of the publishers table."""

    def subscriber(self, index: int) -> dict[str, Any]:
        """One row of the subscribers table."""

    def broker_stages(self) -> dict[str, dict[str, Any]]:
        """Histograms in ns: validate, queue, release."""

    def publisher_stages(self, index: int) -> dict[str, dict[str, Any]]:
        """Histograms in ns of one publisher."""

    def slots(self) -> list[tuple[int, int, int, int]]:
        """Per slot: (slot, owner index or -1, generation, held for ns)."""

    @property
    def damage(self) -> str:
        """
        What was wrong when a broker quarantined the segment; empty: nothing was.
        """

    def log(self) -> list[tuple[int, int, int, bool]]:
        """
        What is committed and not released: (ticket, slot, low 18 bits of its generation, refused).
        """

    @property
    def max_publishers(self) -> int: ...
    @property
    def max_subscribers(self) -> int: ...

class Ring(Monitor):
    """The ring's single steps (ring.hpp), for tests and tools."""

    def __init__(self, buffer: Buffer) -> None: ...
    def claim(self, owner: int) -> tuple[int, int] | None:
        """Claims the first free slot: (slot, generation), or None."""

    def commit(self, slot: int, generation: int) -> int | None:
        """Commits: the ticket, or None if corrupt."""

    def look(self, ticket: int) -> str:
        """'empty', 'committed' or 'corrupt'."""

    def release(self, ticket: int, slot: int, owner: int, generation: int) -> None: ...
    def reap_slots(self, owner: int) -> int:
        """Frees all slots of an owner: how many."""

    def has_committed(self, owner: int, since: int) -> bool:
        """Does a committed ticket from `since` on refer to a slot of this owner?"""

class BrokerCore:
    """The broker of one mapped ring. One thread at a time, but for stop()."""

    def __init__(
        self,
        buffer: Buffer,
        lock_fd: int,
        wait_mode: int,
        spin_us: float,
        cpus: int,
        stage_times: bool = True,
        retain: int = 0,
    ) -> None: ...
    def serve(self, timeout: float | None) -> str:
        """
        Accepts, releases, reaps; 'stopped', 'timeout' (seconds) or 'corrupt'. Releases the GIL.
        """

    def accept(self) -> dict[str, Any] | None:
        """Accepts one batch and leaves it in its slot; None when there is none."""

    def release(self) -> bool:
        """
        Releases the oldest accepted batch; False when there is none, or a subscriber holds it.
        """

    def release_passed(self, wanted: bool) -> None:
        """
        Releases what every subscriber has passed, but for what is retained while no slot is wanted.
        """

    def admit(self) -> None:
        """Answers subscribers that are joining."""

    def reap(self) -> int:
        """
        Frees what participants that are gone left: how many rows of publishers.
        """

    def reap_row(self, index: int) -> bool:
        """Frees one row whose owner is known to be gone."""

    def stop(self) -> None:
        """Ends serve(), from any thread or signal handler."""

    def resume(self) -> None:
        """Takes stop() back."""

    def retire(self) -> None:
        """Tells all that nothing will be accepted any more."""

    @property
    def recovered(self) -> dict[str, int]:
        """
        What was found when it began: batches accepted (head), still unread and unaccepted, steps of the broker before it that were finished, slots that were being filled from a network.
        """

    @property
    def first_accept_ns(self) -> int | None:
        """CLOCK_MONOTONIC of the first batch it accepted, or None."""

    @property
    def adopted_publishers(self) -> list[dict[str, int]]:
        """
        Rows of publishers on a network, which the broker before it has left, and it keeps.
        """

    @property
    def adopted_subscribers(self) -> list[dict[str, int]]:
        """The same for subscribers."""

    def take_over_publisher(self, index: int, lock_fd: int) -> bool:
        """
        Moves the lock of a row it keeps to another descriptor, from any thread; False: it is not kept any more.
        """

    def take_over_subscriber(self, index: int, lock_fd: int) -> bool:
        """The same for a subscriber's row."""

    @property
    def corruption(self) -> str | None:
        """What is wrong with the segment, or None."""

class PublisherCore:
    """One publisher on one mapped ring."""

    def __init__(
        self,
        context: Any,
        buffer: Buffer,
        index: int,
        lock_fd: int,
        publisher_id: int,
        incarnation: int,
        message_size: int,
        batch_bytes: int,
        quota: int,
        ack: int,
        linger_ms: float,
        copy: int,
        sample_every: int,
        wait_mode: int,
        spin_us: float,
        cpus: int,
        timeout: float | None,
        restart_timeout: float = 0.0,
    ) -> None: ...
    def publish(self, message: Buffer | NDArray[Any], /) -> None:
        """
        Appends one message to the open batch; commits the batch when it is full.
        """

    def publish_many(
        self, messages: Buffer | NDArray[Any], message_size: int | None = None
    ) -> None:
        """
        Appends one message per row of a 2-D array, or per message_size bytes of a buffer.
        """

    def flush(self) -> int:
        """Commits the open batch: the seq of the last committed batch (0: none)."""

    def wait_acked(self, timeout: float | None = None, seq: int | None = None) -> None:
        """Waits until batch seq (all so far) is in the log."""

    def wait(self, space: bool, seq: int | None, timeout: float | None) -> bool:
        """
        Waits until a call that was refused with WouldWait is worth another try (True): there may be a slot
        (`space`), batch `seq` is in the log, or the call would raise. False at the timeout, or by interrupt().
        """

    def interrupt(self) -> None:
        """Ends a wait() of another thread, or else the next one."""

    @property
    def blocking(self) -> bool:
        """False: calls that would have to wait raise WouldWait."""

    @blocking.setter
    def blocking(self, arg: bool, /) -> None: ...
    def drop_reservation(self) -> None:
        """
        Drops the open reservation, if there is one. BufferError while a view of it is alive.
        """

    def begin_close(self) -> None:
        """
        Refuses messages, as when it is closed: flush() and close(), which shall follow, wait for nobody long.
        """

    def close(self) -> bool:
        """
        Gives the row back; False: that was done before. Flush first. When it raises, the publisher is open.
        """

    def after_fork_in_child(self) -> None:
        """Makes this object raise in a forked child."""

    @property
    def context(self) -> Any: ...
    @property
    def committed_seq(self) -> int: ...
    @property
    def accepted_seq(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def open_messages(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def message_size(self) -> int: ...
    @property
    def batch_bytes(self) -> int: ...
    @property
    def quota(self) -> int: ...
    @property
    def state(self) -> str:
        """'ok', 'closed', 'forked' or 'corrupt'."""

    @property
    def peer(self) -> str:
        """'ok', 'broker_stopped', 'broker_gone' or 'faulted'."""

class Reservation:
    """
    Writable memory for the next message, in the slot itself. A context manager.
    """

    def __init__(self, publisher: PublisherCore, nbytes: int) -> None: ...
    def commit(self) -> None:
        """Appends what was written as a message."""

    def abort(self) -> None:
        """Gives the memory back; nothing is appended."""

    @property
    def is_open(self) -> bool: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class SubscriberCore:
    """One subscriber of a mapped ring."""

    def __iter__(self) -> SubscriberCore:
        """Implement iter(self)."""

    def __next__(self) -> Batch:
        """Implement next(self)."""

    def __init__(
        self,
        context: Any,
        buffer: Buffer,
        slots: Buffer | None,
        index: int,
        lock_fd: int,
        name: str,
        mode: int,
        start: int,
        ticket: int,
        sole: bool,
        wait_mode: int,
        spin_us: float,
        cpus: int,
        timeout: float | None,
        broker: BrokerCore | None,
        on_left: Callable[[], None],
        restart_timeout: float = 0.0,
    ) -> None: ...
    def next(self, timeout: float | None = ...) -> Batch:
        """The next batch; waits for it."""

    def poll(self) -> Batch | None:
        """The next batch, or None; never waits."""

    def join(self, timeout: float) -> None:
        """Waits until the broker says where to begin."""

    def wait(self, timeout: float | None) -> bool:
        """
        Waits until poll() has something to tell (True), for seconds at most (False).
        """

    def interrupt(self) -> None:
        """Ends wait() and next(), of any thread, once."""

    def end(self) -> None:
        """A private ring: nothing more will come."""

    def close(self) -> None:
        """Takes no more; the row is given back when no view is alive."""

    def settle(self) -> None:
        """Of a closed one: waits until no other thread is in a call."""

    @property
    def context(self) -> Any: ...
    @property
    def index(self) -> int: ...
    @property
    def position(self) -> int:
        """The ticket after the last one taken."""

    @property
    def next_place(self) -> int:
        """The same, in the ring that is read."""

    @property
    def held(self) -> int:
        """Batches taken and not released."""

    @property
    def pinned(self) -> int:
        """Batches with a live view."""

    @property
    def is_closed(self) -> bool: ...
    @property
    def is_forked(self) -> bool: ...

class Batch:
    """
    One batch of the log: a read-only buffer of its body, and its header.

    A context manager: leaving it releases the batch, or lets the last view or array of it do so.
    A batch that nothing refers to any more is released, too. Until then the bytes stay as they are.
    """

    @property
    def ticket(self) -> int:
        """Its place in the broker's log."""

    @property
    def publisher_id(self) -> int: ...
    @property
    def incarnation(self) -> int:
        """Of the publisher: each connection over shared memory has another."""

    @property
    def seq(self) -> int:
        """1, 2, 3, ... per publisher."""

    @property
    def count(self) -> int:
        """Number of messages."""

    @property
    def message_size(self) -> int:
        """Bytes of each message; 0: each has a size of its own."""

    @property
    def nbytes(self) -> int:
        """
        Bytes of the body: of the messages, with what stands between those that have sizes of their own.
        """

    @property
    def payload_bytes(self) -> int:
        """Bytes of the messages."""

    @property
    def opened_ns(self) -> int:
        """
        CLOCK_MONOTONIC of the publisher's machine at its first message, in ns.
        """

    @property
    def committed_ns(self) -> int:
        """CLOCK_MONOTONIC of the commit into the broker's ring, in ns."""

    @property
    def gap(self) -> int:
        """
        Batches that were overwritten just before this one could be read (lossy subscribers).
        """

    @property
    def released(self) -> bool: ...
    def release(self) -> None:
        """
        Gives the slot back. BufferError while a view or array of it is alive, ClosedError the second time.
        """

    def messages(self) -> Messages:
        """
        Iterates over the messages, each a read-only memoryview. CorruptBatch when their framing is damaged.
        """

    def array(
        self, dtype: DTypeLike = "u1", shape: int | Sequence[int] | None = None
    ) -> NDArray[Any]:
        """
        A read-only numpy array of the messages; nothing is copied.

        One number of `shape` may be -1. MisuseError when dtype and shape do not fit the batch, or when it has
        several messages with sizes of their own.
        """

    def copy(self) -> bytes:
        """The body as bytes of their own."""

    def __enter__(self) -> Batch: ...
    def __exit__(self, kind: object, error: object, traceback: object) -> None: ...
    def __repr__(self) -> str: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Messages:
    """Iterator over the messages of a batch."""

    def __iter__(self) -> Messages: ...
    def __next__(self) -> memoryview:
        """Implement next(self)."""

    def __length_hint__(self) -> int: ...

BATCH_MAGIC: int = 1212305989

BATCH_VERSION: int = 1

LOOK_AT_QUEUES_EVERY: int = 16

def header_check(header: bytes) -> int:
    """What the `check` field of a batch header must be."""

class ReceiverCore:
    """
    Brings a remote publisher's batches into a ring. One thread claims and commits; wait_accepted() and interrupt() are for any thread.
    """

    def __init__(
        self,
        context: Any,
        buffer: Buffer,
        index: int,
        lock_fd: int,
        publisher_id: int,
        incarnation: int,
        quota: int,
        ack: int,
        timed: bool,
        committed: int | None = None,
    ) -> None:
        """
        `committed`: the row is one of this publisher already, with so many batches. None: it is free.
        """

    def claim(self, timeout: float | None) -> int | None:
        """
        Claims a slot: the offset of its body. None at the timeout (seconds) or after interrupt().
        """

    def commit(self, header: bytes, receive_ns: int) -> None:
        """Commits the batch that was received into the slot."""

    def give_back(self) -> None:
        """Gives the slot back: the batch did not come."""

    def wait_accepted(self, seq: int, timeout: float | None) -> int:
        """
        Waits until batch seq is accepted: how many are; fewer at the timeout (seconds) or after interrupt().
        """

    def receive(
        self, fd: int, limit: int, seq: int, stall: float, least_rate: float
    ) -> tuple[int, str, bytes | None, int, int, int, str]:
        """
        Receives batches after `seq` from a plain socket until it cannot go on: the last seq; why: 'ended', 'interrupted', 'header' (these 128 bytes are not the next batch's), 'closed', 'stalled' or 'failed' (after so many of so many bytes, errno), 'ring' (status, for ring_error()). A body has to come within `stall` seconds and its bytes / `least_rate`; the socket's own timeout ends what stands still.
        """

    def send_acks(self, fd: int, head: bytes, acked: int) -> tuple[int, str, int, str]:
        """
        Sends acknowledgements, which begin with `head`, of more than `acked` batches, until it cannot go on: the last seq, why (as in receive()), errno, status.
        """

    def ring_error(self, status: str) -> Exception:
        """The error for a status of the ring."""

    def socket_calls(self) -> dict[str, int]:
        """
        What receive() and send_acks() did, by the names of `net.SocketCounters`.
        """

    def interrupt(self) -> None:
        """Ends all waits, until resume()."""

    def resume(self) -> None: ...
    def close(self) -> None:
        """Gives the row back."""

    @property
    def context(self) -> Any: ...
    @property
    def index(self) -> int: ...
    @property
    def committed_seq(self) -> int: ...
    @property
    def accepted_seq(self) -> int: ...

class RelayCore:
    """
    Takes batches out of a private ring. One thread calls next(), any the rest.
    """

    def __init__(
        self, buffer: Buffer, wait_mode: int, spin_us: float, cpus: int, timed: bool
    ) -> None: ...
    def send(self, fd: int, sent: int, last: int, forget: bool) -> tuple[int, str, int]:
        """
        Sends batches after the first `sent`; how many the kernel took whole, how it ended ('whole': woken, or `last` is sent; 'stalled', 'failed'), and errno. With `forget` they need no acknowledgement.
        """

    def read_acks(self, fd: int, head: bytes) -> tuple[str, bytes, int, int, int]:
        """
        Reads acknowledgements, which begin with `head`, until something else comes: how it ended ('whole': another frame; 'closed', 'failed', 'lie'), that frame's first bytes, how many, errno, and what was acknowledged though it was never sent.
        """

    def record_send(self, ns: int) -> None:
        """A send that was done elsewhere."""

    def send_times(self) -> dict[str, Any]:
        """As in Monitor: count, sum, max, buckets."""

    def socket_calls(self) -> dict[str, int]:
        """What send() and read_acks() did, by the names of `net.SocketCounters`."""

    def next(self, seq: int, timeout: float | None) -> tuple[int, int, int] | None:
        """
        Waits for batch seq: offset of its header, offset and bytes of its body. None at the timeout (seconds), after wake(), or when it is acknowledged already.
        """

    def acknowledge(self, seq: int) -> None:
        """Releases the batches up to seq."""

    @property
    def acknowledged(self) -> int: ...
    def wake(self) -> None:
        """Ends the present or next wait of next()."""

    def abandon(self) -> None:
        """Tells the publisher that nothing will be acknowledged any more."""

class FeedCore:
    """
    Sends a ring's batches to a remote subscriber. One thread sends, another one reads credits.
    """

    def __init__(
        self,
        buffer: Buffer,
        index: int,
        lock_fd: int,
        name: str,
        lossy: bool,
        start: int,
        ticket: int,
        wait_mode: int,
        spin_us: float,
        cpus: int,
        comes_back: tuple[int, int] = (0, 0),
        resumes_at: int | None = None,
    ) -> None:
        """
        `comes_back`: id and incarnation of a subscriber whose row outlives this process. `resumes_at`: the row is one of this subscriber already, at that ticket; it need not join.
        """

    def join(self, timeout: float, wanted: int = 18446744073709551615) -> str:
        """
        Waits for the broker's answer: 'yes', 'no' (that place is not in the log), 'stopped' or 'gone' (the broker), 'timeout' (seconds). Tickets after `wanted` that are gone are a gap before the first batch.
        """

    def resume(self, ticket: int, granted: int) -> bool:
        """
        A connection begins: what it has, and how many batches it may get. False: that cannot be.
        """

    def interrupt(self) -> None:
        """Ends send() and next(), until resume(). Any thread."""

    def credit(self, received: int, granted: int) -> bool:
        """Takes note of a CREDIT. False: that cannot be."""

    def send(self, fd: int) -> tuple[str, int, str, int]:
        """
        Sends batches into a plain socket until it cannot go on: why ('batch': the socket failed; 'interrupted', 'end', 'gone', 'damaged', 'corrupt', 'no_memory'), ticket of the last batch, how the socket ended ('stalled', 'failed'), errno.
        """

    def next(self) -> tuple[str, int, bytes | None, memoryview | None]:
        """
        Waits for the next batch to send: why (as in send(); 'batch': here it is), ticket, header, body. The body is valid until the next call, or until the other side has received it.
        """

    def read_credits(self, fd: int, head: bytes) -> tuple[str, bytes, int, int]:
        """
        Reads CREDIT frames, which begin with `head`, until something else comes: how it ended ('whole': another frame, or a CREDIT that cannot be; 'closed', 'stalled', 'failed'), that frame's first bytes, how many, errno.
        """

    def known(self) -> tuple[int, int, int, int]:
        """
        Received up to this ticket, batches granted and sent on this connection, ticket after the last sent.
        """

    def socket_calls(self) -> dict[str, int]:
        """
        What send() and read_credits() did, by the names of `net.SocketCounters`.
        """

    @property
    def index(self) -> int: ...
    def close(self) -> None:
        """Gives the row back."""

class IntakeCore:
    """
    Brings a distant broker's batches into a private ring. One thread receives, another one tells the broker of slots that came free.
    """

    def __init__(self, context: Any, buffer: Buffer, reliable: bool, first: int) -> None: ...
    def connect(self) -> int:
        """
        A connection begins: how many batches may come before the first CREDIT.
        """

    def disconnect(self) -> None:
        """It ends, and with it the waits for credits. Any thread."""

    def settle(self) -> None:
        """
        After disconnect(): waits until a CREDIT that receive() or send_credits() was sending is sent.
        """

    def receive(
        self, fd: int, limit: int, stall: float, least_rate: float, head: bytes
    ) -> tuple[str, bytes | None, int, int, int, str]:
        """
        Receives batches from a plain socket until it cannot go on, and tells so in CREDIT frames, which begin with `head`: why, and what, as ReceiverCore.receive() says.
        """

    def claim(self) -> int | None:
        """
        Claims a slot: the offset of its body. None: the broker has no credit for another batch.
        """

    def commit(self, header: bytes) -> None:
        """Commits the batch that was received into the slot."""

    def give_back(self) -> None:
        """Gives the slot back: the batch did not come."""

    def next_credit(self, received: bool) -> tuple[int, int] | None:
        """
        What a CREDIT should say now; None: there is nothing to tell. `received`: a batch came just now.
        """

    def wait_credit(self) -> bool:
        """
        Waits until a slot came free that the broker waits for. False: disconnect().
        """

    def send_credits(self, fd: int, head: bytes) -> tuple[str, int]:
        """
        The same in a loop, and tells the broker: how it ended ('whole': disconnect()), errno.
        """

    def socket_calls(self) -> dict[str, int]:
        """
        What receive() and send_credits() did, by the names of `net.SocketCounters`.
        """

    @property
    def context(self) -> Any: ...
    @property
    def index(self) -> int: ...
    @property
    def next_ticket(self) -> int: ...

def memory_copy(
    target: Buffer,
    offsets: Sequence[int],
    source: Buffer,
    batch_bytes: int,
    batches: int,
    nontemporal: bool,
) -> int:
    """
    Copies `source` repeatedly into batches at the given offsets of `target`, in turn: ns it took.
    """

def tcp_send_loop(
    fd: int, buffer: Buffer, offsets: Sequence[int], batch_bytes: int, batches: int
) -> int:
    """
    Sends batches from the given offsets of `buffer`, in turn, into a blocking stream socket: ns it took.

    Blocks without the GIL while the peer does not read; signal handlers run meanwhile, and may raise. Raises OSError when the connection breaks, ValueError for an offset beyond the buffer.
    """

def tcp_receive_loop(fd: int, buffer: Buffer, offsets: Sequence[int], batch_bytes: int) -> int:
    """
    Receives batches (MSG_WAITALL) into the given offsets of `buffer`, in turn, until the peer ends: bytes.

    Blocks without the GIL; signal handlers run meanwhile, and may raise. Raises OSError when the connection breaks, EOFError when it ends inside a batch, ValueError for an offset beyond the buffer.
    """

def sample_costs() -> tuple[float, float]:
    """
    Of taking a stage time: ns per reading of the clock, ns per histogram record.
    """

class EmptyCall:
    """Yardstick: a native method that does nothing."""

    def __init__(self) -> None: ...
    def call(self, argument: object, /) -> None:
        """Does nothing, as cheaply as Python can call anything."""

def ping_pong(memory: Buffer, serves: bool, blocks: bool, first: int, rounds: int) -> int:
    """
    One side of `rounds` round trips, numbered from `first` (1 in fresh memory), through two words in shared
    memory: ns they took. `blocks`: waits and wakes with a futex, else spins.

    Blocks without the GIL while the other side does not answer; signal handlers run meanwhile, and may raise.
    """

def read_words(buffer: Buffer) -> int:
    """
    Reads every byte, as fast as memory allows: the sum of all 8-byte words. Runs without the GIL.
    """

class CopyAndRead:
    """
    One process's side of the copy-and-read yardstick. All sides name the same shape; the memory is
    shared and zeroed in the beginning.
    """

    def __init__(
        self,
        memory: Buffer,
        writers: int,
        places: int,
        readers: int,
        batch_bytes: int,
        wait_mode: int,
        spin_us: float,
        cpus: int,
    ) -> None: ...
    @staticmethod
    def bytes(writers: int, places: int, readers: int, batch_bytes: int) -> int:
        """
        How much memory it takes. Raises ValueError for a shape that cannot be.
        """

    def write(self, writer: int, source: Buffer, batches: int, nontemporal: bool) -> int:
        """
        Copies `source` repeatedly into batches, and hands each to all readers: ns it took. Blocks without the
        GIL while its places are full; signal handlers run meanwhile, and may raise.
        """

    def read(self, batches: int) -> int:
        """
        Reads every byte of the next `batches` batches of all writers: a sum. Blocks like `write`.
        """

STAMP_BYTES: int = 32

def stamp(messages: Buffer, message_size: int, publisher: int, first: int, due_ns: int = 0) -> None:
    """
    Writes a stamp into the first 32 bytes of each message: checksum of the rest, `publisher`, the message's
    number (`first`, `first` + 1, ...) and `due_ns`. Raises ValueError for sizes that do not fit.
    """

class Verifier:
    """Checks the stamps of everything that one subscriber reads."""

    def __init__(self) -> None: ...
    def check(
        self, body: Buffer, message_size: int, publisher: int, ticket: int, gap: bool = False
    ) -> None:
        """
        The messages of the next batch. `gap`: batches before it were overrun, numbers may be skipped. Raises
        ValueError for sizes that do not fit; what is wrong with messages is found in `first` and `counts`.
        """

    def restart(self) -> None:
        """
        Another log begins: publishers may begin anywhere, also with what they sent before.
        """

    @property
    def first(self) -> dict[str, Any] | None:
        """
        The first fault: kind (corrupt, lost, reordered, duplicated), publisher, expected and found
        number, ticket.
        """

    @property
    def counts(self) -> dict[str, int]:
        """Messages, by what they are."""

    @property
    def next(self) -> dict[int, int]:
        """By publisher: one more than the highest number that came."""

    @property
    def skipped(self) -> dict[int, int]:
        """
        By publisher: numbers that were left out where that was excused; none is not named.
        """

class Delays:
    """
    A histogram of how late messages are, in ns; bounds at most 1/16 too high.
    """

    def __init__(self) -> None: ...
    def record(self, due_ns: int) -> None:
        """
        A message that was due at `due_ns` (CLOCK_MONOTONIC) is where it should be.
        """

    def record_batch(self, body: Buffer, message_size: int) -> None:
        """The same for all messages of a batch, by their stamps."""

    def as_dict(self) -> dict[str, Any]:
        """count, sum, max and buckets, as `Monitor` gives them."""

def wait_until(deadline_ns: int, spin_us: float) -> None:
    """
    Waits until CLOCK_MONOTONIC is `deadline_ns`: sleeps, and spins for the last `spin_us` microseconds.

    Blocks without the GIL; signal handlers run meanwhile, and may raise.
    """

def structs() -> dict[str, tuple[int, list[tuple[str, int, int, str]]]]:
    """
    The structs of a segment by name: size in bytes, and fields as (name, offset, size, type).
    """
