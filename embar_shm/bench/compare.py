"""Runs the same work over several transports in turn, and sets their results side by side.

The rounds are interleaved, A B A B ..., so that a machine that becomes faster or slower meanwhile
changes all transports alike; ratios are taken inside a round. The comparison is one JSON object,
``"schema": "embar-shm.comparison/1"``, made from results alone; docs/compare.md describes it.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypedDict, cast

from embar_shm import transports
from embar_shm.bench import coordinator
from embar_shm.bench.breakdown import ceiling, per_batch_us, ratio, wall_us_per_batch
from embar_shm.bench.contrast import Answer, answer
from embar_shm.bench.result import Result, unused_over_shm
from embar_shm.bench.spread import Spread, spread
from embar_shm.bench.stages import Stage
from embar_shm.bench.usage import ROLES, by_role
from embar_shm.bench.watch import Progress
from embar_shm.config.loader import LoadedConfig, Parameter
from embar_shm.errors import ConfigurationError

__all__ = ["SCHEMA", "Comparison", "Ratio", "Summary", "build", "compare", "configurations"]

SCHEMA = "embar-shm.comparison/1"


class CeilingShare(TypedDict):
    """The share of the ceiling that counts for a transport."""

    name: str
    share: Spread


class Summary(TypedDict):
    """One transport over all rounds; None stands for what its results do not contain."""

    bytes_per_second: Spread
    ceiling: CeilingShare | None
    cpu_seconds_per_gb: Spread | None
    user_seconds_per_gb: Spread | None
    kernel_seconds_per_gb: Spread | None
    switches_per_batch: Spread | None
    us_per_batch: Spread | None
    stages: dict[str, Stage]
    stages_us_per_batch: dict[str, float]
    typical_round: int


class Ratio(TypedDict):
    """Throughput of `faster` / throughput of `slower`, in each round and over all."""

    faster: str
    slower: str
    per_round: list[float]
    over_rounds: Spread


class Comparison(TypedDict):
    """See docs/compare.md."""

    schema: str
    started: str
    rounds: int
    transports: list[str]
    parameters: dict[str, Parameter]
    summary: dict[str, Summary]
    ratios: list[Ratio]
    verdict: list[Answer]
    warnings: list[str]
    results: dict[str, list[Result]]


def configurations(
    config: LoadedConfig, names: Sequence[str], origin: str
) -> dict[str, LoadedConfig]:
    """The same configuration for each transport; `origin` says where `names` come from.

    Raises `ConfigurationError` for a transport that does not exist, for fewer than two, and for
    brokers that run elsewhere: those of one transport are not those of another.
    """
    if config.values.connect is not None:
        raise ConfigurationError(
            f"connect {config.values.connect} ({config.origins['connect']}): a comparison starts "
            "the brokers of every transport itself",
            "remove it; embar-shm run --connect measures brokers that run elsewhere",
        )
    if config.values.scenario != "publish":
        raise ConfigurationError(
            f"scenario {config.values.scenario} ({config.origins['scenario']}): a comparison is of "
            "publishing",
            "remove it; embar-shm run has all scenarios",
        )
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise ConfigurationError(
            f"{origin}: {', '.join(names) or 'nothing'}: a comparison needs two or more different "
            "transports",
            f"installed: {', '.join(transports.available())}",
        )
    for name in names:
        transports.get(name)
    return {
        name: dataclasses.replace(
            config,
            values=config.values.model_copy(update={"transport": name}),
            origins=config.origins | {"transport": origin},
        )
        for name in names
    }


def compare(
    configs: Mapping[str, LoadedConfig],
    rounds: int,
    on_progress: Callable[[Progress], None],
    *,
    warnings: Sequence[str] = (),
    run: Callable[[LoadedConfig, Callable[[Progress], None]], Result] = coordinator.run,
) -> Comparison:
    """Runs every configuration `rounds` times, in turn, and compares what came out.

    Blocks until it is over; `on_progress` is called about ten times a second. The first run that
    fails ends it with that run's error: see `coordinator.run`. `warnings` become part of the
    comparison.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    results: dict[str, list[Result]] = {name: [] for name in configs}
    for number in range(1, rounds + 1):
        for name, config in configs.items():

            def tell(now: Progress, where: str = f"round {number} of {rounds}, {name}") -> None:
                on_progress(dataclasses.replace(now, phase=f"{where}: {now.phase}"))

            results[name].append(run(config, tell))
    return build(results, started=started, warnings=warnings)


