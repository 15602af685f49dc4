"""Publisher processes on a ring of three small slots: nothing lost, doubled, reordered, damaged.

The test is the broker: it accepts, verifies every message and releases. Publishers are
stress_publisher.py. A slot holds a handful of messages, so tickets wrap every few of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stress_publisher import BATCH_SIZE, FIXED_SIZE, message

from embar_shm import _core
from embar_shm.address import RingName
from embar_shm.layout import Geometry
from embar_shm.segment import Segment

SCRIPT = Path(__file__).with_name("stress_publisher.py")
SLOTS, ROWS = 3, 6
PATIENCE = 60.0  # seconds; what works takes a few


class VerifyingBroker:
    """Does what Broker.serve() does, and looks at every byte in between."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.core = _core.BrokerCore(
            segment.memory, segment.lock_fd, wait_mode=2, spin_us=0, cpus=1
        )
        self.monitor = segment.monitor()
        self.received: Counter[int] = Counter()  # messages by publisher
        self.kinds: dict[int, str] = {}
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self._held: deque[int] = deque()
        self._seqs: Counter[int] = Counter()
        self._deadline = time.monotonic() + PATIENCE

    def start(self, publisher: int, kind: str, count: int, *extra: str) -> None:
        self.kinds[publisher] = kind
        address = f"shm://{self.segment.name}"
        arguments = [str(os.getpid()), address, str(publisher), kind, str(count), *extra]
        self.processes[publisher] = subprocess.Popen(
            [sys.executable, SCRIPT, *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )

    def step(self) -> bool:
        """Accepts one batch, and releases another; False when there is nothing to accept."""
        batch = self.core.accept()
        assert self.core.corruption is None
        if batch is None:
            while self._held:
                self._release()
            self.core.reap()
            return False
        self._verify(batch)
        self._held.append(batch["ticket"])
        while len(self._held) > batch["ticket"] % SLOTS:  # holds back none, one or two
            self._release()
        return True

    def work_until(self, condition: Any, what: str) -> None:
        while not condition():
            if not self.step():
                assert time.monotonic() < self._deadline, f"{what} never happened; {self.state()}"
                time.sleep(0.0001)

    def finish(self, publishers: list[int]) -> None:
        """Works until these processes have ended well and everything they sent is here."""
        waiting = [self.processes[p] for p in publishers]
        self.work_until(lambda: all(p.poll() is not None for p in waiting), "the publishers' end")
        for process in waiting:
            _, errors = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, errors
        while self.step():
            pass

    def kill(self, publisher: int) -> None:
        process = self.processes[publisher]
        process.kill()
        process.communicate(timeout=PATIENCE)

    def only_open_batches_hold_slots(self) -> bool:
        control = self.monitor.control()
        owners = [owner for _, owner, _, _ in self.monitor.slots()]
        return control["tail"] == control["released"] and -1 not in owners

    def state(self) -> dict[str, Any]:
        return {
            "control": self.monitor.control(),
            "slots": self.monitor.slots(),
            "received": self.received,
            "exits": {p: process.poll() for p, process in self.processes.items()},
        }

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.communicate(timeout=PATIENCE)
        self.segment.unlink()
        self.segment.close()

    def _release(self) -> None:
        self._held.popleft()
        assert self.core.release()

    def _verify(self, batch: dict[str, Any]) -> None:
        assert batch["verdict"] == "accepted", batch
        publisher = batch["publisher_id"]
        self._seqs[publisher] += 1
        assert batch["seq"] == self._seqs[publisher], batch
        begin = batch["payload_offset"]
        body = self.segment.memory[begin : begin + batch["body_bytes"]]
        expected = b""
        for _ in range(batch["messages"]):
            self.received[publisher] += 1
            sent = message(publisher, self.received[publisher], self.kinds[publisher])
            if batch["message_size"]:
                expected += sent
            else:
                expected += len(sent).to_bytes(8, "little") + sent + bytes(-len(sent) % 8)
        assert body == expected, f"batch {batch}: not what publisher {publisher} sent"


@pytest.fixture
def broker(cluster: str) -> Iterator[VerifyingBroker]:
    geometry = Geometry.plan(SLOTS, BATCH_SIZE, ROWS)
    working = VerifyingBroker(Segment.create(RingName(cluster, "0"), geometry))
    try:
        yield working
    finally:
        working.close()


def assert_nothing_is_left(broker: VerifyingBroker) -> None:
    control = broker.monitor.control()
    assert control["tail"] == control["head"] == control["released"] == control["batches"]
    assert control["messages"] == sum(broker.received.values())
    refused = {name: control[name] for name in ("duplicated", "out_of_order", "corrupt")}
    assert not any(refused.values()), refused
    assert [owner for _, owner, _, _ in broker.monitor.slots()] == [-1] * SLOTS
    broker.work_until(
        lambda: all(broker.monitor.publisher(row)["state"] == "free" for row in range(ROWS)),
        "the end of all rows",
    )


def test_every_message_of_many_processes_arrives_once_in_order_and_undamaged(
    broker: VerifyingBroker,
) -> None:
    count = 3000
    publishers = {1: "fixed", 2: "variable", 3: "fixed", 4: "variable"}
    for publisher, kind in publishers.items():
        broker.start(publisher, kind, count)
    broker.finish(list(publishers))
    assert broker.received == dict.fromkeys(publishers, count)
    assert broker.monitor.control()["released"] > 100 * SLOTS  # laps
    assert_nothing_is_left(broker)


@pytest.mark.parametrize("kind", ["fixed", "variable"])
def test_killed_publishers_leave_a_prefix_and_disturb_nobody(
    broker: VerifyingBroker, kind: str
) -> None:
    count, survivors, victims = 3000, [1, 2], [11, 12, 13]
    for publisher in survivors:
        broker.start(publisher, kind, count)
    for victim in victims:
        broker.start(victim, kind, 0)
        broker.work_until(lambda v=victim: broker.received[v] > 200, "progress of the victim")
        broker.kill(victim)  # wherever it is: filling, committing, waiting for a slot
    broker.finish(survivors)
    broker.work_until(
        lambda: broker.monitor.control()["reaped_publishers"] == len(victims), "reaping"
    )
    assert {p: broker.received[p] for p in survivors} == dict.fromkeys(survivors, count)
    assert_nothing_is_left(broker)


def test_the_open_batch_of_a_killed_publisher_is_dropped_and_its_slot_is_used_again(
    broker: VerifyingBroker,
) -> None:
    victims = [21, 22, 23]  # one for each slot
    count = 2 * BATCH_SIZE // FIXED_SIZE
    for victim in victims:
        broker.start(victim, "fixed", count, "hold")
    broker.work_until(
        lambda: (
            all(broker.received[v] == count for v in victims)
            and broker.only_open_batches_hold_slots()
        ),
        "an open batch in every slot",
    )
    for victim in victims:
        broker.kill(victim)
    broker.work_until(lambda: broker.monitor.control()["reaped_slots"] == SLOTS, "reaping")

    broker.start(1, "variable", 500)
    broker.finish([1])
    assert broker.received == {1: 500} | dict.fromkeys(victims, count)
    assert broker.monitor.control()["reaped_publishers"] == len(victims)
    assert_nothing_is_left(broker)
