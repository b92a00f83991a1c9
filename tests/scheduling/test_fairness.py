"""Tenants that share an engine: who is served how much, and what one costs the others.

The clock is simulated: a step takes ``FIXED`` seconds and ``EACH`` for every token.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from rosellm.roseinfer.cache.blocks import BlockPool
from rosellm.roseinfer.scheduling.chunks import LEAST_CHUNK, Chunks
from rosellm.roseinfer.scheduling.decoding import Decoding
from rosellm.roseinfer.step import StepPlan
from tests.scheduling.fake import Harness
from tests.scheduling.readings import letters, running, tokens_by_request

FIXED, EACH = 0.010, 0.0005


def seconds(plan: StepPlan) -> float:
    return FIXED + EACH * plan.num_tokens if plan.work else FIXED


def jain(shares: Iterable[float]) -> float:
    """Jain's index: 1 if all are equal, 1/n if one has everything."""
    xs = list(shares)
    return sum(xs) ** 2 / (len(xs) * sum(x * x for x in xs))


def p99(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[int(0.99 * len(ordered))]


@dataclass
class Client:
    """Keeps so many requests of a tenant open, each drawn by ``draw``."""

    tenant: str
    open: int
    draw: Callable[[random.Random], dict[str, Any]]
    ids: list[int] = field(default_factory=list)


@dataclass
class Seen:
    """What came of some steps.

    Attributes:
        computed: tokens by tenant.
        gaps: seconds between two tokens of a choice, by tenant.
        firsts: seconds to a request's first token, by tenant.
    """

    computed: Counter[str] = field(default_factory=Counter)
    gaps: dict[str, list[float]] = field(default_factory=dict)
    firsts: dict[str, list[float]] = field(default_factory=dict)


def drive(harness: Harness, clients: Iterable[Client], steps: int, seed: int = 1) -> Seen:
    """Let clients ask and the engine step; every answer is checked by the harness."""
    clients, seen, rng = list(clients), Seen(), random.Random(seed)
    latest: dict[tuple[int, int], float] = {}
    asked_at: dict[int, float] = {}
    for _ in range(steps):
        for client in clients:
            client.ids = [id for id in client.ids if not harness.asked[id].over]
            while len(client.ids) < client.open:
                client.ids.append(harness.add(tenant=client.tenant, **client.draw(rng)))
                asked_at[client.ids[-1]] = harness.now
        plan = harness.submit()
        for id, count in tokens_by_request(harness, plan).items():
            seen.computed[harness.asked[id].add.tenant] += count
        for row in harness.complete():
            tenant, key = harness.asked[row.id].add.tenant, (row.id, row.choice)
            if row.tokens and key in latest:
                seen.gaps.setdefault(tenant, []).append(harness.now - latest[key])
            elif row.tokens and row.id in asked_at:
                waited = harness.now - asked_at.pop(row.id)
                seen.firsts.setdefault(tenant, []).append(waited)
            latest[key] = harness.now
    return seen


def small(rng: random.Random) -> dict[str, Any]:
    prompt = letters(rng.randint(4, 20), rng.getrandbits(20))
    return {"prompt": prompt, "max_tokens": rng.randint(10, 30)}


def greedy(rng: random.Random) -> dict[str, Any]:
    prompt = letters(rng.randint(100, 200), rng.getrandbits(20))
    return {"prompt": prompt, "max_tokens": rng.randint(20, 60), "n": rng.choice([1, 4, 8])}


SEEDS = pytest.mark.parametrize(
    "seed", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))]
)
NEIGHBOURS = ["a", "b", "c", "d"]


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
    assert beside.computed["hostile"] > beside.computed["quiet"] / 2, "what is left is not used"


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
    assert most - 1 <= max(places) <= most


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
    decoding, rng, streams = Decoding(), random.Random(1), 6
    for _ in range(300):
        streams = min(16, max(1, streams + rng.choice([-1, 0, 1])))
        decoding.learn((fixed + each * streams) * rng.lognormvariate(0, noise), streams)
    for number in (1, 4, 16) if not noise else (4, 16):
        true = fixed + each * number
        assert decoding.seconds(number) == pytest.approx(true, rel=0.02 + 2 * noise)


def test_until_numbers_of_streams_differ_each_costs_the_same() -> None:
    decoding = Decoding()
    assert decoding.seconds(3) == decoding.each == 0.0
    for _ in range(9):
        decoding.learn(0.012, 4)
    assert decoding.each == pytest.approx(0.003)
    assert decoding.seconds(1) == pytest.approx(0.003)


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


# -- the prefix cache -------------------------------------------------------------------------


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


