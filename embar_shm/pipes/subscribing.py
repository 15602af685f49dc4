"""Writes what a subscriber reads into a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice

from embar_shm._core import Batch
from embar_shm.errors import EmbarError, EndOfLog, WaitTimeout
from embar_shm.pipes.output import Output
from embar_shm.pipes.writers import Writer
from embar_shm.stopping import StopSignals
from embar_shm.subscriber import Subscriber

__all__ = ["Drain"]

_LOOK = 0.25  # seconds between two looks whether the reader of our pipe is still there


class Drain:
    """Reads until the end of the log, a signal, enough messages, or nobody reads our output."""

    def __init__(
        self,
        subscriber: Subscriber,
        output: Output,
        writer: Writer,
        *,
        count: int | None = None,
        timeout: float | None = None,
    ) -> None:
        """`count`: messages at most; `timeout`: seconds to wait for a batch, None: forever."""
        self.messages = 0
        self.payload_bytes = 0
        self.batches = 0
        self.lost = 0
        self.cut_at: int | None = None
        """Ticket of a batch of which `count` has left messages over."""
        """Batches that were overwritten before they could be read."""
        self.reader_is_gone = False
        self.first_at: float | None = None
        """time.monotonic() when the first batch was there; waiting for it tells nothing."""
        self._subscriber = subscriber
        self._output = output
        self._writer = writer
        self._count = count
        self._timeout = timeout

    @property
    def done(self) -> bool:
        """Were it enough messages?"""
        return self._count is not None and self.messages >= self._count

    def run(
        self,
        stop: StopSignals,
        on_progress: Callable[[int, int], None],
        on_gap: Callable[[int, int], None],
    ) -> None:
        """Blocks. What is there is written before it waits for more.

        `on_progress` gets messages and bytes so far; `on_gap` how many batches are lost, and the
        ticket before which. Raises `WaitTimeout`, what `Subscriber.next` raises but for the end of
        the log, and `OSError` when the output cannot be written.
        """
        try:
            self._run(stop, on_progress, on_gap)
            self._output.flush()
        except BrokenPipeError:
            self.reader_is_gone = True
        except EmbarError:
            with suppress(BrokenPipeError):  # the error that is on its way tells more
                self._output.flush()
            raise

    def _run(
        self,
        stop: StopSignals,
        on_progress: Callable[[int, int], None],
        on_gap: Callable[[int, int], None],
    ) -> None:
        while stop.asked is None and not self.done:
            try:
                batch = self._subscriber.poll()
            except EndOfLog:
                return
            if batch is None:
                self._output.flush()
                self._wait(stop)
                continue
            if self.first_at is None:
                self.first_at = time.monotonic()
            with batch:
                if batch.gap:
                    self.lost += batch.gap
                    on_gap(batch.gap, batch.ticket)
                self.batches += 1
                self._write(batch)
            on_progress(self.messages, self.payload_bytes)

    def _write(self, batch: Batch) -> None:
        count, payload = batch.count, batch.payload_bytes
        if self._count is not None and self._count - self.messages < count:
            count = self._count - self.messages
            self.cut_at = batch.ticket
            payload = sum(map(len, islice(batch.messages(), count)))
        self._writer(self._output, batch, count)
        self.messages += count
        self.payload_bytes += payload

    def _wait(self, stop: StopSignals) -> None:
        """Until there is a batch, or a signal. `BrokenPipeError`: nobody would read it."""
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        while stop.asked is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise WaitTimeout(
                    f"no batch came within {self._timeout:g} s",
                    "is anybody publishing, and flushing what it publishes?",
                )
            if self._output.is_pipe:
                left = _LOOK if left is None else min(left, _LOOK)
            if self._subscriber.wait(left):
                return
            if self._output.reader_is_gone():
                raise BrokenPipeError
