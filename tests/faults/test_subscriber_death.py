"""Subscribers that are killed, stopped, forked or open at exit: who waits, and what is freed.

Processes are real ones, and killed for real; every wait is for a condition.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

import embar_shm as es
from embar_shm.testing import Child, wait_until
from embar_shm.testing.conditions import DEADLINE

Brokers = Callable[..., es.Broker]
Publishers = Callable[..., es.Publisher]
Children = Callable[..., Child]

# Reads as fast as it can, and always has a few batches in use.
READER = """
import sys
from collections import deque
import embar_shm as es

sub = es.Subscriber.connect(sys.argv[1], mode=sys.argv[2], name="victim")
print("reading")
kept = deque(maxlen=2)
for batch in sub:
    kept.append(batch.array())
    assert kept[-1][8] == kept[-1][-1]
"""

# Comes to the state it is told, says so, and stays there.
IN_STATE = """
import signal
import sys
import threading
import time
import embar_shm as es
from embar_shm import _core, participants
from embar_shm.address import RingName
from embar_shm.segment import Segment

address, state = sys.argv[1:]
if state == "locked":  # the row is taken, and nothing is in it yet
    segment = Segment.attach(RingName.parse(address.removeprefix("shm://")))
    print(participants.take_subscriber_row(segment))
elif state == "joining":
    from embar_shm.transports import shm
    threading.Thread(target=es.Subscriber.connect, args=(address,), daemon=True).start()
    segment = Segment.attach(RingName.parse(address.removeprefix("shm://")))
    while segment.monitor().subscriber(0)["state"] != "joining":
        time.sleep(0.001)
    print("joining")
else:
    sub = es.Subscriber.connect(address, start="earliest", name="victim")
    if state == "holding":
        kept = [sub.next()]
    elif state == "viewing":
        kept = [sub.next().array()]
        sub.close()  # goes on holding, for the array
    elif state == "waiting":
        kept = [sub.next()]
        threading.Thread(target=sub.next, daemon=True).start()
    print(state)
