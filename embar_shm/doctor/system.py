"""Rules on the kernel and on what it allows this user."""

from __future__ import annotations

import re
import resource
from typing import Final

from embar_shm.doctor.limits import LIMITS, DefaultRun
from embar_shm.doctor.machine import Machine, Unreadable
from embar_shm.doctor.report import Finding, Rule

__all__ = ["RULES"]

_CAP_SYS_PTRACE = 19
_CAP_SYS_ADMIN = 21
_CAP_PERFMON = 38


def _kernel(machine: Machine, _run: DefaultRun) -> Finding:
    name, release = machine.kernel()
    value = f"{name} {release}".strip()
    if name != "Linux":
        return Finding(value or "none", "problem", "This is no Linux.")
    match = re.match(r"([0-9]{1,3})\.([0-9]{1,3})", release)
    if match is None:
        raise Unreadable(f"{release[:40]!r} is no version of Linux")
    verdict = LIMITS["kernel"].verdict(1000 * int(match[1]) + int(match[2]))
    detail = {
        "ok": "",
        "note": "Before 5.14 the pages of a ring are touched one by one: a slower start, no more.",
    }.get(verdict, "Before 3.15 a dead process cannot be told from a living one. Upgrade it.")
    return Finding(value, verdict, detail)


def _open_files(machine: Machine, _run: DefaultRun) -> Finding:
    soft, hard = machine.limit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return Finding("unlimited", "ok")
    limits = LIMITS["open files"]
    verdict = limits.verdict(soft)
    if verdict == "ok":
        return Finding(str(soft), verdict)
    wanted = int(limits.bound("ok"))
    detail = {
        "note": "Enough for shared memory and some hundred connections.",
        "warning": "Enough for the default run, not for a tcp broker with many publishers.",
    }.get(verdict, "The default run stops with 'Too many open files'.")
    enough = hard == resource.RLIM_INFINITY or hard >= wanted
    fix = f"ulimit -n {wanted}" if enough else f"sudo prlimit --pid $$ --nofile={wanted}:{wanted}"
    return Finding(str(soft), verdict, f"{detail} The command is for this shell.", fix)


def _perf(machine: Machine, _run: DefaultRun) -> Finding:
    [level] = machine.integers("/proc/sys/kernel/perf_event_paranoid", 1)
    if machine.has_capability(_CAP_PERFMON) or machine.has_capability(_CAP_SYS_ADMIN):
        return Finding(str(level), "ok", "This user is privileged: it does not apply.")
    verdict = LIMITS["perf_event_paranoid"].verdict(level)
    if verdict == "ok":
        return Finding(str(level), verdict, "perf sees this user's processes, kernel included.")
    detail = (
        "At 2, perf sees programs but not the kernel, where tcp spends its time."
        if level == 2
        else "Above 2, perf is for administrators only."
    )
    wanted = int(LIMITS["perf_event_paranoid"].bound("ok"))
    return Finding(
        str(level), verdict, detail, f"sudo sysctl -w kernel.perf_event_paranoid={wanted}"
    )


def _ptrace(machine: Machine, _run: DefaultRun) -> Finding:
    path = "/proc/sys/kernel/yama/ptrace_scope"
    if not machine.exists(path) and machine.exists("/proc/sys/kernel/perf_event_paranoid"):
        return Finding("no Yama", "ok", "This kernel has no such restriction.")
    [level] = machine.integers(path, 1)
    verdict = LIMITS["ptrace_scope"].verdict(level)
    if verdict == "ok":
        return Finding(str(level), verdict)
    if level < 3 and machine.has_capability(_CAP_SYS_PTRACE):
        return Finding(str(level), "ok", "This user is privileged: it does not apply.")
    if level >= 3:
        return Finding(str(level), verdict, "At 3 nobody may, until the next boot.")
    who = "the processes they started themselves" if level == 1 else "nothing"
    return Finding(
        str(level),
        verdict,
        f"At {level}, users without privileges may attach to {who}.",
        "sudo sysctl -w kernel.yama.ptrace_scope=0",
    )


RULES: Final = (
    Rule(
        "kernel",
        "System",
        "Linux 3.15 has the locks that tell whether a process is still alive, and 5.14 fills a "
        "ring's memory in one call.",
        _kernel,
    ),
    Rule(
        "open files limit",
        "System",
        "Every ring, connection and child process takes a few file descriptors.",
        _open_files,
    ),
    Rule(
        "kernel.perf_event_paranoid",
        "System",
        "Who may use perf, which shows where CPU time goes. Only for looking deeper: runs do not "
        "need it.",
        _perf,
    ),
    Rule(
        "kernel.yama.ptrace_scope",
        "System",
        "Who may attach strace or gdb to a running broker, to see what it waits for. Runs do not "
        "need it.",
        _ptrace,
    ),
)
