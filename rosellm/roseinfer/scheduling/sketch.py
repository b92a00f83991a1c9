"""A plan in the making: what each sequence is to compute, and what is left of the step."""

from __future__ import annotations

from collections import Counter

from rosellm.roseinfer.scheduling.fairness import Tenant
from rosellm.roseinfer.scheduling.sequence import Sequence


class Sketch:
    """Known tokens and drafts of each sequence; one that is awaited counts as known.

    Args:
        budget: tokens that are left.

    Attributes:
        blocked: whether somebody would have yielded who is in a submitted plan.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.blocked = False
        self.known: dict[Sequence, int] = {}
        self.drafts: dict[Sequence, tuple[int, ...]] = {}
        self.by_tenant: Counter[Tenant] = Counter()

    def put(self, sequence: Sequence, count: int) -> None:
        self.known[sequence] = count
        self.by_tenant[sequence.tenant] += count
        self.budget -= count

    def drop(self, sequence: Sequence) -> None:
        count = self.known.pop(sequence, 0)
        self.by_tenant[sequence.tenant] -= count
        self.budget += count
