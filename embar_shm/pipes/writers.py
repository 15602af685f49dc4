"""How the messages of a batch look in a file: lines, their bare bytes, or JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Final

from embar_shm._core import Batch
from embar_shm.pipes.output import Output

__all__ = ["FORMATS", "Writer"]

Writer = Callable[[Output, Batch, int], None]
"""Writes the first so many messages of a batch. Raises `OSError`, `CorruptBatch`."""


def _lines(output: Output, batch: Batch, count: int) -> None:
    output.write(b"\n".join(_first(batch, count)))
    output.write(b"\n")


def _raw(output: Output, batch: Batch, count: int) -> None:
    if batch.message_size and count == batch.count:  # back to back in the slot, as they shall be
        with memoryview(batch) as body:
            output.write(body)
    else:
        output.write(b"".join(_first(batch, count)))


def _json(output: Output, batch: Batch, count: int) -> None:
    head = {
        "ticket": batch.ticket,
        "publisher": f"{batch.publisher_id:016x}",  # text: 64 bits are too many for some readers
        "seq": batch.seq,
    }
    for index, message in enumerate(_first(batch, count)):
        found = {**head, "index": index, **_content(message)}
        output.write(json.dumps(found, ensure_ascii=False).encode() + b"\n")


def _first(batch: Batch, count: int) -> Iterator[bytes]:
    return map(bytes, islice(batch.messages(), count))  # join() is slow with views


def _content(message: bytes) -> dict[str, str]:
    try:
        return {"text": message.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(message).decode()}


FORMATS: Final[Mapping[str, Writer]] = {"lines": _lines, "raw": _raw, "json": _json}
