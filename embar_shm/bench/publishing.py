"""A publisher's process. `worker` says what it hears and says.

The publisher of a broker that will be killed publishes until that happens, says what was
acknowledged, connects to the new broker, and publishes again what was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Self

from embar_shm.bench import access
from embar_shm.bench.producers import Paced, Producer, block_of, producer
from embar_shm.bench.usage import Usage, total, usage_now, usage_since
from embar_shm.bench.yardsticks import CopyAndReadSide, LoopbackSender, MemoryCopy, Places
from embar_shm.errors import BrokerGone, PeerError, WaitTimeout
from embar_shm.publisher import Publisher

__all__ = ["publisher"]


def publisher(
    spec: dict[str, Any], commands: Iterator[dict[str, Any]], say: Callable[..., None]
) -> None:
    """Obeys commands until there are no more."""
    with _Process(spec, say) as process:
        for command in commands:
            process.obey(command)


class _Process:
    def __init__(self, spec: dict[str, Any], say: Callable[..., None]) -> None:
        self._spec = spec
        self._say = say
        self._publisher: Publisher | None = None
        self._producer: Producer | None = None
        self._used: list[Usage] = []
        self._ended: list[dict[str, Any]] = []  # connections
        self._yardsticks: Callable[[dict[str, Any]], None] | None = None

    def obey(self, command: dict[str, Any]) -> None:
        match command["do"]:
            case "connect":
                self._connect(command["address"], command["first"])
                self._say("ready")
            case "publish":
                self._publish(command["messages"])
            case "publish-until-gone":
                self._publish_until_gone(command["messages"])
            case "resume":
                self._resume(command["messages"])
            case "close":
                self._open().close()
                self._say("closed")
            case _:
                if self._yardsticks is not None:
                    self._yardsticks(command)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if self._publisher is not None:
            with suppress(*((PeerError, WaitTimeout) if kind else ())):
                self._publisher.close()

    def _open(self) -> Publisher:
        assert self._publisher is not None, "the coordinator has said 'connect' first"  # noqa: S101
        return self._publisher

    def _connect(self, address: str, first: int) -> None:
        spec = self._spec
        self._publisher = Publisher.connect(
            address,
            message_size=spec["message_size"],
            batch_size=spec["batch_size"],
            in_flight=spec["in_flight"],
            ack=spec["ack"],
            linger_ms=spec["linger_ms"],
            timeout=spec["timeout"],
            wait=spec["wait"],
            spin_us=spec["spin_us"],
            copy=spec["copy"],
            sample_every=spec["sample_every"],
            publisher_id=spec["publisher_id"],
            connect_timeout=spec["timeout"],
            restart_timeout=0,  # a broker that is killed is lost with its ring: see `failure`
            token=access.token(spec),
            tls=access.publisher_tls(spec),
            socket_buffer=spec["socket_buffer"],
        )
        self._producer = producer(self._publisher, spec, first)
        if spec["ceiling"] and self._yardsticks is None:
            self._yardsticks = _yardsticks(spec, self._say)

    def _publish(self, messages: int) -> None:
        self._produce(messages)
        self._say_ended()

    def _publish_until_gone(self, messages: int) -> None:
        """Its broker dies before it has all of the run's messages, at the latest after these."""
        with suppress(BrokerGone):
            self._produce(messages)
        stats = self._open().stats()
        per_batch = self._spec["batch_size"] // self._spec["message_size"]
        # All batches are full but the last one.
        acked = min(stats.accepted * per_batch, stats.messages)
        self._ended.append(self._connection())
        with suppress(PeerError, WaitTimeout):  # it is gone, or will be
            self._open().close()
        self._say("gone", acked=acked, sent=stats.messages)

    def _resume(self, messages: int) -> None:
        per_batch = self._spec["batch_size"] // self._spec["message_size"]
        self._produce(min(messages, per_batch))
        recovered_ns = time.monotonic_ns() if messages else None
        if messages > per_batch:
            self._produce(messages - per_batch)
        self._say_ended(recovered_ns=recovered_ns)

    def _produce(self, messages: int) -> None:
        """All of them are acknowledged when it returns (ack 0: committed)."""
        assert self._producer is not None  # noqa: S101 - made with the publisher
        before = usage_now()
        try:
            self._producer.produce(messages)
            self._open().flush()
            if self._spec["ack"]:
                self._open().wait_acked()
        finally:
            self._used.append(usage_since(before))

    def _say_ended(self, **more: Any) -> None:
        end_ns = time.monotonic_ns()
        paced = self._producer if isinstance(self._producer, Paced) else None
        self._say(
            "ended",
            end_ns=end_ns,
            usage=total(self._used),
            connections=[*self._ended, self._connection()],
            latency=paced
            and {
                "sent": paced.sent.as_dict(),
                "acked": paced.acked.as_dict(),
                "reached": paced.reached,
            },
            **more,
        )

    def _connection(self) -> dict[str, Any]:
        """What is known of the present one."""
        found = self._open()
        sockets = found.sockets()
        return {
            "stages": found.stages(),
            "sockets": None if sockets is None else asdict(sockets),
            "stats": asdict(found.stats()),
        }


def _yardsticks(spec: dict[str, Any], say: Callable[..., None]) -> Callable[[dict[str, Any]], None]:
    """What ceilings need, made before anything is measured."""
    places = Places.prefaulted(spec)
    source = block_of(spec)
    memory_copy = MemoryCopy(places, source)
    loopback = LoopbackSender(places, say)
    shared = CopyAndReadSide(spec["copy_and_read"]) if spec.get("copy_and_read") else None

    def obey(command: dict[str, Any]) -> None:
        batches = command.get("batches", 0)
        match command["do"]:
            case "copy":
                memory_copy.copy(batches, command["nontemporal"])
                say("copied", end_ns=time.monotonic_ns())
            case "copy-and-read" if shared is not None:
                shared.write(spec["row"], source, batches, command["nontemporal"])
                say("copied-and-read", end_ns=time.monotonic_ns())
            case _:
                loopback.obey(command)

    return obey
