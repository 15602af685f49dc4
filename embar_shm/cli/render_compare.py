"""Prints a comparison for people. Like `render`: computes nothing but its presentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from embar_shm.bench.compare import Comparison, Summary
from embar_shm.bench.facts import CEILINGS
from embar_shm.bench.spread import Spread
from embar_shm.cli import render, render_verdict
from embar_shm.cli.console import open_console
from embar_shm.units import format_rate

__all__ = ["comparison"]

_FIGURES: Final = (("mean_us", "mean"), ("p50_us", "p50"), ("p99_us", "p99"))
_NOTHING: Final = "-"


def comparison(found: Comparison) -> None:
    """Stages side by side, the figures, each transport's verdict, and the answer."""
    console = open_console()
    console.print(_stages(found))
    console.print(_figures(found))
    for name in found["transports"]:
        number = found["summary"][name]["typical_round"]
        result = found["results"][name][number - 1]
        if "verdict" in result:
            render_verdict.verdict(console, result["verdict"], f"Verdict on {name}, round {number}")
            console.print()
    _answers(console, found)
    for warning in found["warnings"]:
        console.print(Text("warning: ", "yellow").append(warning, "default"))


def _stages(found: Comparison) -> Table:
    rounds = found["rounds"]
    over = f", medians of {rounds} rounds" if rounds > 1 else ""
    table = Table(box=SIMPLE_HEAD, title=f"Stages in us{over}", title_justify="left")
    table.title_style = "bold"
    table.add_column("stage", overflow="fold")
    # Three transports with three figures each are wider than a terminal.
    figures = _FIGURES if len(found["transports"]) < 3 else _FIGURES[1:2]
    for name in found["transports"]:
        for _, heading in figures:
            table.add_column(f"{name}\n{heading}", justify="right")
    for stage, _ in render.STAGES:
        measured = [one["stages"].get(stage) for one in found["summary"].values()]
        if not any(one and one["count"] for one in measured):
            continue
        cells = [
            _us(one[field]) if one and one["count"] else _NOTHING  # type: ignore[literal-required]
            for one in measured
            for field, _ in figures
        ]
        table.add_row(stage, *cells)
    return table


def _figures(found: Comparison) -> Table:
    rounds = f"{found['rounds']} rounds: median (least to most)" if found["rounds"] > 1 else ""
    title = f"Comparison{', ' if rounds else ''}{rounds}"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for name in found["transports"]:
        table.add_column(name, justify="right", overflow="fold")
    rows: tuple[tuple[str, Callable[[Summary], str]], ...] = (
        ("throughput", lambda one: _spread(one["bytes_per_second"], format_rate)),
        ("share of its ceiling", _share_of_ceiling),
        (
            "its ceiling",
            lambda one: CEILINGS[one["ceiling"]["name"]] if one["ceiling"] else _NOTHING,
        ),
        ("CPU s per GB", lambda one: _spread(one["cpu_seconds_per_gb"], _number)),
        ("in the kernel", _in_kernel),
        ("process switches per batch", lambda one: _spread(one["switches_per_batch"], _number)),
    )
    for heading, cell in rows:
        table.add_row(heading, *(cell(found["summary"][name]) for name in found["transports"]))
    sockets = {name: _sockets(found, name) for name in found["transports"]}
    if any(sockets.values()):
        for heading, shown in _SOCKETS:
            table.add_row(heading, *(shown(one) if one else _NOTHING for one in sockets.values()))
    for pair in found["ratios"]:
        ratio = _spread(pair["over_rounds"], _number)
        cells = {pair["slower"]: "1", pair["faster"]: ratio}
        table.add_row(
            f"{pair['faster']} / {pair['slower']}",
            *(
                f"[bold]{cells[name]}[/bold]" if name in cells else ""
                for name in found["transports"]
            ),
        )
    return table


def _sockets(found: Comparison, name: str) -> Mapping[str, Any]:
    """What the sockets of a transport's typical round did; empty when it has none."""
    result = found["results"][name][found["summary"][name]["typical_round"] - 1]
    return cast(Mapping[str, Any], result["system"].get("sockets") or {})


# A comparison starts the brokers itself, so both sides are known.
_SOCKETS: Final[tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...]] = (
    (
        "send, recv calls per batch",
        lambda one: f"{one['send_calls_per_batch']:.2f}, {one['recv_calls_per_batch']:.2f}",
    ),
    (
        "send, receive buffers",
        lambda one: (
            f"{render.buffer_size(one['granted_sndbuf'])}, "
            f"{render.buffer_size(one['granted_rcvbuf'])}"
        ),
    ),
    ("segments sent again", lambda one: f"{one['retransmits']:,}"),
)


def _share_of_ceiling(one: Summary) -> str:
    ceiling = one["ceiling"]
    return _spread(ceiling["share"] if ceiling else None, "{:.0%}".format)


def _in_kernel(one: Summary) -> str:
    kernel, cpu = one["kernel_seconds_per_gb"], one["cpu_seconds_per_gb"]
    if kernel is None or cpu is None or not cpu["median"]:
        return _NOTHING
    return f"{kernel['median'] / cpu['median']:.0%} of it"


def _answers(console: Console, found: Comparison) -> None:
    table = render_verdict.lines(console, "Is it the code or the transport?")
    for answer in found["verdict"]:
        pair = f"{answer['faster']}, {answer['slower']}"
        table.add_row(Text(pair), Text(answer["sentence"], "bold"))
        table.add_row("", Text(f"try: {answer['next']}", "cyan"))
    console.print(table)
    console.print()


def _spread(figure: Spread | None, show: Callable[[float], str]) -> str:
    """Median (least to most); a unit that all three have is written once."""
    if figure is None:
        return _NOTHING
    median, least, most = map(show, (figure["median"], figure["least"], figure["most"]))
    if least == most:
        return median
    unit = median.partition(" ")[2]
    if unit and least.endswith(f" {unit}") and most.endswith(f" {unit}"):
        least = least.removesuffix(f" {unit}")
        most = most.removesuffix(f" {unit}")
    return f"{median} ({least} to {most})"


def _us(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:,.0f}"


def _number(value: float) -> str:
    return f"{value:.3g}"
