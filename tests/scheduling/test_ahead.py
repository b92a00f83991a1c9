"""A step planned over tokens that are not known yet: it changes no answer, and nobody's blocks."""

from __future__ import annotations

from typing import Any

import pytest

from rosellm.roseinfer.step import UNKNOWN, StepPlan
from tests.scheduling.fake import END, Harness
from tests.scheduling.readings import letters, running


def ahead(harness: Harness) -> StepPlan:
    """Submit two plans; the second over the first, which has not even run."""
    harness.submit()
    return harness.submit()


def test_a_stream_goes_on_over_a_token_that_is_not_known() -> None:
    harness = Harness()
    id = harness.add(letters(5), max_tokens=8)
    (work,) = ahead(harness).work
    assert (work.start, work.tokens, work.awaits) == (5, (UNKNOWN,), 0)
    assert (work.num_known, work.drafts) == (1, ())
    assert (work.logits[0].offset, work.logits[0].position) == (0, 1)
    assert not harness.submit().work, "one token, not two"
    for _ in range(3):
        harness.complete()
    harness.run(depths=(2,))
    assert harness.answer(id) == harness.alone(id)
    harness.check_drained()


def test_rows_are_those_of_the_plan_before() -> None:
    """Where a prompt's chunk has none, and others have left, the numbers are not the work's."""
    harness = Harness(budget=8)
    streams = [harness.add([i & 1], max_tokens=20) for i in range(3)]
    harness.step()
    long = harness.add(letters(30), max_tokens=3, priority=-1)
    harness.submit()
    harness.abort(streams[0])
    plan = harness.submit()
    assert [work.awaits for work in plan.work] == [1, 2, None]
    harness.run(depths=(2,))
    for id in (*streams[1:], long):
        assert harness.answer(id) == harness.alone(id)


def test_penalties_see_the_awaited_token_in_its_place() -> None:
    harness = Harness()
    id = harness.add(letters(5), max_tokens=8, presence_penalty=1.0)
    (work,) = ahead(harness).work
    assert work.logits[0].history == (*letters(5), UNKNOWN)
    harness.complete()
    harness.complete()
    harness.run(depths=(2,))
    assert harness.answer(id) == harness.alone(id)


@pytest.mark.parametrize("max_tokens", [1, 2, 5])
def test_the_last_token_of_an_answer_is_not_computed(max_tokens: int) -> None:
    harness = Harness()
    id = harness.add(letters(6), max_tokens=max_tokens)
    computed = 0
    while harness.scheduler.has_work:
        computed += harness.submit().num_tokens
        if len(harness.in_flight) == 2:
            harness.complete()
        harness.check()
    assert computed == 6 + max_tokens - 1
    assert harness.answer(id) == harness.alone(id)


def ending(harness: Harness, **params: Any) -> int:
    """A request whose answer ends with a stop token, some tokens in."""
    for seed in range(100):
        id = harness.add(letters(6), seed=seed, max_tokens=30, stop_token_ids=(END,), **params)
        if 3 < len(harness.alone(id)) < 10:
            return id
        harness.abort(id)
    raise AssertionError("no answer ends so")


def test_what_is_computed_after_an_end_is_thrown_away() -> None:
    harness = Harness(block_size=2, num_blocks=24)
    other = harness.add(letters(4, seed=2), max_tokens=20)
    id = ending(harness)
    served = None
    while not harness.asked[id].over:
        harness.submit()
        if len(harness.in_flight) == 2:
            harness.complete()
    sequence = next(s for s in harness.scheduler.roster.sequences.values() if s.finished)
    assert sequence.kv.held > 0, "a plan still writes to its blocks"
    assert len(sequence.tokens) == 6 + len(harness.alone(id))
    served = sequence.tenant.served
    harness.complete()
    assert sequence.kv.held == 0
    assert sequence.tenant.served <= served + 1, "only the other's token counts"
    harness.run(depths=(2,))
    for each in (id, other):
        assert harness.answer(each) == harness.alone(each)
    harness.check_drained()


@pytest.mark.parametrize("fields", [{"lookup": True, "longest_draft": 3}])
def test_a_sequence_that_drafts_waits_for_its_token(fields: dict[str, Any]) -> None:
    harness = Harness(**fields)
    id = harness.add(letters(5), max_tokens=8)
    assert not harness.scheduler.hold
    harness.submit()
    assert harness.scheduler.hold
    assert not harness.submit().work
    harness.complete()
    harness.complete()
    assert not harness.scheduler.hold
    harness.run(depths=(2,))
    assert harness.answer(id) == harness.alone(id)


