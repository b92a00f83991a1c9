"""Who goes first, what fills a step, and what is wanted beside tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scheduling.fake import Harness
from tests.scheduling.readings import ids, letters, running, tokens_by_request

# -- order ------------------------------------------------------------------------------------


def test_the_urgent_go_first_and_equals_in_order_of_arrival() -> None:
    harness = Harness(max_num_seqs=1)
    busy = harness.add([0], max_tokens=1)
    late = harness.add([0], priority=1, max_tokens=1)
    first = harness.add([0], max_tokens=1)
    second = harness.add([0], max_tokens=1)
    urgent = harness.add([0], priority=-1, max_tokens=1)
    order = [id for _ in range(5) for id in ids(harness.step())]
    assert order == [urgent, busy, first, second, late]


def test_waiting_outweighs_priority_in_time() -> None:
    """One level is worth ten seconds: nothing that comes later than that overtakes."""
    harness = Harness(max_num_seqs=1, ageing=10.0)
    patient = harness.add([0, 1], priority=5, max_tokens=1)
    while not harness.asked[patient].over:
        harness.add([0], priority=0, max_tokens=1)
        harness.now += 1.0
        harness.step()
        assert harness.now < 60.0, "it starves"
    assert harness.now > 45.0, "its priority made no difference"


@pytest.mark.parametrize("priority", [0, 3])
def test_a_big_prompt_is_not_starved_by_small_ones(priority: int) -> None:
    """It needs most of the pool, which small ones would never leave free at once."""
    harness = Harness(num_blocks=16, block_size=4, max_num_seqs=8, budget=16, ageing=1.0)
    for _ in range(8):
        harness.add(letters(6), max_tokens=8)
        harness.step()
    big = harness.add(letters(60, seed=3), max_tokens=2, priority=priority)
    for step in range(400):
        harness.add(letters(6, seed=step), max_tokens=8)
        harness.now += 0.1
        harness.step()
        if harness.asked[big].over:
            break
    assert harness.answer(big) == harness.alone(big), "it starves"
    harness.run()
    harness.check_drained()


# -- the budget -------------------------------------------------------------------------------


def test_streams_keep_pace_while_a_long_prompt_is_chunked() -> None:
    harness = Harness(num_blocks=128, budget=8, max_num_seqs=8)
    streams = [harness.add([0, i & 1], max_tokens=100) for i in range(3)]
    harness.step()
    harness.step()
    long = harness.add(letters(101), max_tokens=2, priority=-1)
    chunks = 0
    while not harness.answer(long):
        plan = harness.submit()
        assert set(streams) <= set(ids(harness.complete())), "a stream waits for the prompt"
        assert tokens_by_request(harness, plan)[long] <= 5
        chunks += 1
    assert chunks == 21  # ceil(101 / 5): the whole budget is used


def test_a_step_mixes_prompts_and_streams() -> None:
    harness = Harness(budget=32)
    one = harness.add(letters(9), max_tokens=5)
    harness.step()
    two, three = (harness.add(letters(9, seed), max_tokens=5) for seed in (2, 3))
    assert tokens_by_request(harness, harness.submit()) == {one: 1, two: 9, three: 9}
    assert ids(harness.complete()) == [one, two, three]


def test_more_streams_than_budget_all_end() -> None:
    harness = Harness(budget=2, max_num_seqs=5)
    streams = [harness.add([1, 0, i & 1], max_tokens=5) for i in range(5)]
    harness.run()
    assert [harness.answer(id) for id in streams] == [harness.alone(id) for id in streams]


# -- what is wanted beside tokens -------------------------------------------------------------


@pytest.mark.parametrize("budget", [3, 64])
@pytest.mark.parametrize("max_tokens", [0, 2])
def test_the_prompt_is_scored_once_and_whole(budget: int, max_tokens: int) -> None:
    """By the first choice alone, whatever is in the cache (the harness checks each entry)."""
    harness = Harness(budget=budget, block_size=2)
    prompt = letters(20)
    for _ in range(2):
        id = harness.add(prompt, n=2, prompt_logprobs=1, max_tokens=max_tokens)
        harness.run()
        asked = harness.asked[id]
        assert len(asked.scores) == 19
        assert asked.finish == ["length", "length"] or max_tokens
        assert asked.cached[0] == 0
    harness.check_drained()


def test_scores_are_not_told_twice_after_a_preemption() -> None:
    harness = Harness(num_blocks=12, block_size=1, budget=2, prefix_cache=False, max_model_len=12)
    harness.add(letters(10), prompt_logprobs=0, max_tokens=1, priority=1)
    for _ in range(3):
        harness.step()
    urgent = harness.add(letters(9, seed=2), max_tokens=1)
    sequence = next(iter(harness.scheduler.roster.running.values()))
    harness.scheduler._preemption.preempt(sequence)
    harness.run()
    assert harness.asked[urgent].over
    assert len(harness.asked[1].scores) == 9
    harness.check_drained()


def test_an_encoder_takes_prompts_whole_and_in_order() -> None:
    harness = Harness(budget=8, whole_prompts=True, prefix_cache=False)
    for length in (5, 4, 3, 8, 1):
        harness.add(letters(length), want="pooled")
    finished = []
    while harness.scheduler.has_work:
        finished.append(ids(harness.step()))
    assert finished == [[1], [2, 3], [4], [5]]
    harness.check_drained()


def test_a_stream_costs_no_copy_of_its_tokens() -> None:
    """Only penalties look at all of them in each step."""

    class Long(list[int]):
        def __iter__(self) -> Iterator[int]:
            raise AssertionError("all tokens are looked at")

    harness = Harness()
    harness.add(letters(20), max_tokens=8)
    harness.step()
    (sequence,) = harness.scheduler.roster.running.values()
    sequence.tokens = Long(sequence.tokens)
    (work,) = harness.scheduler.schedule().work
    assert (work.tokens, work.logits[0].position) == ((sequence.tokens[20],), 1)


# -- steps that become smaller ----------------------------------------------------------------


def test_what_steps_have_become_is_what_is_planned_for() -> None:
    """In a window's group a smaller chunk takes fewer blocks: two prompts have room then."""

    def together(tokens: int) -> bool:
        harness = Harness(budget=64, windows=(8,), prefix_cache=False)
        assert harness.scheduler.shorten(tokens) == tokens
        harness.add(letters(20), max_tokens=30)
        harness.step()
        for _ in range(3):
            harness.step()
        harness.add(letters(80, seed=2), max_tokens=1)
        harness.step()
        return len(running(harness)) == 2

    assert not together(64)
    assert together(16)


def test_steps_of_whole_prompts_stay_as_they_are() -> None:
    harness = Harness(budget=64, whole_prompts=True)
    assert harness.scheduler.shorten(8) == 64
