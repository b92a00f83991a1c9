"""Requests that run out of time: they end where they are, and compute nothing any more."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from rosellm.roseinfer.cache.blocks import BlockPool
from rosellm.roseinfer.cache.manager import CacheManager
from rosellm.roseinfer.config import SchedulerConfig
from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.grammar.vocabulary import Vocabulary
from rosellm.roseinfer.messages import Output, Ready
from rosellm.roseinfer.scheduling.deadlines import Deadlines
from tests.engine.test_core import FACTS, Zeros, add
from tests.scheduling.fake import Harness
from tests.scheduling.readings import letters, running


def engine(now: list[float], **config: Any) -> EngineCore:
    cache = CacheManager([BlockPool(16)], 4, prefix_cache=True)
    scheduling = SchedulerConfig(**{"max_num_seqs": 1, **config})
    return EngineCore(Zeros(), FACTS, scheduling, cache=cache, step_tokens=16, clock=lambda: now[0])


def timed_out(rows: list[Output]) -> list[int]:
    return [
        row.id
        for row in rows
        if row.error is not None and (row.error.status, row.error.code) == (504, "timeout")
    ]


def test_running_and_waiting_requests_end_at_their_deadline() -> None:
    now = [0.0]
    core = engine(now)
    core.add(add(1, deadline=5.0, max_tokens=20))
    core.add(add(2, deadline=3.0, max_tokens=20))
    core.add(add(3, max_tokens=20))
    assert timed_out(core.step().rows) == []
    now[0] = 3.0
    outputs = core.step()
    assert timed_out(outputs.rows) == [2]
    assert [row.id for row in outputs.rows if row.tokens] == [1]
    now[0] = 5.5
    outputs = core.step()
    assert timed_out(outputs.rows) == [1]
    assert [row.id for row in outputs.rows if row.tokens] == [3], "its place is free at once"
    rows = [row for _ in range(25) for row in (core.step().rows if core.has_work else [])]
    assert {row.id for row in rows} == {3}
    core.scheduler.check()
    assert core.scheduler.stats().blocks_used == 0


def test_what_has_expired_before_it_came_runs_no_step() -> None:
    now = [10.0]
    core = engine(now)
    core.add(add(1, deadline=9.0))
    outputs = core.step()
    assert timed_out(outputs.rows) == [1]
    assert core.runner.plans == []  # type: ignore[attr-defined]
    assert not core.has_work


def test_all_choices_end_and_there_is_one_last_row() -> None:
    now = [0.0]
    core = engine(now, max_num_seqs=2)
    core.add(add(1, n=4, deadline=1.0, max_tokens=20))
    core.step()
    core.step()
    now[0] = 1.0
    rows = core.step().rows
    assert timed_out(rows) == [1]
    assert [row.last for row in rows] == [True]
    assert not core.has_work
    core.scheduler.check()


def test_a_request_that_waits_for_a_grammar_ends_too() -> None:
    """Its grammar may take for ever."""
    now = [0.0]
    cache = CacheManager([BlockPool(16)], 4, prefix_cache=True)

    def never() -> Vocabulary:
        started.wait(30)
        raise AssertionError

    started = threading.Event()
    core = EngineCore(
        Zeros(),
        Ready(32, 10, 64, "float32", "cpu", True, "fp_test"),
        SchedulerConfig(),
        cache=cache,
        step_tokens=16,
        vocabulary=never,
        clock=lambda: now[0],
    )
    try:
        core.add(add(1, deadline=1.0, grammar='{"regex": "a"}'))
        assert core.step().rows == []
        now[0] = 1.0
        assert timed_out(core.step().rows) == [1]
        assert not core.has_work
    finally:
        started.set()


def test_plans_on_their_way_come_back_before_blocks_are_free() -> None:
    harness = Harness(num_blocks=4, block_size=4)
    harness.add(letters(12), max_tokens=4, timeout=1.0)
    harness.submit()
    harness.now = 1.0
    assert len(harness.expire()) == 1
    assert harness.scheduler.stats().blocks_used == 3
    assert harness.complete() == []
    harness.check_drained()


def test_a_preempted_request_ends_in_the_queue() -> None:
    harness = Harness(num_blocks=8, block_size=2, max_model_len=16, max_num_seqs=2)
    harness.add([0, 0], max_tokens=9)
    yields = harness.add([1, 1, 1], max_tokens=9, timeout=100.0)
    while not harness.scheduler.stats().preemptions:
        harness.step()
    assert yields not in running(harness)
    harness.now = 100.0
    harness.step()
    assert harness.asked[yields].over
    harness.run()
    harness.check_drained()


def test_deadlines_of_what_has_ended_are_let_go() -> None:
    """They may be a day away, and there may be many."""
    harness = Harness()
    for _ in range(500):
        harness.abort(harness.add([0], timeout=86400.0))
        harness.submit()
        harness.complete()
    assert len(harness.scheduler._deadlines._heap) < 100


@pytest.mark.parametrize("now", [0.0, 2.0, 2.5, 9.0])
def test_ids_come_in_the_order_of_their_deadlines(now: float) -> None:
    deadlines = Deadlines()
    for id, deadline in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5)):
        deadlines.add(id, deadline)
    expected = [id for deadline, id in ((1.0, 2), (2.0, 3), (2.5, 4), (3.0, 1)) if deadline <= now]
    assert list(deadlines.expired(now)) == expected
    assert list(deadlines.expired(now)) == []
