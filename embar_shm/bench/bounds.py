"""Rules on what keeps a run below its ceiling, in the order of precedence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from embar_shm.bench import breakdown
from embar_shm.bench.facts import CEILINGS, Facts, Found, Rule, limit
from embar_shm.units import format_duration, format_rate, format_size

__all__ = ["AT_CEILING", "RULES", "UNKNOWN"]

_WORTH_TELLING: Final = 0.01  # a share that is printed beside the one that decides


def _at_ceiling(facts: Facts) -> Found | None:
    if (ceiling := facts.ceiling) is None or ceiling["share"] < limit("at the ceiling"):
        return None
    reached = facts.throughput["bytes_per_second"]
    sentence = (
        f"At its ceiling: {format_rate(reached)} is {ceiling['share']:.0%} of the "
        f"{format_rate(ceiling['bytes_per_second'])} of {CEILINGS[ceiling['name']]} by the same "
        "processes."
    )
    above = ceiling["share"] > limit("above the ceiling")
    if above:
        sentence += " No run is faster than its ceiling: something disturbed its measurement."
    elif ceiling["name"] == "tcp_loopback":
        sentence += " It is the kernel's path, not the code around it."
    return Found(
        sentence,
        {
            "share": ceiling["share"],
            "bytes_per_second": reached,
            "ceiling_bytes_per_second": ceiling["bytes_per_second"],
        },
        "again on a quiet machine"
        if above
        else "another path, if there is one: embar-shm compare"
        if ceiling["name"] != "memory_copy"
        else "a machine that copies faster; the ring costs next to nothing here",
    )


def _others(facts: Facts) -> Found | None:
    share = facts.others_share
    if share is None or share < limit("others") or not facts.cpus_are_full:
        return None
    seconds = share * facts.cpus * facts.throughput["elapsed_seconds"]
    return Found(
        f"Other programs use the CPUs: {share:.0%} of the CPU time ({seconds:.3g} s) went to none "
        "of this run's processes.",
        {"others_share": share, "others_cpu_seconds": seconds, "cpus": facts.cpus},
        "again on a quiet machine; ps -eo pcpu,pid,args --sort=-pcpu | head shows who it is",
    )


def _cpus_full(facts: Facts) -> Found | None:
    if facts.cpu_share is None:
        return _machine_full(facts)
    others = facts.others_share or 0.0
    if not facts.cpus_are_full or others >= limit("others"):
        return None
    elapsed = facts.throughput["elapsed_seconds"]
    sentence = (
        f"The CPUs are full ({facts.cpus_used:.0%}): the run used {facts.sum_of('cpu_seconds'):.3g}"
        f" s of CPU time in {format_duration(elapsed)} on {facts.cpus:.0f} CPUs, "
        f"{facts.cpu_share:.0%}"
    )
    evidence = {
        "cpus_used": facts.cpus_used,
        "cpu_share": facts.cpu_share,
        "cpu_seconds": facts.sum_of("cpu_seconds"),
        "elapsed_seconds": elapsed,
        "cpus": facts.cpus,
    }
    if facts.kernel_share is not None:
        sentence += f" ({facts.kernel_share:.0%} of it in the kernel)"
        evidence["kernel_share"] = facts.kernel_share
    packets = (facts.machine_share or 0.0) - facts.cpu_share - others
    went = [
        f"{share:.0%} to {whom}"
        for share, whom in ((packets, "the kernel's moving of packets"), (others, "other programs"))
        if share >= _WORTH_TELLING
    ]
    if went:
        sentence += f"; {' and '.join(went)}"
        evidence |= {"others_share": others, "packets_share": max(0.0, packets)}
    sentence += "."
    if facts.processes > facts.cpus:
        evidence["processes"] = facts.processes
        sentence += f" {facts.processes} processes take turns: their waits are mostly turns."
    return Found(sentence, evidence, "less work per batch, or more CPUs")


def _machine_full(facts: Facts) -> Found | None:
    """Of a run whose brokers run elsewhere: they may be among the other programs."""
    share, usage = facts.machine_share, facts.usages.get("publisher")
    if share is None or usage is None or not facts.cpus_are_full:
        return None
    elapsed, own = facts.throughput["elapsed_seconds"], usage["cpu_seconds"]
    busy = share * facts.cpus * elapsed
    return Found(
        f"The CPUs of this machine are full: its programs used {busy:.3g} s of CPU time in "
        f"{format_duration(elapsed)} on {facts.cpus:.0f} CPUs, {share:.0%}; {own:.3g} s of it are "
        "the publishers'.",
        {
            "machine_share": share,
            "busy_seconds": busy,
            "publisher_cpu_seconds": own,
            "elapsed_seconds": elapsed,
            "cpus": facts.cpus,
        },
        "brokers on another machine, if they run here; else a quiet machine: "
        "ps -eo pcpu,pid,args --sort=-pcpu | head shows what runs",
    )


def _publishers_busy(facts: Facts) -> Found | None:
    usage, count = facts.usages.get("publisher"), facts.of("publishers")
    if usage is None or not count or facts.cpus_are_full:
        return None
    elapsed = facts.throughput["elapsed_seconds"]
    share = breakdown.ratio(usage["cpu_seconds"] / count, elapsed)
    if share is None or share < limit("thread full"):
        return None
    return Found(
        f"Publishers work all the time: each of {count} used {share:.2f} CPUs. Their own work is "
        "the limit, not a wait.",
        {"cpus_per_publisher": share, "publishers": count, "elapsed_seconds": elapsed},
        "the notes say what the work is; more publishers, while CPUs are free",
    )


def _broker_busy(facts: Facts) -> Found | None:
    if (side := facts.broker) is None or side["busy_share"] < limit("thread full"):
        return None
    return Found(
        f"The brokers work all the time: checking and releasing batches takes "
        f"{side['busy_share']:.0%} of the accepting thread's time.",
        {"busy_share": side["busy_share"]},
        "larger batches (--batch-size), or more brokers",
    )


_DIRECTIONS: Final = (("sndbuf", "send", "w"), ("rcvbuf", "receive", "r"))


def _small_buffers(facts: Facts) -> Found | None:
    """A size that was asked for and not granted, or one that autotuning cannot make large enough.

    A size that was granted is as it was wanted: over loopback, less than a batch is faster.
    """
    batch = facts.of("batch_size")
    evidence: dict[str, float] = {}
    said, settings = [], []
    for option, name, letter in _DIRECTIONS:
        requested = facts.sockets.get(f"requested_{option}")
        granted = facts.sockets.get(f"granted_{option}")
        wanted = requested or batch
        if requested is None or not granted or not wanted or granted >= wanted:
            continue
        evidence |= {f"requested_{option}": requested, f"granted_{option}": granted}
        what = "the {size} requested" if requested else "a batch's {size}"
        size = format_size(int(wanted))
        said.append(f"{name} {format_size(int(granted))} of {what.format(size=size)}")
        setting = "net.core.{}mem_max" if requested else "net.ipv4.tcp_{}mem"
        settings.append(setting.format(letter))
    if not evidence:
        return None
    return Found(
        f"Socket buffers are small: {', '.join(said)} at most. The side that fills or empties "
        "one waits for the other in the middle of a batch.",
        evidence | ({"batch_size": batch} if batch else {}),
        f"a larger {' and '.join(settings)}: embar-shm doctor explains",
    )


def _sent_again(facts: Facts) -> Found | None:
    count = facts.sockets.get("retransmits")
    per_mb = breakdown.ratio(count, facts.throughput["bytes"] / 1e6)
    if count is None or per_mb is None or count < limit("sent again in all"):
        return None
    inside = not facts.brokers_are_elsewhere
    # Inside one machine an acknowledgement is late because the receiver waits for a CPU.
    if per_mb < limit("sent again") or (inside and facts.cpus_are_full):
        return None
    return Found(
        f"Segments are sent again: {count:,.0f}, {per_mb:.2g} per MB. They were lost, or their "
        "acknowledgements came too late.",
        {"retransmits": count, "retransmits_per_mb": per_mb},
        "nothing gets lost inside a machine: fewer processes, so that none waits long for a CPU"
        if inside
        else "look at the network between the machines: ip -s link, tc -s qdisc, on both",
    )


def _connections_busy(facts: Facts) -> Found | None:
    """Where publishers wait for space because what was filled before is still being sent."""
    waits = facts.publisher["stages"].get("publisher.wait_space") if facts.publisher else None
    if (sending := _sending(facts)) is None or facts.publisher is None or facts.cpus_are_full:
        return None
    if waits is None or waits["share"] < limit("waiting"):
        return None
    evidence = {
        "send_share": sending["share"],
        "send_us_per_batch": sending["us"],
        "batch_us": facts.publisher["batch_us"],
        "wait_space_share": waits["share"],
        "bytes_per_second": facts.throughput["bytes_per_second"],
    }
    sentence = (
        f"The connections are the limit, {format_rate(facts.throughput['bytes_per_second'])} "
        f"together: sending takes {sending['us']:,.0f} of "
        f"{facts.publisher['batch_us']:,.0f} us per batch ({sending['share']:.0%}), and "
        f"publishers wait {waits['share']:.0%} of their time for that"
    )
    if facts.cpu_share is not None:
        evidence["cpu_share"] = facts.cpu_share
        sentence += f", while {facts.cpu_share:.0%} of the CPU time is used"
    return Found(
        f"{sentence}.",
        evidence,
        "look at the brokers' side (its CPUs, embar-shm doctor there), then at the network's rate"
        if facts.brokers_are_elsewhere
        else "more connections (--publishers-per-broker), while CPUs are free; shm needs none",
    )


def _sending(facts: Facts) -> breakdown.Part | None:
    """A sender thread's part of a batch's time, where it is the main part."""
    if facts.publisher is None or facts.publisher["sender_share"] < limit("main part"):
        return None
    return facts.publisher["stages"].get("publisher.send_payload")


def _waiting(
    stage: str, what: str, step: Callable[[Facts], str]
) -> Callable[[Facts], Found | None]:
    """A rule on a publisher's wait. With full CPUs it is silent: somebody has to wait then."""

    def look(facts: Facts) -> Found | None:
        if (side := facts.publisher) is None or facts.cpus_are_full:
            return None
        if stage == "publisher.wait_space" and _sending(facts) is not None:
            return None  # "connections are busy" tells what for
        part = side["stages"].get(stage)
        if part is None or part["share"] < limit("waiting"):
            return None
        evidence = {"share": part["share"], "us_per_batch": part["us"]}
        sentence = (
            f"Publishers wait {part['share']:.0%} of their time {what}: "
            f"{part['us']:,.0f} us per batch"
        )
        if facts.cpu_share is not None:
            evidence["cpu_share"] = facts.cpu_share
            sentence += f", while {facts.cpu_share:.0%} of the CPU time is used"
        return Found(f"{sentence}.", evidence, step(facts))

    return look


