"""A schedule that waits for nobody, with a clock of the test's own."""

from __future__ import annotations

import pytest

from embar_shm.pipes.pacer import Pacer


class World:
    """Time passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        self.hurry = False

    def wait(self, seconds: float) -> bool:
        self.slept.append(round(seconds, 9))
        if not self.hurry:
            self.now += seconds
        return self.hurry

    def pacer(self, rate: float) -> Pacer:
        return Pacer(rate, self.wait, lambda: self.now)


@pytest.fixture
def world() -> World:
    return World()


def test_one_message_after_the_other_at_the_rate(world: World) -> None:
    pacer = world.pacer(4)
    assert [pacer.due(100) for _ in range(5)] == [1] * 5
    assert world.slept == [0.25] * 4, "the first one is due at once"


def test_who_is_late_may_send_all_that_is_due(world: World) -> None:
    pacer = world.pacer(10)
    pacer.due(1)
    world.now += 1.0  # the broker was slow
    assert pacer.due(100) == 10
    assert pacer.due(100) == 1
    assert world.slept == [pytest.approx(0.1)]


def test_no_more_are_given_than_there_are(world: World) -> None:
    pacer = world.pacer(10)
    pacer.due(1)
    world.now += 1.0
    assert [pacer.due(4) for _ in range(3)] == [4, 4, 2]
    assert world.slept == []


def test_over_any_time_as_many_are_sent_as_the_rate_says(world: World) -> None:
    pacer = world.pacer(1000 / 3)
    sent = 0
    while world.now < 130:
        sent += pacer.due(7)
        world.now += 0.0017  # the work of sending them
    assert sent == pytest.approx(30 * 1000 / 3, abs=7)


def test_time_without_input_is_not_made_up_for(world: World) -> None:
    pacer = world.pacer(10)
    pacer.due(1)
    since = world.now
    world.now += 60
    pacer.waited_for_input(since)
    assert pacer.due(100) == 1, "the one that came"
    assert pacer.due(100) == 1
    assert world.slept == [pytest.approx(0.1)]


def test_a_wait_for_input_within_the_schedule_does_not_shift_it(world: World) -> None:
    pacer = world.pacer(10)
    pacer.due(1)
    since = world.now
    world.now += 0.04
    pacer.waited_for_input(since)
    assert pacer.due(100) == 1
    assert world.slept == [pytest.approx(0.06)]


def test_being_late_because_of_the_broker_is_still_made_up_for_after_a_wait(world: World) -> None:
    pacer = world.pacer(10)
    pacer.due(1)
    world.now += 0.5  # of the broker
    since = world.now
    world.now += 60
    pacer.waited_for_input(since)
    assert pacer.due(100) == 5


def test_input_that_comes_late_in_the_beginning_does_not_matter(world: World) -> None:
    pacer = world.pacer(10)
    pacer.waited_for_input(world.now - 60)
    assert pacer.due(100) == 1
    assert pacer.due(100) == 1
    assert world.slept == [pytest.approx(0.1)]


def test_when_waiting_is_over_everything_is_due(world: World) -> None:
    pacer = world.pacer(0.001)
    pacer.due(1)
    world.hurry = True
    assert pacer.due(100) == 100
    assert pacer.due(1_000_000) == 1_000_000
    assert len(world.slept) == 1