def test_nobody_has_to_wait_for_a_last_token() -> None:
    harness = Harness(lookup=True, longest_draft=3)
    harness.add(letters(5), max_tokens=1)
    harness.submit()
    assert not harness.scheduler.hold


def test_an_aborted_request_keeps_its_blocks_until_both_plans_are_back() -> None:
    harness = Harness(num_blocks=4, block_size=4)
    id = harness.add(letters(11), max_tokens=4)
    ahead(harness)
    harness.abort(id)
    assert harness.scheduler.stats().blocks_used == 3
    after = harness.add(letters(12, seed=3), max_tokens=1)
    harness.complete()
    assert not harness.submit().work
    assert harness.scheduler.stats().blocks_used == 3
    harness.complete()
    assert harness.scheduler.stats().blocks_used == 0
    harness.run(depths=(2,))
    assert harness.answer(after) == harness.alone(after)
    harness.check_drained()


def test_one_that_could_be_given_room_has_what_is_in_flight_come_back() -> None:
    """All others are always in flight: without holding, the urgent one would wait for their end."""
    harness = Harness(num_blocks=10, block_size=2, max_model_len=20, max_num_seqs=4)
    several = [harness.add([i & 1, i >> 1], max_tokens=14, seed=i) for i in range(4)]
    held = False
    for _ in range(60):
        if not harness.scheduler.has_work:
            break
        harness.submit()
        held |= harness.scheduler.hold
        while len(harness.in_flight) >= (1 if harness.scheduler.hold else 2):
            harness.complete()
        harness.check()
    assert held
    assert harness.scheduler.stats().preemptions > 0
    assert [harness.answer(id) for id in several] == [harness.alone(id) for id in several]


def test_a_flood_gives_way_though_it_is_always_in_flight() -> None:
    harness = Harness(max_num_seqs=4)
    many = [harness.add([index & 1], tenant="many", max_tokens=60) for index in range(8)]
    for _ in range(6):
        harness.submit()
        if len(harness.in_flight) == 2:
            harness.complete()
    one = harness.add([1], tenant="one", max_tokens=30)
    for _ in range(4):
        harness.submit()
        while len(harness.in_flight) >= (1 if harness.scheduler.hold else 2):
            harness.complete()
    assert one in running(harness)
    harness.run(depths=(2,))
    for id in (*many, one):
        assert harness.answer(id) == harness.alone(id)
    harness.check_drained()


def test_after_a_discarded_plan_nothing_is_planned_over_the_one_before() -> None:
    """The device has the discarded one's tokens by then."""
    harness = Harness()
    id = harness.add(letters(5), max_tokens=6)
    ahead(harness)
    harness.execute()
    harness.discard()
    assert not harness.submit().work
    harness.complete()
    harness.complete()
    harness.run(depths=(2,))
    assert harness.answer(id) == harness.alone(id)
    harness.check_drained()


def test_a_plan_is_settled_when_what_it_awaits_has_come() -> None:
    harness = Harness()
    id = harness.add(letters(5), max_tokens=6, frequency_penalty=1.0)
    gone = harness.add(letters(4), max_tokens=6)
    plan = ahead(harness)
    harness.abort(gone)
    harness.complete()
    first, second = harness.scheduler.settled(plan).work
    (token,) = harness.answer(id)
    assert (first.tokens, first.awaits) == ((token,), None)
    assert first.logits[0].history == (*letters(5), token)
    assert (first.start, first.tables) == (plan.work[0].start, plan.work[0].tables)
    assert second.awaits is None, "whatever it computes, nobody asks for it"
    harness.run(depths=(2,))
    assert harness.answer(id) == harness.alone(id)


def test_only_blocks_whose_tokens_are_known_can_be_found() -> None:
    """(The pool looks at every block that is published.)"""
    harness = Harness(block_size=2)
    id = harness.add(letters(5), max_tokens=9)
    harness.submit()
    while harness.scheduler.has_work:
        harness.submit()
        harness.execute()
        harness.complete()
        (sequence,) = harness.scheduler.roster.sequences.values() or [None]
        if sequence is not None:
            assert sequence.kv.published <= len(sequence.tokens) // 2
        harness.check()
    again = harness.add([*letters(5), *harness.answer(id), 1], max_tokens=1)
    harness.run()
    assert harness.asked[again].cached == [12]
