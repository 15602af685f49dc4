"""Rules on what is worth knowing, whatever bounds the run: where the CPU time goes."""

from __future__ import annotations

from typing import Final

from embar_shm.bench import breakdown
from embar_shm.bench.facts import Facts, Found, Rule, limit

__all__ = ["RULES"]


def _calling(facts: Facts) -> Found | None:
    if (work := _user_ns_per_message(facts)) is None:
        return None
    user_ns, copy_ns = work
    outside = 1 - copy_ns / user_ns
    if outside < limit("main part"):
        return None
    one = facts.of("producer") == "one"
    return Found(
        f"Calling costs more than copying: a message takes a publisher {user_ns:.1f} ns outside "
        f"the kernel, and {copy_ns:.1f} ns of them are its copy.",
        {"user_ns_per_message": user_ns, "copy_ns_per_message": copy_ns, "share": outside},
        "many messages per call: --producer many (publish_many)"
        if one
        else "more messages per call (--messages-per-call)",
    )


def _copying(facts: Facts) -> Found | None:
    if (work := _user_ns_per_message(facts)) is None:
        return None
    user_ns, copy_ns = work
    share = copy_ns / user_ns
    if share < limit("main part"):
        return None
    return Found(
        f"Copying messages into the batch is most of a publisher's own work: {copy_ns:.1f} of "
        f"{user_ns:.1f} ns per message outside the kernel ({share:.0%}).",
        {"user_ns_per_message": user_ns, "copy_ns_per_message": copy_ns, "share": share},
        "reserve(): write a message where it will be read, without a copy",
    )


def _user_ns_per_message(facts: Facts) -> tuple[float, float] | None:
    """A publisher's CPU time outside the kernel for a message, and what its copy takes of it.

    None when the kernel's work is the main part, too: what the rest consists of is beside the point
    then, and the kernel's timer ticks put some of its own into it. Nor with TLS, which is most of
    the rest.
    """
    if facts.kernel_share is None or facts.kernel_share >= limit("main part"):
        return None
    if facts.is_encrypted:
        return None
    usage, copy_us = facts.usages.get("publisher"), breakdown.copy_us(facts.result)
    messages = facts.throughput["messages"]
    if usage is None or copy_us is None or not usage.get("user_seconds") or not messages:
        return None
    return usage["user_seconds"] / messages * 1e9, copy_us * 1e3


def _network_path(facts: Facts) -> Found | None:
    """Over sockets: how much of a batch's time sending and receiving take."""
    if not facts.over_sockets:
        return None
    evidence: dict[str, float] = {}
    said, shares = [], []
    for side, stage, name, doing in (
        (facts.publisher, "publisher.send_payload", "publisher", "sending takes a publisher"),
        (facts.broker, "broker.receive", "broker", "receiving takes a broker"),
    ):
        if side is None or (part := side["stages"].get(stage)) is None:
            continue
        batch_us, share = side["batch_us"], part["share"]
        shares.append(share)
        said.append(f"{doing} {part['us']:,.0f} of {batch_us:,.0f} us ({share:.0%})")
        evidence |= {f"{name}_us": part["us"], f"{name}_share": share}
        evidence |= {f"{name}_batch_us": batch_us}
    if not shares or max(shares) < limit("main part"):
        return None
    path = "TLS and the kernel" if facts.is_encrypted else "the kernel"
    sentence = f"Most of a batch's time is its way through {path}: {', '.join(said)}"
    if facts.cpus_are_full:
        sentence += "; waiting for a CPU meanwhile is part of it"
    return Found(
        f"{sentence}.",
        evidence,
        "embar-shm compare: what the same work takes on one machine without that way",
    )


def _in_kernel(facts: Facts) -> Found | None:
    share = facts.kernel_share
    if share is None or share < limit("main part"):
        return None
    kernel, cpu = facts.sum_of("kernel_seconds"), facts.sum_of("cpu_seconds")
    return Found(
        f"The kernel does most of the work: {kernel:.3g} of {cpu:.3g} s of CPU time "
        f"({share:.0%}). It is not Python that limits this path.",
        {"kernel_share": share, "kernel_seconds": kernel, "cpu_seconds": cpu},
        _less_kernel(facts),
    )


def _less_kernel(facts: Facts) -> str:
    if facts.of("transport") == "shm":
        return "larger batches: fewer wake-ups and process switches per byte"
    return (
        "shm, if both sides are on one machine; batches that stay in the cache (--batch-size "
        "256KiB); more CPUs"
    )


RULES: Final = (
    Rule("calling costs most", "note", _calling),
    Rule("copying costs most", "note", _copying),
    Rule("the network path takes most", "note", _network_path),
    Rule("the kernel costs most", "note", _in_kernel),
)
