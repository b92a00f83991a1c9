"""How requests end, by themselves or by an abort, and that nothing of them is left."""

from __future__ import annotations

import gc

from rosellm.roseinfer.scheduling.sequence import Request, Sequence
from tests.scheduling.fake import END, Harness
from tests.scheduling.readings import letters

LONG = 1_000_000


# -- by themselves ----------------------------------------------------------------------------


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
