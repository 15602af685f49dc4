"""Signals that wait for the end of a block."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from embar_shm.signals import deferred, handler_of, install


@pytest.fixture
def calls() -> Iterator[list[int]]:
    """What the SIGTERM handler of the test was called with."""
    found: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: found.append(number))
    yield found
    signal.signal(signal.SIGTERM, before)


def test_a_signal_takes_effect_after_the_block() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), deferred():
        signal.raise_signal(signal.SIGINT)
        steps.append("whole")
    assert steps == ["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_takes_effect_after_a_block_that_raises(calls: list[int]) -> None:
    with pytest.raises(RuntimeError), deferred():
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError
    assert calls == [signal.SIGTERM]


def test_a_signal_that_arrives_twice_in_a_block_is_one(calls: list[int]) -> None:
    with deferred():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert calls == []
    assert calls == [signal.SIGTERM]


def test_the_second_of_a_kind_takes_effect_at_once_in_a_wait_that_may_not_end(
    calls: list[int],
) -> None:
    with deferred() as deferral:
        with deferral.second_at_once():
            signal.raise_signal(signal.SIGTERM)
            assert calls == []
            signal.raise_signal(signal.SIGTERM)
            assert calls == [signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
        assert calls == [signal.SIGTERM]
    assert calls == [signal.SIGTERM] * 2  # the first one


def test_every_signal_takes_effect_although_the_handler_of_one_raises(calls: list[int]) -> None:
    with pytest.raises(KeyboardInterrupt), deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert calls == [signal.SIGTERM]


def test_a_block_within_a_block_ends_with_the_outer_one(calls: list[int]) -> None:
    with deferred():
        with deferred():
            signal.raise_signal(signal.SIGTERM)
        assert calls == []
    assert calls == [signal.SIGTERM]


def test_an_ignored_signal_stays_ignored(calls: list[int]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with deferred():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_a_handler_installed_in_the_block_is_there_afterwards(calls: list[int]) -> None:
    mine = signal.getsignal(signal.SIGTERM)
    with deferred():
        assert handler_of(signal.SIGTERM) is mine
        install(signal.SIGTERM, signal.SIG_IGN)
        assert handler_of(signal.SIGTERM) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_a_signal_is_for_the_handler_of_the_moment_it_arrived(calls: list[int]) -> None:
    with deferred():
        signal.raise_signal(signal.SIGTERM)
        install(signal.SIGTERM, signal.SIG_DFL)
    assert calls == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_one_that_met_no_handler_is_for_the_one_installed_in_the_block(calls: list[int]) -> None:
    mine = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with deferred():
        signal.raise_signal(signal.SIGTERM)
        install(signal.SIGTERM, mine)
    assert calls == [signal.SIGTERM]


def test_other_threads_change_no_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def block() -> None:
        with deferred():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert seen == [before]
