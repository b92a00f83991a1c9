"""What the scheduler promises to each request, one promise a test."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from typing import Any

import pytest

from rosellm.roseinfer.cache import manager
from rosellm.roseinfer.messages import Output
from rosellm.roseinfer.scheduling.sequence import Request, Sequence
from rosellm.roseinfer.step import StepPlan
from tests.scheduling.fake import END, Harness

LONG = 1_000_000


def letters(count: int, seed: int = 1) -> list[int]:
    """Zeros and ones without a pattern; other ones for each seed."""
    bits = random.Random(seed).getrandbits(count)
    return [bits >> i & 1 for i in range(count)]


def running(harness: Harness) -> set[int]:
    """Ids of the requests that hold a place in the batch."""
    return {sequence.request.id for sequence in harness.scheduler.roster.running.values()}


def tokens_by_request(harness: Harness, plan: StepPlan) -> dict[int, int]:
    counts: dict[int, int] = {}
    for work in plan.work:
        id, _ = harness._sequences[work.sequence]
        counts[id] = counts.get(id, 0) + len(work.tokens)
    return counts


def ids(rows: list[Output]) -> list[int]:
    return [row.id for row in rows]


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


def test_an_urgent_request_is_never_preempted_for_another() -> None:
    harness = Harness(num_blocks=8, block_size=2, max_model_len=16, max_num_seqs=4)
    meek = [harness.add([i & 1], max_tokens=12, priority=1) for i in range(3)]
    for _ in range(4):
        harness.step()
    urgent = harness.add([1, 1, 0], max_tokens=12)
    started = False
    while not harness.asked[urgent].over:
        harness.step()
        assert urgent in running(harness) or not started or harness.asked[urgent].over
        started = started or urgent in running(harness)
    assert harness.scheduler.stats().preemptions > 0
    harness.run()
    assert [harness.answer(id) for id in meek] == [harness.alone(id) for id in meek]


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


# -- the cache --------------------------------------------------------------------------------


def test_choices_share_the_prompt_and_compute_it_once() -> None:
    harness = Harness(block_size=4)
    id = harness.add(letters(18), n=3, max_tokens=6)
    computed = most_used = 0
    while harness.scheduler.has_work:
        computed += harness.submit().num_tokens
        harness.complete()
        most_used = max(most_used, harness.scheduler.stats().blocks_used)
    # The whole prompt for one choice, its last partial block for each of the other two.
    prompt_tokens = 18 + 2 * 2
    assert computed == prompt_tokens + sum(len(harness.answer(id, c)) - 1 for c in range(3))
    assert most_used <= 4 + 3 * 2
    assert {tuple(harness.answer(id, c)) for c in range(3)} == {
        tuple(harness.alone(id, c)) for c in range(3)
    }
    assert sorted(set(harness.asked[id].cached)) == [0, 16]


def test_choices_end_without_a_prefix_cache_too() -> None:
    harness = Harness(prefix_cache=False)
    id = harness.add(letters(18), n=3)
    harness.run()
    assert [harness.answer(id, c) for c in range(3)] == [harness.alone(id, c) for c in range(3)]
    assert set(harness.asked[id].cached) == {0}
    harness.check_drained()


def test_choices_go_on_when_the_first_ends_at_once() -> None:
    harness = Harness()
    id = harness.add(letters(9), n=3, max_tokens=1)
    harness.run()
    assert harness.asked[id].over
    harness.check_drained()


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 9])
def test_the_last_prompt_token_is_always_computed(length: int) -> None:
    """Its logits are needed; and only whole blocks are shared, so a tail is computed too."""
    harness = Harness(block_size=4)
    harness.add(letters(length), max_tokens=1)
    harness.run()
    again = harness.add(letters(length), max_tokens=1)
    plan = harness.submit()
    harness.complete()
    cached = (length - 1) // 4 * 4
    assert tokens_by_request(harness, plan) == {again: length - cached}
    assert harness.asked[again].cached == [cached]


def test_a_partial_block_is_never_shared() -> None:
    harness = Harness(block_size=4)
    for _ in range(2):
        harness.add(letters(11), max_tokens=20)
        harness.step()
    one, two = (work.tables[0] for work in harness.submit().work)
    assert one[:2] == two[:2]
    assert not set(one[2:]) & set(two[2:])
    harness.run()


def test_generated_tokens_are_cached_for_the_next_turn() -> None:
    harness = Harness(block_size=4)
    one = harness.add(letters(6), max_tokens=7)
    harness.run()
    two = harness.add([*letters(6), *harness.answer(one), 0, 1], max_tokens=1)
    harness.run()
    assert harness.asked[two].cached == [12]  # of 13 known tokens, the last was not computed


@pytest.mark.parametrize("other", [{"tenant": "b"}, {"cache_salt": "b"}])
def test_tenant_and_salt_separate_the_cache(other: dict[str, Any]) -> None:
    harness = Harness(block_size=4)
    cached = []
    for key in ({}, other, {}, other):
        id = harness.add(letters(9), max_tokens=1, **key)
        harness.run()
        cached += harness.asked[id].cached
    assert cached == [0, 0, 8, 8]


def test_tenant_and_salt_are_not_confused() -> None:
    harness = Harness(block_size=4)
    for tenant, salt in [("ab", "c"), ("a", "bc"), ("", "abc"), ("abc", "")]:
        id = harness.add(letters(9), max_tokens=1, tenant=tenant, cache_salt=salt)
        harness.run()
        assert harness.asked[id].cached == [0]


def test_flush_forgets_what_nobody_uses() -> None:
    harness = Harness(block_size=4)
    runs = harness.add(letters(9), max_tokens=20)
    harness.add(letters(9, seed=3), max_tokens=1)
    harness.step()
    harness.cache.flush()
    harness.check()
    assert harness.scheduler.stats().blocks_cached == 0
    kept = harness.add(letters(9), max_tokens=1)
    gone = harness.add(letters(9, seed=3), max_tokens=1)
    harness.run()
    assert harness.asked[kept].cached == [8]
    assert harness.asked[gone].cached == [0]
    assert harness.answer(runs) == harness.alone(runs)


def test_preempted_requests_resume_with_the_same_answer() -> None:
    harness = Harness(num_blocks=10, block_size=2, max_model_len=20, max_num_seqs=4)
    several = [harness.add([i & 1, i >> 1], max_tokens=14, seed=i) for i in range(4)]
    harness.run()
    assert harness.scheduler.stats().preemptions > 0
    assert [harness.answer(id) for id in several] == [harness.alone(id) for id in several]
    harness.check_drained()


def test_a_preempted_request_keeps_its_place_in_the_queue() -> None:
    harness = Harness(num_blocks=8, block_size=2, max_model_len=16, max_num_seqs=2)
    harness.add([0, 0], max_tokens=9)
    yields = harness.add([1, 1, 1], max_tokens=9)
    while not harness.scheduler.stats().preemptions:
        harness.step()
    preempted = harness.steps
    late = harness.add([0], max_tokens=1)
    harness.run()
    resumed = next(step for step in harness.asked[yields].steps if step > preempted)
    assert resumed <= harness.asked[late].steps[0]


def test_a_request_that_yields_gives_back_its_part_of_the_step() -> None:
    """A prompt in chunks takes the room of a stream that this very step had planned for."""
    harness = Harness(num_blocks=10, block_size=1, budget=3, prefix_cache=False)
    stream = harness.add([0], max_tokens=8, priority=1)
    harness.step()
    harness.step()
    urgent = harness.add(letters(6), max_tokens=2)
    small = harness.add([1], max_tokens=2)
    planned = []
    for _ in range(3):
        planned.append(tokens_by_request(harness, harness.submit()))
        harness.complete()
        harness.check()
    assert planned == [{stream: 1, urgent: 2}, {stream: 1, urgent: 2}, {urgent: 2, small: 1}]
    harness.run()
    for id in (stream, urgent, small):
        assert harness.answer(id) == harness.alone(id)
    harness.check_drained()


def test_a_preempted_request_finds_its_blocks_again() -> None:
    """What it had computed stays in the cache, until others need the room."""
    harness = Harness(num_blocks=8, block_size=2, max_model_len=16, max_num_seqs=2)
    harness.add([0, 0], max_tokens=9)
    yields = harness.add([1, 1, 1], max_tokens=9)
    while yields in running(harness) or not harness.answer(yields):
        harness.step()
    known = len(harness.answer(yields)) + 3
    while yields not in running(harness):
        plan = harness.submit()
        harness.complete()
    assert tokens_by_request(harness, plan)[yields] < known - 1
    harness.run()
    harness.check_drained()


def test_a_long_prompt_is_hashed_over_several_steps() -> None:
    """A 100k-token prompt that is cached whole: no step hashes more than its share of it."""
    length, size = 100_000, 16
    harness = Harness(num_blocks=6400, block_size=size, budget=length, max_num_seqs=4)
    harness.add(letters(length), max_tokens=1)
    harness.run()
    stream = harness.add([0], max_tokens=LONG)
    harness.step()
    again = harness.add(letters(length), max_tokens=1)
    kv = next(s.kv for s in harness.scheduler.roster.sequences.values() if s.request.id == again)
    steps = 0
    while not harness.asked[again].over:
        known = len(kv.hashes)
        assert stream in ids(harness.step())
        assert len(kv.hashes) - known <= manager.HASHES_PER_CALL
        steps += 1
    assert steps == -(-(length // size) // manager.HASHES_PER_CALL)
    assert harness.asked[again].cached == [length - size]
    harness.abort(stream)


# -- ends -------------------------------------------------------------------------------------


def test_a_sequence_ends_with_the_context() -> None:
    harness = Harness(num_blocks=8, block_size=4, max_model_len=29)
    id = harness.add(letters(20), max_tokens=LONG)
    harness.run()
    assert len(harness.answer(id)) == 9
    assert harness.asked[id].finish == ["length"]
    harness.check_drained()


def test_stop_tokens_count_from_min_tokens_on() -> None:
    harness = Harness()
    answers = {}
    for least in (0, 6):
        id = harness.add([0, 1], max_tokens=200, min_tokens=least, stop_token_ids=(0, END))
        harness.run()
        assert harness.asked[id].finish == ["stop"]
        answers[least] = harness.answer(id)
    assert len(answers[0]) <= 6 < len(answers[6])
    assert set(answers[6][:-1]) == {1}


def test_a_resumed_request_goes_on_where_it_was() -> None:
    harness = Harness()
    whole = harness.add(letters(5), n=2, max_tokens=10, presence_penalty=1.0)
    harness.run()
    known = [harness.answer(whole, 0)[:6], harness.answer(whole, 1)[:1]]
    again = harness.add(letters(5), n=2, max_tokens=10, presence_penalty=1.0, generated=known)
    harness.run()
    assert harness.asked[again].answers == harness.asked[whole].answers
    harness.check_drained()


# -- aborts -----------------------------------------------------------------------------------


def test_aborts_of_nothing_are_no_news() -> None:
    harness = Harness()
    assert harness.abort(12345) is None
    done = harness.add([0], max_tokens=1)
    harness.run()
    assert harness.abort(done) is None
    gone = harness.add([0])
    assert harness.abort(gone) is not None
    assert harness.abort(gone) is None
    harness.check_drained()


def test_an_abort_ends_running_waiting_and_following_choices() -> None:
    harness = Harness(max_num_seqs=1, budget=4)
    runs = harness.add(letters(12), n=3)
    waits = harness.add(letters(9), n=2)
    harness.step()
    for id in (runs, waits):
        harness.abort(id)
        harness.check()
    harness.check_drained()


def test_blocks_of_an_aborted_request_outlive_its_plan() -> None:
    """Until the plan has come back, nobody else may write where it writes."""
    harness = Harness(num_blocks=4, block_size=4)
    harness.add(letters(12), max_tokens=4)
    harness.submit()
    harness.abort(1)
    assert harness.scheduler.stats().blocks_used == 3
    next_one = harness.add(letters(12, seed=3), max_tokens=1)
    assert not harness.submit().work
    assert harness.complete() == harness.complete() == []
    harness.check()
    harness.run()
    assert harness.answer(next_one) == harness.alone(next_one)
    harness.check_drained()


def test_what_has_ended_is_freed_without_the_garbage_collector() -> None:
    """It runs when many objects wait for it, whatever they weigh: a grammar's state is one."""
    harness = Harness(max_num_seqs=2, num_blocks=8)
    gc.collect()
    gc.disable()
    try:
        before = kept()
        harness.add([0, 1, 1, 0, 1], n=3, max_tokens=9, prediction=[1, 0, 1])
        harness.add([0], timeout=0.0)
        harness.add([1, 1], n=2)
        harness.run()
        abandoned = harness.add([1] * 4, n=2)
        followed = harness.add([1] * 9, n=2)
        harness.submit()
        harness.abort(abandoned)
        harness.abort(followed)
        harness.complete()
        assert kept() == before
    finally:
        gc.enable()


