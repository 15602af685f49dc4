"""One process of a run: a broker or a publisher (``python -m embar_shm.bench.worker``).

Coordinator and worker exchange one JSON object per line over the worker's stdin and stdout. The
first line a worker gets says what it is; `fleet` is the other end. End of file, or the
coordinator's death, ends the worker.

    broker:     -> listening;  mark -> (nothing);  usage -> usage;  stop -> done
    publisher:  connect -> ready;  copy -> copied;  publish -> published;  close -> closed
    both:       loopback-..., see `yardsticks`
    both:       -> error, when an `EmbarError` ends the worker
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from typing import Any

from embar_shm import _core, transports
from embar_shm.bench import access
from embar_shm.bench.usage import usage_now, usage_since
from embar_shm.bench.yardsticks import LoopbackReceiver, LoopbackSender, MemoryCopy, Places
from embar_shm.broker import Broker
from embar_shm.errors import EmbarError
from embar_shm.publisher import Publisher
from embar_shm.transports import ListenOptions

__all__ = ["main"]


def main() -> None:
    """Reads what to be, and is it."""
    commands = map(json.loads, sys.stdin)
    spec = next(commands, None)
    if spec is None:
        return
    _core.die_with_parent(spec["parent"], signal.SIGTERM)
    try:
        {"broker": _broker, "publisher": _publisher}[spec["role"]](spec, commands)
    except EmbarError as error:
        _say("error", kind=type(error).__name__, message=error.message, hint=error.hint)
        sys.exit(1)


def _say(event: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def _broker(spec: dict[str, Any], commands: Iterator[dict[str, Any]]) -> None:
    if spec["scheduling"] == "batch":
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    loopback = LoopbackReceiver(spec, _say)

    def obey() -> None:
        before = usage_now()
        for command in commands:
            match command["do"]:
                case "mark":  # the clock starts: what was used before does not count
                    before = usage_now()
                case "usage":
                    _say("usage", usage=usage_since(before), sockets=_fields(listener.sockets()))
                case "stop":
                    break
                case _:
                    loopback.obey(command)
        broker.stop()

    with (
        Broker.create(
            spec["ring"],
            slots=spec["slots"],
            slot_size=spec["slot_size"],
            max_publishers=spec["max_publishers"],
            wait=spec["wait"],
            spin_us=spec["spin_us"],
            stage_times=spec["sample_every"] > 0,
        ) as broker,
        closing(loopback),
    ):
        listener = transports.get(spec["transport"]).listen(broker, None, _listen_options(spec))
        _say("listening", address=listener.address)
        threading.Thread(target=obey, daemon=True).start()
        broker.serve()
        listener.stop()
        _say("done")


def _publisher(spec: dict[str, Any], commands: Iterator[dict[str, Any]]) -> None:
    command = next(commands, None)
    if command is None:
        return
    with Publisher.connect(
        command["address"],
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
        token=access.token(spec),
        tls=access.publisher_tls(spec),
        socket_buffer=spec["socket_buffer"],
    ) as publisher:
        produce = _producer(publisher, spec)
        if spec["ceiling"]:
            places = Places.prefaulted(spec)
            memory_copy = MemoryCopy(places, _source(spec))
            loopback = LoopbackSender(places, _say)
        _say("ready")
        for command in commands:
            match command["do"]:
                case "copy":
                    memory_copy.copy(command["batches"], command["nontemporal"])
                    _say("copied", end_ns=time.monotonic_ns())
                case "publish":
                    before = usage_now()
                    produce()
                    publisher.flush()
                    if spec["ack"]:
                        publisher.wait_acked()
                    end_ns = time.monotonic_ns()
                    _say(
                        "published",
                        end_ns=end_ns,
                        usage=usage_since(before),
                        stages=publisher.stages(),
                        sockets=_fields(publisher.sockets()),
                        stats=_fields(publisher.stats()),
                    )
                case "close":
                    publisher.close()
                    _say("closed")
                case _:
                    loopback.obey(command)


def _listen_options(spec: dict[str, Any]) -> ListenOptions:
    return ListenOptions(
        token=access.token(spec),
        tls=access.broker_tls(spec),
        socket_buffer=spec["socket_buffer"],
    )


def _fields(found: Any) -> dict[str, Any] | None:
    """Of a dataclass, for JSON."""
    return None if found is None else asdict(found)


def _producer(publisher: Publisher, spec: dict[str, Any]) -> Callable[[], None]:
    """The workload: `messages` messages, one at a time, or `messages_per_call` at a time."""
    messages: int = spec["messages"]
    if spec["producer"] == "one":
        publish = publisher.publish
        message = os.urandom(spec["message_size"])

        def one_at_a_time() -> None:
            for _ in itertools.repeat(None, messages):
                publish(message)

        return one_at_a_time

    publish_many = publisher.publish_many
    block = _block(spec)
    calls, rest = divmod(messages, spec["messages_per_call"])
    last = memoryview(block)[: rest * spec["message_size"]]

    def many_at_a_time() -> None:
        for _ in itertools.repeat(None, calls):
            publish_many(block)
        if rest:
            publish_many(last)

    return many_at_a_time


def _block(spec: dict[str, Any]) -> bytes:
    return os.urandom(spec["message_size"]) * int(spec["messages_per_call"])


def _source(spec: dict[str, Any]) -> bytes:
    """What the producer copies from."""
    return os.urandom(spec["message_size"]) if spec["producer"] == "one" else _block(spec)


if __name__ == "__main__":
    main()
