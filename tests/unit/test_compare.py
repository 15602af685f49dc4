"""What a comparison makes of its results."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from verdict_cases import SHM, TCP, changed, without

from embar_shm import transports
from embar_shm.bench import contrast
from embar_shm.bench.compare import Comparison, build, compare, configurations
from embar_shm.bench.result import unused_over_shm
from embar_shm.bench.spread import spread
from embar_shm.bench.verdict import verdict
from embar_shm.bench.watch import Progress
from embar_shm.cli import render_compare
from embar_shm.config.loader import LoadedConfig, load
from embar_shm.errors import ConfigurationError, RunFailed

DOCUMENTATION = (Path(__file__).parents[2] / "docs" / "compare.md").read_text()


def result_with(base: dict[str, Any], rate: float, changes: dict[str, Any] | None = None) -> Any:
    """A result with this throughput, and the verdict on it."""
    t = base["throughput"]
    result = changed(
        base,
        {
            "throughput.bytes_per_second": rate,
            "throughput.elapsed_seconds": t["bytes"] / rate,
            "throughput.batches_per_second": t["batches"] * rate / t["bytes"],
            **(changes or {}),
        },
    )
    result["verdict"] = verdict(result)
    return result


def comparison_of(shm: list[float], tcp: list[float], **tcp_changes: Any) -> Comparison:
    """Of results with these throughputs in GB/s."""
    return build(
        {
            "shm": [result_with(SHM, rate * 1e9) for rate in shm],
            "tcp": [result_with(TCP, rate * 1e9, tcp_changes) for rate in tcp],
        },
        started="2026-01-01T00:00:00+00:00",
    )


@pytest.fixture
def both_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "get", lambda scheme: {"shm": 1, "tcp": 2}[scheme])


CONFIG = load(None, None, [], {}, {"total_bytes": "1MiB", "transport": "pigeon"})


# ---- running -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("both_exist")
def test_only_the_transport_differs_between_the_runs() -> None:
    configs = configurations(CONFIG, ["shm", "tcp"], "flag --transports")
    shm, tcp = (config.parameters() for config in configs.values())
    assert shm.pop("transport") == {"value": "shm", "origin": "flag --transports"}
    assert tcp.pop("transport") == {"value": "tcp", "origin": "flag --transports"}
    assert shm == tcp
    assert CONFIG.values.transport == "pigeon", "the configuration itself is not changed"


@pytest.mark.parametrize("names", [["shm"], ["shm", "shm"], ["shm", "tcp", "shm"], []])
def test_fewer_than_two_different_transports_are_refused(names: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="two or more different transports") as caught:
        configurations(CONFIG, names, "flag --transports")
    assert "installed: " in caught.value.hint


def test_brokers_that_run_elsewhere_are_refused_with_the_place_that_names_them() -> None:
    elsewhere = load(None, None, [], {"EMBAR_CONNECT": "tcp://127.0.0.1:7400"}, {})
    with pytest.raises(ConfigurationError, match=r"127.0.0.1:7400 \(environment EMBAR_CONNECT\)"):
        configurations(elsewhere, ["shm", "tcp"], "default")


def test_a_transport_that_does_not_exist_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigurationError, match="there is no transport 'quantum'"):
        configurations(CONFIG, ["shm", "quantum"], "flag --transports")


@pytest.mark.usefixtures("both_exist")
def test_rounds_are_interleaved_and_progress_names_round_and_transport() -> None:
    order, phases = [], []

    def run(config: LoadedConfig, on_progress: Callable[[Progress], None]) -> Any:
        order.append(config.values.transport)
        on_progress(Progress("publish", 1, 2))
        return result_with(SHM, 4e9)

    found = compare(
        configurations(CONFIG, ["shm", "tcp"], "default"),
        2,
        phases.append,
        warnings=["mind the gap"],
        run=run,
    )
    assert order == ["shm", "tcp", "shm", "tcp"]
    assert [p.phase for p in phases[1:3]] == [
        "round 1 of 2, tcp: publish",
        "round 2 of 2, shm: publish",
    ]
    assert (phases[0].payload_bytes, phases[0].total_bytes) == (1, 2)
    assert found["warnings"][0] == "mind the gap"
    assert {name: len(results) for name, results in found["results"].items()} == {
        "shm": 2,
        "tcp": 2,
    }


@pytest.mark.usefixtures("both_exist")
def test_a_run_that_fails_ends_the_comparison_with_its_error() -> None:
    runs: list[str] = []

    def run(config: LoadedConfig, on_progress: object) -> Any:
        runs.append(config.values.transport)
        if len(runs) == 3:
            raise RunFailed("a broker died")
        return result_with(SHM, 4e9)

    with pytest.raises(RunFailed, match="a broker died"):
        compare(configurations(CONFIG, ["shm", "tcp"], "default"), 5, lambda _: None, run=run)
    assert len(runs) == 3


# ---- figures -------------------------------------------------------------------------------------


def test_a_figure_that_one_round_lacks_has_no_spread() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "least": 1.0, "most": 3.0}
    assert spread([1.0, None]) is None
    assert spread([]) is None


def test_ratios_are_taken_inside_a_round() -> None:
    (ratio,) = comparison_of([4, 8, 2], [2, 2, 1])["ratios"]
    assert (ratio["faster"], ratio["slower"]) == ("shm", "tcp")
    assert ratio["per_round"] == pytest.approx([2, 4, 2])
    assert ratio["over_rounds"] == pytest.approx({"median": 2, "least": 2, "most": 4})


def test_a_summary_holds_medians_and_costs_per_gigabyte_and_batch() -> None:
    found = comparison_of([4, 8, 2], [2, 2, 1])["summary"]["shm"]
    assert found["bytes_per_second"] == pytest.approx({"median": 4e9, "least": 2e9, "most": 8e9})
    same = dict.fromkeys(("median", "least", "most"))
    for name, value in [
        ("cpu_seconds_per_gb", 3.0 / 4),
        ("user_seconds_per_gb", 2.2 / 4),
        ("kernel_seconds_per_gb", 0.8 / 4),
        ("switches_per_batch", 2 * 4000 / 4000),
    ]:
        assert found[name] == pytest.approx(dict.fromkeys(same, value)), name  # type: ignore[literal-required]
    assert found["stages"]["broker.queue"] == SHM["stages"]["broker.queue"]
    assert found["stages_us_per_batch"]["publisher.buffer_write"] == pytest.approx(400)
    assert found["typical_round"] == 1


def test_stage_figures_are_medians_over_the_rounds() -> None:
    rounds = [
        result_with(
            SHM, 4e9, {"stages.broker.queue.mean_us": mean, "stages.broker.queue.p50_us": 9}
        )
        for mean in (1.0, 50.0, 3.0)
    ]
    found = build({"shm": rounds, "tcp": [result_with(TCP, 1e9)] * 3}, started="")
    queue = found["summary"]["shm"]["stages"]["broker.queue"]
    assert (queue["mean_us"], queue["p50_us"]) == (3.0, 9)


def test_each_transport_has_the_share_of_its_own_ceiling() -> None:
    both = {
        "memory_copy": {"bytes_per_second": 8e9, "share": 0.5},
        "tcp_loopback": {"bytes_per_second": 5e9, "share": 0.8},
    }
    rounds = {
        "shm": [result_with(SHM, 4e9, {"ceilings": both})],
        "tcp": [result_with(TCP, 4e9, {"ceilings": both})],
    }
    summary = build(rounds, started="")["summary"]
    assert summary["shm"]["ceiling"] == {"name": "memory_copy", "share": spread([0.5])}
    assert summary["tcp"]["ceiling"] == {"name": "tcp_loopback", "share": spread([0.8])}
    assert comparison_of([4], [4])["summary"]["shm"]["ceiling"] is None


def test_what_results_lack_is_none() -> None:
    old = without(SHM, "system.publisher.kernel_seconds")
    remote = without(TCP, "system.broker")
    found = build({"shm": [old], "tcp": [remote]}, started="")["summary"]
    assert found["shm"]["kernel_seconds_per_gb"] is None
    assert found["shm"]["cpu_seconds_per_gb"] is not None
    assert found["tcp"]["cpu_seconds_per_gb"] is None
    assert found["tcp"]["switches_per_batch"] is None


def test_a_comparison_is_json_and_has_the_same_parameters_for_all() -> None:
    found = json.loads(json.dumps(comparison_of([4, 5], [1, 1]), allow_nan=False))
    assert found["schema"] == "embar-shm.comparison/1"
    assert (found["rounds"], found["transports"]) == (2, ["shm", "tcp"])
    assert "transport" not in found["parameters"]
    assert found["parameters"]["batch_size"]["value"] == 1_000_000


def test_warnings_are_told_once_and_name_their_transport_when_it_is_one() -> None:
    rounds = {
        "shm": [result_with(SHM, 4e9, {"warnings": ["short", "odd"]})] * 3,
        "tcp": [result_with(TCP, 1e9, {"warnings": ["short"]})] * 3,
    }
    assert build(rounds, started="")["warnings"] == ["short", "shm: odd"]


def test_what_is_set_for_tcp_only_is_no_warning_of_the_comparison() -> None:
    token = {"parameters.token_file": {"value": "secret", "origin": "flag --token-file"}}
    warnings = unused_over_shm(result_with(SHM, 4e9, token)["parameters"])
    assert len(warnings) == 1
    rounds = {
        "shm": [result_with(SHM, 4e9, token | {"warnings": warnings})] * 3,
        "tcp": [result_with(TCP, 1e9, token)] * 3,
    }
    assert build(rounds, started="")["warnings"] == []


# ---- the answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shm", "tcp", "rule", "said"),
    [
        ([60, 66, 57], [4, 4, 4], "the transport", "It is the transport: "),
        ([8, 8, 8], [4, 4, 4], "the transport", "at least 50% of a batch's time over tcp"),
        ([7, 7, 7], [4, 4, 4], "both", "It is both: "),
        ([5, 5, 5], [4, 4, 4], "both", "at least 20% of a batch's time over tcp"),
        ([4.3, 4.3, 4.3], [4, 4, 4], "the code", "It is not the transport"),
        ([3.9, 4.1, 4.3], [4, 4, 4], "the code", "It is not the transport"),
        ([3, 6, 9], [4, 4, 4], "the rounds disagree", "1.5 (0.75 to 2.25) times as much"),
        ([3, 20, 20], [4, 4, 4], "the rounds disagree", "Not decided"),
        ([4], [4], "too few rounds", "1 round does not show"),
        ([6, 6], [4, 4], "too few rounds", "2 rounds do not show"),
        ([8], [4], "the transport", "8.00 GB/s over shm and 4.00 GB/s over tcp, 2 times as much"),
    ],
)
def test_the_answer_follows_from_the_ratio_and_its_spread(
    shm: list[float], tcp: list[float], rule: str, said: str
) -> None:
    (answer,) = comparison_of(shm, tcp)["verdict"]
    assert answer["rule"] == rule
    assert said in answer["sentence"]
    assert answer["next"]
    assert (answer["faster"], answer["slower"]) == ("shm", "tcp")


def test_every_answer_has_its_numbers_in_the_sentence_and_in_the_evidence() -> None:
    (answer,) = comparison_of([60, 66, 57], [4, 4, 4])["verdict"]
    assert answer["sentence"] == (
        "It is the transport: the same producer reaches 60.00 GB/s over shm and 4.00 GB/s over "
        "tcp, 15 (14.2 to 16.5) times as much, so at least 93% of a batch's time over tcp goes "
        "with it. broker.receive grew most, from 0 to 900 us per batch, of 1,000 over tcp. Copying "
        "its messages took 400 and 400 us."
    )
    assert answer["grown_stage"] == "broker.receive"
    assert answer["evidence"] == pytest.approx(
        {
            "faster_bytes_per_second": 60e9,
            "slower_bytes_per_second": 4e9,
            "ratio": 15,
            "least_ratio": 14.25,
            "most_ratio": 16.5,
            "rounds": 3,
            "transport_share": 14 / 15,
            "grown_stage_faster_us": 0,
            "grown_stage_slower_us": 900,
            "slower_batch_us": 1000,
            "copy_faster_us": 400,
            "copy_slower_us": 400,
        }
    )


def test_no_stage_is_blamed_for_a_difference_that_is_none() -> None:
    (answer,) = comparison_of([4, 4, 4], [4, 4, 4])["verdict"]
    assert answer["grown_stage"] is None
    assert "grew" not in answer["sentence"]


def test_a_stage_that_grew_by_next_to_nothing_is_not_blamed() -> None:
    """As when sending and receiving are not timed: what is left is not the reason."""
    little = {
        "stages.broker.receive": None,
        "stages.publisher.send_payload": None,
        "stages.broker.release.mean_us": 90.0,
    }
    (answer,) = comparison_of([60] * 3, [4] * 3, **little)["verdict"]
    assert (answer["rule"], answer["grown_stage"]) == ("the transport", None)
    enough = little | {"stages.broker.release.mean_us": 110.0}  # 104 of 1000 us
    (answer,) = comparison_of([60] * 3, [4] * 3, **enough)["verdict"]
    assert answer["grown_stage"] == "broker.release"


def test_a_wait_is_never_the_stage_that_grew() -> None:
    waits = {"stages.publisher.wait_space.mean_us": 5000.0}
    (answer,) = comparison_of([60] * 3, [4] * 3, **waits)["verdict"]
    assert answer["grown_stage"] == "broker.receive"


def test_without_stage_times_there_is_an_answer_without_a_stage() -> None:
    rounds = {
        "shm": [result_with(SHM, 60e9, {"stages": {}})],
        "tcp": [result_with(TCP, 4e9, {"stages": {}})],
    }
    (answer,) = build(rounds, started="")["verdict"]
    assert (answer["rule"], answer["grown_stage"]) == ("the transport", None)


def test_three_transports_are_each_compared_with_the_fastest() -> None:
    found = build(
        {
            "slow": [result_with(SHM, 1e9)],
            "fast": [result_with(SHM, 9e9)],
            "middle": [result_with(SHM, 3e9)],
        },
        started="",
    )
    assert [(r["faster"], r["slower"]) for r in found["ratios"]] == [
        ("fast", "middle"),
        ("fast", "slow"),
    ]
    assert len(found["verdict"]) == 2


def test_the_documentation_has_every_answer_and_every_figure() -> None:
    for rule in contrast.RULES:
        assert f"| `{rule.name}` |" in DOCUMENTATION
    comparison = comparison_of([60], [4])
    for name in [*comparison, *comparison["summary"]["shm"], *comparison["ratios"][0]]:
        assert re.search(rf"`{name}[`.]", DOCUMENTATION), name


# ---- as printed ----------------------------------------------------------------------------------


def shown(found: Comparison, monkeypatch: pytest.MonkeyPatch, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    monkeypatch.setattr(render_compare, "open_console", lambda: console)
    render_compare.comparison(found)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_two_transports_fit_into_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(comparison_of([60, 66, 57], [4, 4, 4]), monkeypatch)
    assert max(map(len, text.splitlines())) <= 100
    for unbroken in (
        "publisher.buffer_write",
        "60.00 GB/s (57.00 to 66.00)",
        "15 (14.2 to 16.5)",
        "Verdict on tcp, round 1",
    ):
        assert unbroken in text


def test_both_stage_tables_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(comparison_of([60], [4]), monkeypatch)
    (row,) = [line for line in text.splitlines() if line.startswith("  broker.receive ")]
    assert row.split() == ["broker.receive", "-", "-", "-", "900", "850", "1,800"]
    (row,) = [line for line in text.splitlines() if line.startswith("  broker.queue ")]
    assert row.split()[1:] == ["40", "30", "80"] * 2


def test_what_sockets_did_stands_beside_a_transport_without_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    again = {"system.sockets.retransmits": 1234}
    rows = shown(comparison_of([60], [4], **again), monkeypatch).splitlines()
    (calls,) = [row for row in rows if row.startswith("  send, recv calls per batch ")]
    assert calls.split()[-3:] == ["-", "1.00,", "2.00"]
    (buffers,) = [row for row in rows if row.startswith("  send, receive buffers ")]
    assert buffers.split()[-5:] == ["-", "3,906", "KiB,", "3,906", "KiB"]
    (retransmits,) = [row for row in rows if row.startswith("  segments sent again ")]
    assert retransmits.split()[-2:] == ["-", "1,234"]
    found = build({"shm": [result_with(SHM, 4e9)], "other": [result_with(SHM, 1e9)]}, started="")
    assert "calls per batch" not in shown(found, monkeypatch)


def test_the_answer_comes_last_and_warnings_keep_their_brackets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = comparison_of([60], [4])
    found["warnings"] = ["a [bold]value[/bold]"]
    text = shown(found, monkeypatch)
    end = text.partition("Is it the code or the transport?")[2]
    assert "It is the transport" in end
    assert "warning: a [bold]value[/bold]" in end
    assert "Verdict" not in end
