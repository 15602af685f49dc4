"""Rules on memory: is there enough, may it be swapped or locked, how large are its pages?"""

from __future__ import annotations

import resource
from typing import Final

from embar_shm.address import SHM_DIRECTORY
from embar_shm.doctor.limits import LIMITS, DefaultRun, Verdict
from embar_shm.doctor.machine import Machine, Unreadable
from embar_shm.doctor.report import Finding, Rule, about

__all__ = ["RULES"]

_SHMEM_ENABLED = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
_UNLIMITED = 2**60  # version 1 of control groups writes "no limit" as a huge number


def _memory(machine: Machine, run: DefaultRun) -> Finding:
    fields = machine.fields("/proc/meminfo")
    available = _kib(fields, "MemAvailable")
    value = f"{about(available)} available of {about(_kib(fields, 'MemTotal'))}"
    limit = _cgroup_limit(machine)
    fix = "ps -eo rss,pid,user,args --sort=-rss | head"
    if limit is not None and limit[0] < available:
        available, path = limit
        value += f", control group: {about(available)}"
        word = "max" if path.endswith("memory.max") else "-1"
        fix = f"echo {word} | sudo tee {path}"
    detail = (
        f"The default run needs {about(run.rings_bytes)} for rings, and about "
        f"{about(run.memory_bytes - run.rings_bytes)} for its processes."
    )
    verdict: Verdict = LIMITS["memory for rings"].verdict(available / run.rings_bytes)
    if verdict == "ok":
        verdict = LIMITS["memory"].verdict(available / run.memory_bytes)
    return Finding(value, verdict, detail, None if verdict == "ok" else fix)


def _kib(fields: dict[str, str], name: str) -> int:
    """A field of /proc/meminfo in bytes. Raises `Unreadable`."""
    number = fields.get(name, "").removesuffix("kB").strip()
    if not number.isdecimal():
        raise Unreadable(f"/proc/meminfo has no {name}")
    return int(number) * 1024


def _cgroup_limit(machine: Machine) -> tuple[int, str] | None:
    """The smallest memory limit of this process's control groups and its file, if there is one."""
    limits = []
    try:
        folders = machine.cgroup_folders("memory")
    except Unreadable:
        return None
    for folder in folders:
        for name in ("memory.max", "memory.limit_in_bytes"):
            path = f"{folder}/{name}"
            try:
                limits.append((machine.integers(path, 1)[0], path))
            except Unreadable:  # "max", or not there
                continue
    smallest = min(limits, default=None)
    return smallest if smallest is not None and 0 <= smallest[0] < _UNLIMITED else None


def _swap(machine: Machine, _run: DefaultRun) -> Finding:
    rows = [line.split() for line in machine.text("/proc/swaps").splitlines()[1:]]
    try:
        size = 1024 * sum(int(row[2]) for row in rows)
        used = 1024 * sum(int(row[3]) for row in rows)
    except (IndexError, ValueError):
        raise Unreadable("/proc/swaps has another form than expected") from None
    if size == 0:
        return Finding("none", "ok")
    verdict = LIMITS["swap used"].verdict(used / size)
    detail = (
        "It is in use: memory is short already."
        if verdict == "warning"
        else "Little or none of it is in use now."
    )
    value = f"{about(used)} used of {about(size)}"
    return Finding(value, verdict, f"{detail} The command needs free memory for it.", _SWAPOFF)


_SWAPOFF = "sudo swapoff -a"


def _locked_memory(machine: Machine, run: DefaultRun) -> Finding:
    soft, _hard = machine.limit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Finding("unlimited", "ok")
    verdict = LIMITS["locked memory"].verdict(soft / run.rings_bytes)
    if verdict == "ok":
        return Finding(about(soft), verdict)
    return Finding(
        about(soft),
        verdict,
        "Rings are not locked by this version, so nothing fails; who wants to lock them, or to "
        f"profile them with large perf buffers, needs {about(run.rings_bytes)}. The command is "
        "for this shell and what it starts.",
        "sudo prlimit --pid $$ --memlock=unlimited",
    )


def _huge_pages(machine: Machine, _run: DefaultRun) -> Finding:
    content = machine.text(_SHMEM_ENABLED)
    chosen = [word[1:-1] for word in content.split() if word[0] + word[-1] == "[]"]
    if len(chosen) != 1:
        raise Unreadable(f"{_SHMEM_ENABLED} holds {content[:60]!r}, with no choice in brackets")
    [switch] = chosen
    mount = machine.mount_at(str(SHM_DIRECTORY))
    if mount is None:
        raise Unreadable(f"nothing is mounted at {SHM_DIRECTORY}")
    options = dict(option.partition("=")[::2] for option in mount.options.split(","))
    huge = options.get("huge", "never")  # the kernel leaves out what is not set
    value = f"huge={huge} (system-wide: {switch})"
    remount = f"sudo mount -o remount,huge=within_size {SHM_DIRECTORY}"
    off = (
        "Rings have ordinary pages of 4 KiB. On the machine where it was tried, huge ones made no "
        "difference above the noise: measure before you keep them."
    )
    match switch, huge:
        case "deny", _:
            return Finding(
                value, "note", off, f"echo never | sudo tee {_SHMEM_ENABLED} && {remount}"
            )
        case "force", _:
            return Finding(value, "ok", "Rings get huge pages.")
        case _, "always" | "within_size":
            return Finding(value, "ok", "Rings get huge pages.")
        case _, "advise":
            return Finding(
                value, "note", f"Only for programs that ask, and this one does not. {off}", remount
            )
        case _:
            return Finding(value, "note", off, remount)


RULES: Final = (
    Rule(
        "memory",
        "Shared memory",
        "Rings are memory from their creation on: when there is too little, the kernel kills a "
        "process of its choice.",
        _memory,
    ),
    Rule(
        "swap",
        "Shared memory",
        "Shared memory can be swapped out to a disk; a batch that waits for a disk takes a "
        "thousand times as long.",
        _swap,
    ),
    Rule(
        "locked memory limit",
        "Shared memory",
        "How much memory a process may lock, which protects it from being swapped.",
        _locked_memory,
    ),
    Rule(
        "huge pages in /dev/shm",
        "Shared memory",
        "With pages of 2 MiB instead of 4 KiB, the processor looks up fewer addresses while it "
        "copies a batch.",
        _huge_pages,
    ),
)
