"""`embar-shm evict` ends the process that holds a row, and only that; what it held comes back."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest
from rings import IDLE, Command, broker_in, killed_broker

import embar_shm as es
from embar_shm import _core
from embar_shm.address import RingName
from embar_shm.errors import PeerError
from embar_shm.inspection import eviction, files
from embar_shm.inspection.holders import holder, holders
from embar_shm.inspection.segments import OpenSegment, opened
from embar_shm.testing import Child, wait_until

# Waits for what it is told, and does it.
ORDERLY = """
import signal, sys
import embar_shm as es

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with es.Publisher.connect(sys.argv[1]) as pub:
    pub.publish(b"a message")
    print("ready")
    signal.pause()
"""

# A fork that Python does not know of keeps the lock's descriptor open.
WITH_HEIR = """
import ctypes, os, sys, time
import embar_shm as es

pub = es.Publisher.connect(sys.argv[1])
heir = ctypes.CDLL(None).fork()
if heir:
    print(heir)
time.sleep(600)
"""


def evicted(command: Command, name: RingName, *who: str, code: int = 0) -> dict[str, Any]:
    found = command.json("evict", str(name), *who, "--yes", code=code)
    assert found["schema"] == "embar-shm.evict/1"
    return dict(found)


def looked_into(name: RingName) -> OpenSegment:
    return opened(files.SegmentFile.of(name))


def idle(run_child: Callable[..., Child], kind: str, broker: es.Broker) -> Child:
    child = run_child(IDLE, kind, broker.address)
    child.expect("ready")
    return child


def test_a_stopped_publisher_is_evicted_and_its_slot_comes_back(
    command: Command, make_broker: Callable[..., es.Broker], run_child: Callable[..., Child]
) -> None:
    broker = make_broker("0").start()
    child = idle(run_child, "publisher", broker)  # in the middle of a batch
    child.signal(signal.SIGSTOP)
    wait_until(lambda: eviction_plan(broker.segment.name).stopped, "it stands still")
    done = evicted(command, broker.segment.name, "publisher", "0")
    assert child.wait() == -signal.SIGKILL
    assert (done["pid"], done["rows"]) == (child.pid, ["publisher 0"])
    assert done["signals"] == ["SIGTERM", "SIGKILL"]  # no grace for who cannot use it
    assert done["reaped"]
    assert done["slots_returned"] == [0]
    assert done["slots_in_log"] == []
    stats = broker.stats()
    assert (stats.publishers, stats.reaped_publishers, stats.reaped_slots) == (0, 1, 1)


def eviction_plan(name: RingName, who: str = "publisher 0") -> eviction.Plan:
    with looked_into(name) as segment:
        return eviction.plan(segment, who)


def test_a_process_that_ends_at_sigterm_is_not_killed(
    command: Command, make_broker: Callable[..., es.Broker], run_child: Callable[..., Child]
) -> None:
    broker = make_broker("0").start()
    child = run_child(ORDERLY, broker.address)
    child.expect("ready")
    done = evicted(command, broker.segment.name, str(child.pid))
    assert child.wait() == 0
    assert done["signals"] == ["SIGTERM"]
    assert broker.stats().messages == 1  # what it had begun is in the log


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(
    command: Command, make_broker: Callable[..., es.Broker], run_child: Callable[..., Child]
) -> None:
    broker = make_broker("0").start()
    deaf = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    child = run_child(deaf + IDLE.lstrip(), "publisher", broker.address)
    child.expect("ready")
    done = evicted(command, broker.segment.name, "publisher 0", "--grace", "0.05")
    assert child.wait() == -signal.SIGKILL
    assert done["signals"] == ["SIGTERM", "SIGKILL"]


def test_a_subscriber_is_found_by_its_name_and_publishers_go_on(
    command: Command,
    make_broker: Callable[..., es.Broker],
    connect: Callable[..., es.Publisher],
    run_child: Callable[..., Child],
) -> None:
    broker = make_broker("0", slots=2).start()
    child = idle(run_child, "asleep", broker)
    pub = connect(broker, timeout=0.05, in_flight=2)
    with pytest.raises(es.WaitTimeout, match=f"subscriber 0 \\('asleep', pid {child.pid}\\)"):
        for _ in range(3):
            pub.publish(b"unread")
            pub.flush()
    command("evict", broker.name, "asleep", "--yes")
    assert "subscriber 0 of" in command.stdout
    assert "no longer held back: 2 batches" in command.stdout
    assert child.wait() == -signal.SIGTERM
    again = connect(broker, timeout=30, in_flight=2)
    for _ in range(3):
        again.publish(b"nobody waits")
        again.flush()


def test_committed_batches_of_the_evicted_stay_in_the_log(
    command: Command, make_broker: Callable[..., es.Broker], run_child: Callable[..., Child]
) -> None:
    broker = make_broker("0").start()
    with es.Subscriber.connect(broker.address) as sub:
        child = run_child(
            """
            import sys, time
            import embar_shm as es

            pub = es.Publisher.connect(sys.argv[1], linger_ms=600_000)
            pub.publish(b"acknowledged")
            pub.flush()
            pub.wait_acked(timeout=30)
            pub.publish(b"begun")
            print("ready")
            time.sleep(600)
            """,
            broker.address,
        )
        child.expect("ready")
        done = evicted(command, broker.segment.name, "publisher 0")
        assert (done["slots_in_log"], done["slots_returned"]) == ([0], [1])
        with sub.next(timeout=30) as batch:
            assert [bytes(message) for message in batch.messages()] == [b"acknowledged"]


def test_a_broker_can_be_evicted_and_leaves_its_ring(
    command: Command, name: RingName, run_child: Callable[..., Child]
) -> None:
    broker = broker_in(run_child, name)
    broker.signal(signal.SIGSTOP)
    wait_until(lambda: eviction_plan(name, "broker").stopped, "it stands still")
    done = evicted(command, name, "broker")
    assert broker.wait() == -signal.SIGKILL
    assert (done["rows"], done["broker_alive"], done["reaped"]) == (["broker"], False, False)
    assert name.path.exists()
    assert command("evict", str(name), "broker", "--yes") == 1
    assert "is dead already: nothing to evict" in command.stderr
    name.path.unlink()


def test_a_broker_that_does_not_reap_is_told(
    command: Command,
    make_broker: Callable[..., es.Broker],
    run_child: Callable[..., Child],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(eviction, "_REAP_TIME", 0.0)
    broker = make_broker("0")  # alive, and does not serve
    idle(run_child, "publisher", broker)
    done = evicted(command, broker.segment.name, "publisher 0", code=1)
    assert (done["broker_alive"], done["reaped"], done["slots_returned"]) == (True, False, [])


def test_rows_without_a_broker_are_left_to_the_next_one(
    command: Command, name: RingName, run_child: Callable[..., Child]
) -> None:
    broker = broker_in(run_child, name)
    peer = run_child(IDLE, "publisher", f"shm://{name}")
    peer.expect("ready")
    broker.kill()
    done = evicted(command, name, "publisher 0")
    assert (done["broker_alive"], done["reaped"]) == (False, False)
    command("ls", str(name))
    assert "dead, active" in command.stdout
    name.path.unlink()


def test_the_brokers_own_process_is_not_ended_for_a_row_that_it_holds(
    command: Command, make_broker: Callable[..., es.Broker], connect: Callable[..., es.Publisher]
) -> None:
    """This process, in fact."""
    broker = make_broker("0").start()
    listener = broker.listen("tcp://127.0.0.1:0")
    connect(listener.address).publish(b"from far away")
    assert command("evict", broker.name, "publisher 0", "--yes") == 1
    assert f"lives in the broker's own process (pid {os.getpid()})" in command.stderr
    assert "the program at the other end" in command.stderr


def test_who_is_dead_already_needs_no_evicting(
    command: Command, make_broker: Callable[..., es.Broker], run_child: Callable[..., Child]
) -> None:
    broker = make_broker("0")  # does not reap
    child = idle(run_child, "publisher", broker)
    child.kill()
    assert command("evict", broker.name, "publisher 0", "--yes") == 1
    assert "publisher 0 of" in command.stderr
    assert "the broker frees what it held by itself" in command.stderr
    assert command("evict", broker.name, str(child.pid), "--yes") == 1
    assert "(publisher 0 had that pid)" in command.said


def test_participants_that_are_not_there_or_not_one_are_told(
    command: Command, make_broker: Callable[..., es.Broker]
) -> None:
    broker = make_broker("0").start()
    for who in ("publisher 3", "publisher", "nobody", "\x1b[2J", "99999999", "²"):
        assert command("evict", broker.name, who, "--yes") == 1
        assert f"alive in it: broker (pid {os.getpid()})" in command.stderr
        assert "\x1b" not in command.stderr
    with es.Subscriber.connect(broker.address, name="twin"):  # noqa: SIM117
        with es.Subscriber.connect(broker.address, name="twin"):
            assert command("evict", broker.name, "twin", "--yes") == 1
            assert "'twin' is the name of subscriber 0, subscriber 1" in command.stderr


def test_what_is_no_ring_has_nobody_to_evict(command: Command, name: RingName) -> None:
    assert command("evict", str(name), "broker", "--yes") == 1
    assert "there is no segment" in command.stderr
    name.path.write_bytes(b"precious" * 1000)
    assert command("evict", str(name), "broker", "--yes") == 1
    assert "cannot be looked into: magic" in command.stderr
    name.path.unlink()


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_it_asks_first(
    command: Command,
    make_broker: Callable[..., es.Broker],
    run_child: Callable[..., Child],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker = make_broker("0").start()
    child = idle(run_child, "publisher", broker)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert command("evict", broker.name, "publisher 0") == 2
    assert f"would end process {child.pid}" in command.stderr
    monkeypatch.setattr(sys, "stdin", Keyboard("n\n"))
    assert command("evict", broker.name, "publisher 0") == 1
    assert f"is publisher 0 of {broker.name}" in command.stderr
    assert "owns slot 0" in command.stderr
    assert "nothing was done" in command.stderr
    assert child.process.poll() is None
    monkeypatch.setattr(sys, "stdin", Keyboard("y\n"))
    assert command("evict", broker.name, "publisher 0") == 0
    assert child.wait() == -signal.SIGTERM


def test_a_process_is_only_ended_as_what_was_agreed_to(
    make_broker: Callable[..., es.Broker], run_child: Callable[..., Child]
) -> None:
    broker = make_broker("0").start()
    child = idle(run_child, "publisher", broker)
    other = idle(run_child, "publisher", broker)
    agreed = eviction_plan(broker.segment.name)
    with looked_into(broker.segment.name) as segment:
        for pid in (other.pid, os.getppid()):  # as if it had got the pid of the one that was meant
            with pytest.raises(PeerError, match="no longer is what it was: publisher 0"):
                eviction.evict(segment, dataclasses.replace(agreed, pid=pid), 0)
        assert other.process.poll() is None
        child.kill()
        with pytest.raises(PeerError, match="has just ended by itself"):
            eviction.evict(segment, agreed, 0)


def test_a_child_that_inherited_the_lock_is_found_and_can_be_evicted_too(
    command: Command,
    make_broker: Callable[..., es.Broker],
    run_child: Callable[..., Child],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(eviction, "_LOCK_TIME", 0.0)
    broker = make_broker("0").start()
    child = run_child(WITH_HEIR, broker.address)
    heir = child.read()
    assert command("evict", broker.name, str(child.pid), "--yes") == 1
    assert f"the lock of publisher 0 of {broker.name} is held by process {heir}" in command.stderr
    monkeypatch.undo()
    done = evicted(command, broker.segment.name, heir)
    assert (done["pid"], done["reaped"]) == (int(heir), True)


def test_a_row_that_is_taken_again_at_once_is_another_participants(
    make_broker: Callable[..., es.Broker],
    connect: Callable[..., es.Publisher],
    run_child: Callable[..., Child],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its lock is held again before anybody has looked at it."""
    broker = make_broker("0").start()
    child = idle(run_child, "publisher", broker)
    end = eviction._end

    def end_and_take_its_row(*arguments: Any) -> list[str]:
        sent = end(*arguments)
        child.wait()
        wait_until(lambda: broker.stats().publishers == 0, "the row is free")
        connect(broker)
        return sent

    monkeypatch.setattr(eviction, "_end", end_and_take_its_row)
    with looked_into(broker.segment.name) as segment:
        done = eviction.evict(segment, eviction.plan(segment, "publisher 0"), 5)
        assert _core.is_locked(segment.fd, _core.publisher_lock(0))
    assert done.reaped


