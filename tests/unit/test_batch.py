"""A batch as a Python object: what it shows, how long its bytes stay, and what it refuses.

On a ring of three slots of 256 bytes; nothing waits here, and nothing else runs.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import pickle
import struct
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from raw_ring import RELEASED, VARIABLE, RawRing, accept, framed, make_slots_dirty, message

from embar_shm import _core
from embar_shm.errors import ClosedError, CorruptBatch, MisuseError

MODES = pytest.mark.parametrize("mode", ["reliable", "lossy"])
FIXED = [message(n, 64) for n in range(3)]
ANY = [b"a", message(1, 63), message(2, 8)]


class Reading:
    """One subscriber of a ring, and batches for it."""

    def __init__(self, mode: str = "reliable", slots: int = 3) -> None:
        self.ring = RawRing(slots=slots)
        make_slots_dirty(self.ring)
        self.broker = self.ring.broker(retain=slots if mode == "lossy" else 0)
        self.core = self.ring.subscriber(self.broker, mode=mode)
        self._made = 0

    def batch(self, *messages: bytes, **options: Any) -> _core.Batch:
        """Published, accepted and read."""
        publisher = self.ring.publisher(self._made % 4, publisher_id=self._made, **options)
        self._made += 1
        for one in messages:
            publisher.publish(one)
        publisher.flush()
        self.broker.reap_row((self._made - 2) % 4)
        accept(self.broker)
        batch = self.core.poll()
        assert batch is not None
        return batch

    def fixed(self) -> _core.Batch:
        return self.batch(*FIXED)

    def variable(self) -> _core.Batch:
        return self.batch(*ANY, **VARIABLE)

    @property
    def released(self) -> int:
        self.broker.release_passed(True)
        return self.ring.u64(RELEASED)


# --- buffer ---------------------------------------------------------------------------------------


@MODES
def test_the_buffer_of_a_batch_is_its_body_read_only(mode: str) -> None:
    batch = Reading(mode).fixed()
    view = memoryview(batch)
    assert (view.readonly, view.format, view.nbytes) == (True, "B", 192)
    assert (view.ndim, view.contiguous, view.obj is batch) == (1, True, True)
    assert view.tobytes() == b"".join(FIXED) == batch.copy()
    with pytest.raises(TypeError):
        view[0] = 1


def test_a_batch_of_messages_of_any_size_shows_their_frames() -> None:
    batch = Reading().variable()
    assert bytes(batch) == framed(*ANY) == batch.copy()
    assert (batch.nbytes, batch.payload_bytes) == (len(framed(*ANY)), sum(map(len, ANY)))


@MODES
def test_nobody_gets_a_batch_to_write_into(mode: str) -> None:
    batch = Reading(mode).fixed()
    for into in (struct.Struct("<Q").pack_into, lambda b, *_: (ctypes.c_char * 8).from_buffer(b)):
        with pytest.raises(TypeError):
            into(batch, 0, 1)
    assert batch.copy() == b"".join(FIXED)


def test_a_buffer_that_is_refused_leaves_no_pin_behind() -> None:
    reading = Reading()
    batch = reading.fixed()
    for _ in range(3):
        with pytest.raises((BufferError, TypeError)):
            struct.pack_into("<Q", batch, 0, 1)
    assert reading.core.pinned == 0
    batch.release()
    assert reading.released == 1


# --- messages -------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("kind", ["fixed", "variable"])
def test_messages_are_what_was_published_without_a_copy(kind: str, mode: str) -> None:
    batch = getattr(Reading(mode), kind)()
    expected = FIXED if kind == "fixed" else ANY
    body = np.frombuffer(batch, np.uint8)
    found = list(batch.messages())
    assert [bytes(m) for m in found] == expected
    for view in found:
        assert (view.readonly, view.format, view.obj is batch) == (True, "B", True)
        assert np.shares_memory(np.frombuffer(view, np.uint8), body)
    assert len(expected) == batch.count


def test_messages_can_be_iterated_many_times_and_side_by_side() -> None:
    batch = Reading().variable()
    first, second = batch.messages(), batch.messages()
    assert iter(first) is first
    assert [bytes(a) + bytes(b) for a, b in zip(first, second, strict=True)] == [m + m for m in ANY]
    assert list(first) == []
    assert [m.nbytes for m in batch.messages()] == [1, 63, 8]


def test_messages_know_how_many_are_left() -> None:
    messages = Reading().fixed().messages()
    assert messages.__length_hint__() == 3
    assert [messages.__length_hint__() for _ in messages] == [2, 1, 0]


def test_a_view_of_a_message_pins_the_whole_batch() -> None:
    reading = Reading()
    batch = reading.fixed()
    messages = batch.messages()
    view = next(messages)
    with pytest.raises(BufferError, match="a view or array of this batch is still alive"):
        batch.release()
    view.release()
    batch.release()
    with pytest.raises(ClosedError, match="released already"):
        next(messages)
    assert reading.released == 1


@pytest.mark.parametrize(
    "lengths",
    [
        [0],
        [2**32 - 1],
        [2**32 - 8],
        [2**31],
        [89],  # one more than there is room for
        [8, 0],
        [8, 2**32 - 1],
        [8, 73],
        [8, 8, 8, 49],
    ],
    ids=str,
)
def test_a_length_that_cannot_be_is_told_and_never_followed(lengths: list[int]) -> None:
    """The body is in shared memory, and its frames are not covered by the header's check word."""
    reading = Reading(slots=1)
    batch = reading.batch(*[b"12345678"] * 6, **VARIABLE)
    assert batch.nbytes == 96
    at = reading.ring.header_at(0) + 4096
    for length in lengths:
        struct.pack_into("<I", reading.ring.memory, at, length)
        at += 8 + (length + 7) // 8 * 8
    messages = batch.messages()
    good = [bytes(next(messages)) for _ in lengths[:-1]]
    assert good == [b"12345678"] * (len(lengths) - 1)
    for _ in range(2):  # and again
        with pytest.raises(CorruptBatch, match=f"message {len(good)} of <Batch ticket=0"):
            next(messages)
    batch.release()
    assert reading.released == 1


