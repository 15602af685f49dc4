"""Rules on processors: how many may be used, how fast and how far from memory, and by whom."""

from __future__ import annotations

import re
from typing import Final

from embar_shm.cgroups import cpu_quotas
from embar_shm.doctor.limits import LIMITS, DefaultRun
from embar_shm.doctor.machine import Machine, Unreadable
from embar_shm.doctor.report import Finding, Rule, listing

__all__ = ["RULES", "cpu_set"]

_CPUS = "/sys/devices/system/cpu"
_NODES = "/sys/devices/system/node"
_DYNAMIC_DRIVERS = ("intel_pstate", "amd-pstate-epp", "amd-pstate")  # their "powersave" scales


def cpu_set(text: str) -> set[int]:
    """The numbers of a kernel list such as "0-3,6". Raises `Unreadable`."""
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part.strip())
        if match is None:
            raise Unreadable(f"{text[:40]!r} is no list of CPUs")
        numbers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return numbers


def _cpus(machine: Machine, run: DefaultRun) -> Finding:
    usable = len(machine.affinity())
    online_list = machine.text(f"{_CPUS}/online")
    online = max(usable, len(cpu_set(online_list)))
    verdict = LIMITS["cpus"].verdict(usable)
    value = f"{usable} usable of {online}"
    turns = (
        f"The default run has {run.processes} busy processes ({run.brokers} brokers, "
        f"{run.publishers} publishers)"
    )
    detail = {
        "ok": f"{turns}: each can have its own.",
        "note": f"{turns}, which take turns. That works; times then contain waiting for a CPU.",
    }.get(verdict, f"{turns} on a single CPU: nothing happens at the same time.")
    fix = None
    if usable < online:
        verdict = "note" if verdict == "ok" else verdict
        fix = f"taskset -pc {online_list} $$"
        detail += " This shell is restricted to some of them (affinity); the command lifts that."
    return Finding(value, verdict, detail, fix)


def _quota(machine: Machine, _run: DefaultRun) -> Finding:
    quotas = cpu_quotas(
        machine.cgroup_folders("cpu"), lambda path: machine.path(path).read_text(errors="replace")
    )
    if not quotas:
        return Finding("none", "ok")
    cpus, path = min(quotas)
    usable = len(machine.affinity())
    value = f"{cpus:.3g} CPUs"
    verdict = LIMITS["cpu quota"].verdict(cpus / usable)
    if verdict == "ok":
        return Finding(value, verdict, f"No less than the {usable} usable CPUs.")
    none = "max" if path.endswith("cpu.max") else "-1"
    return Finding(
        value,
        verdict,
        f"Less than the {usable} usable CPUs. In a container, start it with a larger --cpus "
        "instead of this command.",
        f"echo {none} | sudo tee {path}",
    )


def _numa(machine: Machine, _run: DefaultRun) -> Finding:
    nodes = cpu_set(machine.text(f"{_NODES}/has_memory"))
    if not nodes:
        raise Unreadable(f"{_NODES}/has_memory names no node")
    verdict = LIMITS["numa nodes"].verdict(len(nodes))
    if verdict == "ok":
        return Finding("1", verdict)
    node = min(nodes)
    return Finding(
        str(len(nodes)),
        verdict,
        "For numbers that can be repeated, keep a run on one node.",
        f"numactl --cpunodebind={node} --membind={node} embar-shm run",
    )


def _governor(machine: Machine, _run: DefaultRun) -> Finding:
    cpus = [name for name in machine.names(_CPUS) if re.fullmatch(r"cpu[0-9]+", name)]
    found: set[str] = set()
    pinned_low = False
    for cpu in cpus:
        folder = f"{_CPUS}/{cpu}/cpufreq"
        if not machine.exists(f"{folder}/scaling_governor"):
            continue
        governor = machine.text(f"{folder}/scaling_governor")
        found.add(governor)
        if governor == "powersave":
            try:
                driver = machine.text(f"{folder}/scaling_driver")
            except Unreadable:
                driver = ""
            pinned_low |= driver not in _DYNAMIC_DRIVERS
    if not found:
        raise Unreadable("the kernel does not control the frequency here (usual in a VM)")
    value = listing(sorted(found))
    if found == {"performance"}:
        return Finding(value, "ok")
    return Finding(
        value,
        "warning" if pinned_low else "note",
        "powersave keeps this processor at its lowest frequency."
        if pinned_low
        else "The first milliseconds after a pause are slower, and runs differ more.",
        f"echo performance | sudo tee {_CPUS}/cpu*/cpufreq/scaling_governor",
    )


def _load(machine: Machine, _run: DefaultRun) -> Finding:
    content = machine.text("/proc/loadavg")
    try:
        load = float(content.split()[0])
    except (IndexError, ValueError):
        raise Unreadable(f"/proc/loadavg holds {content[:40]!r}") from None
    usable = len(machine.affinity())
    verdict = LIMITS["load"].verdict(load / usable)
    value = f"{load:.2f} on {usable} CPUs"
    if verdict == "ok":
        return Finding(value, verdict)
    return Finding(
        value,
        verdict,
        "Others keep the CPUs busy, or did a minute ago: a measurement now is too low. The command "
        "shows who.",
        "ps -eo pcpu,pid,user,args --sort=-pcpu | head",
    )


RULES: Final = (
    Rule(
        "CPUs",
        "Processors",
        "Brokers and publishers are processes that want to run at the same time.",
        _cpus,
    ),
    Rule(
        "CPU quota",
        "Processors",
        "A container's quota stops all its processes for the rest of each period, usually tens of "
        "milliseconds, once it is used up: in measurements those are sudden gaps.",
        _quota,
    ),
    Rule(
        "NUMA nodes",
        "Processors",
        "On a machine with several nodes, memory of another node is slower: a ring is fast for "
        "processes near it.",
        _numa,
    ),
    Rule(
        "frequency governor",
        "Processors",
        "Decides how fast the CPUs run, and so how fast memory is copied.",
        _governor,
    ),
    Rule(
        "load average",
        "Processors",
        "How many processes wanted a CPU during the last minute.",
        _load,
    ),
)
