"""The script that applies the socket settings computes what the doctor wants."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from doctor_cases import core, tcp
from doctor_machine import BATCH, Craft, check_of, craft

from embar_shm.doctor import examine

__all__ = ["craft"]  # a fixture

SCRIPT = Path(__file__).parents[2] / "tools" / "tune_kernel_buffers.sh"


def tune(proc_sys: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ} if proc_sys is None else {**os.environ, "PROC_SYS": str(proc_sys)}
    return subprocess.run(
        [str(SCRIPT), "--print", *arguments],
        capture_output=True,
        text=True,
        env=environ,
        timeout=60,
    )


SOCKETS = ("net.core.rmem_max", "net.core.wmem_max", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem")


@pytest.mark.parametrize("batch", [64, 65536, BATCH, BATCH + 1, 2**25, 2**29, 2**30, 2**31])
@pytest.mark.parametrize("high", [False, True])
def test_the_script_and_the_doctor_agree(craft: Craft, batch: int, high: bool) -> None:
    files = {**core("rmem_max", "212992"), **tcp("tcp_wmem", "4096 16384 4194304")}
    machine = craft({} if high else files)
    checks = {check.name: check for check in examine(machine, batch).checks}
    fixes = [fix.removeprefix("sudo ") for name in SOCKETS if (fix := checks[name].fix)]
    done = tune(machine.path("/proc/sys"), str(batch))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == fixes
    assert bool(fixes) == ("high enough" not in done.stderr)


def test_after_the_scripts_commands_the_doctor_is_content(craft: Craft) -> None:
    machine = craft({**core("wmem_max", "1"), **tcp("tcp_rmem", "1 2 3")})
    for command in tune(machine.path("/proc/sys"), "10000000").stdout.splitlines():
        name, value = command.removeprefix("sysctl -w ").split("=")
        machine.path(f"/proc/sys/{name.replace('.', '/')}").write_text(value.strip("'"))
    assert [check_of(machine, name, 10_000_000).verdict for name in SOCKETS] == ["ok"] * 4


def test_the_script_uses_the_doctors_default_batch(craft: Craft) -> None:
    machine = craft(tcp("tcp_rmem", "4096 131072 1000"))
    assert tune(machine.path("/proc/sys")).stdout == (
        f"sysctl -w net.ipv4.tcp_rmem='4096 131072 {2 * BATCH}'\n"
    )


def test_the_persistent_file_has_all_settings_and_lowers_none(
    craft: Craft,
) -> None:
    machine = craft({**core("rmem_max", "99999999"), **core("wmem_max", "1")})
    shown = tune(machine.path("/proc/sys"), "--persist", str(BATCH)).stdout
    assert "# /etc/sysctl.d/90-embar-shm.conf\n" in shown
    assert shown.splitlines()[-4:] == [
        "net.core.rmem_max = 99999999",
        "net.core.wmem_max = 524288",
        "net.ipv4.tcp_rmem = 4096 131072 8388608",
        "net.ipv4.tcp_wmem = 4096 16384 8388608",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["2MiB"], "'2MiB' is no batch size"),
        (["0"], "is no batch size"),
        (["08"], "is no batch size"),
        (["63"], "is no batch size"),
        (["2147483649"], "is no batch size"),
        (["--prnt"], "unknown option '--prnt'"),
        (["1000", "2000"], "one batch size is enough"),
    ],
)
def test_the_script_refuses_what_it_does_not_understand(arguments: list[str], said: str) -> None:
    done = tune(None, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_the_script_says_when_the_settings_are_not_there(tmp_path: Path) -> None:
    done = tune(tmp_path)
    assert done.returncode == 1
    assert "net.core.rmem_max does not exist here" in done.stderr


def test_the_script_refuses_a_setting_that_is_no_number(craft: Craft) -> None:
    done = tune(craft(tcp("tcp_rmem", "much")).path("/proc/sys"))
    assert done.returncode == 1
    assert "holds 'much', which is no limit" in done.stderr
    assert done.stdout == ""