def test_holders_are_found_by_their_locks_not_their_pids(
    make_broker: Callable[..., es.Broker], run_child: Callable[..., Child], name: RingName
) -> None:
    broker = make_broker("0").start()
    child = idle(run_child, "publisher", broker)
    reader = idle(run_child, "reader", broker)
    with looked_into(name) as segment:
        found = {one.pid: one.rows for one in holders(segment)}
        assert found == {
            os.getpid(): ["broker"],
            child.pid: ["publisher 0"],
            reader.pid: ["subscriber 0"],
        }
        assert holder(os.getppid(), segment) is None
        plan = eviction.plan(segment, str(child.pid))
        assert plan.participant == "publisher 0"
        assert "-P -c" in plan.command
        assert plan.other_segments == ()


def test_the_other_segments_of_a_process_are_named(
    make_broker: Callable[..., es.Broker], run_child: Callable[..., Child]
) -> None:
    here, there = make_broker("0").start(), make_broker("1").start()
    child = run_child(
        """
        import sys, time
        import embar_shm as es

        both = [es.Publisher.connect(address) for address in sys.argv[1:]]
        print("ready")
        time.sleep(600)
        """,
        here.address,
        there.address,
    )
    child.expect("ready")
    assert eviction_plan(here.segment.name).other_segments == (there.name,)


def test_a_process_that_may_not_be_signalled_is_left_alone(
    command: Command,
    make_broker: Callable[..., es.Broker],
    run_child: Callable[..., Child],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    broker = make_broker("0").start()
    child = idle(run_child, "publisher", broker)
    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    assert command("evict", broker.name, "publisher 0", "--yes") == 1
    assert f"process {child.pid} (publisher 0 of {broker.name}) may not be ended" in command.stderr
    assert child.process.poll() is None


def test_a_process_that_cannot_be_seen_from_here_is_told(
    command: Command,
    name: RingName,
    run_child: Callable[..., Child],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lock of which no process can be seen: as if it were in another container."""
    killed_broker(run_child, name)
    fd = os.open(name.path, os.O_RDWR)
    try:
        assert _core.try_lock(fd, _core.publisher_lock(0))
        with looked_into(name) as segment:
            found = holder(os.getpid(), segment)
            assert found is not None
            assert found.rows == ["publisher 0"]
        monkeypatch.setattr(eviction, "holders", lambda _segment: [])
        assert command("evict", str(name), "publisher 0", "--yes") == 1
        assert "its process cannot be seen from here" in command.stderr
    finally:
        os.close(fd)
        name.path.unlink()
