"""A fault in one row ends its request alone: the others' tokens are what they are without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from itertools import product
from operator import eq
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rosellm.roseinfer.cache.blocks import BlockPool
from rosellm.roseinfer.cache.manager import CacheManager
from rosellm.roseinfer.config import SchedulerConfig
from rosellm.roseinfer.engine.build import build_engine
from rosellm.roseinfer.engine.core import EngineCore, PendingResult
from rosellm.roseinfer.engine.shortage import PATIENCE, Shortage
from rosellm.roseinfer.messages import Add, Output, Ready
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.runner import memory
from rosellm.roseinfer.step import StepPlan
from tests.tiny_models import engine_config, write_llama

POISON = 13
"""A token whose embedding is not a number in the model of these tests."""

NEVER = ((POISON, -100.0),)
GREEDY = SamplingParams(seed=0, max_tokens=8, temperature=0.0, logprobs=2, logit_bias=NEVER)
SEEDED = SamplingParams(seed=5, max_tokens=8, logit_bias=NEVER)
INNOCENT = (
    Add(1, [3, 5, 7] * 9, GREEDY),
    Add(2, [3, 5, 7] * 9 + [1], SEEDED, n=2),
    Add(3, [40], SEEDED),
    Add(4, [8] * 70, GREEDY),
)


class Failing:
    """A runner that raises when a plan holds something."""

    def __init__(self, runner: Any, guilty: Callable[[StepPlan], bool], error: Exception) -> None:
        self._runner = runner
        self._guilty = guilty
        self._error = error
        self.steps = self.failed = self.probes = 0
        self.asked: list[bool] = []
        self.dead = False

    def execute(self, plan: StepPlan, masks: Future[Any] | None = None) -> PendingResult:
        self.steps += 1
        if self._guilty(plan):
            self.failed += 1
            raise self._error
        handle: PendingResult = self._runner.execute(plan, masks)
        return handle

    def make_room(self, error: Exception, *, again: bool = False) -> bool:
        self.asked.append(again)
        return memory.ran_out(error)

    def probe(self) -> None:
        self.probes += 1
        if self.dead:
            raise RuntimeError("the device is dead")


@pytest.fixture(scope="module", params=["auto", "reference"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EngineCore:
    """Over a model one of whose embeddings is not a number."""
    model = write_llama(tmp_path_factory.mktemp("models") / "llama")
    file = model / "model.safetensors"
    weights = load_file(file)
    weights["model.embed_tokens.weight"][POISON] = float("nan")
    save_file(weights, file)
    return build_engine(engine_config(model, kernels=request.param, kv_cache_gb=0.0005))


def answers(engine: EngineCore, adds: Iterable[Add]) -> dict[tuple[int, int], list[Any]]:
    """Tokens and log-probabilities, or the error, by request and choice."""
    engine.scheduler.cache.flush()
    for add in adds:
        engine.add(add)
    rows: list[Output] = []
    while engine.has_work:
        rows += engine.step().rows
        engine.scheduler.check()
    assert engine.scheduler.stats().blocks_used == 0
    found: dict[tuple[int, int], list[Any]] = {}
    for row in rows:
        told = [(row.error.status, row.error.code)] if row.error else [*row.tokens]
        found.setdefault((row.id, row.choice), []).extend(
            [*(row.prompt_logprobs or []), *told, *(row.logprobs or [])]
        )
    return found


def other_core(runner: Failing) -> EngineCore:
    """An engine of its own, that may break."""
    facts = Ready(32, 97, 64, "float32", "cpu", True, "fp_test")
    cache = CacheManager([BlockPool(64)], 4, prefix_cache=True)
    scheduling = SchedulerConfig(max_num_seqs=64)
    return EngineCore(runner, facts, scheduling, cache=cache, step_tokens=64)


def renumbered(adds: Sequence[Add], by: int) -> list[Add]:
    return [Add(add.id + by, add.prompt, add.params, add.n) for add in adds]


def of_innocent(found: dict[tuple[int, int], list[Any]], by: int = 0) -> dict[Any, list[Any]]:
    return {(id - by, choice): what for (id, choice), what in found.items() if id - by < 5}


FAULT = [(500, "engine_error")]


def test_what_is_no_number_ends_its_request_and_leaves_nothing_behind(
    engine: EngineCore,
) -> None:
    alone = answers(engine, INNOCENT)
    guilty = [Add(5, [POISON], GREEDY), Add(6, [1] * 40 + [POISON, 1], SEEDED, n=3)]
    mixed = answers(engine, [*guilty, *renumbered(INNOCENT, 0)])
    assert of_innocent(mixed) == alone
    assert mixed[5, 0] == mixed[6, 0] == FAULT
    # the blocks that it wrote to are others' now
    for _ in range(3):
        assert answers(engine, INNOCENT) == alone


def test_prefixes_that_were_computed_wrongly_are_not_found_again(engine: EngineCore) -> None:
    prompt = [3, 5, POISON, 7] * 12
    assert answers(engine, [Add(9, prompt, GREEDY)]) == {(9, 0): FAULT}
    assert engine.scheduler.stats().blocks_cached == 0


def test_scores_and_vectors_that_are_no_numbers_are_errors(engine: EngineCore) -> None:
    scored = SamplingParams(seed=0, max_tokens=0, prompt_logprobs=0)
    assert answers(engine, [Add(9, [1, POISON, 2, 3], scored)]) == {(9, 0): FAULT}
    pooled = Add(9, [1, POISON, 2, 3], scored, want="pooled")
    assert answers(engine, [pooled]) == {(9, 0): FAULT}


ERRORS = [RuntimeError("bug"), MemoryError(), torch.OutOfMemoryError()]
USUAL = (40, 2, ERRORS[0])  # two of the three at least in the short run


@pytest.mark.parametrize(
    ("length", "place", "error"),
    [
        pytest.param(*case, marks=() if sum(map(eq, case, USUAL)) > 1 else pytest.mark.slow)
        for case in product([2, 40, 200], [0, 2, 4], ERRORS)
    ],
)
def test_an_exception_over_one_row_is_that_requests_alone(
    engine: EngineCore, length: int, place: int, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the size of its parts, and it counts once among those that cannot be computed."""
    alone = answers(engine, INNOCENT)
    guilty = Add(9, [77] * length, SEEDED)

    def holds_it(plan: StepPlan) -> bool:
        return any(77 in work.tokens for work in plan.work)

    monkeypatch.setattr(engine, "_runner", Failing(engine.runner, holds_it, error))
    monkeypatch.setattr(engine, "_shortage", Shortage(engine.scheduler))
    mixed = answers(engine, [*INNOCENT[:place], guilty, *INNOCENT[place:]])
    assert of_innocent(mixed) == alone
    assert mixed[9, 0] == FAULT
    assert engine._barren <= 1


