"""Arrow record batches, with the real pyarrow: written into the slot, read where they lie."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import embar_shm as es
from embar_shm import aio
from embar_shm.arrow import NotArrow, ipc_size, publish_arrow, record_batches, write_ipc
from embar_shm.testing import Child

Sent = Callable[..., es.Batch]

MANY_TYPES = pa.table(
    {
        "int8": pa.array([1, None, -3], pa.int8()),
        "float": pa.array([1.5, float("inf"), None]),
        "bool": pa.array([True, None, False]),
        "text": pa.array(["", "ä", None]),
        "large_text": pa.array(["x" * 100, None, ""], pa.large_string()),
        "bytes": pa.array([b"", b"\0", None]),
        "fixed": pa.array([b"12", b"34", None], pa.binary(2)),
        "list": pa.array([[1, None], [], None]),
        "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": None}]),
        "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int32())),
        "decimal": pa.array([Decimal("1.23"), None, Decimal("-4.56")]),
        "date": pa.array([date(2020, 2, 29), None, date(1970, 1, 1)]),
        "time": pa.array([datetime(2020, 1, 1, tzinfo=UTC), None, None], pa.timestamp("ns", "UTC")),
        "dictionary": pa.array(["a", "b", "a"]).dictionary_encode(),
        "null": pa.nulls(3),
    }
)


@pytest.fixture
def sent(make_broker: Callable[..., es.Broker]) -> Iterator[Sent]:
    """Publishes tables in one batch, and reads that: ``sent(table, ..., mode=...)``."""
    broker = make_broker(slot_size=65536).start()
    with ExitStack() as stack:
        publisher = stack.enter_context(es.Publisher.connect(broker.address, linger_ms=0))

        def send(*data: Any, mode: Any = "reliable", **options: Any) -> es.Batch:
            subscriber = stack.enter_context(es.Subscriber.connect(broker.address, mode=mode))
            for one in data:
                if isinstance(one, bytes):
                    publisher.publish(one)
                else:
                    publish_arrow(publisher, one, **options)
            publisher.flush()
            return subscriber.next(timeout=30)

        yield send
        gc.collect()  # columns that a failed test still holds


def only(batch: es.Batch, **options: Any) -> pa.RecordBatch:
    """The one record batch of a batch."""
    (found,) = record_batches(batch, **options)
    return found


def buffers(columns: pa.RecordBatch) -> list[pa.Buffer]:
    """All that a record batch consists of, dictionaries included."""
    found = []
    for column in columns.columns:
        found += [buffer for buffer in column.buffers() if buffer is not None]
        if pa.types.is_dictionary(column.type):
            found += [buffer for buffer in column.dictionary.buffers() if buffer is not None]
    return found


def lies_in(batch: es.Batch, buffer: pa.Buffer) -> bool:
    start = np.frombuffer(batch, np.uint8).__array_interface__["data"][0]
    return start <= buffer.address and buffer.address + buffer.size <= start + batch.nbytes


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["reliable", "lossy"])
def test_a_table_of_many_types_with_nulls_arrives_as_it_was(sent: Sent, mode: str) -> None:
    batch = sent(MANY_TYPES, mode=mode)
    assert pa.Table.from_batches(record_batches(batch, validate=True)).equals(MANY_TYPES)
    assert batch.count == 1


def test_a_record_batch_arrives_with_the_metadata_of_its_schema(sent: Sent) -> None:
    schema = pa.schema([pa.field("x", pa.int32(), nullable=False)], metadata={"unit": "mm"})
    columns = pa.RecordBatch.from_arrays([pa.array([1, 2], pa.int32())], schema=schema)
    found = only(sent(columns))
    assert found.equals(columns, check_metadata=True)
    assert found.schema.metadata == {b"unit": b"mm"}
    assert not found.schema.field("x").nullable


def test_every_buffer_lies_in_the_slot_at_an_address_that_8_divides(sent: Sent) -> None:
    batch = sent(MANY_TYPES, MANY_TYPES)
    for columns in record_batches(batch):
        assert len(buffers(columns)) > MANY_TYPES.num_columns
        assert all(lies_in(batch, buffer) for buffer in buffers(columns) if buffer.size)
        assert all(buffer.address % 8 == 0 for buffer in buffers(columns) if buffer.size)
    del columns
    batch.release()


def test_all_messages_of_a_batch_are_read_in_order_whatever_their_schemas(sent: Sent) -> None:
    batch = sent(pa.table({"a": [1]}), pa.table({"b": ["x", "y"]}), pa.table({"a": [2]}))
    assert batch.count == 3
    assert [one.to_pydict() for one in record_batches(batch)] == [
        {"a": [1]},
        {"b": ["x", "y"]},
        {"a": [2]},
    ]


def test_a_table_of_several_chunks_is_one_message_of_several_record_batches(sent: Sent) -> None:
    chunked = pa.chunked_array([["a"], ["b", "c"], ["d"]])
    batch = sent(pa.table({"x": chunked}))
    assert batch.count == 1
    assert [one.num_rows for one in record_batches(batch)] == [1, 2, 1]


def test_chunks_with_dictionaries_of_their_own_keep_their_values(sent: Sent) -> None:
    chunks = [pa.array(["a", "b"]).dictionary_encode(), pa.array(["b", "c"]).dictionary_encode()]
    batch = sent(pa.table({"x": pa.chunked_array(chunks)}))
    assert [one.column(0).to_pylist() for one in record_batches(batch)] == [["a", "b"], ["b", "c"]]


def test_a_slice_of_a_table_takes_only_its_own_room(sent: Sent) -> None:
    table = pa.table({"x": np.arange(8000)})
    assert ipc_size(table.slice(4000, 2)) < 1000
    assert only(sent(table.slice(4000, 2))).to_pydict() == {"x": [4000, 4001]}


@pytest.mark.parametrize(
    "empty",
    [
        MANY_TYPES.slice(0, 0),
        MANY_TYPES.schema.empty_table(),
        pa.table({"x": pa.chunked_array([], pa.int64())}),
        MANY_TYPES.slice(0, 0).combine_chunks(),
        pa.RecordBatch.from_pydict({"x": pa.array([], pa.string())}),
    ],
    ids=["slice", "empty table", "no chunks", "combined", "record batch"],
)
def test_an_empty_table_arrives_with_its_schema(sent: Sent, empty: Any) -> None:
    found = only(sent(empty), validate=True)
    assert found.num_rows == 0
    assert found.schema.equals(empty.schema)


def test_a_table_without_columns_arrives(sent: Sent) -> None:
    found = only(sent(pa.table({})))
    assert (found.num_rows, found.num_columns) == (0, 0)


def test_a_compressed_table_arrives_and_is_smaller(sent: Sent) -> None:
    table = pa.table({"x": np.zeros(5000)})
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    assert ipc_size(table, options=options) < 2000 < ipc_size(table)
    assert only(sent(table, options=options)).equals(table.to_batches()[0])


def test_what_others_read_from_the_message_is_an_ordinary_arrow_stream(sent: Sent) -> None:
    (message,) = sent(MANY_TYPES).messages()
    assert pa.ipc.open_stream(pa.py_buffer(message)).read_all().equals(MANY_TYPES)


# --- lifetimes ------------------------------------------------------------------------------------


def test_a_column_keeps_its_slot_until_it_is_gone(sent: Sent) -> None:
    batch = sent(pa.table({"x": [1, 2, 3], "y": ["a", "b", "c"]}))
    columns = only(batch)
    with pytest.raises(BufferError, match="still alive"):
        batch.release()
    column = columns.column("y").slice(1, 1)
    del columns
    with pytest.raises(BufferError, match="still alive"):
        batch.release()
    assert column.to_pylist() == ["b"]
    del column
    batch.release()
    assert batch.released


def test_a_numpy_array_of_a_column_keeps_its_slot(sent: Sent) -> None:
    batch = sent(pa.table({"x": [1, 2, 3]}))
    values = only(batch).column("x").to_numpy(zero_copy_only=True)
    with pytest.raises(BufferError, match="still alive"):
        batch.release()
    assert not values.flags.writeable
    assert values.tolist() == [1, 2, 3]
    del values
    batch.release()


def test_a_column_of_a_forgotten_batch_holds_its_slot_against_a_full_ring(
    make_broker: Callable[..., es.Broker],
) -> None:
    broker = make_broker(slots=2).start()
    with (
        es.Publisher.connect(broker.address, timeout=0.1) as publisher,
        es.Subscriber.connect(broker.address, name="keeps a column") as subscriber,
    ):

        def send(number: int) -> pa.Array:
            publish_arrow(publisher, pa.table({"x": [number] * 100}))
            publisher.flush()
            return only(subscriber.next(timeout=30)).column("x")

        kept = send(0)
        send(1)
        with pytest.raises(es.WaitTimeout, match="keeps a column"):
            send(2)
        assert kept.to_pylist() == [0] * 100
        del kept
        assert send(2).to_pylist() == [2] * 100


def test_an_iterator_in_the_middle_keeps_the_slot_and_closing_it_does_not(sent: Sent) -> None:
    batch = sent(MANY_TYPES, MANY_TYPES)
    iterator = record_batches(batch)
    next(iterator)
    with pytest.raises(BufferError, match="still alive"):
        batch.release()
    iterator.close()  # type: ignore[attr-defined]
    batch.release()


def test_columns_outlive_the_subscriber_and_the_broker(
    make_broker: Callable[..., es.Broker],
) -> None:
    broker = make_broker(slot_size=65536).start()
    with es.Subscriber.connect(broker.address) as subscriber:
        with es.Publisher.connect(broker.address) as publisher:
            publish_arrow(publisher, MANY_TYPES)
        columns = only(subscriber.next(timeout=30))
    broker.close()
    assert columns.equals(MANY_TYPES.to_batches()[0])


# --- what cannot be -------------------------------------------------------------------------------


def test_a_table_larger_than_a_batch_is_refused_with_both_sizes(
    make_broker: Callable[..., es.Broker], connect: Callable[..., es.Publisher]
) -> None:
    publisher = connect(make_broker(slot_size=4096))
    table = pa.table({"x": np.zeros(1000)})
    size = ipc_size(table)
    with pytest.raises(es.MessageSizeError, match=rf"{size} bytes .* batch of 4096 bytes"):
        publish_arrow(publisher, table)
    publisher.publish(b"it still works")


def test_a_publisher_of_fixed_sizes_is_refused(
    make_broker: Callable[..., es.Broker], connect: Callable[..., es.Publisher]
) -> None:
    publisher = connect(make_broker(), message_size=64)
    with pytest.raises(es.MisuseError, match=r"message_size=64; .* here \d+ bytes") as refused:
        publish_arrow(publisher, pa.table({"x": [1]}))
    assert "without message_size" in refused.value.hint


@pytest.mark.parametrize(
    "data", [[1], {"x": [1]}, pa.array([1]), None, b"x"], ids=lambda data: type(data).__name__
)
def test_anything_but_a_table_or_record_batch_is_refused(
    make_broker: Callable[..., es.Broker], connect: Callable[..., es.Publisher], data: object
) -> None:
    publisher = connect(make_broker())
    with pytest.raises(es.MisuseError, match="RecordBatch or Table; got"):
        publish_arrow(publisher, data)
    publisher.publish(b"it still works")


@pytest.mark.parametrize("size", [8, 200, 100_000])
def test_memory_of_the_wrong_size_is_refused_and_not_kept(size: int) -> None:
    memory = bytearray(size)
    with memoryview(memory) as view, pytest.raises(es.MisuseError, match=f"the {size} ") as refused:
        write_ipc(view, pa.table({"x": [1, 2, 3]}))
    memory.append(0)  # no view of it is alive, though the error is
    assert "ipc_size" in refused.value.hint


@pytest.mark.parametrize(
    "message",
    [b"x", b"hello", bytes(8), bytes(1000), b"\xff" * 1000, b"ARROW1\0\0" * 10],
    ids=lambda message: f"{message[:8]!r} of {len(message)}",
)
def test_a_message_that_is_no_arrow_is_refused_by_its_number(sent: Sent, message: bytes) -> None:
    batch = sent(pa.table({"x": [1]}), message)
    found = record_batches(batch)
    assert next(found).to_pydict() == {"x": [1]}
    with pytest.raises(NotArrow, match=r"message 1 of <Batch .* is no sound Arrow") as refused:
        list(found)
    assert isinstance(refused.value, es.PeerError)
    batch.release()  # the error keeps nothing of it


def test_a_released_batch_has_no_record_batches(sent: Sent) -> None:
    batch = sent(pa.table({"x": [1]}))
    batch.release()
    with pytest.raises(es.ClosedError, match="released already"):
        record_batches(batch)


def stream(table: pa.Table) -> bytearray:
    memory = bytearray(ipc_size(table))
    with memoryview(memory) as view:
        write_ipc(view, table)
    return memory


def test_offsets_that_point_elsewhere_are_found_by_validate(sent: Sent) -> None:
    message = stream(pa.table({"x": ["ab", "cd"]}))
    at = message.index(np.array([0, 2, 4], np.int32).tobytes())
    message[at + 4 : at + 8] = np.array([2**30], np.int32).tobytes()
    batch = sent(bytes(message))
    with pytest.raises(NotArrow, match=r"message 0 .*[Oo]ffset"):
        only(batch, validate=True)


def test_columns_longer_than_their_buffers_are_always_refused(sent: Sent) -> None:
    message = stream(pa.table({"x": np.arange(37)}))
    rows = np.array([37], np.int64).tobytes()
    message = message.replace(rows, np.array([2**40], np.int64).tobytes())
    with pytest.raises(NotArrow, match="message 0 of"):
        only(sent(bytes(message)))


def test_damaged_streams_are_refused_or_read_and_never_crash(
    run_child: Callable[..., Child],
) -> None:
    seed = random.randrange(2**32)  # noqa: S311 - told when it fails
    child = run_child(_READS_DAMAGED, seed)
    line = child.read(timeout=100)
    print(f"seed {seed}: {line}")
    refused, read, other = map(int, line.split())
    assert child.wait() == 0, child.errors
    assert refused > 100
    assert read > 100  # the changed byte is one of a value
    assert other == 0


_READS_DAMAGED = """
import decimal, random, sys
import embar_shm as es
import pyarrow as pa
from embar_shm.arrow import NotArrow, ipc_size, record_batches, write_ipc

