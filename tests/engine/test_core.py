"""The engine core over a runner that computes nothing: who gets in, and what they are told."""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from rosellm.roseinfer.cache.blocks import BlockPool
from rosellm.roseinfer.cache.manager import CacheManager
from rosellm.roseinfer.config import SchedulerConfig
from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.engine.loop import run_engine
from rosellm.roseinfer.messages import Abort, Add, Flush, Output, Outputs, Ready
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.step import Sample, StepPlan, StepResult, WorkResult

Inbox = queue.SimpleQueue[Add | Abort | Flush | None]
FACTS = Ready(32, 10, 64, "float32", "cpu", True, "fp_test")


@dataclass
class Zeros:
    """A runner whose every token is 0."""

    plans: list[StepPlan] = field(default_factory=list)

    def execute(self, plan: StepPlan) -> Zeros:
        self.plans.append(plan)
        return self

    def probe(self) -> None:
        pass

    def result(self) -> StepResult:
        return StepResult(
            tuple(WorkResult((Sample(0),) * len(work.logits)) for work in self.plans[-1].work)
        )


def core(**config: Any) -> EngineCore:
    scheduling = SchedulerConfig(**{"max_num_seqs": 2, **config})
    cache = CacheManager([BlockPool(16)], 4, prefix_cache=True)
    return EngineCore(Zeros(), FACTS, scheduling, cache=cache, step_tokens=16)


def add(id: int, prompt: list[int] | None = None, **fields: Any) -> Add:
    """A request from fields of ``Add`` and of its parameters."""
    names = SamplingParams.__struct_fields__
    params = {name: fields.pop(name) for name in names if name in fields}
    params = {"seed": 0, "max_tokens": 4, **params}
    return Add(id, [1, 2, 3] if prompt is None else prompt, SamplingParams(**params), **fields)


def rows_until_idle(engine: EngineCore) -> list[Output]:
    rows = []
    while engine.has_work:
        rows += engine.step().rows
        engine.scheduler.check()
    return rows


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "status", "code", "param"),
    [
        (add(1, []), 400, None, "prompt"),
        (add(1, [0] * 32), 400, "context_length_exceeded", None),
        (add(1, [0] * 30, generated=[[0, 0]]), 400, "context_length_exceeded", None),
        (add(1, [0, 10]), 400, None, None),
        (add(1, [-1]), 400, None, None),
        (add(1, generated=[[10]]), 400, None, None),
        (add(1, stop_token_ids=(10,)), 400, None, None),
        (add(1, logit_bias=((10, 1.0),)), 400, None, None),
        (add(1, seed=2**63), 400, None, "seed"),
        (add(1, seed=-1), 400, None, "seed"),
        (add(1, n=0), 400, None, "n"),
        (add(1, n=2, generated=[[1]]), 400, None, "n"),
        (add(1, generated=[[1], [1]]), 400, None, "n"),
        (add(1, max_tokens=0, generated=[[1]]), 400, None, "max_tokens"),
        (add(1, max_tokens=-1), 400, None, "max_tokens"),
        (add(1, [0] * 33, max_tokens=0), 400, "context_length_exceeded", None),
        (add(1, want="pooled", n=2), 400, None, "n"),
        (add(1, logprobs=11), 400, None, "logprobs"),
        (add(1, prompt_logprobs=-1), 400, None, "prompt_logprobs"),
        (add(1, [0] * 33, want="pooled"), 400, "context_length_exceeded", None),
        (add(1, max_tokens=2, generated=[[1, 1]]), 400, None, "max_tokens"),
        (add(1, n=8), 503, "queue_full", None),
        (add(1, n=9), 400, None, "n"),
    ],
)
def test_what_cannot_be_served_is_refused_alone(
    message: Add, status: int, code: str | None, param: str | None
) -> None:
    engine = core(max_queue=8)
    engine.add(add(7, max_tokens=1))
    engine.add(message)
    rows = {row.id: row for row in rows_until_idle(engine)}
    refusal = rows[1]
    assert (refusal.finish, refusal.last, refusal.tokens) == ("error", True, [])
    assert refusal.error is not None
    assert (refusal.error.status, refusal.error.code) == (status, code)
    assert refusal.error.param == param
    assert (rows[7].tokens, rows[7].finish, rows[7].last) == ([0], "length", True)


