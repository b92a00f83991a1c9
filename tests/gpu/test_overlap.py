"""On a card: steps planned ahead give what one step at a time gives, and the host does not wait."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from rosellm.roseinfer.engine.core import EngineCore, Failed
from rosellm.roseinfer.messages import Abort, Add
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.step import StepPlan
from tests.engine.late import Late
from tests.engine.test_overlap import (
    REQUESTS,
    ROOMY,
    TIGHT,
    VOCABULARY,
    Told,
    note,
    ordered,
    told,
)
from tests.tiny_models import build, write_llama

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("gpu") / "llama", vocab_size=VOCABULARY)


def engine(folder: Path, overlap: str, **settings: Any) -> EngineCore:
    return build(folder, device="cuda", overlap=overlap, **settings)


@pytest.fixture(scope="module", params=[True, False], ids=["eager", "graphs"])
def eager(request: pytest.FixtureRequest) -> bool:
    """Whether decode steps run without CUDA graphs, in which padding surrounds awaited tokens."""
    return bool(request.param)


@pytest.fixture(scope="module")
def plain(folder: Path, eager: bool) -> Told:
    core = engine(folder, "off", enforce_eager=eager)
    found: Told = {}
    for add in REQUESTS:
        found |= told(core, [add])
        core.scheduler.cache.flush()
    return found


def test_it_is_the_default(folder: Path) -> None:
    core = build(folder, device="cuda")
    decision = next(each for each in core.facts.decisions if each.name == "overlap")
    assert decision.value == "on"
    assert core._overlap


@pytest.mark.parametrize("settings", [ROOMY, TIGHT], ids=["roomy", "tight"])
def test_overlapped_equals_plain(
    folder: Path, plain: Told, eager: bool, settings: dict[str, Any]
) -> None:
    core = engine(folder, "on", enforce_eager=eager, **settings)
    if not core.facts.invariant:
        pytest.skip("a row's bits may depend on its batch in this run, as start-up says")
    for _ in range(4):  # graphs are recorded on the way
        assert ordered(told(core, REQUESTS)) == ordered(plain)


def test_late_errors_end_one_request(folder: Path, plain: Told, eager: bool) -> None:
    core = engine(folder, "on", enforce_eager=eager)
    if not core.facts.invariant:
        pytest.skip("a row's bits may depend on its batch in this run, as start-up says")

    def guilty(plan: StepPlan) -> bool:
        rows = [row for work in plan.work for row in work.logits]
        return any(row.params.seed == 666 and row.position == 3 for row in rows)

    core._runner = Late(core.runner, fails=guilty)
    culprit = Add(99, [4, 1, 2], SamplingParams(seed=666, max_tokens=12, frequency_penalty=0.1))
    found = told(core, [*REQUESTS[:5], culprit, *REQUESTS[5:]])
    assert found.pop((99, 0))[-1] == "error"
    assert ordered(found) == ordered(plain)


def test_aborts_leave_nothing(folder: Path) -> None:
    core = engine(folder, "on", **TIGHT)
    found: Told = {}
    for add in REQUESTS:
        core.add(add)
    for add in REQUESTS[::2]:
        note(found, core.step().rows)
        core.control(Abort([add.id]))
    while core.has_work:
        note(found, core.step().rows)
        core.scheduler.check()
    assert core.scheduler.stats().blocks_used == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0},
        {"temperature": 0.8, "frequency_penalty": 0.5},
        {"temperature": 1.0, "logit_bias": ((3, 1.0),), "min_tokens": 9},
    ],
)
def test_nothing_is_waited_for_while_a_step_is_submitted(
    folder: Path, eager: bool, fields: dict[str, Any]
) -> None:
    """torch itself raises where a call would wait for the device."""
    core = engine(folder, "on", enforce_eager=eager)
    params = SamplingParams(seed=1, max_tokens=40, **fields)
    told(core, [Add(1000 + i, [5, 6, 7], params) for i in range(4)])  # warm, graphs recorded
    for i in range(4):
        core.add(Add(2000 + i, [5, 6, 7, i], params))
    for _ in range(6):
        core.step()
    plan = core.scheduler.schedule()
    assert all(work.awaits is not None for work in plan.work)
    torch.cuda.set_sync_debug_mode("error")
    try:
        core._submit(plan)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    pending = core._flight[-1].pending
    assert not isinstance(pending, Failed), pending
    while core.has_work:
        core.step()


def test_submitting_does_not_wait_for_the_step_before(folder: Path) -> None:
    """A kernel that spins for a while stands in the way; the next step is submitted meanwhile."""
    core = engine(folder, "on")
    core.add(Add(1, [5, 6, 7], SamplingParams(seed=1, max_tokens=60)))
    for _ in range(20):
        core.step()
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second
    begun = time.monotonic()
    core._submit(core.scheduler.schedule())
    submitted = time.monotonic() - begun
    torch.cuda.synchronize()
    whole = time.monotonic() - begun
    while core.has_work:
        core.step()
    assert whole > 0.3
    assert submitted < whole / 3
