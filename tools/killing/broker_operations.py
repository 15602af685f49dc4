"""What brokers are killed in. Another one takes over."""
# ruff: noqa: ARG002 - all operations of a kind have one signature

from __future__ import annotations

import threading
from abc import abstractmethod

import embar_shm as es
from embar_shm import _core
from embar_shm.testing.conditions import wait_until
from killing.operations import Operation
from killing.reading import Broken, Readings, tiny
from killing.stage import BYSTANDER, VICTIM, Stage, connect, create, send, subscribe, vanish
from killing.victim import Cue, Victim

__all__ = ["BROKER_OPERATIONS", "Create", "OfABroker", "Recover"]

_PATIENCE = 30  # seconds


class OfABroker(Operation):
    """The bystander has one batch in the log, the witness has not read it."""

    certain = True

    def perform(self, address: str, cue: Cue) -> None:
        broker = create(address.removeprefix("shm://"))
        cue.turn(lambda: broker.serve(0.001))
        cue.turn()
        core = broker._open_core()
        cue.ready()
        self.operate(core)
        cue.done()

    def prepare(self, stage: Stage, victim: Victim) -> None:
        with victim.turn():
            stage.join()
            stage.publish_bystander()
            stage.bystander.wait_acked(_PATIENCE)
            self.meanwhile(stage)
        with victim.turn():
            self.before(stage)

    def meanwhile(self, stage: Stage) -> None:
        """What is done while the broker serves."""

    @abstractmethod
    def before(self, stage: Stage) -> None:
        """What is done while the broker stands still, so that there is something to do for it."""

    def operate(self, core: _core.BrokerCore) -> None:
        """What is interrupted."""
        core.serve(0)


class Accept(OfABroker):
    name = "accept"
    about = "BrokerCore.serve, which accepts a batch"

    def before(self, stage: Stage) -> None:
        stage.publish_bystander()


class Release(OfABroker):
    name = "release"
    about = "BrokerCore.serve, which releases two batches"

    def meanwhile(self, stage: Stage) -> None:
        stage.publish_bystander()
        stage.bystander.wait_acked(_PATIENCE)

    def before(self, stage: Stage) -> None:
        stage.read.take(stage.witness)


class Serve(OfABroker):
    name = "serve"
    about = "BrokerCore.serve, which releases a batch and accepts two others"
    batches = 1

    def meanwhile(self, stage: Stage) -> None:
        self._second = stage.keep(connect(stage.address, VICTIM))

    def before(self, stage: Stage) -> None:
        stage.read.take(stage.witness)
        stage.publish_bystander()
        send(self._second, self.content(VICTIM, 1))

    def finish(self, stage: Stage) -> None:
        self._second.wait_acked(0)
        self._second.close()


class ReapPublisher(OfABroker):
    name = "reap-publisher"
    about = "BrokerCore.serve and reap: a publisher is dead, with batches accepted, committed, open"
    batches = 2

    def meanwhile(self, stage: Stage) -> None:
        self._dead = connect(stage.address, VICTIM, in_flight=3)
        send(self._dead, self.content(VICTIM, 1))
        self._dead.wait_acked(_PATIENCE)

    def before(self, stage: Stage) -> None:
        send(self._dead, self.content(VICTIM, 2))
        self._dead.publish(tiny(VICTIM, 3)[0])
        vanish(self._dead)

    def operate(self, core: _core.BrokerCore) -> None:
        core.serve(0)
        core.reap()


class ReapSubscriber(OfABroker):
    name = "reap-subscriber"
    about = "BrokerCore.reap and serve: a subscriber is dead, all others have passed its batch"

    def meanwhile(self, stage: Stage) -> None:
        self._dead = subscribe(stage.address, "dead")

    def before(self, stage: Stage) -> None:
        self._dead.next()
        stage.read.take(stage.witness)
        vanish(self._dead)

    def operate(self, core: _core.BrokerCore) -> None:
        core.reap()
        core.serve(0)


class Admit(OfABroker):
    name = "admit"
    about = "BrokerCore.serve, which answers a subscriber that joins"

    def before(self, stage: Stage) -> None:
        self._joined: list[es.Subscriber | BaseException] = []
        self._thread = threading.Thread(target=self._join, args=(stage.address,))
        self._thread.start()
        wait_until(lambda: stage.has_subscriber("joining"), "a subscriber that joins")

    def _join(self, address: str) -> None:
        try:
            self._joined.append(subscribe(address, "joining"))
        except BaseException as error:  # told in the other thread
            self._joined.append(error)

    def finish(self, stage: Stage) -> None:
        self._thread.join(_PATIENCE)
        joined = self._joined.pop()
        if isinstance(joined, BaseException):
            raise Broken(f"the subscriber that joined got {joined!r}") from joined
        with joined:
            read = Readings("the subscriber that joined", stage.contents)
            read.take(joined)
            read.check_from_the_first(BYSTANDER, 1, 1)


class Retire(OfABroker):
    name = "retire"
    about = "BrokerCore.retire, which accepts a batch and tells everybody that it is the last"

    def before(self, stage: Stage) -> None:
        stage.publish_bystander()

    def operate(self, core: _core.BrokerCore) -> None:
        core.retire()


class Create(Operation):
    name = "create"
    about = "Broker.create"

    def perform(self, address: str, cue: Cue) -> None:
        ring = address.removeprefix("shm://")
        cue.ready()
        broker = create(ring)
        cue.done()
        broker.close()

    def prepare(self, stage: Stage, victim: Victim) -> None:
        """There is nothing yet."""

    def after(self, stage: Stage) -> None:
        stage.recover()
        stage.join()


class Recover(Operation):
    """Two brokers die: one in an operation, the other one when it takes over."""

    certain = True

    def __init__(self, first: OfABroker, effects: int) -> None:
        self._first = first
        self._effects = effects
        self.name = f"recover-{first.name}@{effects}"
        self.about = f"Broker.open_or_recover, after effect {effects} of {first.name}"
        self.batches = first.batches

    def content(self, publisher: int, seq: int) -> list[bytes]:
        return self._first.content(publisher, seq)

    def perform(self, address: str, cue: Cue) -> None:
        ring = address.removeprefix("shm://")
        cue.turn()
        cue.ready()
        broker = create(ring, es.Broker.open_or_recover)
        cue.done()
        broker.close()

    def prepare(self, stage: Stage, victim: Victim) -> None:
        with (
            victim.turn(),
            victim.another(lambda cue: self._first.perform(stage.address, cue)) as first,
        ):
            self._first.prepare(stage, first)
            first.run(effects=self._effects, ring=stage.path)
            self._first.after(stage)

    def finish(self, stage: Stage) -> None:
        self._first.finish(stage)


BROKER_OPERATIONS: tuple[OfABroker, ...] = (
    *(Accept(), Release(), Serve(), ReapPublisher(), ReapSubscriber(), Admit(), Retire()),
)
