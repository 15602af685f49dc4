"""Subscribers over shared memory in real processes and threads: order, pressure, start, end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embar_shm as es
from embar_shm.address import RingName
from embar_shm.testing import Child, wait_until
from embar_shm.testing.conditions import DEADLINE
from embar_shm.transports import shm

Brokers = Callable[..., es.Broker]
Publishers = Callable[..., es.Publisher]
Subscribers = Callable[..., es.Subscriber]
Children = Callable[..., Child]

# Reads to the end of the log; tells how many batches, and that each message was the next one.
READER = """
import sys
import embar_shm as es

mode = sys.argv[2] if len(sys.argv) > 2 else "reliable"
last, batches = {}, 0
with es.Subscriber.connect(sys.argv[1], mode=mode, start="earliest") as sub:
    print("reading", flush=True)
    for batch in sub:
        with batch:
            batches += 1 + batch.gap
            for message in batch.messages():
                number = int.from_bytes(message[:8], "little")
                expected = last.get(batch.publisher_id, -1) + 1
                if mode == "reliable" and number != expected or number < expected:
                    sys.exit(f"publisher {batch.publisher_id}: {number} instead of {expected}")
                last[batch.publisher_id] = number
                message.release()
    lost = sub.stats().lost
print(batches, sum(last.values()) + len(last), lost if mode == "lossy" else 0)
"""

# Holds what it has read until it is told to go on.
HOLDER = """
import sys
import embar_shm as es

with es.Subscriber.connect(sys.argv[1], name=sys.argv[2]) as sub:
    print("connected")
    batch = sub.next()
    print("holding")
    input()
    batch.release()
    print("released")
    input()
"""

# Publishes numbered messages, one in a batch.
WRITER = """
import sys
import embar_shm as es

with es.Publisher.connect(sys.argv[1], message_size=64, batch_size=64, linger_ms=0) as pub:
    for number in range(int(sys.argv[2])):
        pub.publish(number.to_bytes(8, "little") + bytes(56))
    pub.wait_acked()
