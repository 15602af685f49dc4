"""Arrow record batches through a ring: written into the slot, and read there.

    from embar_shm.arrow import publish_arrow, record_batches

    publish_arrow(pub, table)                       # one message: an Arrow IPC stream
    pub.flush()

    batch = sub.next()
    for columns in record_batches(batch):           # pyarrow.RecordBatch, its columns in the slot
        print(columns.schema, columns.num_rows)

A message is one IPC stream with its schema and dictionaries, so it can be read by itself, and by
anything else that reads the format. Columns are read where they lie, at addresses that 8 divides;
as long as one of them, or a slice of one, is alive, its slot keeps its bytes. Needs pyarrow:
``pip install 'embar-shm[arrow]'``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from embar_shm.errors import MisuseError, PeerError, ResourceError

if TYPE_CHECKING:
    from embar_shm._core import Batch, Messages
    from embar_shm.publisher import Publisher

    # pyarrow comes without types.
    RecordBatch: TypeAlias = Any
    Table: TypeAlias = Any
    IpcWriteOptions: TypeAlias = Any

__all__ = ["NotArrow", "ipc_size", "publish_arrow", "record_batches", "write_ipc"]


class NotArrow(PeerError):
    """A message is no Arrow IPC stream, or a damaged one. It was published by something else."""


def publish_arrow(
    publisher: Publisher,
    data: RecordBatch | Table,
    *,
    options: IpcWriteOptions | None = None,
) -> None:
    """Appends a pyarrow.RecordBatch or Table as one message, written straight into the slot.

    options: a pyarrow.ipc.IpcWriteOptions. Compressed columns are not read without a copy.

    Blocks and raises like `Publisher.reserve`: `MessageSizeError` when the stream is larger than a
    batch. `MisuseError` when the publisher has a fixed `message_size`, or `data` is something
    else; `ResourceError` without pyarrow; what pyarrow raises for columns that it cannot write.
    """
    size = ipc_size(data, options=options)
    if (fixed := publisher._link.message_size) is not None:
        raise MisuseError(
            f"this publisher was connected with message_size={fixed}; Arrow data has sizes of its "
            f"own, here {size} bytes",
            "connect a publisher without message_size for it",
        )
    with publisher.reserve(size) as view:
        write_ipc(view, data, options=options)


def ipc_size(data: RecordBatch | Table, *, options: IpcWriteOptions | None = None) -> int:
    """The bytes `data` takes as a message: for `reserve`, also that of `embar_shm.aio`.

    Looks at the columns' sizes, not at their values, unless they are to be compressed.
    """
    pa = _pyarrow()
    sink = pa.MockOutputStream()
    _write(pa, sink, data, options)
    return int(sink.size())


def write_ipc(
    view: memoryview, data: RecordBatch | Table, *, options: IpcWriteOptions | None = None
) -> None:
    """Writes `data` into memory of just `ipc_size` bytes."""
    pa = _pyarrow()
    sink = pa.FixedSizeBufferWriter(pa.py_buffer(view))
    try:
        _write(pa, sink, data, options)
        if sink.tell() != view.nbytes:
            raise MisuseError(
                f"the Arrow stream has {sink.tell()} bytes, not the {view.nbytes} reserved for it",
                "reserve ipc_size(data), with the same options",
            )
    except OSError as error:
        raise MisuseError(
            f"the Arrow stream does not fit into the {view.nbytes} bytes reserved for it: {error}",
            "reserve ipc_size(data), with the same options",
        ) from None
    finally:
        sink.close()
        del sink


def record_batches(batch: Batch, *, validate: bool = False) -> Iterator[RecordBatch]:
    """The pyarrow.RecordBatches of all messages of a batch, in order; nothing is copied.

    The batch cannot be released (`BufferError`) while one of them, or this iterator in the middle,
    is alive; without `Batch.release`, the slot is given back with the last column.

    validate: look at every value, too. What does not fit into its buffers is refused always; but
        offsets and indices that point elsewhere are found this way only, and reading such columns
        can crash the process. For data of publishers that you do not trust.

    Raises `NotArrow`; `ResourceError` without pyarrow; `ClosedError` when the batch is released.
    """
    return _read(_pyarrow(), batch, batch.messages(), validate)


def _read(pa: Any, batch: Batch, messages: Messages, validate: bool) -> Iterator[RecordBatch]:
    for index, message in enumerate(messages):
        reason = None
        try:
            yield from _read_stream(pa, pa.py_buffer(message), validate)
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
        if reason is not None:  # not in the handler: pyarrow's error would keep the message
            del message
            raise NotArrow(
                f"message {index} of {batch!r} is no sound Arrow IPC stream: {reason}",
                "was it published with publish_arrow?",
            )


def _read_stream(pa: Any, stream: Any, validate: bool) -> Iterator[RecordBatch]:
    with pa.ipc.open_stream(stream) as reader:
        _ = reader.schema.names  # they may be no text
        while True:
            try:
                columns = reader.read_next_batch()
            except StopIteration:
                return
            columns.validate(full=validate)
            yield columns
            del columns  # the one who iterates decides how long it lives


def _write(pa: Any, sink: Any, data: RecordBatch | Table, options: IpcWriteOptions | None) -> None:
    if not isinstance(data, pa.RecordBatch | pa.Table):
        raise MisuseError(
            f"expected a pyarrow.RecordBatch or Table; got {type(data).__name__}",
            "pyarrow.table(...) makes one of columns, and of data frames",
        )
    if isinstance(data, pa.Table) and data.num_rows == 0:  # it may have no chunk at all
        empty = [pa.array([], field.type) for field in data.schema]
        data = pa.RecordBatch.from_arrays(empty, schema=data.schema)
    writer = pa.ipc.new_stream(sink, data.schema, options=options)
    try:
        writer.write(data)
        writer.close()
    finally:
        del writer, sink  # an error on its way keeps what stands here, and so the slot


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise ResourceError(
            f"Arrow data needs pyarrow, which cannot be imported: {error}",
            "pip install 'embar-shm[arrow]'",
        ) from None
    return pyarrow
