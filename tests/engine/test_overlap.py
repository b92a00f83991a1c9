"""Steps that are planned ahead, over a device that is always late: the same answers, in bits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.messages import Abort, Add, Output
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.step import StepPlan
from tests.engine.late import Late
from tests.tiny_models import build, random_prompts, write_llama

VOCABULARY = 97
STOPS = (5, 17, 33, 41, 60, 71)
"""Enough of a small vocabulary that answers end when nobody expects it."""

Told = dict[tuple[int, int], list[Any]]


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"seed": 0, "max_tokens": 12, **fields})


PROMPTS = random_prompts([3, 20, 9, 31, 1, 14, 26, 8, 17, 5], VOCABULARY)
REQUESTS = [
    Add(1, PROMPTS[0], params(temperature=0.0)),
    Add(2, PROMPTS[1], params(seed=11, temperature=1.5), n=3),
    Add(3, PROMPTS[2], params(seed=3, logprobs=3)),
    Add(4, PROMPTS[3], params(seed=4, stop_token_ids=STOPS, max_tokens=30, temperature=2.0)),
    Add(5, PROMPTS[4], params(seed=5, presence_penalty=1.5, frequency_penalty=0.5)),
    Add(6, PROMPTS[5], params(temperature=0.0, repetition_penalty=1.3, logprobs=1)),
    Add(7, PROMPTS[6], params(seed=7, prompt_logprobs=2, top_k=20, top_p=0.9)),
    Add(8, PROMPTS[7], params(seed=8, stop_token_ids=STOPS, min_tokens=4, max_tokens=30), n=2),
    Add(9, PROMPTS[8], params(seed=9, max_tokens=1)),
    Add(10, PROMPTS[9], params(seed=1, max_tokens=0, prompt_logprobs=0)),
    Add(11, PROMPTS[1], params(seed=2, logit_bias=((3, 4.0),), frequency_penalty=2.0)),
    Add(12, PROMPTS[3][:12], params(seed=6, max_tokens=9), generated=[[7, 7, 3]]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("models") / "llama", vocab_size=VOCABULARY)


ROOMY: dict[str, Any] = {}
TIGHT: dict[str, Any] = {
    "block_size": 2,
    "num_blocks": 60,
    "max_model_len": 64,
    "max_num_batched_tokens": 16,
    "max_num_seqs": 6,
}


def engine(folder: Path, overlap: str, **settings: Any) -> tuple[EngineCore, Late]:
    core = build(folder, overlap=overlap, **settings)
    late = Late(core.runner)
    core._runner = late
    return core, late


def told(core: EngineCore, adds: Sequence[Add]) -> Told:
    """All that is said of each choice, in order."""
    for add in adds:
        core.add(add)
    found: Told = {}
    while core.has_work:
        note(found, core.step().rows)
        core.scheduler.check()
    assert core.scheduler.stats().blocks_used == 0
    return found


def note(found: Told, rows: Sequence[Output]) -> None:
    for row in rows:
        news = [*row.tokens, *(row.logprobs or []), *(row.prompt_logprobs or [])]
        found.setdefault((row.id, row.choice), []).extend(
            [*news, *([row.finish] if row.finish else [])]
        )


@pytest.fixture(scope="module")
def plain(folder: Path) -> Told:
    """What each request is told alone, one step at a time."""
    core, late = engine(folder, "off")
    found: Told = {}
    for add in REQUESTS:
        found |= told(core, [add])
        core.scheduler.cache.flush()
    assert late.deepest == 1
    return found


def ordered(told: Told) -> dict[tuple[int, int], tuple[list[Any], list[Any]]]:
    """Without how news was split over rows: tokens, then all else."""
    return {
        key: ([x for x in news if isinstance(x, int)], [x for x in news if not isinstance(x, int)])
        for key, news in told.items()
    }


@pytest.mark.parametrize("settings", [ROOMY, TIGHT], ids=["roomy", "tight"])
@pytest.mark.parametrize("overlap", ["on", "off"])
def test_overlapped_equals_plain(
    folder: Path, plain: Told, overlap: str, settings: dict[str, Any]
) -> None:
    core, late = engine(folder, overlap, **settings)
    assert ordered(told(core, REQUESTS)) == ordered(plain)
    assert ordered(told(core, REQUESTS)) == ordered(plain), "with prefixes in the cache"
    assert late.deepest == (2 if overlap == "on" else 1)
    assert core.scheduler.stats().preemptions > 0 or settings is ROOMY
    awaited = [work for _, plan in late.log for work in plan.work if work.awaits is not None]
    assert bool(awaited) == (overlap == "on")


def test_answers_ended_by_surprise(plain: Told) -> None:
    """Else the test above shows less than it says."""
    ends = {key: news for key, news in plain.items() if key[0] in (4, 8)}
    assert sum("stop" in news for news in ends.values()) >= 2


def test_a_step_is_submitted_before_the_last_one_is_read(folder: Path) -> None:
    core, late = engine(folder, "on")
    core.add(Add(1, PROMPTS[0], params(max_tokens=6)))
    while core.has_work:
        core.step()
    submits = [i for i, (what, _) in enumerate(late.log) if what == "submit"]
    reads = [i for i, (what, _) in enumerate(late.log) if what == "read"]
    assert len(submits) == len(reads) == 6
    assert all(submits[n + 1] < reads[n] for n in range(5))
    starts = [plan.work[0].start for what, plan in late.log if what == "submit"]
    assert starts == [0, *range(3, 8)]


def test_one_that_needs_its_tokens_is_resolved_first(folder: Path) -> None:
    core, late = engine(folder, "on", speculate="ngram")
    core.add(Add(1, [3, 4, 3, 4, 3, 4], params(temperature=0.0)))
    while core.has_work:
        core.step()
    assert late.deepest == 1


@pytest.mark.parametrize("seed", range(3))
def test_aborts_at_any_time_change_nobody_else(folder: Path, plain: Told, seed: int) -> None:
    core, late = engine(folder, "on", **TIGHT)
    chance = random.Random(seed)
    waiting = list(REQUESTS)
    chance.shuffle(waiting)
    gone = {add.id for add in chance.sample(waiting, 4)}
    found: Told = {}
    while waiting or core.has_work:
        if waiting and chance.random() < 0.5:
            core.add(waiting.pop())
        if chance.random() < 0.2:
            core.control(Abort([chance.choice(sorted(gone))]))
        note(found, core.step().rows)
        core.scheduler.check()
    assert core.scheduler.stats().blocks_used == 0
    assert late.deepest == 2
    kept = ordered({key: news for key, news in found.items() if key[0] not in gone})
    assert kept == {key: news for key, news in ordered(plain).items() if key[0] not in gone}


# -- what fails -------------------------------------------------------------------------------

POISON = 96


def holds(plan: StepPlan) -> bool:
    return any(work.start == 0 and work.tokens[0] == POISON for work in plan.work)


def late_in_the_answer(plan: StepPlan) -> bool:
    """A plan with the row that samples the guilty request's fourth token."""
    rows = [row for work in plan.work for row in work.logits]
    return any(row.params.seed == 666 and row.position == 3 for row in rows)


