"""One broker is killed while everybody works, and another takes its place.

It is lost with its ring, as when a machine is lost: the new one begins an empty log. (One that is
started again on its ring, `Broker.open_or_recover`, loses nothing: `tools/chaos`.)

What a broker has accepted is in its memory, and gone with it.
Publishers send again what was not acknowledged. So a message is in one of these cases:

- acknowledged, and some subscriber had read it: delivered;
- acknowledged, and in nobody's hands when the broker died: lost. Nobody sends it again, because
  acknowledgement 1 says that one broker has it, and that broker is gone;
- not acknowledged: sent again. Subscribers that had read it already get it a second time, and know
  it by publisher and number.

To make the failure happen "in the middle" whatever the size of the run: the broker dies when it has
half of its messages, and its publishers stop after three quarters until that has happened.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Final, TypedDict

from embar_shm.bench import specs
from embar_shm.bench.crew import Crew
from embar_shm.bench.delivery import check_stamps
from embar_shm.bench.phases import Measured, begin, end
from embar_shm.bench.watch import Watch, counters
from embar_shm.errors import IntegrityError

__all__ = ["Failure", "Sample", "lost_acknowledged", "work"]

_VICTIM: Final = 0  # any broker would do
_PERIOD_NS: Final = 50_000_000  # of the time series
_TICK: Final = 0.005  # seconds between two looks at the counters


class Sample(TypedDict):
    """A period of the time series, which ends at `seconds` after the barrier."""

    seconds: float
    bytes_per_second: float


class Failure(TypedDict):
    """See docs/result.md. Seconds count from the barrier, but for `recovery_seconds`."""

    broker: int
    failed_seconds: float
    replaced_seconds: float
    recovered_seconds: float
    recovery_seconds: float
    acknowledged: int
    delivered: int
    lost_acknowledged: int
    sent_again: int
    delivered_again: int
    series: list[Sample]


@dataclass
class _Series:
    """Throughput of all brokers together, from the counters in their rings."""

    crew: Crew
    watch: Watch
    start_ns: int = field(default_factory=time.monotonic_ns)
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._last_ns, self._last_bytes = self.start_ns, 0

    def tick(self) -> None:
        self.watch.tick()
        if time.monotonic_ns() - self._last_ns >= _PERIOD_NS:
            self.sample()

    def sample(self) -> None:
        """The time since the last one is a period, whatever its length."""
        moved, now_ns = counters(self.crew.monitors)["payload_bytes"], time.monotonic_ns()
        rate = (moved - self._last_bytes) * 1e9 / (now_ns - self._last_ns)
        self.samples.append({"seconds": self.seconds(now_ns), "bytes_per_second": rate})
        self._last_ns, self._last_bytes = now_ns, moved

    def seconds(self, ns: int) -> float:
        return (ns - self.start_ns) / 1e9


def work(crew: Crew, watch: Watch) -> tuple[Measured, Failure]:
    """Does it. Raises `IntegrityError` when a message is missing that must not be."""
    measured = begin(crew)
    values, fleet = crew.values, crew.fleet
    victims, orphans = crew.publishers_of(_VICTIM), crew.subscribers_of(_VICTIM)
    shares = specs.shares(values)
    watch.begin("publish")
    for reader in crew.subscribers:
        reader.tell(do="read-until-gone" if reader in orphans else "read-to-end")
    series = _Series(crew, watch)
    for number, publisher in enumerate(crew.publishers):
        if publisher in victims:
            publisher.tell(do="publish-until-gone", messages=_before_failure(shares[number]))
        else:
            publisher.tell(do="publish", messages=shares[number])
    first = crew.monitors[_VICTIM]
    half = sum(shares[: len(victims)]) // 2
    fleet.wait(
        lambda: first.control()["messages"] >= half,
        "half of the messages",
        watch.deadline,
        series.tick,
        _TICK,
    )
    failed_ns = time.monotonic_ns()
    fleet.kill(crew.brokers.pop(_VICTIM))

    def gather(workers: list[Any], event: str) -> list[dict[str, Any]]:
        return fleet.gather(workers, event, watch.deadline, series.tick, _TICK)

    replaced_ns, gone = _replace(crew, gather)
    left = gone[: len(victims)]
    for number, (publisher, one) in enumerate(zip(victims, left, strict=True)):
        publisher.tell(do="connect", address=crew.addresses[_VICTIM], first=one["acked"] + 1)
        publisher.tell(do="resume", messages=shares[number] - one["acked"])
    for reader in orphans:
        reader.tell(do="read-to-end")
    gather(victims, "ready")
    ended = gather([*crew.publishers, *crew.subscribers], "ended")
    series.sample()
    measured.published = ended[: len(crew.publishers)]
    measured.read = ended[len(crew.publishers) :]
    resumed = [p["recovered_ns"] for p in measured.published[: len(victims)]]
    recovered_ns = min(ns for ns in resumed if ns is not None)
    measured.rounds = 1
    measured.publish_seconds = series.seconds(max(p["end_ns"] for p in measured.published))
    if measured.read:
        measured.read_seconds = series.seconds(max(r["end_ns"] for r in measured.read))
    measured.seconds = measured.read_seconds or measured.publish_seconds
    lost = lost_acknowledged(shares, left, gone[len(victims) :], measured.read)
    end(crew, watch, measured)
    return measured, {
        "broker": _VICTIM,
        "failed_seconds": series.seconds(failed_ns),
        "replaced_seconds": series.seconds(replaced_ns),
        "recovered_seconds": series.seconds(recovered_ns),
        "recovery_seconds": (recovered_ns - failed_ns) / 1e9,
        "acknowledged": sum(p["acked"] for p in left),
        "delivered": sum(shares) - lost if measured.read else 0,
        "lost_acknowledged": lost,
        "sent_again": sum(p["sent"] - p["acked"] for p in left),
        "delivered_again": sum(s["verified"]["counts"]["resent"] for s in measured.read),
        "series": series.samples,
    }


def _before_failure(messages: int) -> int:
    return messages * 3 // 4


def _replace(crew: Crew, gather: Any) -> tuple[int, list[dict[str, Any]]]:
    """A new broker instead of the dead one, with its subscribers: when it listened, and what the
    dead one's publishers and subscribers said when they gave up."""
    ring, everybody = crew.rings[_VICTIM], crew.publishers_of(_VICTIM)
    everybody = [*everybody, *crew.subscribers_of(_VICTIM)]
    over_shm = crew.values.transport == "shm"
    gone: list[dict[str, Any]] = []
    if over_shm:  # a ring whose publishers are alive is not replaced; they notice at once
        gone = gather(everybody, "gone")
    spec = specs.broker(crew.values, ring, crew.geometry, crew.addresses[_VICTIM])
    crew.brokers.insert(_VICTIM, crew.fleet.start(f"broker {ring.broker}, the second", spec))
    [listening] = gather([crew.brokers[_VICTIM]], "listening")
    crew.addresses[_VICTIM] = listening["address"]
    replaced_ns = time.monotonic_ns()
    crew.monitor(ring)
    if not over_shm:  # they look for the address until somebody answers who does not know them
        gone = gather(everybody, "gone")
    crew.connect_subscribers([_VICTIM])
    return replaced_ns, gone


