"""Signals that are a wish first, and an order when repeated."""

from __future__ import annotations

import select
import signal

import pytest

from embar_shm.stopping import StopSignals


@pytest.fixture(autouse=True)
def _handlers_are_given_back() -> object:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_wakes_who_waits(number: signal.Signals) -> None:
    called: list[bool] = []
    with StopSignals(lambda: called.append(True)) as stop:
        assert stop.asked is None
        assert not stop.wait(0)
        stop.take_effect()
        signal.raise_signal(number)
        assert stop.asked == number
        assert stop.wait(1000)
        assert stop.wait(1000), "it stays so"
        assert select.select([stop.fd], [], [], 0)[0] == [stop.fd]
        assert called == [True]


def test_the_second_one_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt), StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended, StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143


def test_unless_it_is_patient() -> None:
    called: list[bool] = []
    with StopSignals(lambda: called.append(True), patient=True) as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert stop.asked == signal.SIGTERM
        assert called == [True]


def test_what_it_would_have_raised_can_be_raised_in_the_end() -> None:
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop.take_effect()
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            stop.take_effect()
    assert ended.value.code == 143


def test_a_signal_that_the_program_was_started_to_ignore_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.asked is None
    finally:
        signal.signal(signal.SIGINT, before)
