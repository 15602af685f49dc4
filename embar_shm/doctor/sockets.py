"""Rules on the kernel's socket buffers. `limits` has the rule behind the numbers."""

from __future__ import annotations

from functools import partial
from typing import Final

from embar_shm.doctor.limits import LIMITS, DefaultRun, Verdict, buffer_bound
from embar_shm.doctor.machine import Machine
from embar_shm.doctor.report import Finding, Rule
from embar_shm.units import format_size

__all__ = ["RULES"]


def _core_limit(setting: str, machine: Machine, run: DefaultRun) -> Finding:
    [value] = machine.integers(_file(setting), 1)
    return _finding("net.core", setting, value, format_size(value), "{}", run)


def _tcp_limits(setting: str, machine: Machine, run: DefaultRun) -> Finding:
    least, initial, most = machine.integers(_file(setting), 3)
    shown = f"up to {format_size(most)} (starts with {format_size(initial)})"
    return _finding("net.ipv4", setting, most, shown, f"'{least} {initial} {{}}'", run)


def _file(setting: str) -> str:
    return "/proc/sys/" + setting.replace(".", "/")


def _finding(
    kind: str, setting: str, value: int, shown: str, assigned: str, run: DefaultRun
) -> Finding:
    batch = format_size(run.batch_bytes)
    wanted = buffer_bound(kind, "ok", run.batch_bytes)
    if value >= wanted:
        return Finding(shown, "ok", f"Room for two batches of {batch}.")
    verdict: Verdict = "note"
    detail = f"Holds one batch of {batch}, not two: while one is being read, the next one waits."
    if value < buffer_bound(kind, "note", run.batch_bytes):
        verdict = LIMITS[kind].otherwise
        detail = (
            f"Holds less than one batch of {batch}: each one goes through in pieces, with a wait "
            "and a wake-up per piece."
        )
    fix = f"sudo sysctl -w {setting}={assigned.format(wanted)}"
    return Finding(shown, verdict, f"{detail} Two need {format_size(wanted)}.", fix)


RULES: Final = (
    Rule(
        "net.core.rmem_max",
        "TCP sockets (for the tcp transport, planned)",
        "The largest receive buffer a program may ask for. The tcp transport wants one that holds "
        "whole batches; the kernel gives no more than this, and does not say so.",
        partial(_core_limit, "net.core.rmem_max"),
    ),
    Rule(
        "net.core.wmem_max",
        "TCP sockets (for the tcp transport, planned)",
        "The same for send buffers: one send() call hands over a batch at once only if it fits.",
        partial(_core_limit, "net.core.wmem_max"),
    ),
    Rule(
        "net.ipv4.tcp_rmem",
        "TCP sockets (for the tcp transport, planned)",
        "How far the kernel grows a receive buffer by itself. The tcp transport sets its own, "
        "which then do not grow: this is about the programs you compare it with.",
        partial(_tcp_limits, "net.ipv4.tcp_rmem"),
    ),
    Rule(
        "net.ipv4.tcp_wmem",
        "TCP sockets (for the tcp transport, planned)",
        "The same for send buffers: only programs that set no size depend on it.",
        partial(_tcp_limits, "net.ipv4.tcp_wmem"),
    ),
)
