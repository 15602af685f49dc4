"""A broker whose log a test reads: a thread does by hand what `Broker.serve` does."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import embar_shm as es
from embar_shm.testing import Batch, Log, wait_until

_PAUSE = 0.001  # seconds between two looks


class ByHand:
    """Takes what is committed and frees what is left behind, from `start` to `stop`."""

    def __init__(self, broker: es.Broker) -> None:
        self.broker = broker
        self._core = broker._open_core()
        self._log = Log.of(broker)
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="by hand")
        self._thread.start()
        return self

    def stop(self) -> None:
        """Idempotent. Raises what went wrong in the thread."""
        if self._thread is not None:
            self._stopping.set()
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def of(self, publisher_id: int) -> list[Batch]:
        """All batches of a publisher so far, in the order of the log."""
        return [batch for batch in self._log.batches if batch.publisher_id == publisher_id]

    def messages(self, publisher_id: int) -> list[bytes]:
        """All messages of a publisher so far, in the order of the log."""
        return [message for batch in self.of(publisher_id) for message in batch.messages]

    def check_exactly_once(self, publisher_id: int, expected: list[bytes]) -> None:
        """Waits until as much is accepted; nothing is lost, doubled, reordered or changed."""
        wait_until(lambda: len(self.messages(publisher_id)) >= len(expected), "all is accepted")
        found = self.of(publisher_id)
        assert {batch.verdict for batch in found} <= {"accepted"}
        assert [batch.seq for batch in found] == list(range(1, len(found) + 1))
        assert self.messages(publisher_id) == expected

    def check_all_is_free(self) -> None:
        """Every publisher has left: so have its rows and slots."""
        wait_until(lambda: self.broker.stats().publishers == 0, "all rows are free")
        monitor = self.broker.segment.monitor()
        assert [owner for _, owner, _, _ in monitor.slots() if owner >= 0] == []
        assert self.broker.stats().in_flight == 0

    def _run(self) -> None:
        try:
            while True:
                stopping = self._stopping.is_set()
                self._log.take()
                self._core.reap()
                if self._stopping.wait(_PAUSE) and stopping:
                    return
        except BaseException as failure:  # raised by stop()
            self._failure = failure
