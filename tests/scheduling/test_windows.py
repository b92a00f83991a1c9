"""Sliding windows: blocks out of sight are free, and a prefix is found by its last window."""

from __future__ import annotations

from tests.scheduling.fake import Harness
from tests.scheduling.readings import letters


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
