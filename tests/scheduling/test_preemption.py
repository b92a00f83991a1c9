"""A request that gives its blocks to another: who yields, and that its answer is the same."""

from __future__ import annotations

from tests.scheduling.fake import Harness
from tests.scheduling.readings import letters, running, tokens_by_request


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


def test_a_flood_that_came_first_gives_way() -> None:
    """All places are taken, for long: a newcomer of another tenant need not wait for an end."""
    harness = Harness(max_num_seqs=4, num_blocks=2000)
    flood = [harness.add([0, i & 1], tenant="flood", max_tokens=500) for i in range(10)]
    for _ in range(20):
        harness.step()
    late = [harness.add([1, i & 1], tenant="late", max_tokens=500) for i in range(3)]
    harness.step()
    assert len(running(harness) & set(late)) == 2
    harness.step()
    assert len(running(harness) & set(late)) == 2, "equal shares are left alone"
    assert harness.scheduler.stats().preemptions == 2
    for id in (*flood, *late):
        harness.abort(id)


def test_blocks_are_given_up_as_places_are() -> None:
    harness = Harness(block_size=4, num_blocks=40, max_model_len=100, max_num_seqs=8, budget=200)
    for seed in range(4):
        harness.add(letters(35, seed), tenant="flood", max_tokens=60)
    harness.step()
    harness.step()
    late = harness.add(letters(30, 9), tenant="late", max_tokens=10)
    harness.step()
    assert late in running(harness)
    harness.run()
    harness.check_drained()


def test_one_that_holds_little_gives_up_nothing() -> None:
    """Its only sequence may hold most of the pool: it ends before others begin."""
    harness = Harness(block_size=4, num_blocks=20, max_model_len=80, budget=100)
    first = harness.add(letters(60), tenant="a", max_tokens=10)
    harness.step()
    second = harness.add(letters(50, 2), tenant="b", max_tokens=10)
    while not harness.asked[first].over:
        harness.step()
        assert second not in running(harness) or harness.asked[first].over
    assert harness.scheduler.stats().preemptions == 0
    harness.run()
    assert harness.answer(second) == harness.alone(second)