print("published")
"""


@pytest.fixture
def subscribe(make_broker: Brokers) -> Iterator[Subscribers]:
    """Connects subscribers to a broker or an address; closes them, and only then the brokers."""
    with ExitStack() as stack:

        def subscribe_to(broker: es.Broker | str, **options: Any) -> es.Subscriber:
            address = broker if isinstance(broker, str) else broker.address
            options = {"timeout": DEADLINE} | options
            return stack.enter_context(es.Subscriber.connect(address, **options))

        yield subscribe_to


def publish(pub: es.Publisher, *numbers: int) -> None:
    """Batches of one message."""
    for number in numbers:
        pub.publish(bytes([number]))
        pub.flush()
    pub.wait_acked()


def read(sub: es.Subscriber, count: int) -> list[int]:
    """Reads and releases so many batches."""
    found = []
    for _ in range(count):
        with sub.next() as batch:
            found.append(batch.copy()[8])  # behind its length
    return found


def read_now(sub: es.Subscriber) -> list[int]:
    """What there is now."""
    found = []
    while (batch := sub.poll()) is not None:
        found.append(batch.copy()[8])
        batch.release()
    return found


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mode": "fast"}, "mode='fast'"),
        ({"start": "first"}, "start='first' is no place in a log"),
        ({"start": -1}, "start=-1"),
        ({"start": 2**64}, f"start={2**64}"),
        ({"start": True}, "start=True"),
        ({"start": 1.0}, r"start=1\.0"),
        ({"start": None}, "start=None"),
        ({"start": es.Position(-1, 0)}, r"start\.log=-1"),
        ({"start": es.Position(0, "5")}, r"start\.ticket='5'"),
        ({"name": ""}, "name=''"),
        ({"name": "a\nb"}, r"name='a\\nb'"),
        ({"name": 5}, "name=5"),
        ({"timeout": -1}, "timeout=-1"),
        ({"connect_timeout": None}, "connect_timeout=None"),
        ({"wait": "sleep"}, "wait='sleep'"),
        ({"spin_us": float("nan")}, "spin_us=nan"),
        ({"in_flight": 0}, "in_flight=0"),
    ],
    ids=str,
)
def test_an_option_that_makes_no_sense_is_refused_with_its_value(
    make_broker: Brokers, options: dict[str, Any], says: str
) -> None:
    broker = make_broker().start()
    with pytest.raises(es.ConfigurationError, match=says):
        es.Subscriber.connect(broker.address, **options)
    assert broker.segment.monitor().subscriber(0)["state"] == "free"


@pytest.mark.parametrize("timeout", [-1, float("nan"), "5", True], ids=repr)
def test_a_timeout_that_makes_no_sense_is_refused_with_its_value(
    make_broker: Brokers, subscribe: Subscribers, timeout: Any
) -> None:
    sub = subscribe(make_broker().start())
    for call in (sub.next, sub.wait):
        with pytest.raises(es.ConfigurationError, match=f"timeout={timeout!r}"):
            call(timeout)
    with pytest.raises(TypeError):
        sub.next(1, 2)
    with pytest.raises(TypeError):
        sub.next(within=1)


def test_a_name_is_shown_as_far_as_there_is_room(
    make_broker: Brokers, subscribe: Subscribers
) -> None:
    broker = make_broker().start()
    subscribe(broker, name="ä" * 40)
    subscribe(broker)
    shown = [s.name for s in broker.stats().subscribers]
    assert shown[0] == "ä" * 31  # 63 bytes, and no half of a character
    assert shown[1]


# --- everything, in order -------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_many_subscribers_see_every_batch_in_order(
    make_broker: Brokers, run_child: Children, slots: int
) -> None:
    broker = make_broker(slots=slots, slot_size=64).start()
    readers = [run_child(READER, broker.address) for _ in range(3)]
    for reader in readers:
        reader.expect("reading")
    writers = [run_child(WRITER, broker.address, 300) for _ in range(3)]
    for writer in writers:
        writer.expect("published")
    broker.close()
    for reader in readers:
        reader.expect("900 900 0")
        assert reader.wait() == 0
    assert broker.stats().reaped_subscribers == 0


def test_a_lossy_subscriber_sees_each_batch_once_or_counts_it(
    make_broker: Brokers, run_child: Children
) -> None:
    broker = make_broker(slots=4, slot_size=64).start()
    readers = [run_child(READER, broker.address, mode) for mode in ("lossy", "lossy", "reliable")]
    for reader in readers:
        reader.expect("reading")
    writers = [run_child(WRITER, broker.address, 1000) for _ in range(2)]
    for writer in writers:
        writer.expect("published")
    broker.close()
    for reader in readers[:2]:
        batches, _, lost = map(int, reader.read().split())
        assert 2000 - batches <= lost <= 2000  # what is lost at the end is in no batch's gap
        assert batches <= 2000
    readers[2].expect("2000 2000 0")


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # it is, after the iteration
def test_iterating_over_a_subscriber_nobody_else_refers_to_keeps_it_open(
    make_broker: Brokers, connect: Publishers
) -> None:
    broker = make_broker(retain=4).start()
    publish(connect(broker, in_flight=4), 0, 1, 2)
    broker.stop()
    broker.start()
    found = []
    for batch in es.Subscriber.connect(broker.address, start="earliest", timeout=DEADLINE):
        found.append(batch.copy()[8])
        if len(found) == 3:
            broker.close()
    assert found == [0, 1, 2]


# --- back-pressure --------------------------------------------------------------------------------


def test_who_waits_for_a_slot_is_told_which_subscriber_holds_them(
    make_broker: Brokers, connect: Publishers, run_child: Children
) -> None:
    broker = make_broker(slots=2).start()
    holder = run_child(HOLDER, broker.address, "slow one")
    holder.expect("connected")
    pub = connect(broker, in_flight=2, timeout=0.1)
    publish(pub, 1)
    holder.expect("holding")
    publish(pub, 2)
    with pytest.raises(es.WaitTimeout, match=r"no slot of .* came free") as caught:
        publish(pub, 3)
    named = f"subscriber 0 ('slow one', pid {holder.pid}) holds 2 slots, the oldest for"
    assert named in str(caught.value)
    assert "mode='lossy'" in caught.value.hint
    [status] = broker.stats().subscribers
    assert (status.name, status.pid, status.holding, status.lag) == ("slow one", holder.pid, 2, 1)
    assert status.stalled_seconds > 0
    holder.tell()
    holder.expect("released")
    publish(pub, 3)


def test_a_publisher_goes_on_when_the_subscriber_it_waits_for_leaves(
    make_broker: Brokers, connect: Publishers, subscribe: Subscribers
) -> None:
    broker = make_broker(slots=1).start()
    sub = subscribe(broker)
    pub = connect(broker, in_flight=1, timeout=DEADLINE)
    publish(pub, 1)
    blocked = threading.Thread(target=publish, args=(pub, 2))
    blocked.start()
    wait_until(lambda: pub.stats().space_waits, "the publisher waits")
    sub.close()
    blocked.join(DEADLINE)
    assert broker.stats().messages == 2


def test_a_lossy_subscriber_makes_nobody_wait(
    make_broker: Brokers, connect: Publishers, subscribe: Subscribers
) -> None:
    broker = make_broker(slots=2).start()
    sub = subscribe(broker, mode="lossy")
    pub = connect(broker, in_flight=2, timeout=DEADLINE)
    publish(pub, *range(100))
    batch = sub.next()
    assert batch.gap + read_remaining(sub) + 1 == 100
    assert sub.stats().lost >= 97


def read_remaining(sub: es.Subscriber) -> int:
    return sum(1 + batch.gap for batch in iter(sub.poll, None))


def test_a_subscriber_that_holds_all_slots_is_told_so(
    make_broker: Brokers, connect: Publishers, subscribe: Subscribers
) -> None:
    broker = make_broker(slots=2).start()
    sub = subscribe(broker)
    publish(connect(broker, in_flight=2), 1, 2)
    kept = [sub.next(), sub.next()]
    with pytest.raises(es.WaitTimeout, match="this subscriber holds 2 batches, all 2 slots"):
        sub.next(timeout=0.01)
    assert sub.stats().held == len(kept)


# --- where to begin -------------------------------------------------------------------------------


def test_another_subscriber_goes_on_at_a_position(
    make_broker: Brokers, connect: Publishers, subscribe: Subscribers
) -> None:
    broker = make_broker(retain=4).start()
    first = subscribe(broker)
    pub = connect(broker, in_flight=4)
    publish(pub, 0, 1, 2)
    assert read(first, 2) == [0, 1]
    position = first.position
    first.close()
    assert first.position == position == es.Position(broker.segment.log, 2)
    assert read(subscribe(broker, start=position), 1) == [2]
    assert read(subscribe(broker, start=1), 2) == [1, 2]
    assert read_now(subscribe(broker, start="latest")) == []
    assert read(subscribe(broker, start="earliest", mode="lossy"), 3) == [0, 1, 2]


def test_a_position_that_is_overwritten_or_not_there_yet_is_refused(
    make_broker: Brokers, connect: Publishers
) -> None:
    broker = make_broker(retain=2).start()
    publish(connect(broker), *range(5))
    wait_until(lambda: broker.stats().in_flight == 2, "the rest is released")
    for start, says in ((2, "ticket 2 .* overwritten"), (6, "ticket 6 .* never written")):
        with pytest.raises(es.PositionLost, match=says) as caught:
            es.Subscriber.connect(broker.address, start=start)
        assert "3 to 4" in str(caught.value)
        assert "retain=N" in caught.value.hint
    wait_until(lambda: broker.segment.monitor().subscriber(0)["state"] == "free", "the row is free")


def test_a_position_in_the_log_of_an_earlier_broker_is_refused(
    make_broker: Brokers, subscribe: Subscribers
) -> None:
    broker = make_broker("same").start()
    position = subscribe(broker).position
    broker.close()
    again = make_broker("same").start()
    with pytest.raises(es.BrokerRestarted, match="was started anew"):
        subscribe(again, start=position)
    assert again.segment.monitor().subscriber(0)["state"] == "free"
    assert subscribe(again, start=position.ticket).position.log != position.log


def test_a_subscriber_can_come_before_its_broker(
    make_broker: Brokers, run_child: Children, cluster: str
) -> None:
    address = f"shm://{cluster}/late"
    with pytest.raises(es.NoSuchBroker):
        es.Subscriber.connect(address)
    with pytest.raises(es.NoSuchBroker):
        es.Subscriber.connect(address, connect_timeout=0.01)
    early = run_child(
        """
        import sys
        import embar_shm as es

        print("waiting")
        with es.Subscriber.connect(sys.argv[1], connect_timeout=60) as sub:
            print("connected")
        """,
        address,
    )
    early.expect("waiting")
    make_broker("late").start()
    early.expect("connected")
    assert early.wait() == 0


def test_a_broker_that_does_not_serve_admits_nobody(
    make_broker: Brokers, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = make_broker()
    monkeypatch.setattr(shm, "_ADMISSION", 0.01)
    with pytest.raises(es.WaitTimeout, match=f"pid {os.getpid()}.* did not admit") as caught:
        es.Subscriber.connect(broker.address)
    assert "serve" in caught.value.hint
    broker.start()
    wait_until(lambda: broker.segment.monitor().subscriber(0)["state"] == "free", "the row is free")
    with es.Subscriber.connect(broker.address):
        pass


def test_one_subscriber_too_many_is_refused_with_the_pids_of_the_others(
    make_broker: Brokers, run_child: Children, subscribe: Subscribers
) -> None:
    broker = make_broker(max_subscribers=2).start()
    holder = run_child(HOLDER, broker.address, "x")
    holder.expect("connected")
    subscribe(broker)
    with pytest.raises(es.NotEnoughSpace, match="all 2 places for subscribers") as caught:
        subscribe(broker)
    for pid in (holder.pid, os.getpid()):
        assert str(pid) in str(caught.value)
    assert "max_subscribers" in caught.value.hint


def test_the_row_of_a_closed_subscriber_is_used_again(make_broker: Brokers) -> None:
    broker = make_broker(max_subscribers=1).start()
    for _ in range(5):
        with es.Subscriber.connect(broker.address) as sub:
            assert sub.stats().batches == 0
    wait_until(lambda: not broker.stats().subscribers, "the last row is free")
    assert broker.stats().reaped_subscribers == 0


# --- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["reliable", "lossy"])
def test_what_was_accepted_is_read_after_the_broker_has_stopped(
    make_broker: Brokers, connect: Publishers, subscribe: Subscribers, mode: str
) -> None:
    broker = make_broker(retain=4)
    broker.start()
    sub = subscribe(broker, mode=mode)
    publish(connect(broker, in_flight=4), 0, 1, 2)
    broker.close()
    assert [batch.copy()[8] for batch in sub] == [0, 1, 2]
    for call in (sub.next, sub.poll):
        with pytest.raises(es.EndOfLog, match="has stopped, and everything in its log was read"):
            call()
    assert list(sub) == []
    assert sub.wait()


def test_what_a_killed_broker_accepted_is_read_and_then_its_death_is_told(
    cluster: str, run_child: Children
) -> None:
    broker = run_child(
        """
        import sys
        import embar_shm as es

        with es.Broker.create(sys.argv[1], slots=4, slot_size=4096).start() as broker:
            print(broker.address)
            input()
        """,
        f"{cluster}/0",
    )
    address = broker.read()
    with (
        es.Subscriber.connect(address, timeout=DEADLINE) as sub,
        es.Publisher.connect(address, in_flight=4) as pub,
    ):
        publish(pub, 0, 1, 2)
        broker.kill()
        assert read(sub, 3) == [0, 1, 2]
        for call in (sub.next, sub.poll, lambda: next(sub)):
            with pytest.raises(es.BrokerGone, match=r"died .* up to ticket 3"):
                call()
    RingName(cluster, "0").path.unlink()


def test_a_subscriber_that_waits_learns_that_its_broker_closes(
    make_broker: Brokers, subscribe: Subscribers
) -> None:
    broker = make_broker().start()
    sub = subscribe(broker)
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            sub.next()
        except es.EndOfLog as error:
            outcome.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_until(lambda: sub.stats().waits, "it waits")
    broker.close()
    waiting.join(DEADLINE)
    assert len(outcome) == 1


def test_ctrl_c_ends_a_wait_and_the_subscriber_goes_on(
    make_broker: Brokers, connect: Publishers, run_child: Children
) -> None:
    broker = make_broker().start()
    reader = run_child(
        """
        import sys
        import embar_shm as es

        with es.Subscriber.connect(sys.argv[1]) as sub:
            print("waiting")
            try:
                sub.next()
            except KeyboardInterrupt:
                print("interrupted")
            print(sub.next().ticket)
        """,
        broker.address,
    )
    reader.expect("waiting")
    wait_until(lambda: broker.segment.monitor().subscriber(0)["waits"], "it waits")
    reader.signal(signal.SIGINT)
    reader.expect("interrupted")
    publish(connect(broker), 1)
    reader.expect("0")
    assert reader.wait() == 0


def test_a_closed_subscriber_tells_its_last_counters(
    make_broker: Brokers, connect: Publishers, subscribe: Subscribers
) -> None:
    broker = make_broker().start()
    sub = subscribe(broker, name="mine")
    publish(connect(broker), 1, 2)
    read(sub, 2)
    sub.close()
    sub.close()
    assert (sub.stats().batches, sub.stats().messages, sub.stats().payload_bytes) == (2, 2, 2)
    assert repr(sub) == "<Subscriber 'mine', reliable, closed>"
    for call in (sub.next, sub.poll, sub.wait, lambda: next(sub)):
        with pytest.raises(es.ClosedError):
            call()


# --- threads --------------------------------------------------------------------------------------


def test_a_subscriber_of_its_own_in_each_thread(
    make_broker: Brokers, connect: Publishers, subscribe: Subscribers
) -> None:
    broker = make_broker(slots=3).start()
    subs = [subscribe(broker, name=str(n)) for n in range(4)]
    found: list[list[int]] = [[] for _ in subs]

    def run(n: int) -> None:
        found[n] = read(subs[n], 200)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    publish(connect(broker, timeout=DEADLINE), *range(200))
    for thread in threads:
        thread.join()
    assert found == [list(range(200))] * 4


def test_threads_share_one_subscriber_and_each_batch_is_read_by_one(
    make_broker: Brokers, connect: Publishers, subscribe: Subscribers
) -> None:
    broker = make_broker(slots=3).start()
    sub = subscribe(broker)
    found: list[int] = []

    def run() -> None:
        try:
            while True:
                found.extend(read(sub, 1))
        except es.EndOfLog:
            pass

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    publish(connect(broker, timeout=DEADLINE), *range(250))
    broker.close()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(found) == list(range(250))


@pytest.mark.parametrize("mode", ["reliable", "lossy"])
def test_a_close_from_another_thread_ends_every_read(
    make_broker: Brokers, subscribe: Subscribers, mode: str
) -> None:
    broker = make_broker().start()
    for _ in range(5):
        sub = subscribe(broker, mode=mode)
        outcome: list[BaseException] = []

        def run(sub: es.Subscriber = sub, outcome: list[BaseException] = outcome) -> None:
            try:
                read(sub, 1_000_000)
            except es.ClosedError as error:
                outcome.append(error)

        reading = threading.Thread(target=run)
        reading.start()
        wait_until(lambda sub=sub: sub.stats().waits, "it waits")
        sub.close()
        reading.join(DEADLINE)
        assert len(outcome) == 1
    wait_until(lambda: not broker.stats().subscribers, "all rows are free")


# --- memory ---------------------------------------------------------------------------------------


def test_slots_are_mapped_read_only(make_broker: Brokers, subscribe: Subscribers) -> None:
    broker = make_broker(slots=2).start()
    before = mappings(broker)
    sub = subscribe(broker)
    geometry = broker.segment.geometry
    begin, end = geometry.slots_offset, geometry.total_bytes
    assert mappings(broker) - before == {("rw-s", 0, begin), ("r--s", begin, end)}
    assert sub.mode == "reliable"


def mappings(broker: es.Broker) -> set[tuple[str, int, int]]:
    """Permissions and range of each mapping of the ring in this process (proc(5))."""
    path = str(broker.segment.name.path)
    found = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, permissions, offset, _, _, *name = line.split(maxsplit=5)
        if name == [path]:
            first, last = (int(address, 16) for address in where.split("-"))
            begin = int(offset, 16)
            found.add((permissions, begin, begin + last - first))
    return found


def test_a_write_into_a_batch_is_stopped_by_the_kernel(
    make_broker: Brokers, connect: Publishers, run_child: Children
) -> None:
    broker = make_broker(retain=1).start()
    publish(connect(broker), 7)
    writer = run_child(
        """
        import ctypes
        import sys
        import numpy as np
        import embar_shm as es

        with es.Subscriber.connect(sys.argv[1], start="earliest") as sub:
            array = np.frombuffer(sub.next(), np.uint8)
            print(array[8])
            ctypes.memset(array.ctypes.data, 1, 1)
            print("written")
        """,
        broker.address,
    )
    writer.expect("7")
    assert writer.wait() == -signal.SIGSEGV
    with es.Subscriber.connect(broker.address, start="earliest") as sub:
        assert read(sub, 1) == [7]


def test_arrays_stay_as_they_are_after_the_broker_has_closed(
    make_broker: Brokers, connect: Publishers, subscribe: Subscribers
) -> None:
    broker = make_broker().start()
    sub = subscribe(broker)
    pub = connect(broker, message_size=4096)
    pub.publish(np.arange(512))
    pub.flush()
    array = sub.next().array(np.int64)
    sub.close()
    pub.close()
    broker.close()
    assert (array == np.arange(512)).all()


# --- a broker's own subscriber --------------------------------------------------------------------


def test_reading_takes_the_place_of_serving(make_broker: Brokers, run_child: Children) -> None:
    broker = make_broker(slots=2)
    with broker.subscribe(timeout=DEADLINE, name="own") as sub:
        writer = run_child(WRITER, broker.address, 100)
        numbers = []
        for batch in sub:
            with batch:
                numbers.append(int(batch.array("<u8")[0]))
            if len(numbers) == 100:
                broker.stop()
        assert numbers == list(range(100))
    with broker.subscribe(timeout=DEADLINE):  # still its broker
        assert broker.stats().batches == 100
    broker.start()
    writer.expect("published")


def test_every_batch_is_seen_by_others_beside_the_own_subscriber(
    make_broker: Brokers, run_child: Children
) -> None:
    broker = make_broker(slots=2, slot_size=64)
    with broker.subscribe(timeout=DEADLINE) as sub:
        reader = run_child(READER, broker.address)
        while not broker.stats().subscribers[1:]:  # only serving admits it
            assert sub.poll() is None
        reader.expect("reading")
        run_child(WRITER, broker.address, 200)
        for number in range(200):
            with sub.next() as batch:
                assert batch.ticket == number
    broker.close()
    reader.expect("200 200 0")


@pytest.mark.parametrize("call", ["serve", "start", "subscribe"])
def test_a_broker_with_a_subscriber_of_its_own_is_served_by_nobody_else(
    make_broker: Brokers, call: str
) -> None:
    broker = make_broker()
    sub = broker.subscribe()
    with pytest.raises(es.MisuseError, match="served by its own subscriber"):
        getattr(broker, call)()
    sub.close()
    broker.serve(timeout=0)  # though `sub` is still there
    with broker.subscribe():
        pass
    broker.start()
    broker.stop()


def test_a_broker_that_serves_has_no_subscriber_of_its_own(make_broker: Brokers) -> None:
    broker = make_broker().start()
    with pytest.raises(es.MisuseError, match="background thread") as caught:
        broker.subscribe()
    assert broker.address in caught.value.hint
    broker.stop()
    serving = threading.Thread(target=broker.serve)
    serving.start()
    wait_until(lambda: broker._serving.locked(), "it serves")
    with pytest.raises(es.MisuseError, match="another thread is serving"):
        broker.subscribe()
    broker.stop()
    serving.join()
    broker.subscribe().close()


def test_a_place_that_is_not_there_leaves_the_broker_to_others(make_broker: Brokers) -> None:
    broker = make_broker()
    with pytest.raises(es.PositionLost):
        broker.subscribe(start=5)
    with pytest.raises(es.BrokerRestarted):
        broker.subscribe(start=es.Position(1, 0))
    with pytest.raises(es.ConfigurationError):
        broker.subscribe(mode="fast")
    broker.serve(timeout=0)


def test_a_row_is_enough_for_one_own_subscriber_after_the_other(make_broker: Brokers) -> None:
    broker = make_broker(max_subscribers=1)
    for _ in range(3):
        broker.subscribe().close()
    assert broker.stats().reaped_subscribers == 0


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_an_own_subscriber_that_is_forgotten_gives_the_broker_back(make_broker: Brokers) -> None:
    broker = make_broker()
    broker.subscribe()
    broker.serve(timeout=0)


@pytest.mark.parametrize("where", ["in a call", "between calls"])
def test_a_broker_closes_though_another_thread_has_its_subscriber(
    make_broker: Brokers, where: str
) -> None:
    broker = make_broker()
    subs: list[es.Subscriber] = []
    outcome: list[BaseException] = []

    def run() -> None:
        subs.append(broker.subscribe())
        if where == "in a call":
            try:
                subs[0].next()
            except es.ClosedError as error:
                outcome.append(error)

    reading = threading.Thread(target=run)
    reading.start()
    if where == "in a call":
        wait_until(lambda: broker.segment.monitor().control()["sleeps"], "it serves")
    else:
        reading.join()
    broker.close()
    reading.join(DEADLINE)
    assert len(outcome) == (where == "in a call")
    assert not broker.is_open


def test_an_own_subscriber_closed_by_another_thread_gives_the_broker_back(
    make_broker: Brokers, connect: Publishers
) -> None:
    broker = make_broker()
    sub = broker.subscribe()
    closing = threading.Thread(target=sub.close)
    closing.start()
    closing.join()
    pub = connect(broker)
    pub.publish(b"x")
    pub.flush()
    broker.serve(timeout=0)
    assert broker.stats().messages == 1


@pytest.mark.parametrize("read", ["next", "poll", "iteration", "wait"])
def test_sigterm_ends_the_log_of_an_own_subscriber(
    run_child: Children, read: str, cluster: str
) -> None:
    child = run_child(
        """
        import sys
        import embar_shm as es

        def forever(sub):
            while True:
                match sys.argv[2]:
                    case "next":
                        sub.next()
                    case "poll":
                        sub.poll()
                    case "wait":
                        sub.wait()
                        sub.poll()
                    case "iteration":
                        for batch in sub:
                            pass
                        raise es.EndOfLog("iteration ended")

        with es.Broker.create(sys.argv[1]) as broker, broker.subscribe() as sub:
            print("reading")
            try:
                forever(sub)
            except es.EndOfLog:
                print("end of log")
        """,
        f"{cluster}/0",
        read,
    )
    child.expect("reading")
    child.signal(signal.SIGTERM)
    child.expect("end of log")
    assert child.wait() == 0
    assert child.errors == ""


def test_ctrl_c_in_a_read_of_an_own_subscriber_closes_both(
    run_child: Children, cluster: str
) -> None:
    child = run_child(
        """
        import sys
        import embar_shm as es

        try:
            with es.Broker.create(sys.argv[1]) as broker, broker.subscribe() as sub:
                print("reading")
                sub.next()
        except KeyboardInterrupt:
            print("interrupted", sub.stats().batches, broker.is_open)
        """,
        f"{cluster}/0",
    )
    child.expect("reading")
    child.signal(signal.SIGINT)
    child.expect("interrupted 0 False")
    assert child.wait() == 0
    assert child.errors == ""


def test_a_signal_handler_may_close_the_broker_in_the_middle_of_a_read(
    run_child: Children, cluster: str
) -> None:
    child = run_child(
        """
        import signal
        import sys
        import embar_shm as es

        broker = es.Broker.create(sys.argv[1])
        sub = broker.subscribe()
        signal.signal(signal.SIGUSR1, lambda *_: broker.close())
        print("reading")
        try:
            sub.next()
        except es.ClosedError:
            print("closed", broker.is_open)
        """,
        f"{cluster}/0",
    )
    child.expect("reading")
    child.signal(signal.SIGUSR1)
    child.expect("closed False")
    assert child.wait() == 0
    assert child.errors == ""
