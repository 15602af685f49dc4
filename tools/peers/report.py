"""Markdown from the JSON of a run, and from nothing else: for the screen and for the docs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from bench_common import machine_line, markdown, spread

__all__ = ["OURSELVES", "render", "summary"]

OURSELVES = "embar-shm"
_NONE = "-"
_QUIET = 0.05  # share of the CPUs that others may use while somebody is measured


def render(result: dict[str, Any]) -> str:
    """Everything: the machine, who took part, a table per workload, and who is faster than we."""
    parts = [_machine(result), _other_programs(result), _peers(result), _who_did_not(result)]
    for name, work in result["workloads"].items():
        parts += [f"## {work['title']}", _workload(result, name)]
    parts += ["## In short", summary(result), _who_wins(result)]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(result: dict[str, Any]) -> str:
    """One table: a line per peer, a column per workload; medians, and how far ahead we are."""
    works = result["workloads"]
    rows = []
    for peer in result["peers"]:
        cells = [_cell(result, name, peer) for name in works]
        if any(cell != _NONE for cell in cells):
            rows.append([peer, *cells])
    header = ["", *(f"{work['short']}, {_unit(work)}" for work in works.values())]
    return markdown(header, rows)


def _machine(result: dict[str, Any]) -> str:
    sizing = result["sizing"]
    rounds = f"{result['rounds']} rounds, interleaved; "
    size = f"{sizing['count']} messages" if sizing["count"] else f"about {sizing['seconds']:g} s"
    return (
        f"{machine_line(result['machine'])}\n\n{rounds}{size} per measurement. Median (least to "
        f"most). *{OURSELVES} / peer*: how many times as fast as the peer we are in the same "
        "round; below 1 the peer is faster."
    )


def _other_programs(result: dict[str, Any]) -> str:
    """A warning, when figures are not worth much."""
    shares = [
        each["others_share"]
        for work in result["workloads"].values()
        for peer in work["results"]
        for each in _rounds(work, peer)
    ]
    if not shares or statistics.median(shares) <= _QUIET:
        return ""
    return (
        f"**Other programs used {spread([100 * each for each in shares], ' %', 0)} of the CPUs "
        "meanwhile: these figures say little, those of spinning nothing. Repeat it on a quiet "
        "machine.**"
    )


def _peers(result: dict[str, Any]) -> str:
    rows = [
        [name, peer["distribution"] or "Python", peer["version"] or _NONE, peer["documentation"]]
        for name, peer in result["peers"].items()
    ]
    return markdown(["peer", "package", "version", "documentation"], rows)


def _who_did_not(result: dict[str, Any]) -> str:
    """A list: peers that are not here, workloads they cannot do, and measurements that failed."""
    lines = [
        f"- {name} did not take part: {peer['unavailable']}"
        for name, peer in result["peers"].items()
        if peer["unavailable"]
    ]
    for work in result["workloads"].values():
        for name, found in work["results"].items():
            if found["cannot"]:
                lines.append(f"- {name} is not in '{work['title']}': {found['cannot']}")
            failed = [each["failed"] for each in found["rounds"] if "failed" in each]
            if failed:
                share = f"{len(failed)} of {len(found['rounds'])} rounds"
                lines.append(f"- {name} failed in '{work['title']}', {share}: {failed[0]}")
    return "\n".join(lines)


def _workload(result: dict[str, Any], name: str) -> str:
    work = result["workloads"][name]
    trips = work["kind"] == "trips"
    header = ["peer", _unit(work), f"{OURSELVES} / peer"]
    header += ["p99 us"] if trips else []
    header += [f"CPU us per {_item(work)}", "settings"]
    rows = []
    for peer, found in work["results"].items():
        rounds = _rounds(work, peer)
        if not rounds:
            continue
        ratios = _ratios(result, name, peer)
        row = [peer, spread([_value(work, each) for each in rounds], digits=2)]
        row.append(spread(ratios, digits=2) if ratios else _NONE)
        row += [spread([each["p99_us"] for each in rounds])] if trips else []
        row.append(spread([each["cpu_seconds"] * 1e6 / each["messages"] for each in rounds]))
        rows.append([*row, found["settings"]])
    return markdown(header, rows)


def _who_wins(result: dict[str, Any]) -> str:
    lines = []
    for name, work in result["workloads"].items():
        for peer in work["results"]:
            ratios = _ratios(result, name, peer)
            if peer != OURSELVES and ratios and statistics.median(ratios) < 1:
                lines.append(
                    f"- {work['title']}: {peer} is faster than {OURSELVES}, "
                    f"{spread([1 / ratio for ratio in ratios], digits=2)} times"
                )
    return "\n".join(lines)


def _cell(result: dict[str, Any], name: str, peer: str) -> str:
    work = result["workloads"][name]
    rounds = _rounds(work, peer)
    if not rounds:
        return _NONE
    value = f"{statistics.median(_value(work, each) for each in rounds):.2f}"
    ratios = _ratios(result, name, peer)
    if peer == OURSELVES or not ratios:
        return value
    ratio = statistics.median(ratios)
    text = f"{value} ({ratio:.2g} x)" if ratio < 10 else f"{value} ({ratio:.0f} x)"
    return f"**{text}**" if ratio < 1 else text


def _rounds(work: dict[str, Any], peer: str) -> list[dict[str, Any]]:
    found = work["results"].get(peer, {"rounds": []})
    return [each for each in found["rounds"] if "failed" not in each]


def _ratios(result: dict[str, Any], name: str, peer: str) -> list[float]:
    """Ourselves against the peer in each round in which both succeeded; above 1: we are faster."""
    work = result["workloads"][name]
    results = work["results"]
    if OURSELVES not in results or peer not in results:
        return []
    pairs = zip(results[OURSELVES]["rounds"], results[peer]["rounds"], strict=False)
    good = [(ours, its) for ours, its in pairs if "failed" not in ours and "failed" not in its]
    faster: Callable[[float, float], float]
    faster = (lambda a, b: b / a) if work["kind"] == "trips" else (lambda a, b: a / b)
    return [faster(_value(work, ours), _value(work, its)) for ours, its in good]


def _value(work: dict[str, Any], measured: dict[str, Any]) -> float:
    if work["kind"] == "trips":
        return float(measured["p50_us"])
    if work["kind"] == "batches":
        return float(measured["bytes"] / measured["seconds"] / 1e9)
    return float(measured["messages"] / measured["seconds"] / 1e6)


def _unit(work: dict[str, Any]) -> str:
    units = {"trips": "p50 us", "batches": "GB/s", "messages": "million/s"}
    return units[work["kind"]]


def _item(work: dict[str, Any]) -> str:
    items = {"trips": "round trip", "batches": "batch", "messages": "message"}
    return items[work["kind"]]
