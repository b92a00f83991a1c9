"""What a tenant that asks for much more costs the streams of others, and how that is learned."""

from __future__ import annotations

import random
from typing import Any

import pytest

from rosellm.roseinfer.scheduling.cost import Cost
from tests.scheduling.clients import (
    FIXED,
    NEIGHBOURS,
    SEEDS,
    Client,
    Seen,
    drive,
    greedy,
    p99,
    seconds,
    small,
)
from tests.scheduling.fake import Harness
from tests.scheduling.readings import letters


@SEEDS
def test_neighbours_hardly_notice_a_hostile_tenant(seed: int) -> None:
    """Their time between tokens at most doubles, and their first tokens come."""

    def run(*more: Client) -> Seen:
        harness = Harness(
            num_blocks=2000, max_model_len=400, max_num_seqs=16, budget=256, cost=seconds
        )
        return drive(harness, [*more, *(Client(name, 2, small) for name in NEIGHBOURS)], 300, seed)

    alone, beside = run(), run(Client("hostile", 40, greedy))
    for name in NEIGHBOURS:
        assert p99(beside.gaps[name]) <= 2 * p99(alone.gaps[name])
        assert p99(beside.firsts[name]) < 20 * FIXED
    assert beside.computed["hostile"] > beside.computed["a"], "what is left over is not used"


@pytest.mark.parametrize(
    ("fixed", "each", "streams"),
    [
        (0.0002, 0.001, 4),
        (0.004, 0.001, 1),
        (0.004, 0.001, 4),
        (0.02, 0.0001, 1),
        (0.02, 0.0001, 4),
    ],
)
@SEEDS
def test_streams_at_most_double_whatever_a_stream_costs(
    fixed: float, each: float, streams: int, seed: int
) -> None:
    """One tenant's few streams, and the flood of another: on a machine that is busy with one row,
    on one that has room for a few, and on one where they are nearly free."""

    def run(*more: Client) -> Seen:
        harness = Harness(
            num_blocks=2000,
            max_model_len=600,
            max_num_seqs=16,
            budget=256,
            cost=lambda plan: fixed + each * plan.num_tokens,
        )

        def long(rng: random.Random) -> dict[str, Any]:
            return {"prompt": letters(rng.randint(16, 32), rng.getrandbits(20)), "max_tokens": 300}

        return drive(harness, [Client("quiet", streams, long), *more], 400, seed)

    alone, beside = run(), run(Client("hostile", 60, greedy))
    assert p99(beside.gaps["quiet"]) <= 2.01 * p99(alone.gaps["quiet"])
    assert p99(beside.firsts["quiet"]) <= 100 * p99(alone.gaps["quiet"]), "its prompts wait"
    assert beside.computed["hostile"] > beside.computed["quiet"] / 3, "what is left is not used"


@pytest.mark.parametrize(("stretch", "most"), [(1.0, 1), (3.0, 5), (100.0, 15)])
def test_how_much_a_neighbour_may_cost_can_be_chosen(stretch: float, most: int) -> None:
    """One stream costs as much as what a step takes without any: beside one stream of another,
    as many as take half of what may be added, or all places that there are."""
    harness = Harness(
        num_blocks=2000,
        max_num_seqs=16,
        budget=64,
        cost=lambda plan: 0.001 * (4 + plan.num_tokens),
        stretch=stretch,
    )
    harness.add([0], tenant="quiet", max_tokens=2000)
    drive(harness, [Client("hostile", 60, small)], 300)
    places = []
    for _ in range(60):
        drive(harness, [Client("hostile", 60, small)], 1)
        places.append(len(harness.scheduler.roster.running) - 1)
    assert max(1, most - 1) <= max(places) <= most


def test_tenants_that_ask_for_as_much_hold_none_back() -> None:
    """Whatever a stream costs, all places are taken."""
    harness = Harness(num_blocks=2000, max_num_seqs=8, budget=64, cost=seconds)
    clients = [Client(name, 6, small) for name in ("a", "b")]
    drive(harness, clients, 100)
    places = []
    for _ in range(50):
        drive(harness, clients, 1)
        places.append(len(harness.scheduler.roster.running))
    assert sum(places) / 50 > 7


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize(("fixed", "each"), [(0.001, 0.002), (0.02, 0.0001)])
def test_what_streams_cost_is_learned_from_steps(fixed: float, each: float, noise: float) -> None:
    decoding, rng, streams = Cost(), random.Random(1), 6
    for _ in range(300):
        streams = min(16, max(1, streams + rng.choice([-1, 0, 1])))
        decoding.learn((fixed + each * streams) * rng.lognormvariate(0, noise), streams)
    for number in (1, 4, 16) if not noise else (4, 16):
        true = fixed + each * number
        assert decoding.seconds(number) == pytest.approx(true, rel=0.02 + 2 * noise)


def test_until_numbers_of_streams_differ_each_costs_the_same() -> None:
    decoding = Cost()
    assert decoding.seconds(3) == decoding.each == 0.0
    for _ in range(9):
        decoding.learn(0.012, 4)
    assert decoding.each == pytest.approx(0.003)
    assert decoding.seconds(1) == pytest.approx(0.003)