input()
"""


def publish(pub: es.Publisher, count: int) -> None:
    """Batches of one message whose first and last byte are the same."""
    for number in range(count):
        pub.publish(bytes([number % 251]) * 100)
        pub.flush()
    pub.wait_acked()


def state_of(broker: es.Broker, row: int = 0) -> str:
    return str(broker.segment.monitor().subscriber(row)["state"])


def slots_owned(broker: es.Broker) -> int:
    return sum(owner >= 0 for _, owner, _, _ in broker.segment.monitor().slots())


# --- killed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["reading", "holding", "viewing", "waiting"])
def test_a_killed_subscriber_holds_nothing_back_and_its_row_is_freed(
    make_broker: Brokers, connect: Publishers, run_child: Children, state: str
) -> None:
    broker = make_broker(slots=2, retain=1, max_subscribers=1).start()
    pub = connect(broker, in_flight=2, timeout=DEADLINE)
    publish(pub, 1)
    victim = run_child(IN_STATE, broker.address, state)
    victim.expect(state)
    impatient = connect(broker, in_flight=2, timeout=0.05)
    with pytest.raises(es.WaitTimeout, match=rf"subscriber 0 \('victim', pid {victim.pid}\)"):
        publish(impatient, 3)
    victim.kill()
    publish(pub, 50)
    wait_until(lambda: state_of(broker) == "free", "the row is freed")
    assert broker.stats().reaped_subscribers == 1
    with es.Subscriber.connect(broker.address) as heir:
        publish(pub, 2)
        assert heir.next(timeout=DEADLINE).seq == pub.stats().committed - 1
    wait_until(lambda: slots_owned(broker) <= 1, "the slots are free")


def test_a_publisher_that_waits_goes_on_when_the_subscriber_is_killed(
    make_broker: Brokers, connect: Publishers, run_child: Children
) -> None:
    broker = make_broker(slots=1, retain=1).start()
    publish(connect(broker, in_flight=1), 1)
    victim = run_child(IN_STATE, broker.address, "holding")
    victim.expect("holding")
    waiter = run_child(
        """
        import sys
        import embar_shm as es

        with es.Publisher.connect(sys.argv[1], in_flight=1, timeout=None) as pub:
            print("waiting")
            pub.publish(b"x")
            pub.wait_acked()
        print("went on")
        """,
        broker.address,
    )
    waiter.expect("waiting")
    monitor = broker.segment.monitor()
    wait_until(lambda: monitor.publisher(1)["space_waits"], "it waits")
    victim.kill()
    waiter.expect("went on")


@pytest.mark.parametrize("state", ["locked", "joining"])
def test_one_killed_before_it_was_admitted_leaves_nothing(
    make_broker: Brokers, run_child: Children, state: str
) -> None:
    broker = make_broker(max_subscribers=1)  # admits nobody yet
    victim = run_child(IN_STATE, broker.address, state)
    victim.expect("0" if state == "locked" else state)
    victim.kill()
    broker.start()
    with (
        es.Subscriber.connect(broker.address) as sub,
        es.Publisher.connect(broker.address, in_flight=1, timeout=DEADLINE) as pub,
    ):
        for _ in range(10):
            publish(pub, 1)
            sub.next(timeout=DEADLINE).release()
    assert broker.stats().reaped_subscribers == (state == "joining")


@pytest.mark.parametrize("mode", ["reliable", "lossy"])
def test_subscribers_killed_at_any_instant_leave_a_sound_ring(
    make_broker: Brokers, connect: Publishers, run_child: Children, mode: str
) -> None:
    broker = make_broker(slots=4).start()
    pub = connect(broker, in_flight=4, timeout=DEADLINE)
    with es.Subscriber.connect(broker.address, timeout=DEADLINE) as witness:
        seen = 0
        for round_ in range(1, 5):
            victims = [run_child(READER, broker.address, mode) for _ in range(2)]
            for victim in victims:
                victim.expect("reading")
            for number in range(200):
                publish(pub, 1)
                with witness.next() as batch:
                    assert batch.ticket == seen
                    seen += 1
                if number == 100 + round_:
                    for victim in victims:
                        victim.kill()
            died = 2 * round_
            wait_until(
                lambda died=died: broker.stats().reaped_subscribers == died, "both are reaped"
            )
    wait_until(lambda: broker.stats().in_flight == 0, "everything is released")
    assert slots_owned(broker) == 0
    stats = broker.stats()
    assert (stats.duplicated, stats.out_of_order, stats.corrupt) == (0, 0, 0)


# --- stopped --------------------------------------------------------------------------------------


def test_a_stopped_subscriber_is_waited_for_and_named(
    make_broker: Brokers, connect: Publishers, run_child: Children
) -> None:
    broker = make_broker(slots=4).start()
    reader = run_child(READER, broker.address, "reliable")
    reader.expect("reading")
    pub = connect(broker, in_flight=4, timeout=DEADLINE)
    publish(pub, 20)
    stop(reader)
    impatient = connect(broker, in_flight=4, timeout=0.1)
    with pytest.raises(es.WaitTimeout, match=rf"subscriber 0 \('victim', pid {reader.pid}\) holds"):
        publish(impatient, 10)
    before = broker.stats().batches
    [status] = broker.stats().subscribers
    assert status.holding == 4
    reader.signal(signal.SIGCONT)
    publish(pub, 20)
    assert broker.stats().batches >= before + 20


def test_a_stopped_lossy_subscriber_stops_nobody(
    make_broker: Brokers, connect: Publishers, run_child: Children
) -> None:
    broker = make_broker(slots=2).start()
    reader = run_child(READER, broker.address, "lossy")
    reader.expect("reading")
    stop(reader)
    publish(connect(broker, in_flight=1, timeout=DEADLINE), 200)
    reader.signal(signal.SIGCONT)
    wait_until(lambda: broker.stats().subscribers[0].lost, "it has noticed")
    wait_until(lambda: broker.stats().subscribers[0].lag == 0, "it is up to date")


def stop(child: Child) -> None:
    """SIGSTOP; returns when the process does not run any more."""
    child.signal(signal.SIGSTOP)

    def stopped() -> bool:
        with open(f"/proc/{child.pid}/stat") as file:  # noqa: PTH123 - a pseudo file
            return file.read().rpartition(")")[2].split()[0] == "T"

    wait_until(stopped, "the process stops")


# --- the end of the interpreter -------------------------------------------------------------------

AT_EXIT = {
    "nothing": "",
    "a batch": "kept = sub.next()",
    "a view": "kept = memoryview(sub.next())",
    "an array": "kept = sub.next().array()",
    "a message": "kept = next(sub.next().messages())",
    "messages": "kept = sub.next().messages()",
    "an array, closed": "kept = sub.next().array(); sub.close()",
    "an array, forgotten": "kept = sub.next().array(); sub.close(); del sub",
    "a cycle": "kept = [sub.next().array()]; kept.append(kept); del kept",
    "in a module": "import json; json.kept = sub.next().array()",
    "in builtins": "import builtins; builtins.kept = sub.next().array(); builtins.sub = sub",
    "an iterator": "kept = iter(sub); kept2 = next(kept).array()",
    "an error": "try:\n    sub.next().array('V7')\nexcept Exception as e:\n    sys.kept = e",
    "an exit inside": "with sub.next() as batch:\n    kept = batch.array()\n    sys.exit(0)",
    "a thread that waits": "import threading\n"
    "kept = sub.next().array()\n"
    "threading.Thread(target=sub.next, daemon=True).start()",
    "an exit function": "import atexit\n"
    "kept = sub.next().array()\n"
    "atexit.register(lambda: print(int(kept[8])))",
}


@pytest.mark.parametrize("mode", ["reliable", "lossy"])
@pytest.mark.parametrize("what", AT_EXIT)
def test_what_is_alive_at_the_end_of_the_interpreter_ends_without_a_sound(
    make_broker: Brokers, connect: Publishers, run_child: Children, what: str, mode: str
) -> None:
    broker = make_broker(slots=4, retain=4).start()
    pub = connect(broker, in_flight=4, timeout=DEADLINE)
    publish(pub, 2)
    program = (
        "import sys\nimport embar_shm as es\n"
        "sub = es.Subscriber.connect(sys.argv[1], start='earliest', mode=sys.argv[2])\n"
    )
    child = run_child(program + AT_EXIT[what], broker.address, mode)
    assert child.wait() == 0
    assert child.errors == ""
    publish(pub, 20)
    wait_until(lambda: state_of(broker) == "free", "the row is free")


def test_views_of_a_brokers_own_subscriber_are_alive_at_the_end_of_the_interpreter(
    run_child: Children, cluster: str
) -> None:
    child = run_child(
        """
        import sys
        import embar_shm as es

        broker = es.Broker.create(sys.argv[1])
        sub = broker.subscribe()
        pub = es.Publisher.connect(broker.address)
        pub.publish(b"x")
        pub.flush()
        kept = sub.next().array()
        """,
        f"{cluster}/0",
    )
    assert child.wait() == 0
    assert child.errors == ""


def test_a_subscriber_that_is_forgotten_warns_and_is_closed(
    make_broker: Brokers, run_child: Children
) -> None:
    broker = make_broker().start()
    child = run_child(
        """
        import sys
        import warnings
        import embar_shm as es

        warnings.simplefilter("always")
        es.Subscriber.connect(sys.argv[1], name="forgotten")
        print("gone")
        input()
        """,
        broker.address,
    )
    child.expect("gone")
    wait_until(lambda: state_of(broker) == "free", "the row is free")
    assert "ResourceWarning: unclosed <Subscriber 'forgotten', reliable>" in child.errors
    assert broker.stats().reaped_subscribers == 0


# --- fork -----------------------------------------------------------------------------------------

FORKING = """
import gc
import os
import sys
import warnings
import embar_shm as es

