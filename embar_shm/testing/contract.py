"""What every transport promises, as a pytest class.

A transport's own test module subclasses it, and that is all:

    from embar_shm.testing import TransportContract

    class TestCarrierPigeon(TransportContract):
        scheme = "pigeon"
"""

# ruff: noqa: S101 - these are tests, though they ship with the package

from __future__ import annotations

import array
import itertools
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

import embar_shm as es
from embar_shm import transports
from embar_shm.testing.conditions import wait_until
from embar_shm.testing.isolation import isolated, unique_cluster
from embar_shm.testing.log import Log
from embar_shm.testing.processes import Child

__all__ = ["Endpoint", "TransportContract"]

SLOT = 4096  # bytes of a batch in these tests

PRICE = np.dtype([("Open", "<f8"), ("volume", "<u4")])

BUFFERS = {
    "bytes": b"hello",
    "bytearray": bytearray(b"hello"),
    "memoryview": memoryview(b">hello<")[1:-1],
    "array.array": array.array("d", [1.5, 2.5]),
    "1-D array": np.arange(5, dtype=np.int32),
    "2-D array": np.arange(6, dtype=np.uint16).reshape(2, 3),
    "0-D array": np.float64(2.5),
    "read-only array": np.frombuffer(b"hello", dtype=np.uint8),
    "structured array": np.array([(1.5, 7), (2.5, 8)], dtype=PRICE),
    "bytes subclass": type("Blob", (bytes,), {})(b"hello"),
}

EMPTY_ROWS: Any = np.zeros((3, 0))

NOT_BUFFERS = {
    "str": "hello",
    "None": None,
    "int": 5,
    "list": [1, 2, 3],
    "every second value": np.arange(10, dtype=np.uint8)[::2],
    "every second byte": memoryview(b"0123456789")[::2],
    "Fortran order": np.zeros((4, 3), dtype=np.uint8, order="F"),
    "array of objects": np.array(["a", None], dtype=object),
}


# Options of the publisher, what it is asked for, what the error has to say.
WRONG_SIZES: dict[str, tuple[dict[str, Any], Callable[[es.Publisher], object], str]] = {
    "empty": ({}, lambda pub: pub.publish(b""), "at least one byte"),
    "empty, fixed size": ({"message_size": 8}, lambda pub: pub.publish(b""), "at least one byte"),
    "reserve 0": ({}, lambda pub: pub.reserve(0), "at least one byte"),
    "many of 0": ({}, lambda pub: pub.publish_many(b"x", 0), "at least one byte"),
    "empty rows": ({}, lambda pub: pub.publish_many(EMPTY_ROWS), "at least one byte"),
    "too large": ({}, lambda pub: pub.publish(bytes(SLOT - 7)), f"{SLOT - 7} bytes .* {SLOT} b"),
    "too large for the batch_size": (
        {"batch_size": 64},
        lambda pub: pub.publish(bytes(57)),
        "57 bytes .* 64 bytes",
    ),
    "reserve too much": ({}, lambda pub: pub.reserve(SLOT - 7), f"{SLOT - 7} bytes .* {SLOT} b"),
    "reserve far too much": ({}, lambda pub: pub.reserve(2**64), f"{2**64} bytes .* {SLOT} b"),
    "reserve too many": (
        {"message_size": 8},
        lambda pub: pub.reserve(SLOT + 8),
        f"{SLOT + 8} bytes .* {SLOT} bytes",
    ),
    "many too large": (
        {},
        lambda pub: pub.publish_many(bytes(2 * SLOT + 2), SLOT + 1),
        f"{SLOT + 1} bytes .* {SLOT} bytes",
    ),
    "too short": ({"message_size": 8}, lambda pub: pub.publish(b"short"), "message_size=8.* 5 b"),
    "too long": ({"message_size": 8}, lambda pub: pub.publish(bytes(9)), "message_size=8.* 9 b"),
    "no multiple": ({"message_size": 8}, lambda pub: pub.reserve(12), "message_size=8.* 12 b"),
    "many of another size": (
        {"message_size": 8},
        lambda pub: pub.publish_many(bytes(8), 4),
        "message_size=8.* 4 bytes",
    ),
}

