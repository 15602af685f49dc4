"""What shared-memory publishers do beyond the contract that all transports share."""

from __future__ import annotations

import gc
import os
import signal
import textwrap
import threading
from collections.abc import Callable
from operator import sub
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embar_shm as es
from embar_shm import _core
from embar_shm.options import COPY_MODES, WAIT_MODES
from embar_shm.testing import Child, Log, wait_until

Brokers = Callable[..., es.Broker]
Publishers = Callable[..., es.Publisher]


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"message_size": 0}, "message_size must be at least 1"),
        ({"message_size": "1K"}, "message_size: '1K' is ambiguous"),
        ({"message_size": 4097}, "message_size 4097 is larger than batch_size 4096"),
        ({"batch_size": 15}, "batch_size 15 is not between 16 and 4096"),
        ({"batch_size": 4097}, "batch_size 4097 is not between 16 and 4096"),
        ({"batch_size": -1}, "batch_size: -1 is negative"),
        ({"in_flight": 0}, "in_flight=0 is not a whole number"),
        ({"in_flight": 1.5}, "in_flight=1.5 is not a whole number"),
        ({"in_flight": 5}, "in_flight 5 is more than the 4 slots"),
        ({"ack": 2}, "ack=2"),
        ({"ack": None}, "ack=None"),
        ({"linger_ms": -1}, "linger_ms=-1"),
        ({"linger_ms": float("nan")}, "linger_ms=nan"),
        ({"timeout": -0.1}, r"timeout=-0\.1"),
        ({"timeout": float("inf")}, "timeout=inf"),
        ({"timeout": "5"}, "timeout='5'"),
        ({"connect_timeout": None}, "connect_timeout=None"),
        ({"spin_us": -1}, "spin_us=-1"),
        ({"wait": "sleep"}, "wait='sleep'"),
        ({"copy": "fast"}, "copy='fast'"),
        ({"sample_every": -1}, "sample_every=-1"),
        ({"sample_every": True}, "sample_every=True"),
        ({"publisher_id": 2**64}, f"publisher_id={2**64}"),
        ({"publisher_id": -1}, "publisher_id=-1"),
    ],
    ids=str,
)
def test_an_option_that_makes_no_sense_is_refused_with_its_value(
    make_broker: Brokers, options: dict[str, Any], says: str
) -> None:
    broker = make_broker()
    with pytest.raises(es.ConfigurationError, match=says):
        es.Publisher.connect(broker.address, **options)
    row = broker.segment.monitor().publisher(0)
    assert row["state"] == "free"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"slots": 0}, "slots=0"),
        ({"slots": 4097}, "slots=4097 is not a whole number from 1 to 4096"),
        ({"slots": -1}, "slots=-1"),
        ({"slot_size": 63}, "slot_size=63"),
        ({"slot_size": "2M"}, "slot_size: '2M' is ambiguous"),
        ({"slot_size": 2**31 + 1}, "64 bytes to 2 GiB"),
        ({"max_publishers": 0}, "max_publishers=0"),
        ({"max_publishers": 1001}, "max_publishers=1001 is not a whole number from 1 to 1000"),
        ({"wait": "sleep"}, "wait='sleep'"),
        ({"spin_us": float("nan")}, "spin_us=nan"),
        ({"spin_us": "50"}, "spin_us='50'"),
    ],
    ids=str,
)
def test_an_option_of_a_broker_that_makes_no_sense_is_refused_with_its_value(
    make_broker: Brokers, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(es.ConfigurationError, match=says):
        make_broker(**options)


def test_a_ring_of_one_slot_can_be_used_without_any_option(make_broker: Brokers) -> None:
    with es.Publisher.connect(make_broker(slots=1).start().address) as pub:
        for _ in range(10):
            pub.publish(bytes(3000))
        pub.wait_acked()


# --- batches --------------------------------------------------------------------------------------


def test_a_batch_is_committed_when_no_further_message_fits_into_batch_size(
    make_broker: Brokers, connect: Publishers
) -> None:
    broker = make_broker(slots=4, slot_size=4096)
    log = Log.of(broker)
    pub = connect(broker, batch_size=100, linger_ms=0, in_flight=4)
    for count in range(1, 7):
        pub.publish(bytes(20))  # 8 bytes of length, padded to 32: three fit into 96 of 100 bytes
        assert log.take() == int(count % 3 == 0)
    fixed = connect(broker, batch_size=100, message_size=30, linger_ms=0, in_flight=4)
    for count in range(1, 7):
        fixed.publish(bytes(30))
        assert log.take() == int(count % 3 == 0)
    assert [len(batch.messages) for batch in log.batches] == [3, 3, 3, 3]


def test_publish_publish_many_and_reserve_keep_the_order_of_their_calls(
    make_broker: Brokers, connect: Publishers
) -> None:
    broker = make_broker()
    log = Log.of(broker)
    pub = connect(broker, linger_ms=0, in_flight=4)
    pub.publish(b"1")
    pub.publish_many(b"2345", 2)
    pub.publish(b"6")
    with pub.reserve(1) as view:
        view[:] = b"7"
    pub.publish_many(np.array([[8], [9]], dtype=np.uint8))
    pub.publish_many(b"ab", 1)
    pub.flush()
    assert log.wait_for(9) == [b"1", b"23", b"45", b"6", b"7", b"\x08", b"\x09", b"a", b"b"]
    assert [batch.seq for batch in log.batches] == [1, 2, 3, 4]  # one per kind in a row


@pytest.mark.parametrize("copy", COPY_MODES)
@pytest.mark.parametrize("size", [1, 63, 64, 65, 127, 128, 129, 1000, 4096, 65536])
def test_every_way_of_copying_delivers_the_same_bytes(
    make_broker: Brokers, connect: Publishers, copy: Any, size: int
) -> None:
    broker = make_broker(slot_size=65536)
    log = Log.of(broker)
    bytes_of = np.random.default_rng(size).bytes
    rows = [bytes_of(size) for _ in range(8)]
    fixed = connect(broker, message_size=size, copy=copy, linger_ms=0, in_flight=4)
    for row in rows[:4]:
        fixed.publish(row)
        log.take()
    fixed.flush()
    log.take()
    any_size = connect(broker, copy=copy, linger_ms=0, in_flight=4)
    any_size.publish_many(b"".join(rows[4:6]), size)
    any_size.flush()
    log.take()
    if size + 8 <= 65536:
        any_size.publish(rows[6])
        any_size.publish(rows[7])
        any_size.flush()
        log.take()
    assert log.messages == rows[: len(log.messages)]
    assert len(log.messages) == (8 if size + 8 <= 65536 else 6)


def test_copying_past_the_cache_is_counted(make_broker: Brokers, connect: Publishers) -> None:
    broker = make_broker().start()
    pub = connect(broker, copy="nontemporal")
    pub.publish(bytes(1000))
    pub.wait_acked()
    counted = broker.segment.monitor().publisher(0)["nontemporal_batches"]
    assert counted == (1 if _core.HAS_NONTEMPORAL else 0)


# --- lingering ------------------------------------------------------------------------------------


def test_lingering_commits_while_the_program_does_something_else(
    make_broker: Brokers, connect: Publishers
) -> None:
    broker = make_broker().start()
    pub = connect(broker, linger_ms=1)
    for count in range(1, 11):
        pub.publish(b"x")
        wait_until(lambda count=count: broker.stats().messages == count, "the message arrives")
    assert pub.stats().committed == 10


def test_lingering_commits_in_the_middle_of_publishing_without_loss(
    make_broker: Brokers, connect: Publishers
) -> None:
    broker = make_broker().start()
    pub = connect(broker, linger_ms=0.01)
    for _ in range(20_000):
        pub.publish(b"x")
    pub.wait_acked()
    stats = broker.stats()
    assert stats.messages == 20_000
    assert (stats.duplicated, stats.out_of_order, stats.corrupt) == (0, 0, 0)


def test_lingering_leaves_a_reservation_alone(make_broker: Brokers, connect: Publishers) -> None:
    broker = make_broker().start()
    pub = connect(broker, linger_ms=1)
    other = connect(broker, linger_ms=1)
    pub.publish(b"first")
    with pub.reserve(6) as view:
        for count in range(1, 6):  # other batches become due and are committed meanwhile
            other.publish(b"x")
            wait_until(lambda count=count: broker.stats().messages >= count, "lingering")
        arrived = pub.stats().messages
        view[:] = b"second"
    assert arrived <= 1  # "first" may have been committed before the reservation was made
    wait_until(lambda: pub.stats().messages == 2, "both are committed")


# --- waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("broker_waits", WAIT_MODES)
@pytest.mark.parametrize("publisher_waits", WAIT_MODES)
def test_every_way_of_waiting_delivers_everything(
    make_broker: Brokers, connect: Publishers, broker_waits: Any, publisher_waits: Any
) -> None:
    broker = make_broker(wait=broker_waits, slots=2).start()
    pub = connect(broker, wait=publisher_waits, in_flight=1, message_size=1024)
    for count in range(1, 201):
        pub.publish(bytes(1024))
        if count % 10 == 0:
            pub.wait_acked()
            assert broker.stats().messages == count
    assert broker.stats().missed_wakeups == 0
    assert broker.segment.monitor().publisher(0)["missed_wakeups"] == 0


def test_a_full_ring_names_who_holds_its_slots(make_broker: Brokers, connect: Publishers) -> None:
    broker = make_broker(slots=2)
    holders = [connect(broker, linger_ms=0) for _ in range(2)]
    for holder in holders:
        holder.publish(b"open")
    pub = connect(broker, timeout=0.05)
    with pytest.raises(es.WaitTimeout) as caught:
        pub.publish(b"x")
    message = str(caught.value)
    assert "2 of 2 slots are held" in message
    for number in range(2):
        assert f"slot {number}: publisher {number} (pid {os.getpid()}) for" in message
    assert "0 of 2 allowed in flight" in message
    assert f"broker (pid {os.getpid()}) has released 0 of 0 batches" in message


def test_the_interpreter_runs_while_a_publisher_waits(
    make_broker: Brokers, connect: Publishers
) -> None:
    broker = make_broker()
    log = Log.of(broker)
    pub = connect(broker, message_size=4096, in_flight=1, timeout=None)
    # The broker is Python code: with the interpreter locked it would never run.
    thread = threading.Thread(target=log.wait_for, args=(20,))
    thread.start()
    for _ in range(19):
        pub.publish(bytes(4096))
    pub.wait_acked()
    pub.publish(bytes(4096))
    pub.wait_acked()
    thread.join()
    assert len(log.messages) == 20


def test_the_interpreter_runs_while_a_broker_serves(
    make_broker: Brokers, connect: Publishers
) -> None:
    broker = make_broker()
    published: list[es.PublisherStats] = []

    def publish() -> None:
        with es.Publisher.connect(broker.address) as pub:
            pub.publish(b"x")
            pub.wait_acked()
            published.append(pub.stats())
        broker.stop()

    thread = threading.Thread(target=publish)
    thread.start()
    broker.serve()
    thread.join()
    assert [stats.accepted for stats in published] == [1]


def test_a_broker_serves_for_the_time_it_was_told(make_broker: Brokers) -> None:
    broker = make_broker()
    for _ in range(2):
        broker.serve(timeout=0.01)  # nothing else ends it


def test_a_second_thread_cannot_serve_the_same_broker(make_broker: Brokers) -> None:
    broker = make_broker().start()
    with pytest.raises(es.MisuseError, match="started already"):
        broker.start()

    def refused() -> bool:
        try:
            broker.serve(timeout=0)
        except es.MisuseError:
            return True
        return False  # the background thread was not there yet

    wait_until(refused, "the background thread serves")


def test_close_waits_for_a_thread_of_the_program_that_serves(
    make_broker: Brokers, connect: Publishers
) -> None:
    """Two threads in one broker would accept a batch twice."""
    broker = make_broker()
    thread = threading.Thread(target=broker.serve)
    thread.start()
    pub = connect(broker)
    pub.publish(b"x")
    pub.wait_acked()  # it serves
    broker.close()
    still_serving = broker._serving.locked()
    thread.join()
    assert not still_serving


# --- threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("linger_ms", [0, 0.01], ids=["flushed", "lingering"])
def test_threads_that_share_a_publisher_lose_nothing(
    make_broker: Brokers, connect: Publishers, linger_ms: float
) -> None:
    broker = make_broker().start()
    pub = connect(broker, linger_ms=linger_ms)
    rows: Any = np.zeros((10, 100), dtype=np.uint8)

    def publish() -> None:
        for _ in range(500):
            pub.publish(b"one")
            pub.publish_many(rows)
        pub.wait_acked()

    threads = [threading.Thread(target=publish) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = broker.stats()
    assert (stats.messages, stats.payload_bytes) == (11_000, 2 * 500 * (3 + 10 * 100))
    assert (stats.duplicated, stats.out_of_order, stats.corrupt) == (0, 0, 0)
    assert pub.stats().messages == 11_000


@pytest.mark.parametrize("publish", ["publish", "publish_many"])
def test_what_was_published_while_another_thread_closes_is_in_the_log(
    make_broker: Brokers, connect: Publishers, publish: str
) -> None:
    broker = make_broker().start()
    rows: Any = np.zeros((24, 4096), dtype=np.uint8)  # copied without the GIL
    sent = [0, 0]

    def publish_on(thread: int, pub: es.Publisher) -> None:
        try:
            while True:
                if publish == "publish":
                    pub.publish(b"one")
                    sent[thread] += 1
                else:
                    pub.publish_many(rows)
                    sent[thread] += len(rows)
        except es.ClosedError as refused:
            sent[thread] += getattr(refused, "appended", 0)

    for _ in range(5):
        pub = connect(broker, timeout=None)
        before = list(sent)
        threads = [threading.Thread(target=publish_on, args=(n, pub)) for n in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: min(map(sub, sent, before)) > 0, "both publish")  # noqa: B023
        pub.close()
        for thread in threads:
            thread.join()
    wait_until(lambda: broker.stats().publishers == 0, "the rows are free")
    assert broker.stats().messages == sum(sent)


# The ring is full: `inside` is in publish() until somebody serves, and has the publisher's lock.
SHARED_AND_FULL = """
import os, signal, sys, threading
import embar_shm as es
from embar_shm.testing import wait_until

broker = es.Broker.create(sys.argv[1], slots=1, slot_size=4096)
publisher = es.Publisher.connect(broker.address, message_size=4096, timeout=TIMEOUT)
publisher.publish(bytes(4096))
inside = threading.Thread(target=publisher.publish, args=(bytes(4096),))
inside.start()
wait_until(lambda: publisher.stats().space_waits == 1, "it waits for the slot")
"""


def test_a_signal_handler_may_use_a_publisher_whose_lock_the_program_waits_for(
    run_child: Callable[..., Child], cluster: str
) -> None:
    child = run_child(
        SHARED_AND_FULL.replace("TIMEOUT", "5")
        + textwrap.dedent("""
        calls = 0
        def handler(*_):
            global calls
            calls += 1
            if calls != 3:  # at the third, the main thread is in flush() for sure
                return
            signal.setitimer(signal.ITIMER_REAL, 0)
            while inside.is_alive():
                broker.serve(timeout=0.001)
            print(publisher.flush())

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        print(publisher.flush())
        publisher.close()
        broker.close()
        """),
        f"{cluster}/0",
    )
    child.expect("2")
    child.expect("2")
    assert child.wait() == 0, child.errors


def test_a_child_forked_while_threads_wait_for_the_lock_is_refused_at_once(
    run_child: Callable[..., Child], cluster: str
) -> None:
    child = run_child(
        SHARED_AND_FULL.replace("TIMEOUT", "None")
        + textwrap.dedent("""
        waiting = [threading.Thread(target=publisher.flush) for _ in range(2)]
        for thread in waiting:
            thread.start()
        if (pid := os.fork()) == 0:
            signal.alarm(10)
            for _ in range(1000):  # for some milliseconds
                try:
                    publisher.flush()
                except es.ClosedError:
                    pass
            os._exit(0)
        print(os.waitpid(pid, 0)[1])
        while inside.is_alive():
            broker.serve(timeout=0.001)
        publisher.close()
        for thread in waiting:
            thread.join()
        broker.close()
        """),
        f"{cluster}/0",
    )
    child.expect("0")
    assert child.wait() == 0, child.errors


def test_close_does_not_wait_for_a_thread_that_waits_for_a_slot_for_others(
    make_broker: Brokers, connect: Publishers
) -> None:
    """As one of `embar_shm.aio` does, while its loop is in another thread."""
    pub = connect(make_broker(slots=1), message_size=4096, timeout=2)
    pub.publish(bytes(4096))
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(pub._link.wait(True, None, None)))
    thread.start()
    wait_until(lambda: pub.stats().space_waits == 1, "it waits")
    pub.close()
    thread.join()
    assert found == [True]  # the call it waited for would raise


def test_the_counters_of_a_publisher_that_two_threads_close_stay_its_own(
    make_broker: Brokers, connect: Publishers, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = make_broker(max_publishers=1).start()
    pub = connect(broker)
    pub.publish(b"x")
    counters = pub._link._stats_now  # type: ignore[attr-defined]

    def look_late() -> es.PublisherStats:  # another thread has closed it, the row is another's
        monkeypatch.undo()
        other = threading.Thread(target=pub.close)
        other.start()
        other.join()
        wait_until(lambda: broker.stats().publishers == 0, "the row is free")
        connect(broker)
        return counters()  # type: ignore[no-any-return]

    monkeypatch.setattr(pub._link, "_stats_now", look_late)
    pub.close()
    assert pub.stats().messages == 1


def test_messages_of_threads_that_share_a_publisher_stay_whole_and_in_order(
    make_broker: Brokers, connect: Publishers
) -> None:
    broker = make_broker()
    log = Log.of(broker)
    pub = connect(broker, timeout=None, message_size=512)

    def publish(thread: int) -> None:
        for number in range(200):
            pub.publish(bytes([thread]) * 508 + number.to_bytes(4, "little"))

    threads = [threading.Thread(target=publish, args=(thread,)) for thread in range(2)]
    for thread in threads:
        thread.start()
    messages = log.wait_for(400)
    for thread in threads:
        thread.join()
    for number in range(2):
        own = [message for message in messages if message[0] == number]
        assert [message[:508] for message in own] == [bytes([number]) * 508] * 200
        assert [int.from_bytes(message[508:], "little") for message in own] == list(range(200))


def test_a_publisher_that_another_thread_keeps_busy_is_a_timeout(
    make_broker: Brokers, connect: Publishers
) -> None:
    broker = make_broker()
    pub = connect(broker, message_size=4096, in_flight=1, timeout=0.2, linger_ms=0)
    pub.publish(bytes(4096))
    caught: list[str] = []

    def publish() -> None:
        try:
            pub.publish(bytes(4096))
        except es.WaitTimeout as error:
            caught.append(error.message)

    threads = [threading.Thread(target=publish) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caught) == 2
    assert any("came free" in message for message in caught)  # the one that waits for the broker


# --- the end --------------------------------------------------------------------------------------


def test_a_publisher_that_nobody_closed_is_warned_about_and_closed(make_broker: Brokers) -> None:
    broker = make_broker().start()
    pub = es.Publisher.connect(broker.address, linger_ms=0)
    pub.publish(b"x")
    with pytest.warns(ResourceWarning, match="unclosed"):
        del pub
        gc.collect()
    wait_until(lambda: broker.stats().messages == 1, "its batch is committed")
    wait_until(lambda: broker.stats().publishers == 0, "its row is free")


def test_a_publisher_that_is_not_closed_at_exit_commits_its_batch(
    make_broker: Brokers, run_child: Callable[..., Child]
) -> None:
    broker = make_broker().start()
    child = run_child(
        """
        import sys
        import embar_shm as es

        pub = es.Publisher.connect(sys.argv[1], linger_ms=0)
        pub.publish(b"x")
        """,
        broker.address,
    )
    assert child.wait() == 0
    assert child.errors == ""
    wait_until(lambda: broker.stats().messages == 1, "the batch arrives")
    wait_until(lambda: broker.stats().publishers == 0, "the row is free")
    assert broker.stats().reaped_publishers == 0  # it left in order


def test_a_closed_publisher_does_not_hold_a_descriptor_of_the_ring(make_broker: Brokers) -> None:
    broker = make_broker().start()
    path = broker.segment.name.path.resolve()

    def descriptors() -> int:
        gc.collect()
        return sum(link.resolve() == path for link in Path("/proc/self/fd").iterdir())

    before = descriptors()
    pub = es.Publisher.connect(broker.address)
    assert descriptors() > before
    pub.close()
    del pub
    assert descriptors() == before


# --- errors on their way, signals, restarts -------------------------------------------------------


def test_an_error_in_a_reservation_is_not_hidden_by_an_array_it_keeps(
    make_broker: Callable[..., es.Broker], connect: Callable[..., es.Publisher]
) -> None:
    broker = make_broker().start()
    pub = connect(broker)
    with pytest.raises(ValueError, match="of the block"), pub.reserve(8) as view:
        array = np.frombuffer(view, np.uint8)
        raise ValueError("of the block", array)
    del array, view
    pub.publish(b"the next one")
    pub.wait_acked()
    assert broker.stats().messages == 1


def test_publish_many_tells_how_far_it_came(
    make_broker: Callable[..., es.Broker], connect: Callable[..., es.Publisher]
) -> None:
    pub = connect(make_broker(), in_flight=2, timeout=0.05, linger_ms=0)
    with pytest.raises(es.WaitTimeout) as caught:
        pub.publish_many(bytes(64 * 1000), 64)
    assert caught.value.appended == 2 * (4096 // 64)  # type: ignore[attr-defined]


def test_the_timeout_of_publish_many_is_for_standing_still(
    make_broker: Callable[..., es.Broker], connect: Callable[..., es.Publisher]
) -> None:
    broker = make_broker()
    log = Log.of(broker)
    pub = connect(broker, timeout=2.0)
    publishing = threading.Thread(target=pub.publish_many, args=(bytes(4096 * 30), 4096))
    publishing.start()
    pause = threading.Event()
    for count in range(1, 31):  # all together it takes longer than the timeout
        pause.wait(0.1)
        log.wait_for(count)
    publishing.join()
    pub.wait_acked()
    assert len(log.messages) == 30


def test_a_signal_handler_that_uses_a_waiting_publisher_is_told_at_once(
    make_broker: Callable[..., es.Broker], connect: Callable[..., es.Publisher]
) -> None:
    pub = connect(make_broker(), timeout=30, linger_ms=0)
    seen: list[BaseException] = []

    def handle(*_: object) -> None:
        try:
            pub.close()
        except es.MisuseError as error:
            seen.append(error)
            raise InterruptedError from error

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterruptedError):
            pub.publish_many(bytes(4096 * 10), 4096)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert "signal handler" in str(seen[0])


def test_connecting_waits_for_a_broker_that_is_started_again(
    make_broker: Callable[..., es.Broker], run_child: Callable[..., Child], cluster: str
) -> None:
    child = run_child(
        """
        import sys, signal, embar_shm as es
        broker = es.Broker.create(sys.argv[1], slots=2, slot_size=4096)
        print("ready")
        signal.pause()
        """,
        f"{cluster}/again",
    )
    child.expect("ready")
    child.process.kill()
    child.process.wait()
    found: list[es.Publisher] = []
    connecting = threading.Thread(
        target=lambda: found.append(
            es.Publisher.connect(f"shm://{cluster}/again", connect_timeout=30)
        )
    )
    connecting.start()
    make_broker("again", replace_dead=True).start()
    connecting.join()
    with found[0] as pub:
        pub.publish(b"x")
        pub.wait_acked()


def test_a_fork_in_the_middle_of_connecting_keeps_no_lock(
    run_child: Callable[..., Child], cluster: str
) -> None:
    child = run_child(
        """
        import os, signal, sys, threading, embar_shm as es
        broker = es.Broker.create(sys.argv[1], slots=2, slot_size=4096, max_publishers=2).start()
        end = threading.Event()
        def connect():
            while not end.is_set():
                es.Publisher.connect(broker.address).close()
        thread = threading.Thread(target=connect)
        thread.start()
        children = []
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                signal.pause()
            children.append(pid)
        end.set()
        thread.join()
        with es.Publisher.connect(broker.address), es.Publisher.connect(broker.address):
            print("both rows are free")
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        broker.close()
        """,
        f"{cluster}/fork",
    )
    child.expect("both rows are free")
    assert child.wait() == 0, child.errors
