"""Rules on the kernel's socket buffers. `limits` has the rule behind the numbers."""

from __future__ import annotations

from functools import partial
from typing import Final

from embar_shm.doctor.limits import (
    LIMITS,
    PATH_BITS_PER_SECOND,
    PATH_BYTES,
    PATH_SECONDS,
    DefaultRun,
    wanted_buffer,
)
from embar_shm.doctor.machine import Machine
from embar_shm.doctor.report import Finding, Rule, about
from embar_shm.socket_buffers import LOOPBACK_BYTES
from embar_shm.units import format_duration, format_size

__all__ = ["RULES"]

_PATH = f"{PATH_BITS_PER_SECOND / 1e9:.0f} Gbit/s x {PATH_SECONDS * 1e3:.0f} ms"


def _core_limit(setting: str, machine: Machine, run: DefaultRun) -> Finding:
    [value] = machine.integers(_file(setting), 1)
    shown, wanted = format_size(value), format_size(LOOPBACK_BYTES)
    small_batches = run.batch_bytes <= LOOPBACK_BYTES
    steps = LIMITS["net.core, small batches" if small_batches else "net.core"]
    verdict = steps.verdict(value / LOOPBACK_BYTES)
    if verdict == "ok":
        return Finding(shown, verdict, f"The {wanted} are granted.")
    detail = f"Less than {wanted}: the kernel sizes buffers by itself then, "
    if small_batches:
        detail += (
            f"which is as fast for batches of no more, such as {format_size(run.batch_bytes)}."
        )
    else:
        detail += (
            f"and batches of {format_size(run.batch_bytes)} over many connections take up to 1.5 "
            "times as long (docs/performance.md)."
        )
    return Finding(shown, verdict, detail, f"sudo sysctl -w {setting}={LOOPBACK_BYTES}")


def _tcp_limits(setting: str, machine: Machine, run: DefaultRun) -> Finding:
    least, initial, most = machine.integers(_file(setting), 3)
    payload, batch = most // 2, format_size(run.batch_bytes)
    shown = f"up to {format_size(most)}, {about(payload)} of payload"
    delay = format_duration(payload * 8 / PATH_BITS_PER_SECOND)
    fills = f"fills {PATH_BITS_PER_SECOND / 1e9:.0f} Gbit/s up to a delay of {delay}"
    wanted = wanted_buffer("net.ipv4", run.batch_bytes)
    if most >= wanted:
        holds = f"holds a batch of {batch}" if payload >= run.batch_bytes else "cannot be larger"
        return Finding(shown, "ok", f"It {fills}, and {holds}.")
    verdict = LIMITS["net.ipv4, path"].verdict(payload / PATH_BYTES)
    detail = f"It only {fills}: {_PATH} need {PATH_BYTES / 1e6:.3g} MB of payload."
    if verdict == "ok":
        verdict = LIMITS["net.ipv4, batch"].verdict(payload / run.batch_bytes)
        detail = (
            f"It {fills}, but holds less than a batch of {batch}: sending one always waits for "
            "the other side in its middle."
        )
    fix = f"sudo sysctl -w {setting}='{least} {initial} {wanted}'"
    return Finding(shown, verdict, detail, fix)


def _file(setting: str) -> str:
    return "/proc/sys/" + setting.replace(".", "/")


RULES: Final = (
    Rule(
        "net.core.rmem_max",
        "TCP sockets (for --transport tcp)",
        "The largest receive buffer a program may request. Over loopback the tcp transport wants "
        f"{format_size(LOOPBACK_BYTES)}, in full or not at all; --socket-buffer requests another "
        "size.",
        partial(_core_limit, "net.core.rmem_max"),
    ),
    Rule(
        "net.core.wmem_max",
        "TCP sockets (for --transport tcp)",
        "The same for send buffers.",
        partial(_core_limit, "net.core.wmem_max"),
    ),
    Rule(
        "net.ipv4.tcp_rmem",
        "TCP sockets (for --transport tcp)",
        "How far the kernel grows a receive buffer for which nothing was requested: all those "
        "between machines. It has to hold bandwidth x delay, what arrives until an answer is back.",
        partial(_tcp_limits, "net.ipv4.tcp_rmem"),
    ),
    Rule(
        "net.ipv4.tcp_wmem",
        "TCP sockets (for --transport tcp)",
        "The same for send buffers, which keep what was sent until it is acknowledged.",
        partial(_tcp_limits, "net.ipv4.tcp_wmem"),
    ),
)
