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
    return Found(
        f"At its ceiling: {format_rate(reached)} is {ceiling['share']:.0%} of the "
        f"{format_rate(ceiling['bytes_per_second'])} of {CEILINGS[ceiling['name']]} by the same "
        "processes.",
        {
            "share": ceiling["share"],
            "bytes_per_second": reached,
            "ceiling_bytes_per_second": ceiling["bytes_per_second"],
        },
        "another path, if there is one: embar-shm compare"
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
    others = facts.others_share or 0.0
    if facts.cpu_share is None or not facts.cpus_are_full or others >= limit("others"):
        return None
    elapsed = facts.throughput["elapsed_seconds"]
    sentence = (
        f"The CPUs are full: {facts.sum_of('cpu_seconds'):.3g} s of CPU time in "
        f"{format_duration(elapsed)} on {facts.cpus:.0f} CPUs, {facts.cpu_share:.0%}"
    )
    evidence = {
        "cpu_share": facts.cpu_share,
        "cpu_seconds": facts.sum_of("cpu_seconds"),
        "elapsed_seconds": elapsed,
        "cpus": facts.cpus,
    }
    if facts.kernel_share is not None:
        sentence += f" ({facts.kernel_share:.0%} of it in the kernel)"
        evidence["kernel_share"] = facts.kernel_share
    if others >= _WORTH_TELLING:
        sentence += f"; {others:.0%} went to other programs"
        evidence["others_share"] = others
    sentence += "."
    if facts.processes > facts.cpus:
        evidence["processes"] = facts.processes
        sentence += f" {facts.processes} processes take turns: their waits are mostly turns."
    return Found(sentence, evidence, "less work per batch, or more CPUs")


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


def _small_buffers(facts: Facts) -> Found | None:
    batch = facts.of("batch_size")
    sizes = {
        option: facts.sockets[f"granted_{option}"]
        for option in ("sndbuf", "rcvbuf")
        if facts.sockets.get(f"granted_{option}") is not None
    }
    if not batch or not sizes or min(sizes.values()) >= batch:
        return None
    shown = ", ".join(
        f"{'send' if option == 'sndbuf' else 'receive'} {format_size(int(size))}"
        for option, size in sizes.items()
    )
    return Found(
        f"Socket buffers hold less than a batch of {format_size(batch)}: {shown}. Both sides "
        "stop in the middle of every batch.",
        {"batch_size": batch, **{f"granted_{option}": size for option, size in sizes.items()}},
        "sudo tools/tune_kernel_buffers.sh (embar-shm doctor explains), or smaller batches",
    )


def _retransmits(facts: Facts) -> Found | None:
    count, batches = facts.sockets.get("retransmits"), facts.throughput["batches"]
    per_batch = breakdown.ratio(count, batches)
    if count is None or per_batch is None or per_batch < limit("lost"):
        return None
    return Found(
        f"The network loses packets: {count:,.0f} were sent again for {batches:,.0f} batches.",
        {"retransmits": count, "batches": batches},
        "look at the network between the machines: ip -s link",
    )


def _waiting(
    stage: str, what: str, step: Callable[[Facts], str]
) -> Callable[[Facts], Found | None]:
    """A rule on a publisher's wait. With full CPUs it is silent: somebody has to wait then."""

    def look(facts: Facts) -> Found | None:
        if (side := facts.publisher) is None or facts.cpus_are_full:
            return None
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
    wanted = (facts.of("publishers_per_broker") or 0) * in_flight
    if wanted > slots:
        return f"--slots {wanted}: publishers with --in-flight {in_flight} want so many"
    return f"--in-flight {2 * in_flight} (with --slots {2 * max(wanted, slots)}), or more brokers"


def _fewer_acks(_facts: Facts) -> str:
    return "wait_acked() once for many batches instead of after each, or --ack 0"


def _one_at_a_time(facts: Facts) -> Found | None:
    c, cpu_share = facts.connections, facts.cpu_share
    if c is None or c["count"] < 2 or c["at_once"] > limit("at once"):
        return None
    if cpu_share is not None and cpu_share + (facts.others_share or 0.0) > limit("CPUs idle"):
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
    Rule("packets are lost", "bound", _retransmits),
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
