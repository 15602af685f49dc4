"""Is it the code or the transport? Rules over what two transports reached with the same work.

The same producer, the same broker behind the slot, the same machine: what changes with the
transport is the transport's. If the faster one is `ratio` times as fast, then over the slower one
at least 1 - 1 / ratio of a batch's time is the transport's, because without it the same work took
that much less. The rest is what both share, and of that the faster transport itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypedDict

from embar_shm.bench.facts import limit
from embar_shm.bench.spread import Spread
from embar_shm.units import format_rate

__all__ = ["RULES", "Answer", "answer"]

_COPY: Final = "publisher.buffer_write"
# Stages in which something is done for the batch. Waits grow, too, but because of these.
_WORK: Final = (
    _COPY,
    "publisher.send_payload",
    "broker.get_buffer",
    "broker.receive",
    "broker.validate",
    "broker.release",
)


class Answer(TypedDict):
    """Which it is, between two transports. `grown_stage` is None when the answer names none."""

    rule: str
    faster: str
    slower: str
    grown_stage: str | None
    sentence: str
    evidence: dict[str, float]
    next: str


@dataclass(frozen=True, slots=True)
class _Pair:
    faster: str
    slower: str
    rates: tuple[float, float]
    ratio: Spread
    rounds: int
    batch_us: float | None
    stages: tuple[Mapping[str, float], Mapping[str, float]]

    @property
    def share(self) -> float:
        """Of a batch's time over the slower one: what is the transport's, at least."""
        return 1 - 1 / self.ratio["median"]

    @property
    def reached(self) -> str:
        faster, slower = map(format_rate, self.rates)
        ratio = f"{self.ratio['median']:.3g}"
        if self.rounds > 1:
            ratio += f" ({self.ratio['least']:.3g} to {self.ratio['most']:.3g})"
        return (
            f"the same producer reaches {faster} over {self.faster} and {slower} over "
            f"{self.slower}, {ratio} times as much"
        )

    def us(self, stage: str) -> tuple[float, float]:
        """A stage's time per batch over the faster and the slower; a step it lacks takes none."""
        before, after = self.stages
        return before.get(stage, 0.0), after.get(stage, 0.0)

    @property
    def grown(self) -> str | None:
        """The stage of work that takes most longer over the slower one; None when none explains
        anything, as when those that do are not timed."""
        growth = {stage: after - before for stage in _WORK for before, after in [self.us(stage)]}
        stage = max(growth, key=growth.__getitem__)
        if self.batch_us is None or growth[stage] < limit("grew") * self.batch_us:
            return None
        return stage


@dataclass(frozen=True, slots=True)
class _Rule:
    """One answer. `sentence` and `next` are asked only where `applies`."""

    name: str
    applies: Callable[[_Pair], bool]
    sentence: Callable[[_Pair], str]
    next: Callable[[_Pair], str]
    blames_transport: bool = False
    """Then the stage that grew belongs to the answer."""


def answer(
    *,
    faster: str,
    slower: str,
    rates: tuple[float, float],
    ratio: Spread,
    rounds: int,
    batch_us: float | None,
    stages: tuple[Mapping[str, float], Mapping[str, float]],
) -> Answer:
    """The answer for two transports: `rates` in bytes per second, `stages` in us per batch.

    `batch_us` is the time a publisher has for a batch over the slower one: a stage that grew by
    next to nothing of it explains nothing.
    """
    pair = _Pair(faster, slower, rates, ratio, rounds, batch_us, stages)
    rule = next(rule for rule in RULES if rule.applies(pair))
    evidence = {
        "faster_bytes_per_second": rates[0],
        "slower_bytes_per_second": rates[1],
        "ratio": ratio["median"],
        "least_ratio": ratio["least"],
        "most_ratio": ratio["most"],
        "rounds": rounds,
        "transport_share": pair.share,
    }
    sentence = rule.sentence(pair)
    grown = pair.grown if rule.blames_transport else None
    if grown is not None:
        before, after = pair.us(grown)
        evidence |= {"grown_stage_faster_us": before, "grown_stage_slower_us": after}
        sentence += f" {grown} grew most, from {before:,.0f} to {after:,.0f} us per batch"
        if batch_us is not None:
            evidence["slower_batch_us"] = batch_us
            sentence += f", of {batch_us:,.0f} over {slower}"
        sentence += "."
        if grown != _COPY and all(pair.us(_COPY)):
            before, after = pair.us(_COPY)
            evidence |= {"copy_faster_us": before, "copy_slower_us": after}
            sentence += f" Copying its messages took {before:,.0f} and {after:,.0f} us."
    return {
        "rule": rule.name,
        "faster": faster,
        "slower": slower,
        "grown_stage": grown,
        "sentence": sentence,
        "evidence": evidence,
        "next": rule.next(pair),
    }


def _same(pair: _Pair) -> bool:
    margin = 1 + limit("same")
    return pair.ratio["most"] <= margin and pair.ratio["least"] >= 1 / margin


def _too_few(pair: _Pair) -> bool:
    return pair.rounds < limit("rounds") and pair.share < limit("main part")


RULES: Final = (
    _Rule(
        "too few rounds",
        _too_few,
        lambda pair: (
            f"Not decided, because {pair.rounds} "
            f"{'round does' if pair.rounds == 1 else 'rounds do'} not show how much rounds differ: "
            f"{pair.reached}."
        ),
        lambda _pair: "--repeat 5",
    ),
    _Rule(
        "the code",
        _same,
        lambda pair: (
            f"It is not the transport: {pair.reached}. What limits is what both share: the "
            "calling code, the broker, the CPUs."
        ),
        lambda pair: f"what the verdict of {pair.faster} says; another transport changes nothing",
    ),
    _Rule(
        "the rounds disagree",
        lambda pair: pair.ratio["least"] <= 1,
        lambda pair: f"Not decided, because the rounds disagree: {pair.reached}.",
        lambda _pair: "more rounds (--repeat), longer ones (--total), a quiet machine",
    ),
    _Rule(
        "the transport",
        lambda pair: pair.share >= limit("main part"),
        lambda pair: (
            f"It is the transport: {pair.reached}, so at least {pair.share:.0%} of a batch's time "
            f"over {pair.slower} goes with it."
        ),
        lambda pair: (
            f"{pair.faster} where it can be used; else what the verdict of {pair.slower} says"
        ),
        blames_transport=True,
    ),
    _Rule(
        "both",
        lambda _pair: True,
        lambda pair: (
            f"It is both: {pair.reached}, so at least {pair.share:.0%} of a batch's time over "
            f"{pair.slower} goes with it, and the rest is in what both share."
        ),
        lambda pair: f"what the verdict of {pair.faster} says, then that of {pair.slower}",
        blames_transport=True,
    ),
)
"""The first that applies is the answer; the last always does."""
