"""How much of a prompt a step computes: the time between the tokens of streams beside it."""

from __future__ import annotations

import math
import random

import pytest

from rosellm.roseinfer.scheduling.chunks import LEAST_CHUNK, Chunks
from rosellm.roseinfer.scheduling.cost import Cost
from tests.scheduling.clients import (
    EACH,
    Client,
    drive,
    p99,
    seconds,
)
from tests.scheduling.fake import Harness
from tests.scheduling.readings import letters, tokens_by_request


@pytest.mark.parametrize("target", [0.030, 0.060])
def test_a_longest_prompt_keeps_the_target(target: float) -> None:
    """Also while nothing had been measured when it came, and for prompts of the same tenant."""
    harness = Harness(
        num_blocks=1000, max_model_len=1500, budget=512, cost=seconds, itl_target=target
    )
    gaps: list[float] = []
    for _ in range(3):
        streams = Client("", 3, lambda rng: {"prompt": letters(5), "max_tokens": 400})
        drive(harness, [streams], 3)
        long = harness.add(letters(1400, len(gaps)), max_tokens=2)
        before = harness.steps
        while not harness.asked[long].over:
            gaps += drive(harness, [streams], 1).gaps.get("", [])
            began = harness.now
            harness.step()
            gaps.append(harness.now - began)
        assert harness.steps - before < 1400 / LEAST_CHUNK, "the time that there is is used"
        for id in streams.ids:
            harness.abort(id)
    assert p99(gaps) <= target


def test_a_target_that_cannot_be_kept_does_not_starve_prompts() -> None:
    harness = Harness(num_blocks=300, budget=512, cost=seconds, itl_target=0.001)
    stream = harness.add([0], max_tokens=300)
    harness.step()
    long = harness.add(letters(500), max_tokens=1)
    harness.step()
    before = harness.steps
    while not harness.asked[long].over:
        assert stream in {row.id for row in harness.step()}
    assert harness.steps - before <= 1.1 * 500 / LEAST_CHUNK + 1


def test_without_streams_the_whole_budget_is_used() -> None:
    harness = Harness(num_blocks=300, budget=64, cost=seconds, itl_target=0.001)
    harness.add(letters(640), max_tokens=1)
    for _ in range(10):
        assert harness.submit().num_tokens == 64
        harness.complete()


def test_without_a_target_a_tenants_own_prompts_come_first() -> None:
    harness = Harness(num_blocks=300, budget=64, cost=seconds)
    stream = harness.add([0], tenant="a", max_tokens=100)
    harness.step()
    own = harness.add(letters(200), tenant="a", max_tokens=1)
    assert tokens_by_request(harness, harness.submit()) == {stream: 1, own: 63}
    harness.complete()
    harness.run()


def test_a_slower_machine_is_noticed() -> None:
    """Steps take three times as long from one moment on; the target is kept soon after."""
    slow = [1.0]
    harness = Harness(
        num_blocks=4000,
        max_model_len=16000,
        budget=256,
        cost=lambda plan: slow[0] * (0.002 + EACH * plan.num_tokens),
        itl_target=0.050,
    )
    stream = harness.add([0], max_tokens=2000)
    harness.step()
    prompt = harness.add(letters(14000), max_tokens=1)
    gaps: list[float] = []
    for step in range(160):
        if step == 60:
            slow[0] = 3.0
        began = harness.now
        assert stream in {row.id for row in harness.step()}
        gaps.append(harness.now - began)
    assert not harness.asked[prompt].over
    assert max(gaps[:60]) <= 0.050
    assert max(gaps[70:]) <= 0.050
    harness.abort(prompt)
    harness.abort(stream)


@pytest.mark.parametrize("spread", [0.05, 0.2, 0.5])
def test_steps_whose_time_varies_keep_the_target_all_but_one_in_a_hundred(spread: float) -> None:
    noise, target = random.Random(1), 0.050
    chunks, seconds, tokens = Chunks(target, 2.0, Cost()), [], []
    for _ in range(5000):
        tokens.append(chunks.limit(256, 1, None))
        cost = (0.002 + EACH * (1 + tokens[-1])) * noise.lognormvariate(0, spread)
        chunks.learn(cost, 1, tokens[-1])
        seconds.append(cost)
    assert sum(each > target for each in seconds[500:]) <= 0.01 * 4500
    ideal = math.exp(-2.33 * spread) * (target - 0.002) / EACH  # by the 99th percentile of noise
    assert sum(tokens) / 5000 > 0.6 * ideal, "the time that there is is used"


def test_without_a_target_prompts_stretch_a_step_by_a_quarter_of_a_second_at_most() -> None:
    chunks = Chunks(None, 2.0, Cost())
    chunks.learn(512 * 0.005, 0, 512)  # a first prompt, nobody waits
    chunks.learn(0.1, 16, 0)
    for _ in range(100):
        tokens = chunks.limit(512, 16, None)
        chunks.learn(0.1 + 0.005 * tokens, 16, tokens)
        assert 0.2 <= 0.005 * tokens <= 0.25


def test_prompts_that_cost_nothing_to_speak_of_and_no_time_left() -> None:
    """Streams of others take more than what spared ones allow, prompt tokens seem to be free."""
    chunks = Chunks(None, 2.0, Cost())
    for _ in range(3):
        chunks.learn(0.01, 4, 0)
        chunks.learn(0.01, 4, 8)
    for streams in (4, 64):
        assert 0 < chunks.limit(32, streams, 1) <= 32


def test_without_a_target_a_fast_machine_computes_prompts_whole() -> None:
    chunks = Chunks(None, 2.0, Cost())
    chunks.learn(4096 * 20e-6, 0, 4096)
    assert chunks.limit(4096, 1, None) == 4096


@pytest.mark.parametrize("target", [None, 0.200])
def test_what_comes_with_any_chunk_makes_chunks_no_smaller(target: float | None) -> None:
    """The deeper in its prompt, the more of it is read again for each chunk, however small it is:
    for half of a target's time at the end here, and for far longer than a step without one."""
    most = 0.065 if target else 0.5
    chunks, done, steps = Chunks(target, 2.0, Cost()), 0, 0
    chunks.learn(0.067, 4, 0)
    while done < 4000:
        tokens = chunks.limit(512, 4, None)
        took = (0.067 + 0.006 * tokens + most * done / 4000) if tokens else 0.067
        assert target is None or took <= target
        chunks.learn(took, 4, tokens)
        done, steps = done + tokens, steps + 1
    # With a target, by the mean of what it leaves: 22 tokens at first, 11 at the end.
    assert steps < (1.7 * 4000 / 16 if target else 4000 / 40)
