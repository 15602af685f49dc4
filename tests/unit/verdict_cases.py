"""Crafted results, and for each rule of the verdict some in which it fires and some in which not.

The numbers are round on purpose: four publishers and two brokers move 4000 batches of 1000 messages
of 1000 bytes in one second, so a publisher's batch takes 1000 us.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CASES", "SHM", "TCP", "Case", "changed", "without"]


def _stage(count: int, mean_us: float, p50_us: float) -> dict[str, float]:
    return {
        "count": count,
        "mean_us": mean_us,
        "p50_us": p50_us,
        "p99_us": 2 * mean_us,
        "max_us": 3 * mean_us,
    }


def _usage(user: float, kernel: float) -> dict[str, float]:
    return {
        "cpu_seconds": user + kernel,
        "user_seconds": user,
        "kernel_seconds": kernel,
        "voluntary_switches": 3000,
        "involuntary_switches": 1000,
        "max_rss_bytes": 40_000_000,
    }


_PARAMETERS = {
    "transport": "shm",
    "brokers": 2,
    "publishers_per_broker": 2,
    "publishers": 4,
    "message_size": 1000,
    "batch_size": 1_000_000,
    "slots": 8,
    "in_flight": 2,
    "producer": "one",
}

SHM: dict[str, Any] = {
    "schema": "embar-shm.result/1",
    "started": "2026-01-01T00:00:00+00:00",
    "startup_seconds": 0.5,
    "parameters": {
        name: {"value": value, "origin": "default"} for name, value in _PARAMETERS.items()
    },
    "throughput": {
        "bytes_per_second": 4e9,
        "messages_per_second": 4e6,
        "batches_per_second": 4000.0,
        "elapsed_seconds": 1.0,
        "bytes": 4_000_000_000,
        "messages": 4_000_000,
        "batches": 4000,
    },
    "ceilings": {},
    "stages": {
        "publisher.buffer_write": _stage(62_500, 0.5, 0.4),
        "publisher.wait_space": _stage(4000, 200.0, 0.0),
        "publisher.send_payload": _stage(4000, 100.0, 80.0),
        "publisher.wait_ack": _stage(4, 10_000.0, 9_000.0),
        "broker.get_buffer": _stage(4000, 10.0, 8.0),
        "broker.queue": _stage(4000, 40.0, 30.0),
        "broker.validate": _stage(4000, 4.0, 3.0),
        "broker.release": _stage(4000, 6.0, 5.0),
    },
    "system": {"broker": _usage(0.2, 0.2), "publisher": _usage(2.0, 0.6)},
    "memory": {"segment_bytes": 16_000_000},
    "environment": {"cpus_available": 8},
    "warnings": [],
}
"""Over shared memory, with CPUs to spare."""

TCP: dict[str, Any] = copy.deepcopy(SHM)
TCP["parameters"]["transport"]["value"] = "tcp"
TCP["stages"] |= {
    "broker.receive": _stage(4000, 900.0, 850.0),
    "publisher.send_payload": _stage(4000, 600.0, 500.0),
    "publisher.wait_space": _stage(4000, 250.0, 240.0),
}
TCP["system"]["sockets"] = {
    "recv_calls_per_batch": 2.0,
    "send_calls_per_batch": 1.0,
    "eagain": 0,
    "requested_sndbuf": 4_000_000,
    "granted_sndbuf": 4_000_000,
    "requested_rcvbuf": 4_000_000,
    "granted_rcvbuf": 4_000_000,
    "max_inq_bytes": 900_000,
    "max_outq_bytes": 900_000,
    "retransmits": 0,
}
"""Over sockets: sender and ingest threads beside the producer."""


def changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with other values, by dotted path; stages have dots in their own names."""
    result = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, name = _steps(path)
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return result


def without(base: dict[str, Any], path: str) -> dict[str, Any]:
    """A copy that lacks one field."""
    result = copy.deepcopy(base)
    *parents, name = _steps(path)
    place = result
    for parent in parents:
        place = place[parent]
    del place[name]
    return result


