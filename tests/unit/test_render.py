"""A result as its reader sees it."""

from __future__ import annotations

import io
from typing import Any, cast

import pytest
from rich.console import Console
from verdict_cases import SHM, TCP, changed, without

from embar_shm.cli import render

MORE: dict[str, Any] = {
    "integrity": dict.fromkeys(
        ("sent", "accepted", "lost", "duplicated", "reordered", "corrupt"), 0
    ),
    "instrumentation": {"sample_every": 256, "overhead_share": 0.001},
}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Any:
    def show(result: dict[str, Any]) -> list[list[str]]:
        """The words of each line."""
        console = Console(file=io.StringIO(), width=100, highlight=False)
        monkeypatch.setattr(render, "open_console", lambda: console)
        render.result(cast(Any, result | MORE))
        lines = cast(io.StringIO, console.file).getvalue().splitlines()
        assert max(map(len, lines)) <= 100
        return [line.split() for line in lines]

    return show


def test_both_sides_of_the_sockets_have_a_row_and_what_happened_is_below(shown: Any) -> None:
    sockets = {
        "system.sockets.requested_sndbuf": 524_288,
        "system.sockets.granted_sndbuf": 524_288,
        "system.sockets.requested_rcvbuf": 0,
        "system.sockets.granted_rcvbuf": 3_145_728,
        "system.sockets.max_inq_bytes": 0,
        "system.sockets.retransmits": 1234,
    }
    lines = shown(changed(TCP, sockets))
    assert ["publisher,", "send", "1.00", "512", "KiB", "512", "KiB", "879", "KiB"] in lines
    assert ["broker,", "receive", "2.00", "-", "3,072", "KiB", "-"] in lines
    assert ["1,234", "segments", "sent", "again,", "0", "EAGAIN"] in lines


def test_brokers_elsewhere_have_no_rows(shown: Any) -> None:
    remote = without(TCP, "system.broker")
    for name in ("recv_calls_per_batch", "requested_rcvbuf", "granted_rcvbuf", "max_inq_bytes"):
        remote = without(remote, f"system.sockets.{name}")
    lines = shown(changed(remote, {"memory.segment_bytes": 0, "system.sockets.retransmits": 1}))
    assert [line for line in lines if line[:1] in (["broker"], ["broker,"])] == []
    assert [line for line in lines if line[:1] == ["publisher,"]] != []
    assert ["1", "segment", "sent", "again,", "0", "EAGAIN"] in lines
    assert [line for line in lines if "rings" in line] == [], "their rings are not known"


def test_without_sockets_there_is_no_table_of_them(shown: Any) -> None:
    lines = shown(changed(SHM, {"parameters.brokers.value": 1}))
    assert [line for line in lines if "Sockets" in line or "EAGAIN" in line] == []
    assert ["transport", "shm,", "1", "broker,", "4", "publishers"] in lines
    assert ["shared", "memory", "15.3", "MiB", "in", "all", "rings"] in lines
