"""One process of a run (``python -m embar_shm.bench.worker``): a broker, publisher or subscriber.

Coordinator and worker exchange one JSON object per line over the worker's stdin and stdout. The
first line a worker gets says what it is (`specs`); `fleet` is the other end. End of file, or the
coordinator's death, ends the worker.

    broker:     -> listening;  mark -> (nothing);  usage -> usage;  stop -> done
    publisher:  connect -> ready;  copy -> copied;  publish -> ended;  close -> closed
                publish-until-gone -> gone;  connect -> ready;  resume -> ended
    subscriber: connect -> ready;  read, read-to, read-to-end -> ended
                read-until-gone -> gone;  connect -> ready;  read-to-end -> ended
    all:        loopback-..., copy-and-read -> copied-and-read, see `yardsticks`
                -> error, when an `EmbarError` ends the worker
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from typing import Any

from embar_shm import _core, transports
from embar_shm.bench import access
from embar_shm.bench.usage import usage_now, usage_since
from embar_shm.bench.yardsticks import LoopbackReceiver
from embar_shm.broker import Broker
from embar_shm.errors import EmbarError
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
        match spec["role"]:
            case "broker":
                _broker(spec, commands)
            case "publisher":
                from embar_shm.bench.publishing import publisher

                publisher(spec, commands, _say)
            case "subscriber":
                from embar_shm.bench.reading import subscriber

                subscriber(spec, commands, _say)
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
            retain=spec["retain"],
            wait=spec["wait"],
            spin_us=spec["spin_us"],
            replace_dead=spec["address"] is not None,
            stage_times=spec["sample_every"] > 0,
        ) as broker,
        closing(loopback),
    ):
        transport = transports.get(spec["transport"])
        given = spec["address"] and spec["address"].partition("://")[2]
        listener = transport.listen(broker, given, _listen_options(spec))
        _say("listening", address=listener.address)
        threading.Thread(target=obey, daemon=True).start()
        broker.serve()
        listener.stop()
        _say("done")


def _listen_options(spec: dict[str, Any]) -> ListenOptions:
    return ListenOptions(
        token=access.token(spec),
        tls=access.broker_tls(spec),
        socket_buffer=spec["socket_buffer"],
    )


def _fields(found: Any) -> dict[str, Any] | None:
    """Of a dataclass, for JSON."""
    return None if found is None else asdict(found)


if __name__ == "__main__":
    main()
