"""A small ring with living participants around the one that dies, and what must hold afterwards.

The broker's work is done by hand, in one thread, so that nothing happens by itself.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

import embar_shm as es
from embar_shm import _core, lifecycle
from embar_shm.address import RingName
from embar_shm.liveness import liveness
from killing.reading import MESSAGE, Broken, Content, Readings, tiny

_Participant = TypeVar("_Participant", es.Publisher, es.Subscriber)

__all__ = ["SLOTS", "VICTIM", "Stage", "connect", "create", "send", "subscribe", "vanish"]

SLOTS = 4
_SLOT_SIZE = 4 * MESSAGE
_PUBLISHERS = 4  # rows: the bystander, the victim, two that come late
_SUBSCRIBERS = 3  # rows: the witness, the victim, one that comes late

VICTIM, BYSTANDER, LATE, FILLER = 11, 22, 33, 44  # ids of publishers


def _full(publisher: int, seq: int) -> list[bytes]:
    return tiny(publisher, seq, _SLOT_SIZE // MESSAGE)


def create(ring: str, make: Callable[..., es.Broker] = es.Broker.create) -> es.Broker:
    """The broker of a small ring."""
    return make(
        ring,
        slots=SLOTS,
        slot_size=_SLOT_SIZE,
        max_publishers=_PUBLISHERS,
        max_subscribers=_SUBSCRIBERS,
        wait="block",
    )


def connect(address: str, publisher_id: int, **options: Any) -> es.Publisher:
    """A publisher without threads, that does not wait."""
    defaults: dict[str, Any] = {
        "message_size": MESSAGE,
        "in_flight": 2,
        "timeout": 0,
        "linger_ms": 0,
    }
    options = defaults | {"wait": "block", "sample_every": 1} | options
    return es.Publisher.connect(address, publisher_id=publisher_id, **options)


def subscribe(address: str, name: str, **options: Any) -> es.Subscriber:
    """A subscriber that does not wait. The broker has to serve."""
    defaults: dict[str, Any] = {"start": "earliest", "timeout": 0, "wait": "block"}
    return es.Subscriber.connect(address, name=name, **(defaults | options))


def send(publisher: es.Publisher, messages: list[bytes]) -> int:
    """One batch; its sequence number."""
    for message in messages:
        publisher.publish(message)
    return publisher.flush()


def vanish(participant: es.Broker | es.Publisher | es.Subscriber) -> None:
    """Leaves the ring as a process does that is killed just now."""
    if isinstance(participant, es.Broker):
        segment = participant.segment
        lifecycle.unregister_broker(participant)
    else:
        link: Any = participant._link  # over shm
        segment = link._segment
    fd = segment.lock_fd
    participant.after_fork_in_child()
    liveness.close(fd)


class Stage:
    """One ring, from its creation until everybody has left it. A context manager.

    `content` is what the victim publishes, if it does.
    """

    def __init__(self, ring: str, content: Content) -> None:
        self.ring = ring
        self.address = f"shm://{ring}"
        self.path = RingName.parse(ring).path
        self.broker: es.Broker | None = None
        self.failed = False
        """Something was broken: the participants may not be able to leave in order."""
        self._stack = ExitStack()  # closes what is open when something was broken
        self.contents: dict[int, Content] = {
            VICTIM: content,
            BYSTANDER: tiny,
            LATE: tiny,
            FILLER: _full,
        }
        self._sent = dict.fromkeys(self.contents, 0)  # batches of the living
        self.witness: es.Subscriber
        self.bystander: es.Publisher
        self.read = Readings("the witness", self.contents)
        self._memory: mmap.mmap | None = None

    # --- before the kill ----------------------------------------------------------------------

    def create(self) -> None:
        """The broker lives here."""
        self.broker = create(self.ring)

    def join(self) -> None:
        """The witness and the bystander come. Somebody serves, or the broker lives here."""
        with self.serving():
            self.witness = self.keep(subscribe(self.address, "witness"))
        self.bystander = self.keep(connect(self.address, BYSTANDER))

    def publish(self, publisher: es.Publisher, publisher_id: int) -> None:
        """Commits the next batch of one of the living."""
        seq = self._sent[publisher_id] + 1
        if send(publisher, self.contents[publisher_id](publisher_id, seq)) != seq:
            raise Broken(f"the batch after {seq - 1} of publisher {publisher_id} is not {seq}")
        self._sent[publisher_id] = seq

    def publish_bystander(self) -> None:
        """Commits a batch of somebody who lives on."""
        self.publish(self.bystander, BYSTANDER)

    def keep(self, participant: _Participant) -> _Participant:
        """It is closed at the end, if it is open then."""
        return self._stack.enter_context(participant)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The broker serves by itself, if it lives here."""
        if self.broker is None:
            yield
            return
        self.broker.start()
        try:
            yield
        finally:
            self.broker.stop()

    def settle(self) -> None:
        """The broker does all that it can do now."""
        if self.broker is None:
            raise RuntimeError("the broker does not live here")
        # First of all it may look for the dead: before it accepts what they committed.
        for _ in range(2):
            self.broker._open_core().reap()
            self.broker.serve(0)

    def memory(self) -> NDArray[np.uint8]:
        """A copy of the ring's bytes; none, if there is no ring yet."""
        if not self.path.exists() or not self.path.stat().st_size:
            return np.zeros(0, np.uint8)
        return np.frombuffer(self._mapped()[:], np.uint8)

    def has_subscriber(self, state: str) -> bool:
        """Is there a row of this state?"""
        monitor = self._monitor()
        return any(monitor.subscriber(at)["state"] == state for at in range(_SUBSCRIBERS))

    # --- afterwards ---------------------------------------------------------------------------

    def broker_dies(self) -> None:
        """The broker that lives here is no more."""
        if self.broker is None:
            raise RuntimeError("the broker does not live here")
        vanish(self.broker)
        self.broker = None

    def recover(self) -> None:
        """A new broker takes over, here; or begins anew, if the ring was not complete yet."""
        self._memory = None
        self.broker = create(self.ring, es.Broker.open_or_recover)

    def check_afterwards(
        self, most: int, complete: bool, then: Callable[[Stage], None] = lambda _: None
    ) -> None:
        """Everything that is promised. Raises `Broken`.

        `most`: batches the victim can have committed; it has, when its operation is `complete`.
        `then` is called when the broker has seen what happened.
        """
        self.check_ring("right after the kill")
        least = most if complete else self._kept_of_the_victim()
        if self.broker is None:
            self.recover()
        self.settle()
        self.check_ring("after the broker's next look")
        then(self)
        self._step()
        self._others_go_on()
        self._fill_twice()
        self.read.check_from_the_first(VICTIM, least, most)
        for publisher in (BYSTANDER, LATE, FILLER):
            self.read.check_from_the_first(publisher, self._sent[publisher], self._sent[publisher])
        self._all_leave()

    def check_ring(self, when: str) -> None:
        """The invariants of the ring. Raises `Broken`."""
        if found := _core.check_ring(self._mapped()):
            raise Broken(f"{when}: " + "; ".join(f"{field}: {wrong}" for field, wrong in found))

    def _kept_of_the_victim(self) -> int:
        """Batches of the victim that must not be lost, by its own row."""
        monitor = self._monitor()
        for index in range(_PUBLISHERS):
            row = monitor.publisher(index)
            if row["publisher_id"] == VICTIM and row["state"] != "free":
                return max(int(row["accepted_seq"]), int(row["committed_seq"]))
        return 0

    def _others_go_on(self) -> None:
        """Those who were there, and those who come now, publish and read."""
        with self.serving():
            late_reader = self.keep(subscribe(self.address, "late", start="latest"))
        late = self.keep(connect(self.address, LATE))
        late_read = Readings("a late subscriber", self.contents)
        for _ in range(2):
            self.publish_bystander()
            self.publish(late, LATE)
            self.settle()
            self.bystander.wait_acked(0)
            late.wait_acked(0)
            late_read.take(late_reader)
            self._step()
        for publisher in (BYSTANDER, LATE):
            seqs = late_read.seqs[publisher]
            last = self._sent[publisher]
            if seqs[-2:] != [last - 1, last]:
                raise Broken(f"a late subscriber got the batches {seqs} of publisher {publisher}")
        late_reader.close()
        late.close()
        self.settle()

    def _fill_twice(self) -> None:
        """Every slot can be used, and used again."""
        self._check_owned(0)
        with connect(self.address, FILLER, in_flight=SLOTS) as filler:
            for _ in range(2):
                for _ in range(SLOTS):
                    self.publish(filler, FILLER)
                self.settle()
                filler.wait_acked(0)
                self._check_owned(SLOTS)
                self.check_ring("with a full ring")
                self._step()
                self._check_owned(0)

    def _step(self) -> None:
        """All that is in the log is read and released."""
        self.settle()
        self.read.take(self.witness)
        self.settle()

    def _check_owned(self, expected: int) -> None:
        owned = [(slot, owner) for slot, owner, _, _ in self._monitor().slots() if owner >= 0]
        if len(owned) != expected:
            raise Broken(f"{expected} slots should be taken, but these are (slot, owner): {owned}")

    def _all_leave(self) -> None:
        self.bystander.close()
        self.witness.close()
        self.settle()
        self._check_owned(0)
        monitor = self._monitor()
        rows = [monitor.publisher(at) for at in range(_PUBLISHERS)]
        rows += [monitor.subscriber(at) for at in range(_SUBSCRIBERS)]
        taken = [row for row in rows if row["state"] != "free"]
        if taken:
            raise Broken(f"rows are not free although everybody has left: {taken}")
        control = monitor.control()
        if not control["tail"] == control["head"] == control["released"]:
            raise Broken(f"not everything was released although everybody has left: {control}")
        for counter in ("duplicated", "out_of_order", "corrupt"):
            if control[counter]:
                raise Broken(f"the broker counted {counter}: {control[counter]}")
        self.check_ring("after everybody has left")
        if self.broker is not None:
            self.broker.close()
        if self.path.exists():
            raise Broken("the broker was closed, but its segment exists")

    def _monitor(self) -> _core.Monitor:
        return _core.Monitor(self._mapped())

    def _mapped(self) -> mmap.mmap:
        if self._memory is None:
            with self.path.open("rb") as file:
                self._memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        return self._memory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """After a failure: nothing stays behind, whatever state it is in."""
        failed = self.failed or kind is not None
        errors = suppress(Exception) if failed else nullcontext()  # the first one counts
        with errors:
            self._stack.close()
        with errors:
            if self.broker is not None:
                self.broker.close()
        if self._memory is not None:
            self._memory.close()
        self.path.unlink(missing_ok=True)
