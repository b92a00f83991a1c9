"""What one tenant's requests leave of another's in the prefix cache."""

from __future__ import annotations

import pytest

from rosellm.roseinfer.cache.blocks import BlockPool
from tests.scheduling.clients import (
    Client,
    drive,
)
from tests.scheduling.fake import Harness
from tests.scheduling.readings import letters


def test_a_flood_does_not_flush_anothers_prefix() -> None:
    harness = Harness(block_size=4, num_blocks=64, max_num_seqs=6, budget=32)
    prompt = letters(60, 7)
    harness.add(prompt, tenant="b", max_tokens=1)
    harness.run()
    flood = Client(
        "a", 8, lambda rng: {"prompt": letters(40, rng.getrandbits(30)), "max_tokens": 10}
    )
    drive(harness, [flood], 300)
    assert max(pool.cached for pool in harness.pools) > 0
    again = harness.add(prompt, tenant="b", max_tokens=1)
    while not harness.asked[again].over:
        harness.step()
    assert harness.asked[again].cached == [56]


@pytest.mark.parametrize("prediction", [False, True])
def test_long_answers_do_not_flush_anothers_prefix(prediction: bool) -> None:
    """Where they grow beyond their tenant's share, its own youngest yield."""
    harness = Harness(block_size=4, num_blocks=32, max_num_seqs=4, longest_draft=4 * prediction)
    harness.add(letters(60, 7), tenant="b", max_tokens=1)
    harness.run()
    known = letters(40, 3) if prediction else ()
    long = [
        harness.add(letters(4, seed), tenant="a", max_tokens=40, prediction=known)
        for seed in range(4)
    ]
    first_over = []
    while harness.scheduler.has_work:
        harness.step()
        first_over += [id for id in long if harness.asked[id].over and id not in first_over]
    assert first_over == long, "the youngest have yielded"
    assert harness.scheduler.stats().preemptions > 0
    again = harness.add(letters(60, 7), tenant="b", max_tokens=1)
    harness.run()
    assert harness.asked[again].cached == [56]
    assert all(harness.answer(id) == harness.alone(id) for id in long)
    harness.check_drained()


def test_what_is_beyond_a_share_goes_before_what_is_within_one() -> None:
    """Also when the one within holds more than who asks has cached."""
    pool = BlockPool(30)
    kept = pool.allocate(9, "b")
    running = pool.allocate(15, "c")
    own = pool.allocate(6, "a")
    for block in (*kept, *own):
        pool.publish(block, bytes([block]))
    pool.release(kept)
    pool.release(own)
    assert pool.kept_from("a") == 9
    pool.allocate(6, "a")
    assert pool.find([bytes([block]) for block in kept]) == kept
    pool.allocate(1, "a")
    assert pool.find([bytes([block]) for block in kept]) == kept[:-1]
    pool.release(running)
    pool.check()


def test_within_a_tenant_and_without_others_all_of_the_pool_is_used() -> None:
    harness = Harness(block_size=4, num_blocks=16, budget=64)
    for seed in range(2):
        harness.add(letters(28, seed), tenant="a", max_tokens=1)
        harness.run()
    assert harness.scheduler.stats().blocks_cached == 14
    again = harness.add(letters(28, 0), tenant="a", max_tokens=1)
    harness.run()
    assert harness.asked[again].cached == [24]


def test_a_tenant_alone_may_take_all_if_it_must() -> None:
    """What it could not do without goes before what another might find again."""
    harness = Harness(block_size=4, num_blocks=16, budget=64)
    harness.add(letters(24), tenant="b", max_tokens=1)
    harness.run()
    whole = harness.add(letters(60, 2), tenant="a", max_tokens=3)
    harness.run()
    assert harness.answer(whole) == harness.alone(whole)
    harness.check_drained()
