"""Tenants that share an engine: who is served how much."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from tests.scheduling.clients import (
    NEIGHBOURS,
    SEEDS,
    Client,
    drive,
    greedy,
    jain,
    seconds,
    small,
)
from tests.scheduling.fake import Harness
from tests.scheduling.readings import letters, tokens_by_request


@pytest.mark.parametrize("num_blocks", [2000, 160])  # with room for all that runs, and without
@SEEDS
def test_a_hostile_tenant_gets_its_share_and_no_more(num_blocks: int, seed: int) -> None:
    """Ten times the load, long prompts, many choices; all tenants have a backlog."""
    harness = Harness(
        num_blocks=num_blocks, max_model_len=400, max_num_seqs=16, budget=64, cost=seconds
    )
    clients = [Client("hostile", 40, greedy), *(Client(name, 6, small) for name in NEIGHBOURS)]
    seen = drive(harness, clients, 400, seed)
    assert jain(seen.computed.values()) >= 0.95, seen.computed
    assert len(seen.computed) == 5
    harness.check()


@pytest.mark.parametrize("num_blocks", [2000, 160])
@SEEDS
def test_a_larger_share_is_served_that_much_more(num_blocks: int, seed: int) -> None:
    """Three times as much as each of the others, who are served alike; all have a backlog."""
    harness = Harness(
        num_blocks=num_blocks, max_model_len=400, max_num_seqs=16, budget=64, cost=seconds
    )

    def draw(rng: random.Random) -> dict[str, Any]:
        return {**small(rng), "share": 3.0}

    clients = [Client("large", 30, draw), *(Client(name, 20, small) for name in NEIGHBOURS)]
    seen = drive(harness, clients, 400, seed)
    others = [seen.computed[name] for name in NEIGHBOURS]
    assert jain(others) >= 0.95, seen.computed
    assert seen.computed["large"] == pytest.approx(3 * sum(others) / 4, rel=0.15), seen.computed
    harness.check()


def test_prompts_take_turns_by_what_tenants_were_served() -> None:
    """A long prompt of one tenant does not hold up another's short one."""
    harness = Harness(num_blocks=500, budget=16)
    long = harness.add(letters(400), tenant="a", max_tokens=1)
    harness.step()
    short = harness.add(letters(10, 2), tenant="b", max_tokens=1)
    planned = tokens_by_request(harness, harness.submit())
    assert planned == {short: 10, long: 6}
    harness.complete()
    harness.run()
    harness.check_drained()


def test_idle_time_saves_nothing_up() -> None:
    harness = Harness(max_num_seqs=1, num_blocks=500, budget=64)
    busy = [harness.add(letters(40, seed), tenant="busy", max_tokens=1) for seed in range(20)]
    while sum(harness.asked[id].over for id in busy) < 10:
        harness.step()
    late = [harness.add(letters(40, 100 + i), tenant="late", max_tokens=1) for i in range(10)]
    order: list[str] = []
    while harness.scheduler.has_work:
        order += [harness.asked[row.id].add.tenant for row in harness.step()]
    assert order.count("late") == len(late)
    for end in range(2, 20):
        assert abs(order[:end].count("late") - order[:end].count("busy")) <= 2, order


def test_cached_tokens_are_not_charged() -> None:
    """One asks the same prompt again and again, another new ones: the first gets more answers."""
    harness = Harness(max_num_seqs=1, num_blocks=2000, budget=64)
    same = Client("same", 3, lambda _: {"prompt": letters(60), "max_tokens": 2})
    new = Client(
        "new", 3, lambda rng: {"prompt": letters(60, rng.getrandbits(30)), "max_tokens": 2}
    )
    drive(harness, [same, new], 400)
    answered = Counter(each.add.tenant for each in harness.asked.values() if each.over)
    assert answered["same"] > 5 * answered["new"] > 0
    served = {s.tenant.name: s.tenant.served for s in harness.scheduler.roster.sequences.values()}
    assert abs(served["same"] - served["new"]) < 100


def test_tokens_computed_again_are_not_charged_again() -> None:
    harness = Harness(num_blocks=10, block_size=2, max_model_len=20, max_num_seqs=4)
    keep = harness.add([0], tenant="other", max_tokens=1, priority=100)
    ids = [harness.add([i & 1, i >> 1], tenant="t", max_tokens=14, seed=i) for i in range(4)]
    tenant = next(
        s.tenant for s in harness.scheduler.roster.sequences.values() if s.tenant.name == "t"
    )
    harness.run()
    assert harness.scheduler.stats().preemptions > 0
    # The last token of an answer is never computed.
    assert tenant.served == sum(2 + len(harness.answer(id)) - 1 for id in ids)
    assert harness.asked[keep].over


def test_with_one_tenant_the_order_is_that_of_ranks() -> None:
    """Whatever it is called."""

    def order(tenant: str) -> list[dict[int, int]]:
        harness = Harness(num_blocks=30, block_size=4, max_num_seqs=5, budget=16, cost=seconds)
        rng = random.Random(5)
        plans = []
        for _ in range(120):
            if rng.random() < 0.4:
                harness.add(
                    letters(rng.randint(1, 40), rng.getrandbits(20)),
                    tenant=tenant,
                    n=rng.choice([1, 1, 3]),
                    priority=rng.randint(-1, 1),
                    max_tokens=rng.randint(1, 20),
                )
            plans.append(tokens_by_request(harness, harness.submit()))
            harness.complete()
        assert harness.scheduler.stats().preemptions > 0
        return plans

    assert order("") == order("someone")


def test_no_tenant_starves_behind_ever_new_requests_of_others() -> None:
    harness = Harness(num_blocks=40, block_size=4, max_num_seqs=4, budget=16, cost=seconds)
    rng = random.Random(3)
    for _ in range(10):
        harness.add(letters(6, rng.getrandbits(20)), tenant="a", max_tokens=8)
    big = harness.add(letters(120), tenant="z", max_tokens=4, priority=5)
    for step in range(1500):
        tenant = "abcdef"[step % 6]
        if len(harness.scheduler.roster.sequences) < 60:
            harness.add(letters(6, rng.getrandbits(20)), tenant=tenant, max_tokens=8, n=2)
        harness.step()
        if harness.asked[big].over:
            return
    raise AssertionError("it starves")


def test_tenants_that_are_gone_are_forgotten() -> None:
    harness = Harness(num_blocks=100)
    stays = harness.add([0], tenant="stays", max_tokens=300)
    for number in range(400):
        harness.add([1], tenant=f"t{number}", max_tokens=1)
        harness.step()
    assert len(harness.scheduler.roster.queue._tenants) < 100
    harness.abort(stays)
    harness.run()
    assert len(harness.scheduler.roster.queue._tenants) <= 1