class Refusing:
    """Raises before anything is submitted."""

    def __init__(self, runner: Any, guilty: Any) -> None:
        self._runner, self._guilty = runner, guilty

    def execute(self, plan: StepPlan, masks: Any = None) -> Any:
        if self._guilty(plan):
            raise MemoryError
        return self._runner.execute(plan, masks)

    def probe(self) -> None:
        pass

    def make_room(self, error: Exception, *, again: bool = False) -> bool:
        return False


@pytest.mark.parametrize("guilty", [holds, late_in_the_answer])
@pytest.mark.parametrize("when", ["at once", "late"])
@pytest.mark.parametrize("settings", [ROOMY, TIGHT], ids=["roomy", "tight"])
def test_a_failure_is_one_requests_alone(
    folder: Path, plain: Told, when: str, guilty: Any, settings: dict[str, Any]
) -> None:
    """Though steps were submitted on top of the one that fails."""
    core = build(folder, overlap="on", **settings)
    real = core.runner
    core._runner = Refusing(Late(real), guilty) if when == "at once" else Late(real, fails=guilty)
    culprit = Add(99, [POISON, 1, 2], params(seed=666, temperature=0.0, frequency_penalty=0.1))
    found = told(core, [*REQUESTS[:5], culprit, *REQUESTS[5:]])
    news = found.pop((99, 0))
    assert news[-1] == "error"
    assert len(news) == (1 if guilty is holds else 4)
    assert ordered(found) == ordered(plain)


def test_what_is_merely_too_much_at_once_is_computed_in_parts(folder: Path, plain: Told) -> None:
    core = build(folder, overlap="on")
    core._runner = Late(core.runner, fails=lambda plan: len(plan.work) > 3)
    assert ordered(told(core, REQUESTS)) == ordered(plain)


def test_a_plan_may_be_run_by_somebody_else(folder: Path) -> None:
    """It is a value: what it awaits is in it."""
    core, late = engine(folder, "on")
    told(core, REQUESTS[:3])
    for _, plan in late.log:
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=StepPlan)
        assert again == plan