def test_what_is_only_too_much_at_once_is_computed_in_parts(
    engine: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = answers(engine, INNOCENT)
    runner = Failing(engine.runner, lambda plan: len(plan.work) > 1, MemoryError())
    monkeypatch.setattr(engine, "_runner", runner)
    assert answers(engine, INNOCENT) == alone


def test_prompts_that_are_too_long_for_the_memory_are_computed_in_chunks(
    engine: EngineCore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To the same bits, scores of prompt tokens included; and when it goes on, steps become
    smaller, which is said once. A step in which many parts fail is one occasion."""
    scored = SamplingParams(seed=0, max_tokens=2, temperature=0.0, prompt_logprobs=2, logprobs=1)
    adds = [*INNOCENT, Add(5, [11, 12, 14] * 70, scored)]
    monkeypatch.setattr(engine.scheduler.limits, "tokens", 512)
    alone = answers(engine, adds)
    runner = Failing(engine.runner, lambda plan: plan.num_tokens > 70, torch.OutOfMemoryError())
    monkeypatch.setattr(engine, "_runner", runner)
    monkeypatch.setattr(engine, "_shortage", Shortage(engine.scheduler))
    for _ in range(PATIENCE):
        assert answers(engine, adds) == alone
        assert engine.scheduler.limits.tokens == 512
    assert runner.failed > 2 * PATIENCE
    assert runner.asked.count(True) == PATIENCE - 1
    assert "memory runs out" not in caplog.text
    for _ in range(3):
        assert answers(engine, adds) == alone
    assert engine.scheduler.limits.tokens <= 70
    assert caplog.text.count("memory runs out") == 1
    failed = runner.failed
    assert answers(engine, adds) == alone
    assert runner.failed == failed


def test_an_engine_that_can_compute_nothing_says_so(
    engine: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Failing(engine.runner, lambda _: True, RuntimeError("device lost"))
    core = other_core(broken)
    for id in range(20):
        core.add(Add(id, [1, 2], GREEDY))
    with pytest.raises(RuntimeError, match="device lost"):
        core.step()
    assert broken.steps < 40


def test_a_device_that_is_dead_ends_the_engine_at_once(engine: EngineCore) -> None:
    """After some errors CUDA answers nothing any more: nobody is told that it was their fault."""
    broken = Failing(engine.runner, lambda _: True, RuntimeError("illegal address"))
    broken.dead = True
    core = other_core(broken)
    for id in range(3):
        core.add(Add(id, [1, 2], GREEDY))
    with pytest.raises(RuntimeError, match="the device is dead"):
        core.step()
    assert (broken.steps, broken.probes) == (1, 1)


def test_a_device_that_lives_is_asked_after_each_failure(engine: EngineCore) -> None:
    engine.runner.probe()
    runner = Failing(engine.runner, lambda plan: plan.work[0].tokens == (40,), MemoryError())
    core = other_core(runner)
    core.add(Add(1, [40], GREEDY))
    assert [row.finish for row in core.step().rows] == ["error"]
    assert runner.probes == 1


def test_the_device_is_waited_for_by_a_probe(
    engine: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors of CUDA come with some later call; without a card only that one is made is seen."""

    def fail(device: torch.device) -> None:
        raise RuntimeError(f"{device.type}: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    monkeypatch.setattr(engine.runner, "_device", torch.device("cuda"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.runner.probe()


def test_a_request_that_cannot_even_be_looked_at_is_refused(engine: EngineCore) -> None:
    strange: Any = Add(9, ["x"], GREEDY)  # type: ignore[list-item]
    assert answers(engine, [strange, INNOCENT[2]])[9, 0] == [(500, None)]


def test_a_message_is_resumed_for_the_choices_that_are_open(engine: EngineCore) -> None:
    whole = answers(engine, [Add(1, [3, 5, 7], SEEDED, n=3)])
    generated = [whole[1, 0][:3], [], whole[1, 2][:1]]
    again = Add(2, [3, 5, 7], SEEDED, n=3, generated=generated, choices=[0, 2], resumed=True)
    assert answers(engine, [again]) == {(2, 0): whole[1, 0][3:], (2, 2): whole[1, 2][1:]}


def test_what_was_served_before_is_not_refused_for_a_full_queue(engine: EngineCore) -> None:
    limit = engine._max_queue
    try:
        engine._max_queue = 1
        adds = [Add(id, [id], SEEDED, resumed=id > 1) for id in range(1, 5)]
        assert all(len(found) == 8 for found in answers(engine, adds).values())
    finally:
        engine._max_queue = limit