warnings.simplefilter("error")
how = sys.argv[2]
sub = es.Subscriber.connect(sys.argv[1], start="earliest")
batch, unseen = sub.next(), sub.next()
array = batch.array()
messages = batch.messages()
if how == "closed":
    sub.close()
elif how == "forgotten":
    sub.close()
    del sub, batch, messages, unseen
child = os.fork()
if child == 0:
    try:
        if how == "open":
            calls = [sub.next, sub.poll, sub.wait, lambda: next(sub), unseen.release, unseen.copy,
                     batch.copy, batch.messages, batch.array, lambda: next(messages)]
            for call in calls:
                try:
                    call()
                except es.ClosedError as error:
                    assert "parent" in str(error), error
                else:
                    raise AssertionError(call)
            try:
                memoryview(unseen)
            except BufferError:
                pass
            sub.close()
            sub.stats()
        assert array[8] == array[-1] == 0
        array = batch = unseen = messages = sub = None
        gc.collect()
        print("child", flush=True)
    except BaseException as error:
        print(f"child: {error!r}", flush=True)
        os._exit(1)
    sys.exit(0)
_, status = os.waitpid(child, 0)
print("parent", status, flush=True)
input()
assert array[8] == array[-1] == 0, array[-1]
if how == "open":
    print(sub.next().ticket)
else:
    print("same")