def kept() -> int:
    """Requests and sequences that are still there, in this process."""
    return sum(type(each) in (Request, Sequence) for each in gc.get_objects())


def test_aborted_requests_leave_the_queue() -> None:
    """Even behind one that waits for room: a flood of disconnects must not pile up."""
    harness = Harness(max_num_seqs=1)
    runs = harness.add([0], max_tokens=200)
    harness.step()
    waits = harness.add([1], max_tokens=1)
    for _ in range(1000):
        harness.abort(harness.add([1], max_tokens=1))
    assert harness.scheduler.num_waiting == 1
    assert len(harness.scheduler.roster.sequences[2].tenant._heap) < 200
    harness.abort(runs)
    harness.run()
    assert harness.answer(waits) == harness.alone(waits)


# -- two plans at once ------------------------------------------------------------------------


def test_a_plan_over_one_in_flight_goes_on_with_the_prompt() -> None:
    harness = Harness(block_size=4, budget=6)
    id = harness.add(letters(14), max_tokens=3)
    starts = [harness.submit().work[0].start for _ in range(4)]
    assert starts == [0, 6, 12, 14]
    assert not harness.submit().work, "the token after the next is too far ahead"
    for _ in range(5):
        harness.complete()
    harness.run()
    assert harness.answer(id) == harness.alone(id)
    harness.check_drained()