def test_a_full_queue_is_a_503_and_room_is_room_again() -> None:
    engine = core(max_queue=3, max_num_seqs=1)
    for id in range(1, 4):
        engine.add(add(id))
    engine.add(add(4))
    rows = engine.step().rows
    assert [(row.id, row.error and row.error.status) for row in rows] == [(4, 503), (1, None)]
    engine.add(add(5))  # one runs by now
    rows = rows_until_idle(engine)
    assert all(row.error is None for row in rows)
    assert [row.id for row in rows if row.last] == [1, 2, 3, 5]


def test_choices_count_in_the_queue() -> None:
    engine = core(max_queue=3)
    engine.add(add(1, n=2))
    engine.add(add(2, n=2))
    rows = rows_until_idle(engine)
    assert [row.id for row in rows if row.error] == [2]


def test_the_longest_prompt_gets_one_token() -> None:
    engine = core()
    engine.add(add(1, [0] * 31))
    assert [(row.tokens, row.finish) for row in rows_until_idle(engine)] == [([0], "length")]


# -- controls ---------------------------------------------------------------------------------


def test_an_abort_of_the_unknown_is_a_no_op() -> None:
    engine = core()
    engine.control(Abort([1, 2]))
    assert not engine.has_work
    engine.add(add(1, max_tokens=1))
    rows_until_idle(engine)
    engine.control(Abort([1]))
    assert not engine.has_work


def test_an_abort_is_the_last_word() -> None:
    engine = core()
    engine.add(add(1))
    engine.add(add(2))
    engine.step()
    engine.control(Abort([2, 99, 2]))
    rows = rows_until_idle(engine)
    assert [row.finish for row in rows if row.id == 2] == ["abort"]
    assert [row.id for row in rows if row.last] == [2, 1]
    assert engine.scheduler.stats().blocks_used == 0


def test_an_abort_alone_is_work() -> None:
    """Its row must go out though nothing is left to compute."""
    engine = core()
    engine.add(add(1))
    engine.control(Abort([1]))
    assert engine.has_work
    assert [(row.finish, row.last) for row in engine.step().rows] == [("abort", True)]
    assert not engine.has_work


def test_flush_empties_the_cache() -> None:
    engine = core()
    engine.add(add(1, [1] * 9))
    rows_until_idle(engine)
    assert engine.scheduler.stats().blocks_cached == 3 - 1 + 1
    engine.control(Flush())
    assert engine.scheduler.stats().blocks_cached == 0
    assert engine.scheduler.stats().blocks_free == 16


def test_stats_tell_the_state_after_the_step() -> None:
    engine = core()
    for id in range(1, 4):
        engine.add(add(id, [id] * 6))
    stats = engine.step().stats
    assert (stats.running, stats.waiting, stats.steps, stats.batched_tokens) == (2, 1, 1, 12)
    assert stats.blocks_free + stats.blocks_used + stats.blocks_cached == stats.blocks_total == 16
    assert stats.blocks_used == 4


# -- the loop ---------------------------------------------------------------------------------


def test_a_flood_of_requests_does_not_hold_up_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = core()
    log: list[str] = []

    def slow_add(message: Add) -> None:
        time.sleep(0.002)
        log.append("add")
        EngineCore.add(engine, message)

    def step() -> Outputs:
        log.append("step")
        return EngineCore.step(engine)

    monkeypatch.setattr(engine, "add", slow_add)
    monkeypatch.setattr(engine, "step", step)
    inbox: Inbox = queue.SimpleQueue()
    for id in range(30):
        inbox.put(add(id))
    inbox.put(None)
    run_engine(engine, inbox, lambda item: item, lambda _: None)
    between = " ".join(log).split("step")
    assert log.count("add") == 30
    assert max(adds.count("add") for adds in between) < 10


def test_the_loop_sleeps_without_work_and_ends_when_told() -> None:
    inbox: Inbox = queue.SimpleQueue()
    outputs: list[Outputs] = []

    def emit(output: Outputs) -> None:
        outputs.append(output)
        if any(row.last for row in output.rows):
            inbox.put(None)

    inbox.put(Abort([5]))
    inbox.put(add(1))
    run_engine(core(), inbox, lambda item: item, emit)
    assert [row.tokens for output in outputs for row in output.rows] == [[0]] * 4
    assert outputs[0].stats.blocks_total == 16, "the state is known before the first request"
