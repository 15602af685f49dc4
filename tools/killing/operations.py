"""What publishers and subscribers are killed in."""
# ruff: noqa: ARG002 - all operations of a kind have one signature

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress

import embar_shm as es
from killing.reading import MESSAGE, tiny
from killing.stage import VICTIM, Stage, connect, send, subscribe
from killing.victim import Cue, Victim

__all__ = ["CLIENT_OPERATIONS", "Operation"]


class Operation(ABC):
    """One operation of one participant, which is interrupted by its death."""

    name: str
    about: str
    batches = 0
    """That the victim commits, all in all, if it lives until the operation is complete."""
    certain = False
    """They are committed, whenever it is killed."""
    new_broker = False
    """The broker dies right after the victim, too, and another one takes over."""

    def content(self, publisher: int, seq: int) -> list[bytes]:
        """The messages of the victim's batch `seq`."""
        return tiny(publisher, seq)

    @abstractmethod
    def perform(self, address: str, cue: Cue) -> None:
        """In the victim: everything until the operation, and that between ready() and done()."""

    @abstractmethod
    def prepare(self, stage: Stage, victim: Victim) -> None:
        """Beside the victim: everything until the operation."""

    def after(self, stage: Stage) -> None:
        """Beside the victim: what comes right after its death."""
        if self.new_broker:
            stage.broker_dies()

    def finish(self, stage: Stage) -> None:
        """Beside the victim: what is to be checked once the broker has seen its death."""
        del stage  # nothing, usually


class _OfAPublisher(Operation):
    """The victim has one batch in the log already, and the broker lives on."""

    batches = 2

    def perform(self, address: str, cue: Cue) -> None:
        cue.turn()
        publisher = self.connect(address)
        send(publisher, self.content(VICTIM, 1))
        cue.turn()
        publisher.wait_acked(0)
        messages = self.content(VICTIM, 2)
        self.begin(publisher, messages)
        cue.ready()
        self.operate(publisher, messages)
        cue.done()

    def prepare(self, stage: Stage, victim: Victim) -> None:
        with victim.turn():
            stage.create()
            stage.join()
            stage.publish_bystander()
        with victim.turn():
            stage.settle()
            stage.publish_bystander()

    def connect(self, address: str) -> es.Publisher:
        return connect(address, VICTIM)

    def begin(self, publisher: es.Publisher, messages: list[bytes]) -> None:
        """What is done before."""

    @abstractmethod
    def operate(self, publisher: es.Publisher, messages: list[bytes]) -> None:
        """What is interrupted."""


class Publish(_OfAPublisher):
    name = "publish"
    about = "Publisher.publish of one message, and flush"

    def content(self, publisher: int, seq: int) -> list[bytes]:
        return tiny(publisher, seq, 1)

    def operate(self, publisher: es.Publisher, messages: list[bytes]) -> None:
        publisher.publish(messages[0])
        publisher.flush()


class PublishFull(_OfAPublisher):
    name = "publish-full"
    about = "Publisher.publish of the message that fills its batch, which commits it"

    def content(self, publisher: int, seq: int) -> list[bytes]:
        return tiny(publisher, seq, 4)

    def begin(self, publisher: es.Publisher, messages: list[bytes]) -> None:
        for message in messages[:-1]:
            publisher.publish(message)

    def operate(self, publisher: es.Publisher, messages: list[bytes]) -> None:
        publisher.publish(messages[-1])


class PublishMany(_OfAPublisher):
    name = "publish-many"
    about = "Publisher.publish_many of two messages, and flush"

    def operate(self, publisher: es.Publisher, messages: list[bytes]) -> None:
        publisher.publish_many(b"".join(messages), MESSAGE)
        publisher.flush()


class PublishVariable(_OfAPublisher):
    name = "publish-variable"
    about = "Publisher.publish of two messages with sizes of their own, and flush"

    def content(self, publisher: int, seq: int) -> list[bytes]:
        first, second = tiny(publisher, seq)
        return [first[:13], second]

    def connect(self, address: str) -> es.Publisher:
        return connect(address, VICTIM, message_size=None)

    def operate(self, publisher: es.Publisher, messages: list[bytes]) -> None:
        publisher.publish(messages[0])
        publisher.publish(messages[1])
        publisher.flush()


class Reserve(_OfAPublisher):
    name = "reserve"
    about = "Publisher.reserve, written and committed, and flush"

    def content(self, publisher: int, seq: int) -> list[bytes]:
        return tiny(publisher, seq, 1)

    def operate(self, publisher: es.Publisher, messages: list[bytes]) -> None:
        with publisher.reserve(MESSAGE) as view:
            view[:] = messages[0]
        publisher.flush()


