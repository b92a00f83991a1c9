"""Plans over one that is still in flight: prompts go on, and nothing in flight is taken."""

from __future__ import annotations

from tests.scheduling.fake import Harness
from tests.scheduling.readings import letters, running, tokens_by_request


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
