"""Clients of several tenants that keep an engine busy, and what came of it; no tests.

The clock is simulated: a step takes ``FIXED`` seconds and ``EACH`` for every token.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from rosellm.roseinfer.step import StepPlan
from tests.scheduling.fake import Harness
from tests.scheduling.readings import letters, tokens_by_request

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