table = pa.table({
    "i": pa.array([1, None, 3]), "s": pa.array(["x", "yy", None]), "l": pa.array([[1], [], None]),
    "d": pa.array(["q", "q", "r"]).dictionary_encode(), "b": pa.array([True, None, False]),
})
sound = bytearray(ipc_size(table))
with memoryview(sound) as view:
    write_ipc(view, table)


class Batch:  # all that record_batches() asks of one
    def __init__(self, message):
        self.messages = lambda: iter([memoryview(message)])


chance = random.Random(int(sys.argv[1]))
refused = read = other = 0
for _ in range(3000):
    message = bytearray(sound)
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        message[chance.randrange(len(message))] = chance.choice([0, 1, 255, chance.randrange(256)])
    if chance.random() < 0.1:
        del message[chance.randrange(1, len(message)) :]
    try:
        for columns in record_batches(Batch(bytes(message)), validate=True):
            str(columns.to_pydict())
        read += 1
    except NotArrow:
        refused += 1
    except Exception as error:
        print(repr(error), file=sys.stderr)
        other += 1
print(refused, read, other)
"""


# --- pyarrow itself -------------------------------------------------------------------------------


def test_pyarrow_is_imported_only_when_it_is_used(run_child: Callable[..., Child]) -> None:
    child = run_child(
        """
        import sys
        import embar_shm, embar_shm.aio, embar_shm.arrow
        print("pyarrow" in sys.modules)
        """
    )
    child.expect("False")
    assert child.wait() == 0


def test_without_pyarrow_the_error_says_how_to_get_it(
    sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = sent(b"x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for call in (lambda: record_batches(batch), lambda: ipc_size(MANY_TYPES)):
        with pytest.raises(es.ResourceError, match="needs pyarrow") as missing:
            call()
        assert missing.value.hint == "pip install 'embar-shm[arrow]'"


# --- in an event loop -----------------------------------------------------------------------------


def test_a_table_goes_from_loop_to_loop_through_reserved_memory(
    make_broker: Callable[..., es.Broker],
) -> None:
    import asyncio

    broker = make_broker(slot_size=65536).start()

    async def main() -> None:
        async with (
            await aio.Subscriber.connect(broker.address) as subscriber,
            await aio.Publisher.connect(broker.address) as publisher,
        ):
            async with publisher.reserve(ipc_size(MANY_TYPES)) as view:
                write_ipc(view, MANY_TYPES)
            await publisher.flush()
            batch = await subscriber.next(timeout=30)
            assert only(batch).equals(MANY_TYPES.to_batches()[0])

    asyncio.run(main())
