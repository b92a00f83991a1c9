"""Prompts for the scheduler's harness, and what can be read off it."""

from __future__ import annotations

import random

from rosellm.roseinfer.messages import Output
from rosellm.roseinfer.step import StepPlan
from tests.scheduling.fake import Harness


def letters(count: int, seed: int = 1) -> list[int]:
    """Zeros and ones without a pattern; other ones for each seed."""
    bits = random.Random(seed).getrandbits(count)
    return [bits >> i & 1 for i in range(count)]


def running(harness: Harness) -> set[int]:
    """Ids of the requests that hold a place in the batch."""
    return {sequence.request.id for sequence in harness.scheduler.roster.running.values()}


def tokens_by_request(harness: Harness, plan: StepPlan) -> dict[int, int]:
    counts: dict[int, int] = {}
    for work in plan.work:
        id, _ = harness._sequences[work.sequence]
        counts[id] = counts.get(id, 0) + len(work.tokens)
    return counts


def ids(rows: list[Output]) -> list[int]:
    return [row.id for row in rows]