def _more_space(facts: Facts) -> str:
    in_flight, slots = facts.of("in_flight") or 0, facts.of("slots") or 0
    if facts.brokers_are_elsewhere:
        return (
            f"--in-flight {2 * in_flight}, and brokers with slots for as many of each publisher; "
            "where that changes nothing, the network's rate is reached"
        )
    wanted = (facts.of("publishers_per_broker") or 0) * in_flight
    if wanted > slots:
        return f"--slots {wanted}: publishers with --in-flight {in_flight} want so many"
    return f"--in-flight {2 * in_flight} (with --slots {2 * max(wanted, slots)}), or more brokers"


def _fewer_acks(_facts: Facts) -> str:
    return "wait_acked() once for many batches instead of after each, or --ack 0"


def _one_at_a_time(facts: Facts) -> Found | None:
    c = facts.connections
    if c is None or c["count"] < 2 or c["at_once"] > limit("at once"):
        return None
    if facts.cpus_used > limit("CPUs idle"):
        return None
    return Found(
        f"Connections take turns: {c['count']} of them move what {c['at_once']:.1f} would move "
        f"without waiting ({format_rate(c['bytes_per_second'])} each).",
        {
            "at_once": c["at_once"],
            "connections": c["count"],
            "bytes_per_second_of_one": c["bytes_per_second"],
            "actual_bytes_per_second": c["actual_bytes_per_second"],
        },
        "--publishers-per-broker 1, then --brokers 1: which of them keeps the throughput shows "
        "what is shared",
    )


