"""When a step counts as stuck."""

from __future__ import annotations

from rosellm.roseinfer.engine.pace import Pace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def take(pace: Pace, clock: Clock, tokens: int, seconds: float) -> None:
    with pace.step(tokens):
        clock.now += seconds


def test_idle_is_never_stuck() -> None:
    clock = Clock()
    pace = Pace(clock)
    clock.now += 1e6
    assert not pace.stuck


def test_a_first_step_may_take_minutes() -> None:
    clock = Clock()
    pace = Pace(clock)
    with pace.step(1):
        clock.now += 300
        assert not pace.stuck
        clock.now += 600
        assert pace.stuck
    assert not pace.stuck


def test_later_ones_ten_times_what_such_steps_took_and_at_least_some_seconds() -> None:
    clock = Clock()
    pace = Pace(clock)
    take(pace, clock, 1, 0.01)
    with pace.step(1):
        clock.now += 4.9
        assert not pace.stuck
        clock.now += 0.2
        assert pace.stuck
    take(pace, clock, 512, 2.0)
    with pace.step(512):
        clock.now += 19.9
        assert not pace.stuck
        clock.now += 0.2
        assert pace.stuck


def test_a_larger_step_than_any_before_may_take_longer_in_proportion() -> None:
    clock = Clock()
    pace = Pace(clock)
    take(pace, clock, 1, 0.5)
    assert pace.expected_s(1) == 0.5
    assert pace.expected_s(512) >= 512 * 0.5 / 2


def test_a_smaller_one_is_not_judged_by_larger_ones_alone() -> None:
    clock = Clock()
    pace = Pace(clock)
    take(pace, clock, 512, 2.0)
    assert pace.expected_s(1) > 2.0