def test_nothing_in_flight_is_preempted() -> None:
    """A prompt that finds no room while all others are in flight waits for them."""
    harness = Harness(num_blocks=14, block_size=1, budget=3, prefix_cache=False)
    streams = [harness.add([i], max_tokens=8) for i in range(2)]
    harness.step()
    harness.step()
    long = harness.add(letters(6), max_tokens=2)
    harness.step()
    harness.step()
    assert len(harness.submit().work) == 3
    assert tokens_by_request(harness, harness.submit()) == {streams[0]: 1}, "the last block"
    assert harness.scheduler.hold
    harness.check()
    assert harness.scheduler.stats().preemptions == 0
    harness.run(depths=(2,))
    for id in (*streams, long):
        assert harness.answer(id) == harness.alone(id)
    harness.check_drained()


def test_the_urgent_do_not_yield_to_what_is_in_flight() -> None:
    """One that finds no room waits for the less urgent to come back, and then takes theirs."""
    harness = Harness(num_blocks=12, block_size=1, budget=2, prefix_cache=False)
    urgent = harness.add([0], max_tokens=10)
    harness.step()
    harness.step()
    meek = harness.add(letters(8), max_tokens=2)
    for _ in range(3):
        harness.step()
    for _ in range(2):
        assert tokens_by_request(harness, harness.submit()) == {urgent: 1, meek: 1}
    harness.complete()
    assert not harness.submit().work
    assert harness.scheduler.hold
    assert running(harness) == {urgent, meek}
    harness.complete()
    harness.complete()
    assert tokens_by_request(harness, harness.submit()) == {urgent: 1}
    assert running(harness) == {urgent}
    harness.run(depths=(2,))
    for id in (urgent, meek):
        assert harness.answer(id) == harness.alone(id)
    harness.check_drained()


