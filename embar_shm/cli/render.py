"""The one place that prints for people. Takes results, computes nothing but their presentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from embar_shm.bench.result import Result
from embar_shm.bench.sockets import Sockets
from embar_shm.bench.usage import by_role
from embar_shm.bench.watch import Progress
from embar_shm.cli import render_scenario, render_verdict
from embar_shm.cli.console import open_console
from embar_shm.config.loader import Parameter
from embar_shm.config.schema import KEYS
from embar_shm.units import format_duration, format_rate, format_size

__all__ = ["STAGES", "buffer_size", "parameters", "progress", "result"]

_SIZES = {key.name for key in KEYS if key.is_size}
STAGES = (
    ("publisher.buffer_write", "copy one message into the batch"),
    ("publisher.wait_space", "wait until a slot can be claimed"),
    ("broker.get_buffer", "claim the slot"),
    ("publisher.send_payload", "commit and wake the broker, or send"),
    ("broker.receive", "receive the batch into its slot"),
    ("broker.queue", "from the commit to the broker"),
    ("broker.validate", "check and acknowledge"),
    ("broker.release", "free the slot, wake who waits"),
    ("publisher.wait_ack", "wait for the last acknowledgement"),
)

_CEILINGS = {
    "memory_copy": ("memory copy", "by the same processes without a ring"),
    "tcp_loopback": ("TCP loopback", "by the same processes with bare send and recv"),
    "copy_and_read": ("copy and read", "by the same processes without brokers"),
}


def _table(*columns: str, title: str) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for column in columns:
        text = column in ("parameter", "origin", "stage", "what", "role", "side")
        table.add_column(column, justify="left" if text else "right", overflow="fold")
    return table


def parameters(values: Mapping[str, Parameter], *, origins: bool = True) -> None:
    """Every effective parameter, and where it came from."""
    columns = ("parameter", "value", "origin") if origins else ("parameter", "value")
    table = _table(*columns, title="Parameters")
    for name, parameter in values.items():
        value = parameter["value"]
        shown = format_size(value) if name in _SIZES and isinstance(value, int) else str(value)
        table.add_row(*([name, shown, parameter["origin"]] if origins else [name, shown]))
    open_console().print(table)


@contextmanager
def progress() -> Iterator[Callable[[Progress], None]]:
    """Shows a bar on stderr while a run is going on; nothing when stderr is no terminal."""
    console = open_console(stderr=True)
    bar = ProgressBar(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("start", total=None)

        phase = ""

        def show(now: Progress) -> None:
            nonlocal phase
            if now.phase != phase:  # its speed is its own
                phase = now.phase
                bar.reset(task, description=phase)
            bar.update(task, completed=now.payload_bytes, total=now.total_bytes)

        yield show


def result(found: Result) -> None:
    """The result as tables."""
    console = open_console()
    stages = _table(
        "stage", "what", "count", "mean us", "p50 us", "p99 us", "max us", title="Stages"
    )
    for name, what in STAGES:
        stage = found["stages"].get(name)
        if not stage or not stage["count"]:  # not a step of this transport, or nothing was sampled
            continue
        stages.add_row(
            name,
            what,
            f"{stage['count']:,}",
            *(f"{stage[field]:,.3f}" for field in ("mean_us", "p50_us", "p99_us", "max_us")),
        )
    if found["instrumentation"]["sample_every"]:
        console.print(stages)
    system = _table(
        *("role", "CPU s", "user", "kernel", "voluntary switches", "involuntary switches"),
        "largest RSS",
        title="System",
    )
    for role, usage in by_role(found["system"]).items():
        system.add_row(
            role,
            f"{usage['cpu_seconds']:.3f}",
            *(
                _share(usage[part], usage["cpu_seconds"])
                for part in ("user_seconds", "kernel_seconds")
            ),
            f"{usage['voluntary_switches']:,}",
            f"{usage['involuntary_switches']:,}",
            f"{usage['max_rss_bytes'] / 2**20:,.1f} MiB",
        )
    console.print(system)
    if (sockets := found["system"].get("sockets")) is not None:
        console.print(_sockets(sockets))
    render_scenario.tables(console, found)
    console.print(_summary(found))
    if "verdict" in found:
        render_verdict.verdict(console, found["verdict"])
        console.print()
    for warning in found["warnings"]:
        console.print(f"[yellow]warning:[/yellow] {warning}")


def _sockets(found: Sockets) -> Table:
    """A row for each side; the brokers' is missing when they run elsewhere."""
    table = _table(
        *("side", "calls per batch", "buffer requested", "granted", "most in its queue"),
        title="Sockets",
    )
    again, would_block = found["retransmits"], found["eagain"]
    table.caption = f"  {_count(again, 'segment')} sent again, {would_block:,} EAGAIN\n"
    table.caption_justify = "left"
    table.caption_style = ""
    for side, calls, option, queue in (
        ("publisher, send", "send_calls_per_batch", "sndbuf", "max_outq_bytes"),
        ("broker, receive", "recv_calls_per_batch", "rcvbuf", "max_inq_bytes"),
    ):
        if calls in found:
            values: Mapping[str, Any] = found
            table.add_row(
                side,
                f"{values[calls]:.2f}",
                buffer_size(values[f"requested_{option}"]),
                buffer_size(values[f"granted_{option}"]),
                buffer_size(values[queue]),
            )
    return table