class _Dropped(Exception):
    pass


class Drop(_OfAPublisher):
    name = "drop"
    about = "Publisher.reserve, written and dropped: the slot is given back"
    batches = 1

    def operate(self, publisher: es.Publisher, messages: list[bytes]) -> None:
        with suppress(_Dropped), publisher.reserve(MESSAGE) as view:
            view[:] = messages[0]
            raise _Dropped


class Close(_OfAPublisher):
    name = "close"
    about = "Publisher.close, which commits the open batch"

    def begin(self, publisher: es.Publisher, messages: list[bytes]) -> None:
        for message in messages:
            publisher.publish(message)

    def operate(self, publisher: es.Publisher, messages: list[bytes]) -> None:
        publisher.close()


class Connect(Operation):
    name = "connect"
    about = "Publisher.connect"

    def perform(self, address: str, cue: Cue) -> None:
        cue.turn()
        cue.ready()
        publisher = connect(address, VICTIM, sample_every=0)  # which would look at the clock first
        cue.done()
        publisher.close()

    def prepare(self, stage: Stage, victim: Victim) -> None:
        with victim.turn():
            stage.create()
            stage.join()
            stage.publish_bystander()


class _OfASubscriber(Operation):
    """There are two batches to read; the broker lives on."""

    mode = "reliable"

    def perform(self, address: str, cue: Cue) -> None:
        cue.turn()
        subscriber = subscribe(address, "victim", mode=self.mode)
        cue.turn()
        held = self.begin(subscriber)
        cue.ready()
        self.operate(subscriber, held)
        cue.done()

    def prepare(self, stage: Stage, victim: Victim) -> None:
        with victim.turn():
            stage.create()
            stage.join()
            stage.publish_bystander()
            stage.settle()
            assert stage.broker is not None
            stage.broker.start()
        with victim.turn():
            stage.broker.stop()
            stage.publish_bystander()
            stage.settle()

    def begin(self, subscriber: es.Subscriber) -> list[es.Batch]:
        """What is done before: the batches that are held then."""
        return []

    @abstractmethod
    def operate(self, subscriber: es.Subscriber, held: list[es.Batch]) -> None:
        """What is interrupted."""


class Read(_OfASubscriber):
    name = "read"
    about = "Subscriber.next, and release of the batch"

    def operate(self, subscriber: es.Subscriber, held: list[es.Batch]) -> None:
        batch = subscriber.next()
        batch.release()


class ReadLossy(_OfASubscriber):
    name = "read-lossy"
    about = "the same of a lossy subscriber, which gets a copy"
    mode = "lossy"

    def operate(self, subscriber: es.Subscriber, held: list[es.Batch]) -> None:
        batch = subscriber.next()
        batch.release()


class Release(_OfASubscriber):
    name = "read-release"
    about = "release of two batches, the later one first"

    def begin(self, subscriber: es.Subscriber) -> list[es.Batch]:
        return [subscriber.next(), subscriber.next()]

    def operate(self, subscriber: es.Subscriber, held: list[es.Batch]) -> None:
        held[1].release()
        held[0].release()


class Unsubscribe(_OfASubscriber):
    name = "unsubscribe"
    about = "Subscriber.close, with a batch that was not released"

    def begin(self, subscriber: es.Subscriber) -> list[es.Batch]:
        return [subscriber.next()]

    def operate(self, subscriber: es.Subscriber, held: list[es.Batch]) -> None:
        subscriber.close()


class Subscribe(Operation):
    name = "subscribe"
    about = "Subscriber.connect, which a broker that serves answers"

    def perform(self, address: str, cue: Cue) -> None:
        cue.turn()
        cue.ready()
        subscriber = subscribe(address, "victim")
        cue.done()
        subscriber.close()

    def prepare(self, stage: Stage, victim: Victim) -> None:
        with victim.turn():
            stage.create()
            stage.join()
            stage.publish_bystander()
            stage.settle()
            assert stage.broker is not None
            stage.broker.start()

    def after(self, stage: Stage) -> None:
        assert stage.broker is not None
        stage.broker.stop()
        super().after(stage)


_KINDS = (
    *(Publish, PublishFull, PublishMany, PublishVariable, Reserve, Drop, Close, Connect),
    *(Read, ReadLossy, Release, Unsubscribe, Subscribe),
)


def _and_broker(operation: Operation) -> Operation:
    operation.name += "-and-broker"
    operation.about += "; the broker dies, too"
    operation.new_broker = True
    return operation


CLIENT_OPERATIONS: tuple[Operation, ...] = (
    *(kind() for kind in _KINDS),
    *(_and_broker(kind()) for kind in _KINDS),
)
