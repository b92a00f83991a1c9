"""What is computed once: prompts that choices share, and prefixes in the cache."""

from __future__ import annotations

from typing import Any

import pytest

from rosellm.roseinfer.cache import manager
from tests.scheduling.fake import Harness
from tests.scheduling.readings import ids, letters, tokens_by_request

LONG = 1_000_000


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