def buffer_size(size: int) -> str:
    """A size in KiB, as buffers are thought of; "-" for one that nobody asked for or looked at."""
    return f"{size / 1024:,.0f} KiB" if size else "-"


def _readers(found: Result) -> str:
    readers = len(found.get("subscribers", []))
    return f", {_count(readers, 'subscriber')}" if readers else ""


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _reached(share: float) -> str:
    return f"{share:.0%} of" if share < 2 else f"{share:.1f} times"


def _summary(found: Result) -> Table:
    t, i = found["throughput"], found["integrity"]
    p: dict[str, Any] = {
        name: parameter["value"] for name, parameter in found["parameters"].items()
    }
    table = Table(box=SIMPLE_HEAD, title="Result", title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("")
    table.show_header = False
    elsewhere = " elsewhere" if p.get("connect") else ""
    if "scenario" in p:  # an older result was about publishing
        table.add_row("scenario", p["scenario"])
    table.add_row(
        "transport",
        f"{p['transport']}, {_count(p['brokers'], 'broker')}{elsewhere}, "
        f"{_count(p['publishers'], 'publisher')}{_readers(found)}",
    )
    table.add_row(
        "published",
        f"{t['bytes'] / 1e9:.3f} GB in {t['messages']:,.0f} messages and {t['batches']:,.0f} "
        f"batches, in {format_duration(t['elapsed_seconds'])}",
    )
    table.add_row(
        "throughput",
        f"[bold]{format_rate(t['bytes_per_second'])}[/bold], "
        f"{t['messages_per_second'] / 1e6:.2f} million messages/s",
    )
    for name, (label, how) in _CEILINGS.items():
        if ceiling := found["ceilings"].get(name):
            table.add_row(
                label,
                f"{format_rate(ceiling['bytes_per_second'])} {how}: "
                f"the run reached [bold]{_reached(ceiling['share'])}[/bold] it",
            )
    render_scenario.summary(table, found)
    table.add_row(
        "integrity",
        f"{i['sent']:,} sent, {i['accepted']:,} accepted, {i['lost']} lost, "
        f"{i['duplicated']} duplicated, {i['reordered']} reordered, {i['corrupt']} corrupt",
    )
    n = found["instrumentation"]
    table.add_row(
        "stage times",
        f"of 1 in {n['sample_every']} messages and of each batch: "
        f"{n['overhead_share']:.2%} of the CPU time"
        if n["sample_every"]
        else "not taken",
    )
    if rings := found["memory"]["segment_bytes"]:  # of brokers elsewhere it is not known
        table.add_row("shared memory", f"{rings / 2**20:,.1f} MiB in all rings")
    table.add_row("start-up", format_duration(found["startup_seconds"]))
    return table
