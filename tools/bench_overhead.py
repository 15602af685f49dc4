"""What a batch costs besides its copy: CPU time of claim, header, commit, accept, release, wake.

    python tools/bench_overhead.py [--rounds 5] [--batches 20000] [--work-us 20]

12 publisher and 4 broker processes, as in the report. Publishers reserve a whole 2 MiB batch and
commit it without writing into it. In place of the copy they burn a known amount of CPU time
(copying 4 KiB in the first-level cache), so that batches come at the rate of real ones. What all
processes together used beyond that is the cost of a batch: system calls and process switches
included.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing as mp
import os
import resource
import statistics
from collections.abc import Callable
from functools import partial
from multiprocessing.synchronize import Barrier, Event
from typing import Any

from bench_common import interleave, machine, spread, table

import embar_shm as es
from embar_shm import _core
from embar_shm.address import RingName
from embar_shm.bench import stages
from embar_shm.segment import Segment

BROKERS, PUBLISHERS = 4, 3
BATCH = 2 * 2**20
PARTS = {
    "broker.get_buffer": "claim the slot",
    "publisher.send_payload": "header, commit, wake (system call, when the broker sleeps)",
    "broker.validate": "broker: check, acknowledge",
    "broker.release": "broker: free the slot, wake a waiting publisher",
}


def used_us() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return (usage.ru_utime + usage.ru_stime) * 1e6


def burner(work_us: float) -> tuple[Callable[[], object], float]:
    """A function that uses about `work_us` of CPU time, and how much exactly."""
    memory = mmap.mmap(-1, 8192)
    source = bytes(4096)

    def burn(copies: int) -> object:
        return _core.memory_copy(memory, [0], source, 4096, copies, False)

    burn(1000)
    begin = used_us()
    burn(1_000_000)
    one = (used_us() - begin) / 1_000_000
    copies = max(1, round(work_us / one))
    begin = used_us()
    for _ in range(2000):
        burn(copies)
    return lambda: burn(copies), (used_us() - begin) / 2000


def broker_process(name: str, scheduling: int, start: Barrier, end: Event, out: Any) -> None:
    os.sched_setscheduler(0, scheduling, os.sched_param(0))
    with es.Broker.create(name).start() as broker:
        start.wait()
        before = used_us()
        end.wait()
        out.put(("broker", used_us() - before, 0.0))
        broker.stop()


def publisher_process(
    name: str, batches: int, work_us: float, start: Barrier, leave: Barrier, out: Any
) -> None:
    burn, burnt = burner(work_us)
    with es.Publisher.connect(
        f"shm://{name}", message_size=BATCH, connect_timeout=30, sample_every=1
    ) as publisher:
        core = publisher.publish.__self__  # type: ignore[attr-defined]
        start.wait()
        before = used_us()
        for _ in range(batches):
            reservation = _core.Reservation(core, BATCH)
            burn()
            reservation.commit()
        publisher.wait_acked()
        out.put(("publisher", used_us() - before - burnt * batches, burnt))
        leave.wait()  # until the counters are read


def measure(batches: int, work_us: float, scheduling: int) -> tuple[dict[str, float], Any]:
    """CPU microseconds per batch by role, and the stage times."""
    spawn = mp.get_context("spawn")
    names = [f"overhead-{os.getpid()}/{b}" for b in range(BROKERS)]
    start = spawn.Barrier(BROKERS + BROKERS * PUBLISHERS)
    leave = spawn.Barrier(BROKERS * PUBLISHERS + 1)
    end, out = spawn.Event(), spawn.SimpleQueue()
    processes = [
        spawn.Process(target=broker_process, args=(n, scheduling, start, end, out)) for n in names
    ]
    processes += [
        spawn.Process(target=publisher_process, args=(n, batches, work_us, start, leave, out))
        for n in names
        for _ in range(PUBLISHERS)
    ]
    for process in processes:
        process.start()
    used = {"broker": 0.0, "publisher": 0.0}
    burnt = []
    for _ in range(BROKERS * PUBLISHERS):
        role, microseconds, work = out.get()
        used[role] += microseconds
        burnt.append(work)
    segments = [Segment.attach(RingName.parse(n), prefault=False) for n in names]
    found = stages.collect([s.monitor() for s in segments], PUBLISHERS)
    for segment in segments:
        segment.close()
    end.set()
    for _ in range(BROKERS):
        role, microseconds, _ = out.get()
        used[role] += microseconds
    leave.wait()
    for process in processes:
        process.join()
    total = batches * BROKERS * PUBLISHERS
    return {"work": statistics.mean(burnt)} | {r: u / total for r, u in used.items()}, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20_000, help="per publisher")
    parser.add_argument("--work-us", type=float, default=20.0, help="CPU time in place of the copy")
    a = parser.parse_args()
    machine()
    policies = {"batch": os.SCHED_BATCH, "normal": os.SCHED_OTHER}
    found = interleave(
        a.rounds,
        {name: partial(measure, a.batches, a.work_us, policy) for name, policy in policies.items()},
    )
    rows = []
    for name, results in found.items():
        costs = [used for used, _ in results]
        rows.append(
            [
                name,
                spread([c["work"] for c in costs]),
                spread([c["publisher"] for c in costs], digits=2),
                spread([c["broker"] for c in costs], digits=2),
                spread([c["publisher"] + c["broker"] for c in costs], digits=2),
            ]
        )
    print("CPU us per batch, median (least to most):\n")
    table(["broker scheduling", "in place of the copy", "publishers", "brokers", "cost"], rows)
    print("Its parts, wall us per batch (medians of all batches; undisturbed ones):\n")
    _, parts = found["batch"][-1]
    table(["part", "p50 us", "mean us"], [
        [what, f"{parts[stage]['p50_us']:.2f}", f"{parts[stage]['mean_us']:.2f}"]
        for stage, what in PARTS.items()
    ])  # fmt: skip


if __name__ == "__main__":
    main()
