"""The doctor's rules and command on crafted machines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from doctor_cases import CASES, Case, core, governor, raising, shm_with
from doctor_machine import BATCH, HEALTHY, PARANOID, PTRACE, THP, Craft, check_of, craft

from embar_shm import socket_buffers
from embar_shm.cli.doctor import doctor_command
from embar_shm.doctor import RULES, VERDICTS, DefaultRun, Machine, Unreadable, examine
from embar_shm.doctor.limits import LIMITS, wanted_buffer
from embar_shm.doctor.processors import cpu_set
from embar_shm.errors import ConfigurationError

__all__ = ["craft"]  # a fixture

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "doctor.md"
NEED = DefaultRun.with_batches_of(BATCH)
LOGIND = "systemd/logind.conf"


def test_nothing_is_wrong_with_the_healthy_machine(craft: Craft) -> None:
    report = examine(craft(), BATCH)
    assert {check.name: check.why for check in report.checks if check.verdict != "ok"} == {}
    assert report.summary == {v: len(RULES) if v == "ok" else 0 for v in VERDICTS}
    assert report.default_run_possible
    assert [check.fix for check in report.checks if check.fix] == []


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rule_gives_the_verdict_of_the_crafted_machine(craft: Craft, case: Case) -> None:
    check = check_of(craft(case.files, **case.answers), case.rule, case.batch)
    assert check.verdict == case.verdict, check
    assert case.value in check.value
    assert case.why in check.why
    if case.fix is not None:
        assert check.fix == case.fix
    if case.verdict in ("ok", "unknown"):
        assert check.fix is None


def test_a_segment_with_publishers_is_not_offered_for_removal(
    craft: Craft,
) -> None:
    machine = craft(
        {"/dev/shm/embar.demo.0": "123"}, is_locked=lambda _fd, offset: offset in (3, 7)
    )
    assert check_of(machine, "stale segments").fix is None


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_has_a_case_for_every_kind_of_verdict(rule: Any) -> None:
    verdicts = {case.verdict for case in CASES if case.rule == rule.name}
    assert {"ok", "unknown"} < verdicts
    assert len(verdicts) > 2, "nothing can be wrong?"


def test_the_documentation_has_every_check_and_verdict() -> None:
    text = DOCUMENTATION.read_text()
    assert [rule.name for rule in RULES if f"`{rule.name}`" not in text] == []
    assert [v for v, meaning in VERDICTS.items() if f"| `{v}` | {meaning}" not in text] == []


def test_every_rule_explains_itself_in_one_or_two_sentences() -> None:
    for rule in RULES:
        assert rule.why.endswith("."), rule.name
        assert 1 <= len(re.findall(r"\.(?: |$)", rule.why)) <= 2, rule.name


GARBAGE = ["", "\x00\x00", "?", "-1", "9" * 400, "1 2 3 4 5 6 7", "[] []", "a:b:c", "0-999999,"]


@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
@pytest.mark.parametrize("path", [path for path in HEALTHY if not path.startswith("/dev/")])
def test_garbage_in_a_file_is_never_an_exception(craft: Craft, path: str, content: str) -> None:
    for check in examine(craft({path: content}), BATCH).checks:
        assert check.verdict in VERDICTS


def test_a_machine_without_any_files_is_unknown_or_fine_but_no_exception(tmp_path: Path) -> None:
    report = examine(Machine(root=tmp_path), BATCH)
    assert report.summary["unknown"] >= 12
    assert not report.default_run_possible  # it has no /dev/shm


def test_a_file_that_may_not_be_read_is_unknown_and_names_the_user(
    craft: Craft, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = craft()
    monkeypatch.setattr(Path, "read_text", raising(PermissionError(13, "Permission denied")))
    with pytest.raises(Unreadable, match=r"^/proc/swaps may not be read by user alice$"):
        machine.text("/proc/swaps")
    assert check_of(machine, "swap").why.endswith(
        "Not found out: /proc/swaps may not be read by user alice."
    )


@pytest.mark.parametrize(
    ("files", "value"),
    [
        ({f"/etc/{LOGIND}.d/a.conf": "[Login]\nRemoveIPC=yes\n"}, "yes (/etc/{}.d/a.conf)"),
        (
            {
                f"/etc/{LOGIND}.d/a.conf": "[Login]\nRemoveIPC=yes\n",
                f"/usr/lib/{LOGIND}.d/z.conf": "[Login]\nRemoveIPC = off\n",
            },
            "no (/usr/lib/{}.d/z.conf)",  # drop-ins by name, whatever their folder
        ),
        (
            {
                f"/etc/{LOGIND}.d/a.conf": "",
                f"/usr/lib/{LOGIND}.d/a.conf": "[Login]\nRemoveIPC=yes\n",
            },
            "no (/etc/{})",  # the empty file hides the other one
        ),
        (
            {
                f"/etc/{LOGIND}": None,
                f"/usr/lib/{LOGIND}": "[Login]\nRemoveIPC=no\n",
            },
            "no (/usr/lib/{})",
        ),
        ({f"/usr/lib/{LOGIND}": "[Login]\nRemoveIPC=yes\n"}, "no (/etc/{})"),
        ({f"/etc/{LOGIND}": "[Other]\nRemoveIPC=no\n"}, "yes (the default)"),
        ({f"/etc/{LOGIND}": "[Login]\nRemoveIPC=no\nRemoveIPC=perhaps\n"}, "no (/etc/{})"),
        ({f"/etc/{LOGIND}": "[Login]\n; RemoveIPC=no\n"}, "yes (the default)"),
        ({f"/etc/{LOGIND}.d/README": "[Login]\nRemoveIPC=yes\n"}, "no (/etc/{})"),
    ],
    ids=range(9),
)
def test_remove_ipc_is_read_as_systemd_reads_it(
    craft: Craft, files: Mapping[str, str | None], value: str
) -> None:
    assert check_of(craft(files), "RemoveIPC").value == value.format(LOGIND)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0", {0}), ("0-2", {0, 1, 2}), ("0-1,4,6-7", {0, 1, 4, 6, 7}), ("", set())],
)
def test_a_list_of_cpus_is_read(text: str, numbers: set[int]) -> None:
    assert cpu_set(text) == numbers


def test_what_a_run_needs_grows_with_the_batch_and_is_judged_for_it(
    craft: Craft,
) -> None:
    assert 4 * 8 * BATCH < NEED.rings_bytes < 4 * 8 * BATCH + 16 * 2**20
    machine = craft()
    large = 1024 * 2**20
    assert check_of(machine, "/dev/shm size").verdict == "ok"
    assert check_of(machine, "/dev/shm size", large).verdict == "problem"
    assert check_of(machine, "net.ipv4.tcp_rmem").verdict == "ok"
    assert check_of(machine, "net.ipv4.tcp_rmem", large).verdict == "note"
    assert check_of(machine, "net.core.rmem_max", large).verdict == "ok"  # not about batches
    assert not examine(machine, large).default_run_possible


def test_no_buffer_is_wanted_that_the_kernel_would_not_give() -> None:
    assert wanted_buffer("net.ipv4", 2**31) == 2**31 - 1
    assert wanted_buffer("net.ipv4", BATCH) == 2 * BATCH
    assert wanted_buffer("net.ipv4", 64) == 2 * 1_250_000  # 10 Gbit/s x 1 ms


def test_what_is_wanted_of_requests_is_what_the_tcp_transport_requests() -> None:
    assert wanted_buffer("net.core", BATCH) == socket_buffers.default_for("127.0.0.1")


def test_a_batch_no_ring_can_hold_is_a_configuration_error(craft: Craft) -> None:
    with pytest.raises(ConfigurationError, match="slot_size"):
        examine(craft(), 2**31 + 1)


def test_the_threshold_for_cpus_is_the_number_of_processes_of_the_default_run() -> None:
    assert LIMITS["cpus"].bound("ok") == NEED.processes


# --- the command ---------------------------------------------------------------------


def doctor(machine: Machine, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr("embar_shm.cli.doctor.Machine", lambda: machine)
    result = CliRunner().invoke(doctor_command, arguments)
    return result.exit_code, result.output


def test_warnings_are_no_failure_and_a_problem_is(
    craft: Craft, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned = {"/proc/loadavg": "99 1 1 1/2 3", PARANOID: "4", PTRACE: None, THP: None}
    code, output = doctor(craft(warned), monkeypatch)
    assert code == 0
    assert "The default run is possible here." in output
    code, output = doctor(craft(**shm_with(2**20)), monkeypatch)
    assert code == 1
    assert "The default run cannot work here." in output
    assert "problem (the default run cannot work): /dev/shm size" in output


def test_the_text_has_every_check_with_its_value_reason_and_command(
    craft: Craft, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        **governor("[bold]odd[/bold]"),  # no markup
        THP: "always within_size advise never [deny] force",
        **core("rmem_max", None),
    }
    _, output = doctor(craft(files), monkeypatch)
    lines = output.splitlines()
    for rule in RULES:
        assert any(f" {rule.name} " in line for line in lines), rule.name
    assert any(line.endswith("  [bold]odd[/bold]") for line in lines)
    long = f"$ echo never | sudo tee {THP} && sudo mount -o remount,huge=within_size /dev/shm"
    assert any(line.strip() == long for line in lines), "a command stays on one line"
    assert "rmem_max does not exist" in " ".join(output.split())


def test_json_has_the_fields_of_its_schema(craft: Craft, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = craft({"/proc/loadavg": None, PARANOID: "2"}, **shm_with(2**20))
    code, output = doctor(machine, monkeypatch, "--json", "--batch-size", "4MiB")
    found = json.loads(output)
    assert code == 1
    assert found.keys() == {"schema", "run", "checks", "summary"}
    assert found["schema"] == "embar-shm.doctor/1"
    assert found["run"]["batch_bytes"] == 4 * 2**20
    assert found["run"]["rings_bytes"] > 4 * 8 * 4 * 2**20
    assert [check["name"] for check in found["checks"]] == [rule.name for rule in RULES]
    for check in found["checks"]:
        assert check.keys() == {"name", "group", "value", "verdict", "why", "fix"}
    summary = found["summary"]
    assert summary.pop("default_run_possible") is False
    assert summary == {v: sum(check["verdict"] == v for check in found["checks"]) for v in VERDICTS}
    assert (summary["problem"], summary["unknown"]) == (1, 1)