def test_discarded_plans_leave_no_trace() -> None:
    harness = Harness(block_size=4, budget=6)
    id = harness.add(letters(14), max_tokens=3)
    plans = [harness.submit() for _ in range(2)]
    harness.execute()
    harness.discard()
    harness.discard()
    harness.check()
    again = [harness.submit() for _ in range(2)]
    for plan, other in zip(plans, again, strict=True):
        (work,), (same,) = plan.work, other.work
        assert (same.start, same.tokens, same.logits) == (work.start, work.tokens, work.logits)
        assert same.tables[0][: len(work.tables[0])] == work.tables[0]
    harness.run()
    assert harness.answer(id) == harness.alone(id)
    harness.check_drained()


# -- windows ----------------------------------------------------------------------------------


def test_blocks_out_of_the_window_are_free_at_once() -> None:
    """A sequence of any length holds the blocks of its window and of one step's chunk."""
    harness = Harness(
        block_size=2, num_blocks=64, windows=(5,), budget=4, max_model_len=400, prefix_cache=False
    )
    assert harness.pools[0].total == 6
    id = harness.add(letters(200), max_tokens=150)
    most = 0
    while harness.scheduler.has_work:
        harness.step()
        harness.check()
        most = max(most, harness.pools[0].used)
    assert most <= 5
    assert harness.answer(id) == harness.alone(id)


def test_a_prefix_is_found_by_its_last_window() -> None:
    """Blocks before the window may be gone, and the prefix is as good."""
    harness = Harness(block_size=2, windows=(None, 3), budget=64)
    prompt = letters(40)
    harness.add(prompt, max_tokens=1)
    harness.run()
    cache, windowed = harness.cache, harness.pools[1]
    hits = cache.match(cache.new_sequence("", ""), prompt)
    assert hits is not None
    assert [len(group) for group in hits] == [19, 19]
    assert hits[1].count(windowed.total) == 18  # position 38 sees 36 and 37
    asked = harness.asked[harness.add(prompt, max_tokens=1)]
    harness.run()
    assert asked.cached == [38]
    harness.check_drained()


def test_without_its_last_window_a_prefix_is_shorter() -> None:
    harness = Harness(block_size=2, windows=(None, 3), num_blocks=16, budget=8)
    prompt = letters(24)
    harness.add(prompt, max_tokens=1)
    harness.run()
    windowed = harness.pools[1]
    kept = harness.cache.new_sequence("", "")
    hits = harness.cache.match(kept, prompt)
    assert hits is not None
    length = len(hits[0])
    assert length > 0
    taken = windowed.allocate(windowed.available)  # evicts all that is cached
    hits = harness.cache.match(kept, prompt)
    assert hits == [[], []]
    windowed.release(taken)
    harness.check_drained()


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
