"""Turns the bytes of a source into messages: a line each, or so many bytes each."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from embar_shm.errors import ConfigurationError, MessageSizeError
from embar_shm.pipes.pacer import Pacer
from embar_shm.pipes.source import Source
from embar_shm.publisher import Publisher
from embar_shm.stopping import StopSignals

__all__ = ["Feed", "LineFeed", "OnProgress", "RecordFeed", "check_size"]

OnProgress: TypeAlias = Callable[[int, int], None]

_PIECE = 1024 * 1024  # bytes read at a time; a pipe gives what it has
_PACED_PIECE = 4096  # with a rate: what was read must be published, even when a signal comes
_PROBE = 1024 * 1024  # from this length on it is asked whether a line can be a message at all


class Feed(abc.ABC):
    """Publishes what comes out of a source until its end, a signal, or enough messages."""

    def __init__(
        self,
        source: Source,
        publisher: Publisher,
        stop: StopSignals,
        *,
        count: int | None = None,
        pacer: Pacer | None = None,
    ) -> None:
        """`count`: messages at most."""
        self.messages = 0
        self.bytes_read = 0
        self.skipped = 0
        """Empty lines."""
        self.left_over = 0
        """Bytes that were read and are no message: of one whose end a signal did not wait for."""
        self._source = source
        self._publisher = publisher
        self._stop = stop
        self._count = count
        self._pacer = pacer

    @property
    def done(self) -> bool:
        """Were it enough messages?"""
        return self._count is not None and self.messages >= self._count

    @abc.abstractmethod
    def run(self, on_progress: OnProgress) -> None:
        """Blocks for input, and as `Publisher.publish` does; raises what that raises, `OSError`.

        `on_progress` gets the messages published and the bytes read so far.
        """

    def _read_into(self, space: memoryview) -> int:
        since = time.monotonic()
        found = self._source.read_into(space, self._stop)
        if self._pacer is not None:
            self._pacer.waited_for_input(since)
        self.bytes_read += found
        return found

    def _piece(self) -> int:
        return _PIECE if self._pacer is None else _PACED_PIECE

    def _left(self, most: int) -> int:
        """How many of `most` messages may be published."""
        return most if self._count is None else min(most, self._count - self.messages)


class LineFeed(Feed):
    r"""A message is what stands between two b"\n". Empty lines are none, and only counted."""

    _lines = 0  # lines before those at hand
    _next_probe = _PROBE

    def run(self, on_progress: OnProgress) -> None:
        space = memoryview(bytearray(self._piece()))
        begun = bytearray()  # a line whose end has not come
        while not self.done:
            found = self._read_into(space)
            if not found:
                break
            *lines, rest = bytes(space[:found]).split(b"\n")
            if lines:
                lines[0] = bytes(begun) + lines[0] if begun else lines[0]
                begun = bytearray(rest)
                self._next_probe = _PROBE
                self._publish(lines)
            else:
                begun += rest
                self._probe(len(begun))
            on_progress(self.messages, self.bytes_read)
        if self.done:
            return
        if self._stop.asked is not None:
            self.left_over = len(begun)
        elif begun:  # the last line may lack its end
            self._publish([bytes(begun)])

    def _publish(self, lines: list[bytes]) -> None:
        publish, pacer, count = self._publisher.publish, self._pacer, self._count
        messages, number = self.messages, self._lines
        try:
            for line in lines:
                number += 1
                if not line:
                    self.skipped += 1
                    continue
                if pacer is not None:
                    pacer.due(1)
                publish(line)
                messages += 1
                if messages == count:
                    break
        except MessageSizeError as error:
            raise _at_line(self._source, number, error) from error
        finally:
            self.messages, self._lines = messages, number

    def _probe(self, length: int) -> None:
        """A line without an end must not fill the memory when it cannot become a message."""
        if length < self._next_probe:
            return
        self._next_probe = 2 * length
        try:
            with self._publisher.reserve(length):
                raise _Fits
        except _Fits:
            return
        except MessageSizeError as error:
            raise _at_line(self._source, self._lines + 1, error) from error


class _Fits(Exception):
    """Drops the reservation."""


def _at_line(source: Source, number: int, error: MessageSizeError) -> MessageSizeError:
    return MessageSizeError(f"line {number:,} of {source.name}: {error.message}", error.hint)


class RecordFeed(Feed):
    """A message is so many bytes."""

    def __init__(
        self,
        source: Source,
        publisher: Publisher,
        stop: StopSignals,
        size: int,
        *,
        partial: bool,
        **options: Any,
    ) -> None:
        """`partial`: the last one may be shorter; the publisher must take any size then."""
        super().__init__(source, publisher, stop, **options)
        self._size = size
        self._partial = partial

    def run(self, on_progress: OnProgress) -> None:
        size = self._size
        space = memoryview(bytearray(max(1, self._piece() // size) * size))
        begun = 0  # bytes of a record whose end has not come
        while not self.done:
            found = self._read_into(space[begun:])
            if not found:
                break
            end = begun + found
            whole = end - end % size
            self._publish(space[:whole])
            begun = end - whole
            space[:begun] = space[whole:end]
            on_progress(self.messages, self.bytes_read)
        if self.done:
            return
        if self._stop.asked is not None:
            self.left_over = begun
        elif begun:
            self._end_with(space[:begun])

    def _publish(self, records: memoryview) -> None:
        left = self._left(len(records) // self._size)
        at = 0
        while left:
            number = left if self._pacer is None else self._pacer.due(left)
            self._publisher.publish_many(
                records[at * self._size : (at + number) * self._size], self._size
            )
            self.messages += number
            at += number
            left -= number

    def _end_with(self, rest: memoryview) -> None:
        if not self._partial:
            raise MessageSizeError(
                f"{self._source.name} ended after {len(rest):,} of the {self._size:,} bytes of a "
                "record; all before it are published",
                "--partial publishes a shorter record at the end as it is",
            )
        self._publisher.publish(rest)
        self.messages += 1


def check_size(source: Source, size: int, count: int | None) -> None:
    """Finds out before anything is published that a file does not consist of records.

    Raises `ConfigurationError`. Of a pipe nobody knows it before its end.
    """
    length = source.size()
    if length is None or (count is not None and count * size <= length):
        return
    if rest := length % size:
        raise ConfigurationError(
            f"{source.name} has {length:,} bytes: {length // size:,} records of {size:,} bytes, "
            f"and {rest:,} more",
            "--partial publishes a shorter record at the end as it is",
        )