def _unknown(facts: Facts) -> Found | None:
    if (ceiling := facts.ceiling) is None or ceiling["share"] >= limit("at the ceiling"):
        return None
    evidence = {"share": ceiling["share"]}
    sentence = f"Not at its ceiling ({ceiling['share']:.0%} of {CEILINGS[ceiling['name']]}"
    if facts.cpu_share is not None:
        evidence["cpu_share"] = facts.cpu_share
        sentence += f", with {facts.cpu_share:.0%} of the CPU time used"
    return Found(
        f"{sentence}), and nothing that was measured says why.",
        evidence,
        "a longer run (--total) on a quiet machine; embar-shm doctor; perf stat -- embar-shm run",
    )


AT_CEILING: Final = Rule("at the ceiling", "bound", _at_ceiling)

RULES: Final = (
    AT_CEILING,
    Rule("others use the CPUs", "bound", _others),
    Rule("CPUs are full", "bound", _cpus_full),
    Rule("publishers are busy", "bound", _publishers_busy),
    Rule("brokers are busy", "bound", _broker_busy),
    Rule("small socket buffers", "bound", _small_buffers),
    Rule("segments are sent again", "bound", _sent_again),
    Rule("connections are busy", "bound", _connections_busy),
    Rule(
        "waiting for space",
        "bound",
        _waiting("publisher.wait_space", "for space to put the next batch", _more_space),
    ),
    Rule(
        "waiting for acknowledgements",
        "bound",
        _waiting("publisher.wait_ack", "for acknowledgements", _fewer_acks),
    ),
    Rule("connections take turns", "bound", _one_at_a_time),
)
"""What explains more comes first."""

UNKNOWN: Final = Rule("unknown", "bound", _unknown)
"""Asked when a run is below its ceiling and no other bound fired."""