def test_frames_that_end_too_early_give_fewer_bytes_and_never_more_messages() -> None:
    reading = Reading(slots=1)
    batch = reading.batch(b"12345678", b"12345678", **VARIABLE)
    struct.pack_into("<I", reading.ring.memory, reading.ring.header_at(0) + 4096, 24)
    messages = batch.messages()
    assert bytes(next(messages)) == batch.copy()[8:32]
    with pytest.raises(CorruptBatch):
        next(messages)


# --- arrays ---------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        ("u1", None, (192,)),
        (np.uint8, 192, (192,)),
        ("<u4", None, (48,)),
        ("<u4", -1, (48,)),
        ("<u4", (3, 16), (3, 16)),
        ("<u4", [3, -1], (3, 16)),
        ("<u4", (-1, 2, 4), (6, 2, 4)),
        (">f8", (24,), (24,)),
        ([("a", "<u4"), ("b", "<f8"), ("c", "S4")], None, (12,)),
        (np.dtype((np.int32, (4,))), None, (12, 4)),
        ("S64", None, (3,)),
        ("V3", None, (64,)),
        ("?", np.int64(192), (192,)),
    ],
    ids=str,
)
def test_an_array_has_the_dtype_and_shape_asked_for(
    dtype: Any, shape: Any, expected: tuple[int, ...], mode: str
) -> None:
    batch = Reading(mode).fixed()
    array = batch.array(dtype, shape=shape)
    assert array.shape == expected
    assert not array.flags.writeable
    assert array.tobytes() == b"".join(FIXED)
    assert np.shares_memory(array.view(np.uint8), np.frombuffer(batch, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        array[...] = array
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


def test_an_array_of_one_message_of_any_size_is_of_that_message() -> None:
    batch = Reading().batch(message(1, 24), **VARIABLE)
    assert batch.array("<u8").tobytes() == message(1, 24)
    assert batch.array("<f4", (2, 3)).shape == (2, 3)


@pytest.mark.parametrize(
    ("dtype", "shape", "says"),
    [
        ("V5", None, r"dtype \|V5 has 5 bytes, which do not divide the 192 of <Batch ticket=0"),
        ("V193", None, "193 bytes, which do not divide the 192"),
        ("<u4", (3, 15), r"shape \(3, 15\) does not fit 48 values of dtype uint32"),
        ("<u4", (5, -1), r"shape \(5, -1\) does not fit 48 values"),
        ("<u4", (-1, -1), r"shape \(-1, -1\) .* can only specify one unknown dimension"),
        ("<u4", (0, -1), r"shape \(0, -1\)"),
        ("<u4", 0, "shape 0 does not fit"),
        ("<u4", (), r"shape \(\) does not fit"),
        ("<u4", 47, "shape 47 does not fit"),
        ("<u4", np.int64(47), "shape 47 does not fit"),
        ("<u4", 1.5, r"shape 1\.5 does not fit"),
        ("<u4", ("a",), r"shape \('a',\) does not fit"),
        ("<u4", "ab", "shape ab does not fit"),
        ("<u4", (2**62, 4), "does not fit"),
        ("O", None, "dtype object cannot be read from a batch"),
        ([("a", "O")], None, "cannot be read from a batch"),
        ("V0", None, "cannot be read from a batch"),
        ("S", None, "cannot be read from a batch"),
        ("U", None, "cannot be read from a batch"),
        ([], None, "cannot be read from a batch"),
    ],
    ids=str,
)
def test_an_array_that_does_not_fit_says_why_and_holds_nothing(
    dtype: Any, shape: Any, says: str
) -> None:
    reading = Reading()
    batch = reading.fixed()
    with pytest.raises(MisuseError, match=says) as caught:
        batch.array(dtype, shape)
    assert reading.core.pinned == 0  # though the error, and its traceback, are alive
    batch.release()
    assert caught.value.hint


def test_messages_of_different_sizes_make_no_one_array() -> None:
    batch = Reading().variable()
    with pytest.raises(MisuseError, match="messages with sizes of their own"):
        batch.array()


@pytest.mark.parametrize("dtype", ["no such", 5.5, object()], ids=["name", "float", "object"])
def test_a_dtype_that_numpy_does_not_know_is_refused_with_its_reason(dtype: Any) -> None:
    reading = Reading()
    batch = reading.fixed()
    with pytest.raises(MisuseError, match=r"is no dtype: "):
        batch.array(dtype)
    assert reading.core.pinned == 0


def test_a_finalizer_that_reads_messages_does_not_change_what_a_message_is() -> None:
    reading = Reading()
    batch = reading.fixed()

    class Reads:
        def __init__(self) -> None:
            self.me = self  # garbage that only a collection finds

        def __del__(self) -> None:
            next(batch.messages())

    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)  # a collection at every allocation it counts
    try:
        for _ in range(200):
            Reads()
            assert [m.nbytes for m in batch.messages()] == [len(m) for m in FIXED]
    finally:
        gc.set_threshold(*before)


# --- releasing ------------------------------------------------------------------------------------


def calls_of(batch: _core.Batch) -> dict[str, Callable[[], object]]:
    return {
        "release": batch.release,
        "copy": batch.copy,
        "messages": batch.messages,
        "array": batch.array,
        "enter": batch.__enter__,
    }


@MODES
def test_a_released_batch_tells_its_header_and_nothing_else(mode: str) -> None:
    batch = Reading(mode).fixed()
    batch.release()
    assert batch.released
    for call in calls_of(batch).values():
        with pytest.raises(ClosedError, match="released already"):
            call()
    for take in (memoryview, bytes, np.frombuffer):
        with pytest.raises(BufferError, match="released"):
            take(batch)
    assert (batch.ticket, batch.count, batch.nbytes) == (0, 3, 192)
    assert repr(batch) == "<Batch ticket=0, publisher 0 seq 1, 3 messages, 192 bytes, released>"


def test_after_close_a_batch_of_a_reliable_subscriber_is_gone() -> None:
    reading = Reading()
    batch = reading.fixed()
    messages = batch.messages()
    reading.core.close()
    assert batch.released
    for call in (*calls_of(batch).values(), lambda: next(messages)):
        with pytest.raises(ClosedError, match="the subscriber on unit/0 is closed"):
            call()
    with pytest.raises(BufferError, match="its subscriber closed"):
        memoryview(batch)
    reading.broker.reap()
    assert reading.released == 1


def test_after_close_a_batch_of_a_lossy_subscriber_is_still_there() -> None:
    reading = Reading("lossy")
    batch = reading.fixed()
    reading.core.close()
    assert [bytes(m) for m in batch.messages()] == FIXED
    batch.release()
    assert batch.released


def test_leaving_the_with_block_releases_the_batch() -> None:
    reading = Reading()
    with reading.fixed() as batch:
        assert not batch.released
    assert batch.released
    assert reading.released == 1
    with reading.fixed() as batch:
        batch.release()  # inside is fine
    assert reading.released == 2
    with pytest.raises(ClosedError), batch:
        pass


def test_leaving_the_with_block_lets_the_last_view_release_the_batch() -> None:
    reading = Reading()
    with reading.fixed() as batch:
        message = next(batch.messages())
        array = batch.array()
    assert batch.released
    with pytest.raises(ClosedError):
        batch.array()
    with pytest.raises(BufferError):
        memoryview(batch)
    assert reading.released == 0  # the slot
    assert array.tobytes() == b"".join(FIXED)
    del array
    assert reading.released == 0
    assert bytes(message) == FIXED[0]
    del message
    assert reading.released == 1
    del batch
    assert reading.released == 1


def test_an_error_in_the_with_block_comes_out_and_the_batch_ends_with_its_views() -> None:
    reading = Reading()
    with pytest.raises(KeyError), reading.fixed() as batch:
        raise KeyError
    assert batch.released
    batch = reading.fixed()
    with pytest.raises(KeyError), batch:
        array = batch.array()
        raise KeyError
    assert batch.released
    assert reading.released == 1
    del array
    assert reading.released == 2


def test_closing_inside_the_with_block_is_no_error() -> None:
    reading = Reading()
    with reading.fixed() as batch:
        reading.core.close()
    assert batch.released
    assert reading.ring.left == [0]


def test_a_batch_nobody_refers_to_is_released() -> None:
    reading = Reading()
    reading.fixed()
    assert reading.released == 1
    messages = reading.fixed().messages()
    assert reading.released == 1  # its messages refer to it
    view = next(messages)
    del messages
    assert reading.released == 1
    del view
    assert reading.released == 2


def test_a_batch_in_a_cycle_is_released_by_the_collector() -> None:
    reading = Reading()
    cycle: list[Any] = [reading.fixed()]
    cycle.append(cycle)
    gc.disable()
    try:
        del cycle
        assert reading.released == 0
        gc.collect()
    finally:
        gc.enable()
    assert reading.released == 1


def test_views_outlive_the_batch_its_subscriber_and_the_ring() -> None:
    reading = Reading()
    batch = reading.fixed()
    array, view = batch.array("<u4", (3, -1)), memoryview(batch)
    message_view = next(batch.messages())
    part = array[1:, ::2]
    ring = weakref.ref(reading.ring)
    reading.core.close()
    del batch, reading, array
    gc.collect()
    assert bytes(view) == b"".join(FIXED)
    assert bytes(message_view) == FIXED[0]
    assert part.tobytes() == np.frombuffer(b"".join(FIXED), "<u4").reshape(3, -1)[1:, ::2].tobytes()
    left = ring().left  # type: ignore[union-attr]
    del view, message_view
    assert left == []
    del part
    assert left == [0]


def test_what_is_pinned_does_not_change_while_everything_else_does() -> None:
    reading = Reading()
    pinned = reading.fixed().array()
    for _ in range(2):  # nothing behind it is released: two slots are left
        reading.variable()
    assert reading.released == 0
    assert pinned.tobytes() == b"".join(FIXED)
    del pinned
    assert reading.released == 3


def test_a_view_that_ends_while_an_error_is_raised_leaves_that_error_alone() -> None:
    reading = Reading()

    def fail() -> None:
        array = reading.fixed().array()
        reading.core.close()
        raise KeyError(array[0])

    with pytest.raises(KeyError):
        fail()
    gc.collect()
    assert reading.ring.left == [0]


def test_views_are_released_by_any_thread() -> None:
    reading = Reading()
    views = [memoryview(reading.fixed()) for _ in range(3)]
    reading.core.close()
    threads = [threading.Thread(target=view.release) for view in views]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reading.ring.left == [0]
    assert reading.core.pinned == 0


# --- what a batch is not --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "take",
    [
        copy.copy,
        copy.deepcopy,
        lambda batch: pickle.dumps(batch, 2),
        lambda batch: pickle.dumps(batch, pickle.HIGHEST_PROTOCOL),
    ],
    ids=["copy", "deepcopy", "pickle 2", "pickle"],
)
def test_a_batch_cannot_be_copied_or_sent_elsewhere(take: Callable[[object], object]) -> None:
    reading = Reading()
    batch = reading.fixed()
    with pytest.raises(TypeError, match="Batch"):
        take(batch)
    batch.release()