# -- the time between tokens ------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.030, 0.060])
def test_a_longest_prompt_keeps_the_target(target: float) -> None:
    """Also while nothing had been measured when it came, and for prompts of the same tenant."""
    harness = Harness(
        num_blocks=1000, max_model_len=1500, budget=512, cost=seconds, itl_target=target
    )
    gaps: list[float] = []
    for _ in range(3):
        streams = Client("", 3, lambda rng: {"prompt": letters(5), "max_tokens": 400})
        drive(harness, [streams], 3)
        long = harness.add(letters(1400, len(gaps)), max_tokens=2)
        before = harness.steps
        while not harness.asked[long].over:
            gaps += drive(harness, [streams], 1).gaps.get("", [])
            began = harness.now
            harness.step()
            gaps.append(harness.now - began)
        assert harness.steps - before < 1400 / LEAST_CHUNK, "the time that there is is used"
        for id in streams.ids:
            harness.abort(id)
    assert p99(gaps) <= target


def test_a_target_that_cannot_be_kept_does_not_starve_prompts() -> None:
    harness = Harness(num_blocks=300, budget=512, cost=seconds, itl_target=0.001)
    stream = harness.add([0], max_tokens=300)
    harness.step()
    long = harness.add(letters(500), max_tokens=1)
    harness.step()
    before = harness.steps
    while not harness.asked[long].over:
        assert stream in {row.id for row in harness.step()}
    assert harness.steps - before <= 1.1 * 500 / LEAST_CHUNK + 1


def test_without_streams_the_whole_budget_is_used() -> None:
    harness = Harness(num_blocks=300, budget=64, cost=seconds, itl_target=0.001)
    harness.add(letters(640), max_tokens=1)
    for _ in range(10):
        assert harness.submit().num_tokens == 64
        harness.complete()


def test_without_a_target_a_tenants_own_prompts_come_first() -> None:
    harness = Harness(num_blocks=300, budget=64, cost=seconds)
    stream = harness.add([0], tenant="a", max_tokens=100)
    harness.step()
    own = harness.add(letters(200), tenant="a", max_tokens=1)
    assert tokens_by_request(harness, harness.submit()) == {stream: 1, own: 63}
    harness.complete()
    harness.run()


def test_a_slower_machine_is_noticed() -> None:
    """Steps take three times as long from one moment on; the target is kept soon after."""
    slow = [1.0]
    harness = Harness(
        num_blocks=4000,
        max_model_len=16000,
        budget=256,
        cost=lambda plan: slow[0] * (0.002 + EACH * plan.num_tokens),
        itl_target=0.050,
    )
    stream = harness.add([0], max_tokens=2000)
    harness.step()
    prompt = harness.add(letters(14000), max_tokens=1)
    gaps: list[float] = []
    for step in range(160):
        if step == 60:
            slow[0] = 3.0
        began = harness.now
        assert stream in {row.id for row in harness.step()}
        gaps.append(harness.now - began)
    assert not harness.asked[prompt].over
    assert max(gaps[:60]) <= 0.050
    assert max(gaps[70:]) <= 0.050
    harness.abort(prompt)
    harness.abort(stream)


@pytest.mark.parametrize("spread", [0.05, 0.2, 0.5])
def test_steps_whose_time_varies_keep_the_target_all_but_one_in_a_hundred(spread: float) -> None:
    noise, target = random.Random(1), 0.050
    chunks, seconds, tokens = Chunks(target, 2.0, Decoding()), [], []
    for _ in range(5000):
        tokens.append(chunks.limit(256, 1, None))
        cost = (0.002 + EACH * (1 + tokens[-1])) * noise.lognormvariate(0, spread)
        chunks.learn(cost, 1, tokens[-1])
        seconds.append(cost)
    assert sum(each > target for each in seconds[500:]) <= 0.015 * 4500
    ideal = math.exp(-2.33 * spread) * (target - 0.002) / EACH  # by the 99th percentile of noise
    assert sum(tokens) / 5000 > 0.6 * ideal, "the time that there is is used"


def test_without_a_target_prompts_stretch_a_step_by_a_quarter_of_a_second_at_most() -> None:
    chunks = Chunks(None, 2.0, Decoding())
    chunks.learn(512 * 0.005, 0, 512)  # a first prompt, nobody waits
    chunks.learn(0.1, 16, 0)
    for _ in range(100):
        tokens = chunks.limit(512, 16, None)
        chunks.learn(0.1 + 0.005 * tokens, 16, tokens)
        assert 0.2 <= 0.005 * tokens <= 0.25


def test_prompts_that_cost_nothing_to_speak_of_and_no_time_left() -> None:
    """Streams of others take more than what spared ones allow, prompt tokens seem to be free."""
    chunks = Chunks(None, 2.0, Decoding())
    for _ in range(3):
        chunks.learn(0.01, 4, 0)
        chunks.learn(0.01, 4, 8)
    for streams in (4, 64):
        assert 0 < chunks.limit(32, streams, 1) <= 32


def test_without_a_target_a_fast_machine_computes_prompts_whole() -> None:
    chunks = Chunks(None, 2.0, Decoding())
    chunks.learn(4096 * 20e-6, 0, 4096)
    assert chunks.limit(4096, 1, None) == 4096