def _steps(path: str) -> list[str]:
    steps = path.split(".")
    if steps[0] == "stages" and len(steps) > 2:
        return [steps[0], f"{steps[1]}.{steps[2]}", *steps[3:]]
    return steps


def _ceiling(name: str, share: float) -> dict[str, Any]:
    return {f"ceilings.{name}": {"bytes_per_second": 4e9 / share, "share": share}}


@dataclass(frozen=True)
class Case:
    """A result, and whether a rule fires for it."""

    rule: str
    fires: bool
    changes: dict[str, Any]
    base: dict[str, Any] = field(default_factory=lambda: SHM, repr=False)
    said: tuple[str, ...] = ()
    evidence: dict[str, float] = field(default_factory=dict)
    next: str = ""
    needs: tuple[str, ...] = ()
    """Without any one of these fields the rule is silent."""

    def __str__(self) -> str:
        changes = ",".join(f"{path}={value}" for path, value in self.changes.items())
        return f"{self.rule}{' ' if self.fires else ' not '}with {changes[:60] or 'nothing'}"

    @property
    def result(self) -> dict[str, Any]:
        return changed(self.base, self.changes)


CASES = [
    # --- bounds ---
    Case(
        "at the ceiling",
        True,
        _ceiling("memory_copy", 0.95),
        said=("4.00 GB/s is 95% of the 4.21 GB/s of memory copy",),
        evidence={"share": 0.95, "bytes_per_second": 4e9},
        needs=("ceilings",),
    ),
    Case(
        "at the ceiling",
        True,
        # However far below memory copy: that is not what tcp can reach.
        _ceiling("tcp_loopback", 0.92) | _ceiling("memory_copy", 0.05),
        TCP,
        said=("92%", "raw loopback TCP", "It is the kernel's path, not the code around it."),
        next="embar-shm compare",
        needs=("ceilings.tcp_loopback",),
    ),
    Case(
        "at the ceiling",
        True,
        _ceiling("tcp_loopback", 1.11),
        TCP,
        said=("111%", "No run is faster than its ceiling: something disturbed"),
        next="again on a quiet machine",
    ),
    Case("at the ceiling", False, _ceiling("memory_copy", 0.89)),
    Case("at the ceiling", False, _ceiling("tcp_loopback", 0.95)),  # shm is not measured by tcp's
    Case("at the ceiling", False, _ceiling("memory_copy", 0.95), TCP),
    Case("at the ceiling", True, _ceiling("memory_copy", 0.95) | {
        "parameters.transport.value": "pigeon",
    }),
    Case(
        "others use the CPUs",
        True,
        {"environment.cpus_available": 4, "system.machine": {"busy_seconds": 3.9}},
        said=("22% of the CPU time (0.9 s)",),
        evidence={"others_share": 0.225, "others_cpu_seconds": 0.9},
        needs=("system.machine", "system.broker", "environment"),
    ),
    Case(
        "others use the CPUs",
        False,  # a little
        {"environment.cpus_available": 4, "system.machine": {"busy_seconds": 3.7}},
    ),
    Case(
        "others use the CPUs",
        False,  # much, but there are enough CPUs for all
        {"environment.cpus_available": 8, "system.machine": {"busy_seconds": 6.0}},
    ),
    Case(
        "others use the CPUs",
        False,  # the kernel does, for this run's sockets
        {
            "environment.cpus_available": 4,
            "system.machine": {"busy_seconds": 3.9, "softirq_seconds": 0.6},
        },
        TCP,
    ),
    Case(
        "CPUs are full",
        True,
        {
            "environment.cpus_available": 4,
            "system.machine": {"busy_seconds": 3.9, "softirq_seconds": 0.6},
        },
        TCP,
        said=(
            "4 CPUs, 75% (27% of it in the kernel); "
            "15% to the kernel's moving of packets and 7% to other programs.",
        ),
        evidence={"packets_share": 0.15, "others_share": 0.075},
    ),
    Case(
        "CPUs are full",
        True,
        {"environment.cpus_available": 4, "system.machine": {"busy_seconds": 3.7}},
        said=("4 CPUs, 75% (27% of it in the kernel); 18% to other programs.",),
        needs=("system.machine",),
    ),
    Case(
        "CPUs are full",
        True,
        {"environment.cpus_available": 3},
        said=("3 s of CPU time in 1.00 s on 3 CPUs, 100% (27% of it in the kernel)",
              "6 processes take turns"),
        evidence={"cpu_share": 1.0, "cpu_seconds": 3.0, "cpus": 3, "processes": 6},
        needs=("environment", "system", "system.broker", "system.publisher"),
    ),
    Case("CPUs are full", False, {"environment.cpus_available": 4}),
    Case(
        "CPUs are full",
        True,  # brokers elsewhere, which may be on this machine
        {"system.broker": None, "system.machine": {"busy_seconds": 7.2}},
        TCP,
        said=("its programs used 7.2 s of CPU time in 1.00 s on 8 CPUs, 90%; 2.6 s of it are",),
        evidence={"machine_share": 0.9, "publisher_cpu_seconds": 2.6},
        next="brokers on another machine, if they run here",
        needs=("system.machine", "system.publisher", "environment"),
    ),
    Case(
        "CPUs are full",
        False,
        {"system.broker": None, "system.machine": {"busy_seconds": 7.0}},
        TCP,
    ),
    Case(
        "CPUs are full",
        False,  # of others
        {"environment.cpus_available": 4, "system.machine": {"busy_seconds": 3.9}},
    ),
    Case(
        "publishers are busy",
        True,
        {"system.publisher.cpu_seconds": 3.8},
        said=("each of 4 used 0.95 CPUs",),
        evidence={"cpus_per_publisher": 0.95, "publishers": 4},
        needs=("system", "system.publisher", "parameters.publishers"),
    ),
    Case("publishers are busy", False, {"system.publisher.cpu_seconds": 3.5}),
    Case(
        "publishers are busy",
        False,  # more of them would not help
        {"system.publisher.cpu_seconds": 3.8, "environment.cpus_available": 4},
    ),
    Case(
        "brokers are busy",
        True,
        {"stages.broker.validate.mean_us": 450.0, "stages.broker.release.mean_us": 20.0},
        said=("94% of the accepting thread's time",),
        evidence={"busy_share": 0.94},
        needs=("stages", "stages.broker.validate", "parameters.brokers"),
    ),
    Case("brokers are busy", False, {"stages.broker.validate.mean_us": 400.0}),
    Case(
        "small socket buffers",
        True,  # asked for, and not granted
        {"system.sockets.granted_rcvbuf": 425_984},
        TCP,
        said=("receive 416 KiB of the 4 MB requested at most",),
        evidence={"requested_rcvbuf": 4_000_000, "granted_rcvbuf": 425_984},
        next="a larger net.core.rmem_max:",
        needs=(
            "system.sockets", "system.sockets.requested_rcvbuf", "system.sockets.granted_rcvbuf",
        ),
    ),
    Case("small socket buffers", True, {"system.sockets.granted_sndbuf": 3_999_999}, TCP),
    Case(
        "small socket buffers",
        True,  # left to the kernel, which cannot make them large enough
        {
            "system.sockets.requested_sndbuf": 0, "system.sockets.granted_sndbuf": 999_999,
            "system.sockets.requested_rcvbuf": 0, "system.sockets.granted_rcvbuf": 900_000,
        },
        TCP,
        said=("send 999,999 B of a batch's 1 MB, receive 900 KB of a batch's 1 MB at most",),
        evidence={"granted_sndbuf": 999_999, "granted_rcvbuf": 900_000, "batch_size": 1_000_000},
        next="net.ipv4.tcp_wmem and net.ipv4.tcp_rmem",
        needs=("parameters.batch_size",),
    ),
    Case(
        "small socket buffers",
        False,
        {"system.sockets.requested_sndbuf": 0, "system.sockets.granted_sndbuf": 1_000_000},
        TCP,
    ),
    Case(
        "small socket buffers",
        False,  # what was wanted, though less than a batch: over loopback that is faster
        {"system.sockets.requested_sndbuf": 524_288, "system.sockets.granted_sndbuf": 524_288},
        TCP,
    ),
    Case(
        "small socket buffers",
        False,  # not known
        {"system.sockets.requested_sndbuf": 0, "system.sockets.granted_sndbuf": 0},
        TCP,
    ),
    Case("small socket buffers", False, {}),
    Case(
        "segments are sent again",
        True,
        {"system.sockets.retransmits": 800, "parameters.connect.value": "tcp://10.0.0.1:7400"},
        TCP,
        said=("sent again: 800, 0.2 per MB", "lost, or their acknowledgements came too late"),
        evidence={"retransmits": 800, "retransmits_per_mb": 0.2},
        next="the network between the machines",
        needs=("system.sockets", "system.sockets.retransmits"),
    ),
    Case("segments are sent again", False, {"system.sockets.retransmits": 799}, TCP),
    Case(
        "segments are sent again",
        True,
        {"system.sockets.retransmits": 800},
        TCP,
        next="nothing gets lost inside a machine",
    ),
    Case(
        "segments are sent again",
        False,  # inside one machine, where acknowledgements wait for a CPU
        {"system.sockets.retransmits": 800, "environment.cpus_available": 3},
        TCP,
    ),
    Case(
        "segments are sent again",
        True,  # between machines full CPUs are no excuse
        {
            "system.sockets.retransmits": 800, "environment.cpus_available": 3,
            "parameters.connect.value": "tcp://10.0.0.1:7400",
        },
        TCP,
    ),
    Case(
        "segments are sent again",
        False,  # a few in a short run
        {"system.sockets.retransmits": 9, "throughput.bytes": 1_000_000},
        TCP,
    ),
    Case(
        "connections are busy",
        True,
        {"stages.publisher.wait_space.mean_us": 300.0},
        TCP,
        said=(
            "limit, 4.00 GB/s together: sending takes 600 of 1,000 us per batch (60%)",
            "wait 30% of their time for that",
            "38% of the CPU time is used",
        ),
        evidence={"send_share": 0.6, "send_us_per_batch": 600, "wait_space_share": 0.3},
        next="--publishers-per-broker",
        needs=(
            "stages", "stages.publisher.send_payload", "stages.publisher.wait_space",
            "stages.publisher.buffer_write",
        ),
    ),
    Case(
        "connections are busy",
        True,
        {
            "stages.publisher.wait_space.mean_us": 300.0, "system.broker": None,
            "parameters.connect.value": "tcp://10.0.0.1:7400",
        },
        TCP,
        next="look at the brokers' side",
    ),
    Case("connections are busy", False, {"stages.publisher.wait_space.mean_us": 290.0}, TCP),
    Case(
        "connections are busy",
        False,  # the sender has time: publishers wait for something else
        {
            "stages.publisher.wait_space.mean_us": 300.0,
            "stages.publisher.send_payload.mean_us": 490.0,
        },
        TCP,
    ),
    Case(
        "connections are busy",
        False,  # sending contains waiting for a CPU
        {"stages.publisher.wait_space.mean_us": 300.0, "environment.cpus_available": 3},
        TCP,
    ),
    Case(
        "connections are busy",
        False,  # there are none: over shared memory sending is the publisher's own work
        {
            "stages.publisher.wait_space.mean_us": 300.0,
            "stages.publisher.send_payload.mean_us": 600.0,
        },
    ),
    Case(
        "waiting for space",
        True,
        {"stages.publisher.wait_space.mean_us": 300.0},
        said=("30% of their time for space", "300 us per batch", "38% of the CPU time is used"),
        evidence={"share": 0.3, "us_per_batch": 300.0, "cpu_share": 0.375},
        next="--in-flight 4 (with --slots 16)",
        needs=("stages", "stages.publisher.wait_space", "stages.publisher.buffer_write"),
    ),
    Case(
        "waiting for space",
        True,
        {"stages.publisher.wait_space.mean_us": 300.0, "parameters.slots.value": 3},
        next="--slots 4: publishers with --in-flight 2",
    ),
    Case("waiting for space", False, {"stages.publisher.wait_space.mean_us": 290.0}),
    Case(
        "waiting for space",
        True,  # over sockets, for acknowledgements that are on their way
        {
            "stages.publisher.wait_space.mean_us": 300.0,
            "stages.publisher.send_payload.mean_us": 490.0,
            "parameters.connect.value": "tcp://10.0.0.1:7400",
        },
        TCP,
        next="--in-flight 4, and brokers with slots for as many",
    ),
    Case(
        "waiting for space",
        False,  # what was filled before is still being sent
        {"stages.publisher.wait_space.mean_us": 300.0},
        TCP,
    ),
    Case(
        "waiting for space",
        False,  # somebody has to wait for a CPU, and a slot is where they do it
        {"stages.publisher.wait_space.mean_us": 700.0, "environment.cpus_available": 3},
    ),
    Case(
        "waiting for space",
        False,  # the same, when they are others' turns
        {"stages.publisher.wait_space.mean_us": 700.0, "system.machine": {"busy_seconds": 7.5}},
    ),
    Case(
        "waiting for acknowledgements",
        True,
        {"stages.publisher.wait_ack.count": 4000, "stages.publisher.wait_ack.mean_us": 350.0},
        said=("35% of their time for acknowledgements: 350 us per batch",),
        evidence={"share": 0.35, "us_per_batch": 350.0},
        next="--ack 0",
        needs=("stages", "stages.publisher.wait_ack"),
    ),
    Case(
        "waiting for acknowledgements",
        False,  # the same wait, once at the end instead of once per batch
        {"stages.publisher.wait_ack.count": 4, "stages.publisher.wait_ack.mean_us": 350.0},
    ),
    Case(
        "connections take turns",
        True,
        {"stages.publisher.buffer_write.p50_us": 0.2},  # 288 us a batch: four could move 13.9 GB/s
        said=("4 of them move what 1.2 would", "3.47 GB/s each"),
        evidence={"at_once": 1.152, "connections": 4, "actual_bytes_per_second": 4e9},
        needs=("stages", "stages.publisher.buffer_write", "parameters.publishers"),
    ),
    Case("connections take turns", False, {}),
    Case(
        "connections take turns",
        False,  # one cannot take turns
        {"stages.publisher.buffer_write.p50_us": 0.1, "parameters.publishers.value": 1},
    ),
    Case(
        "connections take turns",
        False,  # they take turns on the CPUs
        {"stages.publisher.buffer_write.p50_us": 0.1, "environment.cpus_available": 5},
    ),
    Case(
        "connections take turns",
        False,  # the same, when it is not known whose CPU time it is
        {
            "stages.publisher.buffer_write.p50_us": 0.1,
            "system.broker": None,
            "system.machine": {"busy_seconds": 4.1},
        },
    ),
    Case(
        "unknown",
        True,
        _ceiling("memory_copy", 0.4),
        said=("40% of memory copy", "38% of the CPU time used"),
        evidence={"share": 0.4, "cpu_share": 0.375},
        needs=("ceilings",),
    ),
    Case("unknown", False, _ceiling("memory_copy", 0.9)),
    Case("unknown", False, _ceiling("memory_copy", 0.4) | {"environment.cpus_available": 3}),
    # --- notes ---
    Case(
        "calling costs most",
        True,
        {"stages.publisher.buffer_write.p50_us": 0.24},
        said=("500.0 ns outside the kernel, and 240.0 ns",),
        evidence={"user_ns_per_message": 500.0, "copy_ns_per_message": 240.0, "share": 0.52},
        next="--producer many",
        needs=(
            "stages", "stages.publisher.buffer_write", "system",
            "system.publisher", "system.publisher.user_seconds",
        ),
    ),
    Case(
        "calling costs most",
        True,
        {"stages.publisher.buffer_write.p50_us": 0.24, "parameters.producer.value": "many"},
        next="--messages-per-call",
    ),
    Case("calling costs most", False, {"stages.publisher.buffer_write.p50_us": 0.26}),
    Case(
        "calling costs most",
        False,  # when the kernel takes most, it is not worth a word
        {"stages.publisher.buffer_write.p50_us": 0.1, "system.publisher": _usage(1.0, 2.0)},
    ),
    Case(
        "copying costs most",
        True,
        {"stages.publisher.buffer_write.p50_us": 0.26},
        said=("260.0 of 500.0 ns", "(52%)"),
        evidence={"copy_ns_per_message": 260.0, "share": 0.52},
        next="reserve()",
        needs=("stages.publisher.buffer_write", "system.publisher.user_seconds"),
    ),
    Case("copying costs most", False, {"stages.publisher.buffer_write.p50_us": 0.24}),
    Case(
        "copying costs most",
        True,  # a copy too short for the clock has a mean all the same
        {
            "stages.publisher.buffer_write.p50_us": 0.0,
            "stages.publisher.buffer_write.mean_us": 0.26,
        },
        evidence={"copy_ns_per_message": 260.0},
    ),
    Case(
        "calling costs most",
        False,  # encrypting does
        {
            "stages.publisher.buffer_write.p50_us": 0.24,
            "parameters.tls_ca.value": "ca.pem",
        },
        TCP,
    ),
    Case(
        "copying costs most",
        False,
        {
            "stages.publisher.buffer_write.p50_us": 0.26,
            "parameters.tls_cert.value": "cert.pem",
        },
        TCP,
    ),
    Case(
        "the network path takes most",
        True,
        {},
        TCP,
        said=(
            "way through the kernel: sending takes a publisher 600 of 1,000 us (60%), "
            "receiving takes a broker 900 of 960 us (94%).",
        ),
        evidence={
            "publisher_us": 600, "publisher_share": 0.6, "publisher_batch_us": 1000,
            "broker_us": 900, "broker_share": 0.9375, "broker_batch_us": 960,
        },
        next="embar-shm compare",
        needs=("stages",),
    ),
    Case(
        "the network path takes most",
        True,
        {"environment.cpus_available": 3},
        TCP,
        said=("(94%); waiting for a CPU meanwhile is part of it.",),
    ),
    Case(
        "the network path takes most",
        True,  # brokers elsewhere
        dict.fromkeys(("stages.broker.receive", "system.broker"))
        | {"parameters.tls_ca.value": "ca.pem"},
        TCP,
        said=("through TLS and the kernel: sending takes a publisher 600 of 1,000 us (60%).",),
        needs=("system.sockets", "stages.publisher.send_payload"),
    ),
    Case(
        "the network path takes most",
        False,
        {
            "stages.publisher.send_payload.mean_us": 490.0,
            "stages.broker.receive.mean_us": 50.0,
        },
        TCP,
    ),
    Case("the network path takes most", False, {"stages.publisher.send_payload.mean_us": 900.0}),
    Case(
        "the kernel costs most",
        True,
        {"system.publisher": _usage(1.0, 2.0)},
        TCP,
        said=("2.2 of 3.4 s of CPU time (65%)", "not Python"),
        evidence={"kernel_seconds": 2.2, "cpu_seconds": 3.4},
        next="shm, if both sides are on one machine",
        needs=("system", "system.publisher.kernel_seconds", "system.broker.kernel_seconds"),
    ),
    Case(
        "the kernel costs most",
        True,
        {"system.publisher": _usage(1.0, 2.0)},
        next="larger batches",
    ),
    Case("the kernel costs most", False, {}, TCP),
]  # fmt: skip