"""


@pytest.mark.parametrize("how", ["open", "closed", "forgotten"])
def test_the_end_of_a_forked_child_frees_nothing_of_its_parent(
    make_broker: Brokers, connect: Publishers, run_child: Children, how: str
) -> None:
    broker = make_broker(slots=4, retain=4).start()
    pub = connect(broker, in_flight=4, timeout=DEADLINE)
    publish(pub, 2)
    parent = run_child(FORKING, broker.address, how)
    parent.expect("child")
    parent.expect("parent 0")
    assert state_of(broker) == "active"
    [status] = broker.stats().subscribers
    assert status.holding == 2
    impatient = connect(broker, in_flight=4, timeout=0.05)
    with pytest.raises(es.WaitTimeout, match="subscriber 0"):
        publish(impatient, 4)
    parent.tell()
    parent.expect("2" if how == "open" else "same")
    assert parent.wait() == 0
    assert parent.errors == ""


def test_a_fork_while_another_thread_reads_leaves_the_child_with_an_error(
    make_broker: Brokers, connect: Publishers, run_child: Children
) -> None:
    broker = make_broker().start()
    parent = run_child(
        """
        import os
        import sys
        import threading
        import time
        import embar_shm as es

        sub = es.Subscriber.connect(sys.argv[1], mode=sys.argv[2])
        thread = threading.Thread(target=lambda: print(sub.next().seq))
        thread.start()
        while not sub.stats().waits:
            time.sleep(0.001)
        child = os.fork()
        if child == 0:
            try:
                sub.next()
            except es.ClosedError:
                print("child", flush=True)
            sys.exit(0)
        print("parent", os.waitpid(child, 0)[1])
        thread.join()
        """,
        broker.address,
        "reliable",
    )
    parent.expect("child")
    parent.expect("parent 0")
    publish(connect(broker), 1)
    parent.expect("1")
    assert parent.wait() == 0


def test_a_child_that_outlives_its_parent_does_not_keep_the_gate(
    make_broker: Brokers, connect: Publishers, run_child: Children
) -> None:
    broker = make_broker(slots=2, retain=1).start()
    pub = connect(broker, in_flight=2, timeout=DEADLINE)
    publish(pub, 1)
    parent = run_child(
        """
        import os
        import sys
        import embar_shm as es

        sub = es.Subscriber.connect(sys.argv[1], start="earliest")
        kept = sub.next().array()
        child = os.fork()
        if child == 0:
            input()
            os._exit(0)
        print(child)
        os.waitpid(child, 0)
        """,
        broker.address,
    )
    child = int(parent.read())
    try:
        parent.kill()
        publish(pub, 50)
        wait_until(lambda: state_of(broker) == "free", "the row is free")
    finally:
        os.kill(child, signal.SIGKILL)


# --- the broker -----------------------------------------------------------------------------------


def test_the_log_of_a_killed_broker_is_read_to_its_end_beside_that_of_its_successor(
    make_broker: Brokers, run_child: Children, cluster: str
) -> None:
    old = run_child(
        """
        import sys
        import embar_shm as es

        broker = es.Broker.create(sys.argv[1], slots=4, slot_size=4096)
        print(broker.address)
        broker.serve()
        """,
        f"{cluster}/0",
    )
    address = old.read()
    with es.Subscriber.connect(address, timeout=DEADLINE) as before:
        with es.Publisher.connect(address, in_flight=4) as pub:
            publish(pub, 2)
            old.kill()
        new = make_broker("0", replace_dead=True, retain=1).start()
        with es.Publisher.connect(address) as pub:
            publish(pub, 1)
        with before.next() as batch:
            assert batch.ticket == 0
        with pytest.raises(es.BrokerRestarted):
            es.Subscriber.connect(address, start=before.position)
        with es.Subscriber.connect(address, start="earliest") as after:
            assert after.next(timeout=DEADLINE).ticket == 0
        assert before.next().ticket == 1
        with pytest.raises(es.BrokerGone, match="up to ticket 2"):
            before.next()
    assert new.stats().messages == 1


def test_a_waiting_subscriber_learns_within_its_wait_that_its_broker_was_killed(
    make_broker: Brokers, run_child: Children, cluster: str
) -> None:
    broker = run_child(
        """
        import sys
        import embar_shm as es

        broker = es.Broker.create(sys.argv[1], slots=2, slot_size=4096)
        print(broker.address)
        broker.serve()
        """,
        f"{cluster}/0",
    )
    reader = run_child(
        """
        import sys
        import embar_shm as es

        with es.Subscriber.connect(sys.argv[1]) as sub:
            print("waiting")
            try:
                sub.next()
            except es.BrokerGone as error:
                print(error.message)
        """,
        broker.read(),
    )
    reader.expect("waiting")
    broker.kill()
    assert "died" in reader.read()
    assert reader.wait() == 0
    make_broker("0", replace_dead=True)  # takes its place, and away what it left
