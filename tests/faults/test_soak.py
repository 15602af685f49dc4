"""tools/soak: what grows is named, what goes up and down is not, and a short run is flat."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from chaotic.judge import Judgement, judge, warm_up  # noqa: E402

MIB = 1 << 20


def judged(name: str, values: list[float], skip: float = 0.0) -> Judgement:
    """Of samples of every second."""
    [judgement] = judge({name: list(enumerate(map(float, values)))}, skip)
    return judgement


def noise(seed: int, count: int, reach: float) -> list[float]:
    chance = random.Random(seed)  # noqa: S311 - to be repeated
    return [chance.uniform(-reach, reach) for _ in range(count)]


def test_a_leak_is_named_with_its_rate() -> None:
    leaks = [50 * MIB + second * 40_000 + n for second, n in enumerate(noise(1, 120, 300_000))]
    found = judged("broker 0.rss", leaks)
    assert found.wrong.startswith("broker 0.rss grows: from ")
    assert found.per_hour == pytest.approx(40_000 * 3600, rel=0.1)


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_leak(seed: int) -> None:
    assert judged("broker 0.pss", [50 * MIB + n for n in noise(seed, 300, 4 * MIB)]).flat


def test_what_goes_up_and_down_again_is_no_leak() -> None:
    saw = [10.0 + second % 30 for second in range(290)]
    assert judged("broker 0.fds", saw).flat


def test_a_single_step_is_no_leak() -> None:
    assert judged("broker 0.rss", [50.0 * MIB] * 100 + [60.0 * MIB] * 100).flat


def test_steps_that_go_on_are_a_leak() -> None:
    steps = [50.0 * MIB + second // 40 * MIB for second in range(240)]
    assert not judged("broker 0.rss", steps).flat


def test_what_gets_less_is_no_leak() -> None:
    assert judged("broker 0.threads", [50.0 - second for second in range(40)]).flat


def test_the_beginning_does_not_count() -> None:
    values = [second * float(MIB) for second in range(60)] + [60.0 * MIB] * 30
    assert judged("publisher.rss", values, skip=60).flat
    assert not judged("publisher.rss", values).flat


@pytest.mark.parametrize("what", ["fds", "threads", "slots", "rows", "shm_files"])
def test_a_few_more_of_what_is_counted_are_a_leak(what: str) -> None:
    assert not judged(f"broker 0.{what}", [float(20 + second // 20) for second in range(80)]).flat


@pytest.mark.parametrize("what", ["missed_wakeups", "corrupt", "duplicated", "out_of_order"])
def test_some_counters_must_be_0(what: str) -> None:
    found = judged(f"ring 1.{what}", [0.0, 1.0, 1.0], skip=100)
    assert found.wrong == f"ring 1.{what} is 1, and must be 0"
    assert judged(f"ring 1.{what}", [0.0, 0.0]).flat


def test_too_few_samples_are_not_judged() -> None:
    with pytest.raises(ValueError, match=r"7 samples .* 8 are needed: let it run longer"):
        judged("broker 0.rss", [1.0] * 10, skip=3)


def test_the_warm_up_is_a_third_and_a_minute_at_most() -> None:
    assert warm_up(30) == 10
    assert warm_up(36000) == 60


@pytest.mark.timeout(120)
def test_a_soak_of_twelve_seconds_is_flat_but_for_memory() -> None:
    """Processes that have just started still grow a little: their memory is for longer runs."""
    done = subprocess.run(
        [sys.executable, TOOLS / "soak", "--minutes", "0.2", "--rate", "2000", "--json"],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode in (0, 3), done.stdout + done.stderr
    found = json.loads(done.stdout)
    memory = (".rss grows", ".pss grows")
    assert [what for what in found["wrong"] if not any(m in what for m in memory)] == []
    assert found["delivered"] == 3 * found["published"] > 0
    assert found["cuts"] >= 1
    watched = {series["name"].rpartition(".")[2] for series in found["series"]}
    assert {"rss", "pss", "fds", "threads", "slots", "rows", "missed_wakeups"} <= watched