def build(
    results: Mapping[str, Sequence[Result]], *, started: str, warnings: Sequence[str] = ()
) -> Comparison:
    """Sets results side by side: of every transport one for each round, two transports at least."""
    summary = {name: _summary(found) for name, found in results.items()}
    fastest, *others = sorted(
        summary, key=lambda name: summary[name]["bytes_per_second"]["median"], reverse=True
    )
    ratios = [_ratio(results, fastest, other) for other in others]
    rounds = len(results[fastest])
    parameters = dict(results[fastest][0]["parameters"])
    parameters.pop("transport", None)
    return {
        "schema": SCHEMA,
        "started": started,
        "rounds": rounds,
        "transports": list(results),
        "parameters": parameters,
        "summary": summary,
        "ratios": ratios,
        "verdict": [
            answer(
                faster=pair["faster"],
                slower=pair["slower"],
                rates=(
                    summary[pair["faster"]]["bytes_per_second"]["median"],
                    summary[pair["slower"]]["bytes_per_second"]["median"],
                ),
                ratio=pair["over_rounds"],
                rounds=rounds,
                batch_us=_median(summary[pair["slower"]]["us_per_batch"]),
                stages=(
                    summary[pair["faster"]]["stages_us_per_batch"],
                    summary[pair["slower"]]["stages_us_per_batch"],
                ),
            )
            for pair in ratios
        ],
        "warnings": [*warnings, *_warnings(results, summary)],
        "results": {name: list(found) for name, found in results.items()},
    }


def _summary(results: Sequence[Result]) -> Summary:
    rates = [result["throughput"]["bytes_per_second"] for result in results]
    names = dict.fromkeys(n for result in results for n, stage in result["stages"].items() if stage)
    per_batch = {
        name: [us for result in results if (us := per_batch_us(result, name)) is not None]
        for name in names
    }
    return {
        "bytes_per_second": cast(Spread, spread(rates)),
        "ceiling": _ceiling(results),
        "cpu_seconds_per_gb": spread([_per_gb(result, "cpu_seconds") for result in results]),
        "user_seconds_per_gb": spread([_per_gb(result, "user_seconds") for result in results]),
        "kernel_seconds_per_gb": spread([_per_gb(result, "kernel_seconds") for result in results]),
        "switches_per_batch": spread([_switches_per_batch(result) for result in results]),
        "us_per_batch": spread([wall_us_per_batch(result) for result in results]),
        "stages": {name: _stage(results, name) for name in names},
        "stages_us_per_batch": {
            name: statistics.median(found) for name, found in per_batch.items() if found
        },
        "typical_round": 1 + rates.index(statistics.median_low(rates)),
    }


def _stage(results: Sequence[Result], name: str) -> Stage:
    """The median of each of its figures, over the rounds that have it."""
    rounds = [stage for result in results if (stage := result["stages"].get(name))]

    def median(figure: str) -> float:
        return statistics.median(float(cast(Any, stage)[figure]) for stage in rounds)

    return {
        "count": statistics.median_low(stage["count"] for stage in rounds),
        "mean_us": median("mean_us"),
        "p50_us": median("p50_us"),
        "p99_us": median("p99_us"),
        "max_us": median("max_us"),
    }


def _ceiling(results: Sequence[Result]) -> CeilingShare | None:
    found = [ceiling(result) for result in results]
    shares = spread([one["share"] if one else None for one in found])
    if shares is None or found[0] is None:
        return None
    return {"name": found[0]["name"], "share": shares}


def _median(figure: Spread | None) -> float | None:
    return figure["median"] if figure else None


def _per_gb(result: Result, part: str) -> float | None:
    """CPU seconds of all processes for 1e9 bytes of messages; None when a role is not known."""
    usages = by_role(result["system"])
    seconds = [cast(Any, usage).get(part) for usage in usages.values()]
    if len(usages) < len(ROLES) or None in seconds:
        return None
    return ratio(sum(seconds), result["throughput"]["bytes"] / 1e9)


def _switches_per_batch(result: Result) -> float | None:
    usages = by_role(result["system"])
    if len(usages) < len(ROLES):
        return None
    switches = sum(u["voluntary_switches"] + u["involuntary_switches"] for u in usages.values())
    return ratio(switches, result["throughput"]["batches"])


def _ratio(results: Mapping[str, Sequence[Result]], faster: str, slower: str) -> Ratio:
    per_round = [
        a["throughput"]["bytes_per_second"] / b["throughput"]["bytes_per_second"]
        for a, b in zip(results[faster], results[slower], strict=True)
    ]
    return {
        "faster": faster,
        "slower": slower,
        "per_round": per_round,
        "over_rounds": cast(Spread, spread(per_round)),
    }


def _warnings(results: Mapping[str, Sequence[Result]], summary: Mapping[str, Summary]) -> list[str]:
    """The warnings of the typical rounds; one that all of them have is told once.

    What was set for tcp is set for the comparison: that shm does not need it is no news here.
    """
    found: list[str] = []
    rounds = {name: results[name][one["typical_round"] - 1] for name, one in summary.items()}
    typical = {
        name: [w for w in one["warnings"] if w not in unused_over_shm(one["parameters"])]
        for name, one in rounds.items()
    }
    for name, warnings in typical.items():
        for warning in warnings:
            everywhere = all(warning in others for others in typical.values())
            text = warning if everywhere else f"{name}: {warning}"
            if text not in found:
                found.append(text)
    return found
