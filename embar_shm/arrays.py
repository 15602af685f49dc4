"""Batches as numpy arrays, without a copy: `Batch.array`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embar_shm import _core
from embar_shm.errors import MisuseError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

__all__ = ["array"]


def array(
    batch: _core.Batch, dtype: DTypeLike, shape: int | Sequence[int] | None = None
) -> NDArray[Any]:
    """A read-only array of the batch's messages. Raises `MisuseError` when it does not fit."""
    try:
        kind = np.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise MisuseError(
            f"{dtype!r} is no dtype: {error}", "for example 'u1', or numpy.float32"
        ) from None
    if kind.hasobject or kind.itemsize == 0:
        raise MisuseError(
            f"dtype {kind} cannot be read from a batch", "choose one of plain values, with a size"
        )
    if not batch.message_size and batch.count != 1:
        raise MisuseError(
            f"{batch!r} has messages with sizes of their own: they make no one array",
            "numpy.frombuffer() each of batch.messages(), or publish with a fixed message_size",
        )
    if batch.payload_bytes % kind.itemsize:
        raise MisuseError(
            f"dtype {kind} has {kind.itemsize} bytes, which do not divide the "
            f"{batch.payload_bytes} of {batch!r}",
            "read it with the dtype it was published with",
        )
    values = np.frombuffer(
        memoryview(batch) if batch.message_size else next(batch.messages()), kind
    )
    if shape is None:
        return values
    try:
        return values.reshape(shape)
    except (ValueError, TypeError) as error:
        count = values.size
        del values  # else the error's traceback would keep the batch from being released
        raise MisuseError(
            f"shape {shape} does not fit {count} values of dtype {kind} in {batch!r}: {error}",
            "one number of the shape may be -1",
        ) from None