def lost_acknowledged(
    shares: list[int],
    left: list[dict[str, Any]],
    orphaned: list[dict[str, Any]],
    read: list[dict[str, Any]],
) -> int:
    """Messages that were acknowledged and in nobody's hands when the broker died.

    `left` and `orphaned`: what its publishers and subscribers said then; `read`: what all
    subscribers, its own first, said in the end. Raises `IntegrityError` when anything else is
    missing, or not as it was sent.
    """
    check_stamps(read)
    lost = 0
    for number, publisher in enumerate(left):
        acked = publisher["acked"]
        seen = [int(one["next"].get(str(number), 1)) - 1 for one in orphaned]
        lost += max(0, acked - max(seen, default=0))
        for subscriber, last in zip(read, seen, strict=False):
            _check_skipped(subscriber, number, acked, last)
    for subscriber in read:
        for number, high in subscriber["verified"]["next"].items():
            if int(high) != shares[int(number)] + 1:
                raise _missing(
                    f"{subscriber['name']}: the last message of publisher {number} was "
                    f"{int(high) - 1} of {shares[int(number)]}"
                )
    return lost


def _check_skipped(subscriber: dict[str, Any], number: int, acked: int, last: int) -> None:
    """What was acknowledged and not read when the broker died is skipped, and nothing else."""
    skipped = int(subscriber["verified"]["skipped"].get(str(number), 0))
    if skipped != max(0, acked - last):
        raise _missing(
            f"{subscriber['name']}: {skipped} messages of publisher {number} are missing; "
            f"{acked} were acknowledged by the broker that died, and {last} read before"
        )


def _missing(what: str) -> IntegrityError:
    return IntegrityError(
        what, "this is a bug in embar-shm; please report it with the parameters of this run"
    )
