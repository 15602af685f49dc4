"""A subscriber's process. `worker` says what it hears and says.

A reliable subscriber knows how many messages there are and stops with the last; one that may lose
some is told the ticket where the log ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from queue import Queue
from typing import TYPE_CHECKING, Any, Final, Self

from embar_shm import _core
from embar_shm.bench import access
from embar_shm.bench.usage import Usage, total, usage_now, usage_since
from embar_shm.bench.yardsticks import CopyAndReadSide
from embar_shm.errors import BrokerGone, BrokerRestarted, EndOfLog, PeerError, WaitTimeout
from embar_shm.subscriber import Subscriber

if TYPE_CHECKING:
    from embar_shm._core import Batch

__all__ = ["subscriber"]

_LOOK_AROUND: Final = 0.05  # seconds a subscriber waits that does not know where the log ends
_SUMS: Final = ("batches", "messages", "payload_bytes", "lost", "waits")


def subscriber(
    spec: dict[str, Any], commands: Iterator[dict[str, Any]], say: Callable[..., None]
) -> None:
    """Obeys commands until there are no more."""
    heard: Queue[dict[str, Any] | None] = Queue()

    def listen() -> None:
        for command in commands:
            heard.put(command)
        heard.put(None)

    threading.Thread(target=listen, daemon=True).start()
    with _Process(spec, say, heard) as process:
        while (command := heard.get()) is not None:
            process.obey(command)


class _Process:
    def __init__(
        self,
        spec: dict[str, Any],
        say: Callable[..., None],
        heard: Queue[dict[str, Any] | None],
    ) -> None:
        self._spec = spec
        self._say = say
        self._heard = heard
        self._subscriber: Subscriber | None = None
        self._verifier = _core.Verifier() if spec["verify"] else None
        self._delays = _core.Delays() if spec["paced"] else None
        self._consume = _CONSUMERS[spec["consume"]]
        self._used: list[Usage] = []
        self._before: dict[str, int] = dict.fromkeys(_SUMS, 0)  # of connections that have ended
        given = spec.get("copy_and_read")
        self._copy_and_read = CopyAndReadSide(given) if given else None

    def obey(self, command: dict[str, Any]) -> None:
        match command["do"]:
            case "connect":
                self._connect(command["address"])
                self._say("ready")
            case "read":
                self._measured(lambda: self._read_messages(command["messages"]))
            case "read-to":
                self._measured(lambda: self._read_to(command["ticket"]))
            case "read-to-end":
                self._measured(self._read_to_the_end)
            case "read-until-gone":
                self._read_until_gone()
            case "copy-and-read" if self._copy_and_read is not None:
                self._copy_and_read.read(command["batches"])
                self._say("copied-and-read", end_ns=time.monotonic_ns())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._subscriber is not None:
            self._subscriber.close()

    def _connect(self, address: str) -> None:
        spec = self._spec
        if self._subscriber is not None and self._verifier is not None:
            self._verifier.restart()
        self._subscriber = Subscriber.connect(
            address,
            mode=spec["mode"],
            start=spec["start"],
            name=spec["name"],
            timeout=spec["timeout"],
            connect_timeout=spec["timeout"],
            restart_timeout=0,  # a broker that is killed is lost with its ring: see `failure`
            wait=spec["wait"],
            spin_us=spec["spin_us"],
            token=access.token(spec),
            tls=access.publisher_tls(spec),
            socket_buffer=spec["socket_buffer"],
        )

    def _open(self) -> Subscriber:
        assert self._subscriber is not None, "the coordinator has said 'connect' first"  # noqa: S101
        return self._subscriber

    def _measured(self, read: Callable[[], None]) -> None:
        before = usage_now()
        read()
        end_ns = time.monotonic_ns()
        self._used.append(usage_since(before))
        self._say("ended", end_ns=end_ns, **self._found())

    def _read_messages(self, messages: int) -> None:
        next_batch, take = self._open().next, self._take
        while messages > 0:
            with next_batch() as batch:
                messages -= batch.count
                take(batch)

    def _read_to(self, ticket: int | None) -> None:
        """None: it will be told meanwhile."""
        found = self._open()
        while ticket is None or found.position.ticket < ticket:
            if ticket is None and not self._heard.empty():
                ticket = (self._heard.get() or {"ticket": 0})["ticket"]
                continue
            with suppress(WaitTimeout), found.next(_LOOK_AROUND) as batch:
                self._take(batch)

    def _read_to_the_end(self) -> None:
        """Until the last message of every publisher has been read, on whichever log."""
        found = self._open()
        while self._missing():
            with found.next() as batch:
                self._take(batch)

    def _read_until_gone(self) -> None:
        """The same on a broker that will be killed."""
        before = usage_now()
        with suppress(BrokerGone, BrokerRestarted, EndOfLog):
            self._read_to_the_end()
        self._used.append(usage_since(before))
        self._before = self._counts()
        with suppress(PeerError):
            self._open().close()
        self._say("gone", next=self._next())

    def _take(self, batch: Batch) -> None:
        if self._delays is not None:  # at once: now it is delivered
            self._delays.record_batch(batch, batch.message_size)
        self._consume(batch)
        if self._verifier is not None:
            self._verifier.check(
                batch, batch.message_size, batch.publisher_id, batch.ticket, batch.gap > 0
            )

    def _next(self) -> dict[int, int]:
        return {} if self._verifier is None else self._verifier.next

    def _missing(self) -> bool:
        seen = self._next()
        return any(seen.get(int(p), 1) <= count for p, count in self._spec["expected"].items())

    def _counts(self) -> dict[str, int]:
        now = asdict(self._open().stats())
        return {name: self._before[name] + now[name] for name in _SUMS}

    def _found(self) -> dict[str, Any]:
        verified = self._verifier and {
            "counts": self._verifier.counts,
            "first": self._verifier.first,
            "next": self._verifier.next,
            "skipped": self._verifier.skipped,
        }
        return {
            "name": self._spec["name"],
            "counts": self._counts(),
            "held": self._open().stats().held,
            "usage": total(self._used),
            "verified": verified,
            "delays": self._delays and self._delays.as_dict(),
        }


def _nothing(_batch: Batch) -> None:
    """It was taken, and will be released."""


def _bytes(batch: Batch) -> None:
    _core.read_words(batch)


def _messages(batch: Batch) -> None:
    for _ in batch.messages():
        pass


_CONSUMERS: Final[dict[str, Callable[[Any], None]]] = {
    "nothing": _nothing,
    "bytes": _bytes,
    "messages": _messages,
}