USES: dict[str, Callable[[es.Publisher], object]] = {
    "publish": lambda pub: pub.publish(b"x"),
    "publish_many": lambda pub: pub.publish_many(b"x", 1),
    "reserve": lambda pub: pub.reserve(1),
    "flush": lambda pub: pub.flush(),
    "wait_acked": lambda pub: pub.wait_acked(),
}


@dataclass(frozen=True)
class Endpoint:
    """A broker, and where its transport listens."""

    broker: es.Broker
    address: str
    connect: Callable[..., es.Publisher]
    """Connects a publisher that is closed after the test; lingers only if told to."""

    @property
    def log(self) -> Log:
        """What arrived; for an endpoint with ``serve=False``, whose broker the test itself is."""
        return Log.of(self.broker)


class TransportContract:
    """Subclasses set `scheme`; those that need more than a default address override `listen`."""

    scheme: ClassVar[str]

    def listen(self, broker: es.Broker) -> transports.Listener:
        """Lets publishers reach `broker`."""
        return transports.get(self.scheme).listen(broker)

    @pytest.fixture
    def listening(self) -> Iterator[Callable[..., Endpoint]]:
        """Makes endpoints: ``listening(serve=True, slots=4, slot_size=4096, ...)``."""
        cluster = unique_cluster("contract")
        numbers = itertools.count()
        with isolated(), ExitStack() as stack:

            def make(serve: bool = True, **options: Any) -> Endpoint:
                options = {"slots": 4, "slot_size": SLOT, "max_publishers": 8} | options
                broker = es.Broker.create(f"{cluster}/{next(numbers)}", **options)
                stack.enter_context(broker)
                listener = self.listen(broker)
                stack.callback(listener.stop)
                if serve:
                    broker.start()

                def connect(**options: Any) -> es.Publisher:
                    options = {"linger_ms": 0} | options
                    return stack.enter_context(es.Publisher.connect(listener.address, **options))

                return Endpoint(broker, listener.address, connect)

            yield make

    @pytest.fixture
    def endpoint(self, listening: Callable[..., Endpoint]) -> Endpoint:
        """An endpoint with a broker that serves."""
        return listening()

    @pytest.fixture
    def by_hand(self, listening: Callable[..., Endpoint]) -> Endpoint:
        """An endpoint that accepts nothing by itself: read its `log`."""
        return listening(serve=False)

    # --- addresses --------------------------------------------------------------------------------

    def test_the_address_has_the_scheme_of_the_transport(self, endpoint: Endpoint) -> None:
        assert endpoint.address.startswith(f"{self.scheme}://")

    def test_a_listener_can_be_stopped_twice(self, listening: Callable[..., Endpoint]) -> None:
        broker = listening().broker
        listener = self.listen(broker)
        listener.stop()
        listener.stop()

    def test_a_broker_that_closed_cannot_be_connected_to(self, endpoint: Endpoint) -> None:
        endpoint.broker.close()
        with pytest.raises((es.NoSuchBroker, es.BrokerGone)):
            endpoint.connect()

    # --- one message at a time --------------------------------------------------------------------

    @pytest.mark.parametrize("message", BUFFERS.values(), ids=BUFFERS.keys())
    @pytest.mark.parametrize("fixed", [False, True], ids=["any size", "fixed size"])
    def test_a_message_arrives_as_the_bytes_of_its_buffer(
        self, by_hand: Endpoint, message: Any, fixed: bool
    ) -> None:
        content = bytes(message)
        pub = by_hand.connect(message_size=len(content) if fixed else None)
        pub.publish(message)
        pub.flush()
        assert by_hand.log.wait_for(1) == [content]

    def test_messages_of_every_small_size_arrive_in_order(self, by_hand: Endpoint) -> None:
        sent = [bytes([size]) * size for size in range(1, 100)]
        pub = by_hand.connect(in_flight=4)
        for message in sent:
            pub.publish(message)
        pub.flush()
        assert by_hand.log.wait_for(len(sent)) == sent

    @pytest.mark.parametrize("size", [1, 7, 8, 1000, SLOT // 2, SLOT])
    def test_messages_of_a_fixed_size_arrive_in_order(self, by_hand: Endpoint, size: int) -> None:
        sent = [bytes([number]) * size for number in range(4)]
        pub = by_hand.connect(message_size=size, in_flight=4)
        for message in sent:
            pub.publish(message)
        pub.flush()
        assert by_hand.log.wait_for(len(sent)) == sent

    def test_the_largest_message_of_any_size_fills_a_batch(self, by_hand: Endpoint) -> None:
        largest = bytes(SLOT - 8)  # 8 bytes of length
        pub = by_hand.connect()
        pub.publish(largest)
        assert by_hand.log.wait_for(1) == [largest]  # committed without a flush: it is full

    def test_a_message_is_copied_before_publish_returns(self, by_hand: Endpoint) -> None:
        message = bytearray(b"before")
        pub = by_hand.connect()
        pub.publish(message)
        message[:] = b"after!"
        pub.flush()
        assert by_hand.log.wait_for(1) == [b"before"]

    def test_the_log_knows_who_published_and_in_which_order(self, by_hand: Endpoint) -> None:
        pub = by_hand.connect(publisher_id=2**64 - 1)
        assert pub.flush() == 0
        for seq in (1, 2):
            pub.publish(b"x")
            assert pub.flush() == seq
        log = by_hand.log
        log.wait_for(2)
        assert [(batch.publisher_id, batch.seq) for batch in log.batches] == [
            (2**64 - 1, 1),
            (2**64 - 1, 2),
        ]

    def test_a_flush_without_messages_commits_nothing(self, endpoint: Endpoint) -> None:
        pub = endpoint.connect()
        pub.publish(b"x")
        assert [pub.flush(), pub.flush(), pub.flush()] == [1, 1, 1]
        pub.wait_acked()
        assert endpoint.broker.stats().batches == 1

    def test_a_partial_batch_is_committed_after_lingering(self, endpoint: Endpoint) -> None:
        endpoint.connect(linger_ms=1).publish(b"lonely")
        wait_until(lambda: endpoint.broker.stats().messages == 1, "the arrival of the message")

    # --- many messages at a time ------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", [np.uint8, np.float64, PRICE], ids=str)
    @pytest.mark.parametrize("fixed", [False, True], ids=["any size", "fixed size"])
    def test_each_row_of_an_array_is_a_message(
        self, by_hand: Endpoint, dtype: Any, fixed: bool
    ) -> None:
        rows: Any = np.frombuffer(bytes(range(240)), dtype=dtype).reshape(5, -1)
        pub = by_hand.connect(message_size=rows[0].nbytes if fixed else None)
        pub.publish_many(rows)
        pub.flush()
        assert by_hand.log.wait_for(5) == [row.tobytes() for row in rows]

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, np.frombuffer], ids=str)
    def test_a_buffer_is_cut_into_messages_of_the_size_given(
        self, by_hand: Endpoint, kind: Callable[[bytes], Any]
    ) -> None:
        pub = by_hand.connect()
        pub.publish_many(kind(b"aabbccddeeffgghh"), 8)
        pub.flush()
        assert by_hand.log.wait_for(2) == [b"aabbccdd", b"eeffgghh"]

    def test_a_buffer_is_cut_into_messages_of_the_publishers_size(self, by_hand: Endpoint) -> None:
        pub = by_hand.connect(message_size=2)
        pub.publish_many(b"aabbcc")
        pub.flush()
        assert by_hand.log.wait_for(3) == [b"aa", b"bb", b"cc"]

    @pytest.mark.parametrize("size", [1, 100, 1000, SLOT], ids="rows of {} bytes".format)
    def test_an_array_larger_than_the_ring_arrives_whole(
        self, endpoint: Endpoint, size: int
    ) -> None:
        count = 100_000 // size
        rows: Any = np.zeros((count, size), dtype=np.uint8)
        pub = endpoint.connect()
        pub.publish_many(rows)
        pub.wait_acked()
        stats = endpoint.broker.stats()
        assert (stats.messages, stats.payload_bytes) == (count, count * size)

    def test_an_array_without_rows_is_no_message(self, endpoint: Endpoint) -> None:
        no_rows: Any = np.zeros((0, 8), dtype=np.uint8)
        pub = endpoint.connect()
        pub.publish_many(no_rows)
        pub.publish_many(b"", 8)
        assert pub.flush() == 0

    # --- messages written in place ----------------------------------------------------------------

    @pytest.mark.parametrize("fixed", [False, True], ids=["any size", "fixed size"])
    def test_what_is_written_into_a_reservation_is_a_message(
        self, by_hand: Endpoint, fixed: bool
    ) -> None:
        pub = by_hand.connect(message_size=5 if fixed else None)
        with pub.reserve(5) as view:
            assert (len(view), view.readonly, view.format) == (5, False, "B")
            view[:] = b"hello"
        with pub.reserve(5) as view:
            np.frombuffer(view, dtype=np.uint8)[:] = 7
        pub.flush()
        assert by_hand.log.wait_for(2) == [b"hello", bytes([7]) * 5]

    def test_a_reservation_may_hold_several_messages_of_the_fixed_size(
        self, by_hand: Endpoint
    ) -> None:
        pub = by_hand.connect(message_size=2)
        with pub.reserve(6) as view:
            view[:] = b"aabbcc"
        pub.flush()
        assert by_hand.log.wait_for(3) == [b"aa", b"bb", b"cc"]

    def test_a_reservation_whose_block_raises_is_no_message(self, by_hand: Endpoint) -> None:
        pub = by_hand.connect()
        pub.publish(b"before")
        with pytest.raises(ZeroDivisionError), pub.reserve(7) as view:
            view[:] = b"dropped"
            1 / 0  # noqa: B018 - it raises
        pub.publish(b"after")
        pub.flush()
        assert by_hand.log.wait_for(2) == [b"before", b"after"]

    @pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
    def test_an_open_reservation_keeps_everything_else_out(
        self, by_hand: Endpoint, use: Callable[[es.Publisher], object]
    ) -> None:
        pub = by_hand.connect()
        with pub.reserve(5) as view:
            with pytest.raises(es.MisuseError, match=r"a reservation .* is open"):
                use(pub)
            view[:] = b"whole"
        pub.flush()
        assert by_hand.log.wait_for(1) == [b"whole"]

    def test_a_view_ends_with_its_reservation(self, endpoint: Endpoint) -> None:
        with endpoint.connect().reserve(5) as view:
            view[:] = b"hello"
        with pytest.raises(ValueError, match="released"):
            view[0] = 0

    @pytest.mark.parametrize(
        "keep",
        [
            lambda view: np.frombuffer(view, dtype=np.uint8),
            lambda view: view[1:3],
            memoryview,
            lambda view: memoryview(view).cast("b"),
            lambda view: struct.iter_unpack("B", view),
        ],
        ids=["array", "slice", "view", "cast", "iterator"],
    )
    def test_memory_that_is_still_in_use_is_not_committed(
        self, by_hand: Endpoint, keep: Callable[[memoryview], Any]
    ) -> None:
        pub = by_hand.connect()
        with pytest.raises(BufferError), pub.reserve(8) as view:
            kept = keep(view)
        with pytest.raises(es.MisuseError, match=r"a reservation .* is open"):
            pub.publish(b"too early")
        del kept, view
        pub.publish(b"the next one")  # once it is deleted, only its own message is lost
        pub.flush()
        assert by_hand.log.wait_for(1) == [b"the next one"]

    def test_a_reservation_that_nobody_enters_is_given_up(self, by_hand: Endpoint) -> None:
        pub = by_hand.connect()
        pub.reserve(5)  # and the result is gone
        pub.publish(b"the next one")
        pub.flush()
        assert by_hand.log.wait_for(1) == [b"the next one"]

    def test_close_waits_for_the_views_of_a_reservation(self, endpoint: Endpoint) -> None:
        pub = endpoint.connect()
        with pub.reserve(8) as view:
            with pytest.raises(BufferError):
                pub.close()
            view[:] = b"complete"
        pub.wait_acked()
        assert endpoint.broker.stats().messages == 1

    @pytest.mark.parametrize("nbytes", [-1, 1.5, "8", None])
    def test_a_reservation_has_a_size_in_bytes(self, endpoint: Endpoint, nbytes: Any) -> None:
        with pytest.raises(es.MisuseError):
            endpoint.connect().reserve(nbytes)

    def test_a_reservation_takes_the_integers_of_numpy(self, by_hand: Endpoint) -> None:
        pub = by_hand.connect()
        with pub.reserve(np.int64(2)) as view:  # type: ignore[arg-type]
            view[:] = b"ok"
        pub.flush()
        assert by_hand.log.wait_for(1) == [b"ok"]

    # --- messages that cannot be sent -------------------------------------------------------------

    @pytest.mark.parametrize(
        ("options", "use", "says"),
        WRONG_SIZES.values(),
        ids=WRONG_SIZES.keys(),
    )
    def test_a_message_of_the_wrong_size_is_refused_with_both_sizes(
        self,
        by_hand: Endpoint,
        options: dict[str, Any],
        use: Callable[[es.Publisher], object],
        says: str,
    ) -> None:
        pub = by_hand.connect(**options)
        good = bytes(range(8))
        pub.publish(good)
        with pytest.raises(es.MessageSizeError, match=says):
            use(pub)
        pub.publish(good)
        pub.flush()
        assert by_hand.log.wait_for(2) == [good, good]

    @pytest.mark.parametrize("message", NOT_BUFFERS.values(), ids=NOT_BUFFERS.keys())
    def test_what_is_no_contiguous_buffer_is_refused_with_its_type(
        self, by_hand: Endpoint, message: Any
    ) -> None:
        pub = by_hand.connect()
        for publish in (pub.publish, lambda value: pub.publish_many(value, 1)):
            with pytest.raises(es.BufferTypeError, match=type(message).__name__):
                publish(message)
        assert pub.flush() == 0

    @pytest.mark.parametrize(
        ("messages", "size", "says"),
        [
            (b"abcde", 2, "multiple of message_size"),
            (b"abcde", None, "a buffer and message_size"),
            (np.zeros((2, 2, 2)), None, "2-D array"),
            (np.zeros(4), None, "2-D array"),
        ],
        ids=["not a multiple", "no size", "3-D", "1-D"],
    )
    def test_messages_that_cannot_be_told_apart_are_refused(
        self, endpoint: Endpoint, messages: Any, size: int | None, says: str
    ) -> None:
        pub = endpoint.connect()
        with pytest.raises(es.BufferTypeError, match=says):
            pub.publish_many(messages, size)
        assert pub.flush() == 0

    @pytest.mark.parametrize("size", [-1, 2**64, "2KiB", 1.5])
    def test_a_message_size_that_is_none_is_refused(self, endpoint: Endpoint, size: Any) -> None:
        with pytest.raises(es.MisuseError):
            endpoint.connect().publish_many(b"abcd", size)

    # --- acknowledgement --------------------------------------------------------------------------

    def test_what_is_acknowledged_is_in_the_log(self, endpoint: Endpoint) -> None:
        pub = endpoint.connect(message_size=1000)
        for count in range(1, 30):
            pub.publish(bytes(1000))
            pub.wait_acked()
            assert endpoint.broker.stats().messages == count

    def test_an_acknowledgement_covers_everything_before_it(self, by_hand: Endpoint) -> None:
        pub = by_hand.connect(in_flight=4)
        for _ in range(3):
            pub.publish(b"x")
            pub.flush()
        log = by_hand.log
        for accepted in (1, 2, 3):
            wait_until(log.accept, f"the arrival of batch {accepted}")
            pub.wait_acked(seq=accepted)
            assert pub.stats().accepted == accepted
        for _ in range(3):
            log.release()

    def test_a_wait_for_an_old_batch_does_not_commit_the_open_one(self, by_hand: Endpoint) -> None:
        pub = by_hand.connect()
        pub.publish(b"first")
        first = pub.flush()
        pub.publish(b"second")
        by_hand.log.wait_for(1)
        pub.wait_acked(seq=first)
        assert pub.stats().committed == 1

    def test_a_wait_without_messages_returns_at_once(self, by_hand: Endpoint) -> None:
        by_hand.connect().wait_acked(timeout=0)

    @pytest.mark.parametrize("seq", [-1, 2, 2**64])
    def test_a_batch_that_was_not_committed_cannot_be_waited_for(
        self, endpoint: Endpoint, seq: int
    ) -> None:
        pub = endpoint.connect()
        pub.publish(b"x")
        pub.flush()
        with pytest.raises(es.MisuseError):
            pub.wait_acked(timeout=0.05, seq=seq)

    def test_without_acknowledgements_messages_arrive_all_the_same(
        self, endpoint: Endpoint
    ) -> None:
        pub = endpoint.connect(ack=0, message_size=1000)
        for _ in range(50):
            pub.publish(bytes(1000))
        pub.flush()
        wait_until(lambda: endpoint.broker.stats().messages == 50, "the arrival of 50 messages")

    def test_without_acknowledgements_none_can_be_waited_for(self, endpoint: Endpoint) -> None:
        pub = endpoint.connect(ack=0)
        with pytest.raises(es.MisuseError, match="ack=0"):
            pub.wait_acked()

    # --- waiting ----------------------------------------------------------------------------------

    def test_an_acknowledgement_that_does_not_come_is_a_timeout(self, by_hand: Endpoint) -> None:
        pub = by_hand.connect()
        pub.publish(b"x")
        with pytest.raises(es.WaitTimeout, match=r"batch 1 .*0 of 1 committed") as caught:
            pub.wait_acked(timeout=0.05)
        assert by_hand.broker.name in str(caught.value) or by_hand.address in str(caught.value)
        assert caught.value.hint

    def test_a_publisher_never_has_more_than_its_batches_in_flight(self, by_hand: Endpoint) -> None:
        pub = by_hand.connect(message_size=SLOT, in_flight=2, timeout=0.05)
        pub.publish(bytes([1]) * SLOT)
        pub.publish(bytes([2]) * SLOT)
        with pytest.raises(es.WaitTimeout, match="2 of 2 allowed in flight") as caught:
            pub.publish(bytes([3]) * SLOT)
        assert str(os.getpid()) in str(caught.value)
        assert pub.stats().in_flight == 2
        log = by_hand.log
        log.wait_for(2)
        wait_until(lambda: pub.stats().in_flight == 0, "the release of both batches")
        pub.publish(bytes([4]) * SLOT)
        assert [message[0] for message in log.wait_for(3)] == [1, 2, 4]

    def test_a_publisher_that_waits_for_space_goes_on_when_there_is_some(
        self, by_hand: Endpoint
    ) -> None:
        pub = by_hand.connect(message_size=SLOT, in_flight=1)
        sent = [bytes([number]) * SLOT for number in range(20)]

        def publish() -> None:
            for message in sent:
                pub.publish(message)

        publishing = threading.Thread(target=publish)
        publishing.start()
        assert by_hand.log.wait_for(20) == sent
        publishing.join()
        assert pub.stats().space_waits > 0

    # --- the end ----------------------------------------------------------------------------------

    def test_close_commits_the_open_batch(self, endpoint: Endpoint) -> None:
        pub = endpoint.connect()
        pub.publish(b"x")
        pub.close()
        wait_until(lambda: endpoint.broker.stats().messages == 1, "the arrival of the message")

    def test_close_may_be_called_twice(self, endpoint: Endpoint) -> None:
        pub = endpoint.connect()
        pub.close()
        pub.close()

    @pytest.mark.parametrize(
        "use", [*USES.values(), lambda pub: pub.wait_acked(seq=1)], ids=[*USES, "wait_acked(seq)"]
    )
    @pytest.mark.parametrize("fixed", [False, True], ids=["any size", "fixed size"])
    def test_a_closed_publisher_refuses_everything(
        self, endpoint: Endpoint, use: Callable[[es.Publisher], object], fixed: bool
    ) -> None:
        pub = endpoint.connect(message_size=1 if fixed else None)
        pub.publish(b"x")
        pub.close()
        with pytest.raises(es.ClosedError, match="closed"):
            use(pub)

    def test_the_broker_stops_and_waiting_publishers_learn_it(self, by_hand: Endpoint) -> None:
        pub = by_hand.connect(message_size=SLOT, in_flight=1, timeout=None)
        pub.publish(bytes(SLOT))
        caught: list[BaseException] = []

        def publish_on() -> None:
            try:
                for _ in range(3):  # the first may find the slot that closing the broker frees
                    pub.publish(bytes(SLOT))
            except es.EmbarError as error:
                caught.append(error)

        blocked = threading.Thread(target=publish_on)
        blocked.start()
        wait_until(lambda: pub.stats().space_waits > 0, "the publisher waits")
        by_hand.broker.close()
        blocked.join()
        assert [type(error) for error in caught] == [es.BrokerGone]

    def test_what_a_stopped_broker_did_not_accept_is_reported(self, endpoint: Endpoint) -> None:
        pub = endpoint.connect(timeout=None)
        endpoint.broker.close()
        with pytest.raises(es.BrokerGone) as caught:
            pub.publish(b"too late")
            pub.wait_acked()
        assert endpoint.broker.name in str(caught.value) or endpoint.address in str(caught.value)
        assert caught.value.hint

    def test_acknowledged_batches_stay_acknowledged_when_the_broker_stops(
        self, endpoint: Endpoint
    ) -> None:
        pub = endpoint.connect()
        pub.publish(b"x")
        seq = pub.flush()
        pub.wait_acked()
        endpoint.broker.close()
        pub.wait_acked(seq=seq)

    def test_a_publisher_of_a_stopped_broker_can_be_closed(self, endpoint: Endpoint) -> None:
        pub = endpoint.connect()
        endpoint.broker.close()
        pub.close()
        with pytest.raises(es.ClosedError):
            pub.flush()

    def test_closing_tells_that_messages_could_not_be_committed_any_more(
        self, by_hand: Endpoint
    ) -> None:
        pub = by_hand.connect(linger_ms=0)
        pub.publish(b"x")
        by_hand.broker.close()
        with pytest.raises(es.BrokerGone, match=r"1 messages were not (committed|acknowledged)"):
            pub.close()
        with pytest.raises(es.ClosedError):
            pub.flush()

    def test_an_error_on_its_way_out_is_not_hidden_by_closing(self, by_hand: Endpoint) -> None:
        pub = by_hand.connect(linger_ms=0)
        with pytest.raises(ZeroDivisionError), pub:
            pub.publish(b"x")
            by_hand.broker.close()
            1 / 0  # noqa: B018 - it raises

    def test_a_forked_child_cannot_use_its_parents_publisher(self, endpoint: Endpoint) -> None:
        with Child(_FORKING, endpoint.address) as program:
            uses = ("publish", "publish_many", "reserve", "flush", "wait_acked")
            assert program.read() == " ".join(f"{use}:ClosedError" for use in uses)
            program.expect("the parent's publisher works")
            assert program.wait() == 0
        assert endpoint.broker.stats().messages == 2  # one before, one after the fork

    # --- several publishers, statistics -----------------------------------------------------------

    def test_each_of_several_publishers_keeps_its_order(self, by_hand: Endpoint) -> None:
        publishers = [by_hand.connect(publisher_id=number, in_flight=1) for number in range(3)]
        log = by_hand.log
        for count in range(30):
            for pub in publishers:
                pub.publish(count.to_bytes(4, "little"))
                pub.flush()
                log.wait_for(len(log.messages) + 1)
        for number in range(3):
            own = [batch for batch in log.batches if batch.publisher_id == number]
            assert [batch.seq for batch in own] == list(range(1, 31))
            assert [int.from_bytes(batch.messages[0], "little") for batch in own] == list(range(30))

    def test_publishers_of_several_threads_lose_nothing(self, endpoint: Endpoint) -> None:
        publishers = [endpoint.connect(message_size=100) for _ in range(4)]

        def publish(pub: es.Publisher) -> None:
            for _ in range(500):
                pub.publish(bytes(100))
            pub.wait_acked()

        threads = [threading.Thread(target=publish, args=(pub,)) for pub in publishers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = endpoint.broker.stats()
        assert (stats.messages, stats.payload_bytes) == (2000, 200_000)
        assert (stats.duplicated, stats.out_of_order, stats.corrupt) == (0, 0, 0)
        assert [pub.stats().messages for pub in publishers] == [500] * 4

    def test_a_publisher_counts_what_it_committed(self, endpoint: Endpoint) -> None:
        pub = endpoint.connect()
        assert pub.stats() == es.PublisherStats(0, 0, 0, 0, 0, 0)
        pub.publish(b"12345")
        assert pub.stats().messages == 0  # not committed yet
        pub.publish_many(b"1234", 2)
        pub.wait_acked()
        wait_until(lambda: pub.stats().in_flight == 0, "the release of both batches")
        assert pub.stats() == es.PublisherStats(
            messages=3, payload_bytes=9, committed=2, accepted=2, in_flight=0, space_waits=0
        )

    def test_the_counters_of_a_closed_publisher_stay_its_own(
        self, listening: Callable[..., Endpoint]
    ) -> None:
        endpoint = listening(max_publishers=1)  # the next publisher gets what the first one had
        pub = endpoint.connect()
        pub.publish(b"x")
        pub.wait_acked()
        pub.close()
        other = endpoint.connect()
        other.publish(b"1234567")
        other.wait_acked()
        assert (pub.stats().messages, pub.stats().payload_bytes) == (1, 1)


_FORKING = """
import os, sys
import embar_shm as es

pub = es.Publisher.connect(sys.argv[1], linger_ms=1000)
pub.publish(b"open when it forks")
child = os.fork()
if child == 0:
    found = []
    for name, arguments in [
        ("publish", (b"x",)), ("publish_many", (b"x", 1)), ("reserve", (1,)), ("flush", ()),
        ("wait_acked", ()),
    ]:
        try:
            getattr(pub, name)(*arguments)
        except es.EmbarError as error:
            found.append(f"{name}:{type(error).__name__}")
    print(" ".join(found))
    pub.close()
    sys.exit()  # exit handlers run: they must not disturb the parent, either
os.waitpid(child, 0)
pub.publish(b"after it")
pub.wait_acked()
print("the parent's publisher works")
pub.close()
"""