@pytest.mark.filterwarnings("ignore:nanobind. attempted to access an uninitialized instance")
@pytest.mark.parametrize(
    "use",
    [
        memoryview,
        repr,
        lambda batch: batch.release(),
        lambda batch: batch.messages(),
        lambda batch: batch.array(),
        lambda batch: batch.copy(),
        lambda batch: batch.ticket,
        lambda batch: batch.__enter__(),
        lambda batch: batch.__exit__(None, None, None),
    ],
    ids=["view", "repr", "release", "messages", "array", "copy", "ticket", "enter", "exit"],
)
def test_a_batch_made_from_nothing_is_of_no_use(use: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError):
        _core.Batch()
    with pytest.raises((TypeError, BufferError)):
        use(_core.Batch.__new__(_core.Batch))


@pytest.mark.filterwarnings("ignore:nanobind. attempted to access an uninitialized instance")
def test_messages_made_from_nothing_are_none() -> None:
    with pytest.raises(TypeError):
        _core.Messages()
    with pytest.raises(TypeError):
        next(_core.Messages.__new__(_core.Messages))
    with pytest.raises(TypeError):
        _core.Messages.__new__(_core.Messages).__length_hint__()


def test_the_fields_of_a_batch_cannot_be_set() -> None:
    batch = Reading().fixed()
    with pytest.raises(AttributeError):
        batch.ticket = 5  # type: ignore[misc]
    with pytest.raises(AttributeError):
        batch.note = "mine"  # type: ignore[attr-defined]


def test_a_batch_costs_no_references() -> None:
    reading = Reading()
    before = sys.getrefcount(reading.core)
    for _ in range(100):
        batch = reading.fixed()
        batch.array()
        list(batch.messages())
        batch.release()
        del batch
        reading.broker.release_passed(False)
    after = sys.getrefcount(reading.core)
    assert after == before
    assert reading.core.pinned == 0
