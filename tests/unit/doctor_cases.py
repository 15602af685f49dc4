"""Machines that differ from the healthy one, and what the doctor's rules say about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from doctor_machine import BATCH, CPU, INFINITE, NOW, PARANOID, PTRACE, THP, limits, mountinfo

from embar_shm.config.schema import RunConfig
from embar_shm.layout import Geometry

# Shared memory of a run with the default parameters: what the doctor thinks of.
_DEFAULT = RunConfig()
RINGS = (
    Geometry.plan(_DEFAULT.slots, _DEFAULT.effective_slot_size, _DEFAULT.max_publishers).total_bytes
    * _DEFAULT.brokers
)


def mount_size(nbytes: int) -> str:
    """As mount(8) takes it: whole MiB, rounded up."""
    return f"{-(-nbytes // 2**20)}m"


@dataclass
class Case:
    """A machine that differs from the healthy one, and what a rule says about it."""

    rule: str
    verdict: str
    value: str = ""  # a part of it
    files: Mapping[str, str | None] = field(default_factory=dict)
    fix: str | None = None  # all of it
    why: str = ""  # a part of it
    answers: Mapping[str, Any] = field(default_factory=dict)
    batch: int = BATCH

    def __str__(self) -> str:
        return f"{self.rule}-{self.verdict}-{self.value}".replace(" ", "_")


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def shm_with(free: int, total: int = 2**30) -> dict[str, Any]:
    return {"space": lambda _: (total, free)}


def cpus(*numbers: int) -> dict[str, Any]:
    return {"affinity": lambda: set(numbers)}


def core(setting: str, value: str | None) -> dict[str, str | None]:
    return {f"/proc/sys/net/core/{setting}": value}


def tcp(setting: str, value: str | None) -> dict[str, str | None]:
    return {f"/proc/sys/net/ipv4/{setting}": value}


def governor(name: str | None, driver: str | None = "acpi-cpufreq") -> dict[str, str | None]:
    folder = f"{CPU}/cpu0/cpufreq"
    return {f"{folder}/scaling_governor": name, f"{folder}/scaling_driver": driver}


SHM_CASES = [
    Case("/dev/shm size", "ok", "8 GiB free of 16 GiB"),
    Case("/dev/shm size", "ok", "no limit", answers=shm_with(0, 0)),
    Case(
        "/dev/shm size",
        "note",
        # what is used, and twice the rings
        fix=f"sudo mount -o remount,size={mount_size(2**30 - 100 * 2**20 + 2 * RINGS)} /dev/shm",
        answers=shm_with(100 * 2**20),
    ),
    Case(
        "/dev/shm size",
        "problem",
        "64 MiB free of 64 MiB",
        fix=f"sudo mount -o remount,size={mount_size(2 * RINGS)} /dev/shm",
        why=f"--shm-size={mount_size(2 * RINGS)}",
        answers=shm_with(64 * 2**20, 64 * 2**20),
    ),
    Case(
        "/dev/shm size",
        "problem",
        "not writable by alice",
        fix="sudo chmod 1777 /dev/shm",
        answers={"access": lambda _path, _mode: False},
    ),
    Case(
        "/dev/shm size",
        "problem",
        "missing",
        files={"/dev/shm/other": None},
        fix="sudo mkdir -p /dev/shm && sudo mount -t tmpfs -o "
        f"mode=1777,size={mount_size(2 * RINGS)} tmpfs /dev/shm",
    ),
    Case("/dev/shm size", "warning", "ext4", files={"/proc/self/mountinfo": mountinfo("ext4 rw")}),
    Case("/dev/shm size", "unknown", answers={"space": raising(OSError(5, "Input/output error"))}),
    Case("stale segments", "ok", "none"),
    Case("stale segments", "ok", "none (1 in use)", files={"/dev/shm/embar.demo.0": "x"}),
    Case("stale segments", "ok", "none", files={"/dev/shm/other": None}),
    Case(
        "stale segments",
        "warning",
        "2 stale with 6 B",
        files={"/dev/shm/embar.demo.0": "123", "/dev/shm/embar.demo.1": "456"},
        fix="embar-shm clean demo/0 demo/1",
        why="2 h 00 min 00 s old",
        answers={"is_locked": lambda _fd, _offset: False},
    ),
    Case(
        "stale segments",
        "warning",
        why="2 publishers still attached",
        files={"/dev/shm/embar.demo.0": "123"},
        fix=None,  # they may be waiting for a new broker
        answers={"is_locked": lambda _fd, offset: offset in (3, 7)},
    ),
    Case(
        "stale segments",
        "ok",
        "none (1 in use)",  # created this moment: its broker is about to lock it
        files={"/dev/shm/embar.demo.0": ""},
        answers={"is_locked": lambda _fd, _offset: False, "now": lambda: NOW - 7199.5},
    ),
    Case(
        "stale segments",
        "unknown",
        why="embar.demo.0 may not be opened",
        files={"/dev/shm/embar.demo.0": "x"},
        answers={"is_locked": raising(PermissionError(13, "Permission denied"))},
    ),
    Case("RemoveIPC", "ok", "no (/etc/systemd/logind.conf)"),
    Case(
        "RemoveIPC",
        "warning",
        "yes (the default)",
        files={"/etc/systemd/logind.conf": "[Login]\n#RemoveIPC=yes\n"},
        fix="sudo loginctl enable-linger alice",
    ),
    Case("RemoveIPC", "warning", "yes (the default)", files={"/etc/systemd/logind.conf": None}),
    Case(
        "RemoveIPC",
        "ok",
        "yes",
        files={"/etc/systemd/logind.conf": None, "/var/lib/systemd/linger/alice": ""},
        why="lingers",
    ),
    Case(
        "RemoveIPC",
        "ok",
        "yes",
        files={"/etc/systemd/logind.conf": None},
        why="spares system users",
        answers={"user": lambda: 0},
    ),
    Case("RemoveIPC", "unknown", files={"/run/systemd/system/here": None}, why="not running here"),
]
MEMORY_CASES = [
    Case("memory", "ok", "16 GiB available of 32 GiB", why=f"{RINGS / 2**20:.1f} MiB for rings"),
    Case(
        "memory",
        "warning",
        "100 MiB available",
        files={"/proc/meminfo": "MemTotal: 204800 kB\nMemAvailable: 102400 kB\n"},
        fix="ps -eo rss,pid,user,args --sort=-rss | head",
    ),
    Case(
        "memory",
        "problem",
        "64 MiB available",
        files={"/proc/meminfo": "MemTotal: 204800 kB\nMemAvailable: 65536 kB\n"},
    ),
    Case(
        "memory",
        "problem",
        "control group: 64 MiB",
        files={"/sys/fs/cgroup/user.slice/memory.max": str(64 * 2**20)},  # a parent's counts
        fix="echo max | sudo tee /sys/fs/cgroup/user.slice/memory.max",
    ),
    Case("memory", "unknown", files={"/proc/meminfo": "MemTotal: 204800 kB\n"}, why="MemAvailable"),
    Case("memory", "unknown", files={"/proc/meminfo": None}, why="/proc/meminfo does not exist"),
    Case("swap", "ok", "none"),
    Case(
        "swap",
        "note",
        "512 KiB used of 2 GiB",
        files={"/proc/swaps": "Filename Type Size Used Prio\n/dev/sda2 partition 2097152 512 -2\n"},
        fix="sudo swapoff -a",
    ),
    Case(
        "swap",
        "warning",
        files={"/proc/swaps": "Filename Type Size Used Prio\n/a file 1000 10 -2\n/b file 10 300 1"},
        fix="sudo swapoff -a",
    ),
    Case("swap", "unknown", files={"/proc/swaps": "Filename\n/swap file lots none -2\n"}),
    Case("swap", "unknown", files={"/proc/swaps": None}),
    Case("locked memory limit", "ok", "unlimited"),
    Case("locked memory limit", "ok", "1 GiB", answers={"limit": limits(MEMLOCK=(2**30, 2**30))}),
    Case(
        "locked memory limit",
        "note",
        "8 MiB",
        fix="sudo prlimit --pid $$ --memlock=unlimited",
        answers={"limit": limits(MEMLOCK=(2**23, 2**23))},
    ),
    Case("locked memory limit", "unknown", answers={"limit": raising(OSError(38, "no getrlimit"))}),
    Case("huge pages in /dev/shm", "ok", "huge=within_size (system-wide: never)"),
    Case(
        "huge pages in /dev/shm",
        "ok",
        files={
            THP: "always within_size advise never deny [force]",
            "/proc/self/mountinfo": mountinfo("tmpfs rw,size=1k"),
        },
    ),
    Case(
        "huge pages in /dev/shm",
        "note",
        "huge=never",
        files={"/proc/self/mountinfo": mountinfo("tmpfs rw,size=1k")},
        fix="sudo mount -o remount,huge=within_size /dev/shm",
    ),
    Case(
        "huge pages in /dev/shm",
        "note",
        "huge=never",  # a later mount hides an earlier one
        files={
            "/proc/self/mountinfo": mountinfo(extra="40 1 0:9 / /dev/shm rw - tmpfs tmpfs rw\n")
        },
    ),
    Case(
        "huge pages in /dev/shm",
        "note",
        why="does not",
        files={"/proc/self/mountinfo": mountinfo("tmpfs rw,huge=advise")},
    ),
    Case(
        "huge pages in /dev/shm",
        "note",
        "deny",
        files={THP: "always within_size advise never [deny] force"},
        fix=f"echo never | sudo tee {THP} && sudo mount -o remount,huge=within_size /dev/shm",
    ),
    Case("huge pages in /dev/shm", "unknown", files={THP: "always never"}, why="no choice"),
    Case("huge pages in /dev/shm", "unknown", files={THP: None}),
    Case("huge pages in /dev/shm", "unknown", files={"/proc/self/mountinfo": "short\n"}),
]
CORE_CASES = [
    case
    for letter in "rw"
    for name, wide in ((f"net.core.{letter}mem_max", f"{letter}mem_max"),)
    for case in (
        Case(name, "ok", "4 MiB", why="512 KiB are granted"),
        Case(name, "ok", "512 KiB", files=core(wide, "524288")),  # whatever the batch
        Case(
            name,
            "warning",
            "208 KiB",
            files=core(wide, "212992"),
            why="batches of 2 MiB over many connections take up to 1.5 times as long",
            fix=f"sudo sysctl -w {name}=524288",
        ),
        Case(name, "warning", files=core(wide, "524287"), batch=524_289),
        Case(
            name,
            "note",
            files=core(wide, "524287"),
            batch=524_288,
            why="as fast for batches of no more, such as 512 KiB",
            fix=f"sudo sysctl -w {name}=524288",
        ),
        Case(name, "unknown", files=core(wide, None), why="does not exist here"),
        Case(name, "unknown", files=core(wide, "many"), why="holds 'many'"),
        Case(name, "unknown", files=core(wide, "-5"), why="-5 is negative"),
    )
]
TCP_CASES = [
    case
    for letter in "rw"
    for name, wide in ((f"net.ipv4.tcp_{letter}mem", f"tcp_{letter}mem"),)
    for case in (
        Case(
            name,
            "ok",
            "up to 8 MiB, 4 MiB of payload",
            why="It fills 10 Gbit/s up to a delay of 3.36 ms, and holds a batch of 2 MiB.",
        ),
        Case(name, "ok", files=tcp(wide, f"4096 16384 {2 * BATCH}")),
        Case(
            name,
            "note",
            files=tcp(wide, f"4096 16384 {2 * BATCH - 1}"),
            why="a delay of 1.68 ms, but holds less than a batch of 2 MiB",
            fix=f"sudo sysctl -w {name}='4096 16384 {2 * BATCH}'",
        ),
        Case(name, "note", files=tcp(wide, "4096 16384 2500000")),
        Case(
            name,
            "warning",
            "up to 2,499,999 B, 1.2 MiB of payload",
            files=tcp(wide, "4096 16384 2499999"),
            why="10 Gbit/s x 1 ms need 1.25 MB of payload",
            fix=f"sudo sysctl -w {name}='4096 16384 {2 * BATCH}'",  # then a batch fits, too
        ),
        Case(
            name,
            "warning",
            files=tcp(wide, "4096 16384 262144"),
            batch=65536,  # which would fit
            why="It only fills 10 Gbit/s up to a delay of 105 us",
            fix=f"sudo sysctl -w {name}='4096 16384 2500000'",
        ),
        Case(name, "ok", files=tcp(wide, "4096 16384 2500000"), batch=65536),
        Case(
            name,
            "ok",
            files=tcp(wide, f"4096 16384 {2**31 - 1}"),
            batch=2**31,
            why="It fills 10 Gbit/s up to a delay of 859 ms, and cannot be larger.",
        ),
        Case(name, "unknown", files=tcp(wide, None), why="does not exist here"),
        Case(name, "unknown", files=tcp(wide, "many"), why="holds 'many'"),
        Case(name, "unknown", files=tcp(wide, "4096 16384 -5"), why="-5 is negative"),
        Case(name, "unknown", files=tcp(wide, "4096 16384"), why="not 3 numbers"),
    )
]
PROCESSOR_CASES = [
    Case("CPUs", "ok", "16 usable of 16"),
    Case("CPUs", "note", "2 usable of 2", files={f"{CPU}/online": "0-1"}, answers=cpus(0, 1)),
    Case("CPUs", "note", "2 usable of 16", fix="taskset -pc 0-15 $$", answers=cpus(3, 4)),
    Case(
        "CPUs",
        "note",
        "16 usable of 32",
        files={f"{CPU}/online": "0-31"},
        fix="taskset -pc 0-31 $$",
    ),
    Case("CPUs", "warning", "1 usable of 1", files={f"{CPU}/online": "0"}, answers=cpus(0)),
    Case("CPUs", "unknown", files={f"{CPU}/online": None}),
    Case("CPUs", "unknown", files={f"{CPU}/online": "all of them"}, why="no list of CPUs"),
    Case("CPU quota", "ok", "none"),
    Case(
        "CPU quota",
        "ok",
        "16 CPUs",
        files={"/sys/fs/cgroup/user.slice/cpu.max": "1600000 100000"},
    ),
    Case(
        "CPU quota",
        "warning",
        "1.5 CPUs",
        files={
            "/sys/fs/cgroup/user.slice/job/cpu.max": "400000 100000",
            "/sys/fs/cgroup/user.slice/cpu.max": "150000 100000",  # the smallest counts
            "/sys/fs/cgroup/other/cpu.max": "10000 100000",
        },
        fix="echo max | sudo tee /sys/fs/cgroup/user.slice/cpu.max",
    ),
    Case(
        "CPU quota",
        "warning",
        "2 CPUs",
        files={
            "/proc/self/cgroup": "3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n",
            "/proc/self/mountinfo": mountinfo(
                extra="40 30 0:40 /docker/abc /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
            ),
            "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
            "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        fix="echo -1 | sudo tee /sys/fs/cgroup/cpu/cpu.cfs_quota_us",
    ),
    Case("CPU quota", "unknown", files={"/proc/self/cgroup": None}),
    Case("NUMA nodes", "ok", "1"),
    Case(
        "NUMA nodes",
        "note",
        "2",
        files={"/sys/devices/system/node/has_memory": "0,2"},
        fix="numactl --cpunodebind=0 --membind=0 embar-shm run",
    ),
    Case("NUMA nodes", "unknown", files={"/sys/devices/system/node/has_memory": None}),
    Case("NUMA nodes", "unknown", files={"/sys/devices/system/node/has_memory": "\n"}),
    Case("frequency governor", "ok", "performance"),
    Case(
        "frequency governor",
        "note",
        "performance, schedutil",
        files={f"{CPU}/cpu1/cpufreq/scaling_governor": "schedutil"},
        fix=f"echo performance | sudo tee {CPU}/cpu*/cpufreq/scaling_governor",
    ),
    Case("frequency governor", "note", files=governor("powersave", "intel_pstate")),
    Case("frequency governor", "warning", files=governor("powersave"), why="lowest frequency"),
    Case("frequency governor", "unknown", files=governor(None, None), why="usual in a VM"),
    Case("load average", "ok", "0.50 on 16 CPUs"),
    Case("load average", "note", files={"/proc/loadavg": "8.00 1 1 1/2 3"}),
    Case(
        "load average",
        "warning",
        files={"/proc/loadavg": "16.50 1 1 1/2 3"},
        fix="ps -eo pcpu,pid,user,args --sort=-pcpu | head",
    ),
    Case("load average", "unknown", files={"/proc/loadavg": "busy"}),
    Case("load average", "unknown", files={"/proc/loadavg": None}),
]
PRIVILEGED = {"/proc/self/status": "CapEff:\t000001ffffffffff\n"}
SYSTEM_CASES = [
    Case("kernel", "ok", "Linux 6.8.0-45-generic"),
    Case("kernel", "ok", answers={"kernel": lambda: ("Linux", "5.14.0")}),
    Case("kernel", "note", answers={"kernel": lambda: ("Linux", "5.4.0-200")}),
    Case("kernel", "note", answers={"kernel": lambda: ("Linux", "3.15.1")}),
    Case("kernel", "problem", answers={"kernel": lambda: ("Linux", "3.10.0-1160.el7")}),
    Case("kernel", "problem", "Darwin", answers={"kernel": lambda: ("Darwin", "23.1.0")}),
    Case("kernel", "unknown", answers={"kernel": lambda: ("Linux", "custom")}),
    Case("open files limit", "ok", "4096"),
    Case("open files limit", "ok", answers={"limit": limits(NOFILE=(INFINITE, INFINITE))}),
    Case(
        "open files limit",
        "note",
        fix="ulimit -n 1024",
        answers={"limit": limits(NOFILE=(256, 4096))},
    ),
    Case(
        "open files limit",
        "warning",
        fix="sudo prlimit --pid $$ --nofile=1024:1024",
        answers={"limit": limits(NOFILE=(64, 512))},
    ),
    Case(
        "open files limit",
        "problem",
        why="Too many open files",
        answers={"limit": limits(NOFILE=(48, INFINITE))},
        fix="ulimit -n 1024",
    ),
    Case("open files limit", "unknown", answers={"limit": raising(OSError(38, "no getrlimit"))}),
    Case("kernel.perf_event_paranoid", "ok", "1"),
    Case("kernel.perf_event_paranoid", "ok", "4", files={PARANOID: "4", **PRIVILEGED}),
    Case(
        "kernel.perf_event_paranoid",
        "note",
        "2",
        files={PARANOID: "2"},
        fix="sudo sysctl -w kernel.perf_event_paranoid=1",
        why="not the kernel",
    ),
    Case("kernel.perf_event_paranoid", "note", "4", files={PARANOID: "4"}, why="administrators"),
    Case("kernel.perf_event_paranoid", "unknown", files={PARANOID: None}),
    Case("kernel.yama.ptrace_scope", "ok", "0"),
    Case("kernel.yama.ptrace_scope", "ok", "1", files={PTRACE: "1", **PRIVILEGED}),
    Case("kernel.yama.ptrace_scope", "ok", "no Yama", files={PTRACE: None}),
    Case(
        "kernel.yama.ptrace_scope",
        "note",
        "1",
        files={PTRACE: "1"},
        fix="sudo sysctl -w kernel.yama.ptrace_scope=0",
    ),
    Case("kernel.yama.ptrace_scope", "note", "2", files={PTRACE: "2"}, why="nothing"),
    Case("kernel.yama.ptrace_scope", "note", "3", files={PTRACE: "3", **PRIVILEGED}, why="boot"),
    Case("kernel.yama.ptrace_scope", "unknown", files={PTRACE: None, PARANOID: None}),
]
CASES = SHM_CASES + MEMORY_CASES + CORE_CASES + TCP_CASES + PROCESSOR_CASES + SYSTEM_CASES
