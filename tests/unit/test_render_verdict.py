"""A verdict as its reader sees it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from verdict_cases import SHM, TCP, changed

from embar_shm.bench.verdict import verdict
from embar_shm.cli import render_verdict


def shown(result: dict[str, Any], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    render_verdict.verdict(console, verdict(result))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def sentences(text: str) -> str:
    """On one line again."""
    return " ".join(text.split())


BUSY = {
    "system.publisher.cpu_seconds": 3.8,
    "stages.publisher.wait_space.mean_us": 400.0,
}


@pytest.mark.parametrize("width", [60, 100, 200])
def test_it_fits_into_the_terminal_and_lines_are_never_longer_than_100(width: int) -> None:
    for line in shown(changed(TCP, BUSY), width).splitlines():
        assert len(line) <= min(width, 100)


def test_shares_are_printed_the_largest_first_and_the_rest_is_named() -> None:
    text = sentences(shown(SHM))
    assert (
        "publisher 1.00 ms per batch: buffer_write 40.0%, outside the stages 28.0%, "
        "wait_space 20.0%, send_payload 10.0%, wait_ack 1.0%, get_buffer 1.0%" in text
    )
    assert "broker 50.0 us per batch: queue 80.0%, release 12.0%, validate 8.0%; " in text
    assert "meanwhile" not in text


def test_what_a_sender_thread_does_meanwhile_is_told_apart() -> None:
    text = sentences(shown(TCP))
    assert (
        "publisher 1.00 ms per batch: buffer_write 40.0%, outside the stages 34.0%, "
        "wait_space 25.0%, wait_ack 1.0%; its sender meanwhile: send_payload 60.0% " in text
    )


def test_the_connections_line_shows_the_arithmetic() -> None:
    assert (
        "connections 4 x 2.05 GB/s = 8.20 GB/s if each had a CPU, 4.00 GB/s actual: "
        "efficiency 0.49, serialisation factor 2.0" in sentences(shown(SHM))
    )


def test_the_first_bound_is_the_answer_further_ones_come_after_it() -> None:
    text = sentences(shown(changed(SHM, BUSY)))
    assert "bound Publishers work all the time: each of 4 used 0.95 CPUs." in text
    assert "also Publishers wait 40% of their time for space" in text
    assert "note Copying messages into the batch" in text
    assert text.count("try: ") == 3


def test_nothing_measured_prints_nothing() -> None:
    assert shown({"throughput": SHM["throughput"]}) == ""
