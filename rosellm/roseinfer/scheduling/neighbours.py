"""What a tenant that asks for much may cost those that ask for little, who feel it in every step.

A tenant with many requests gains by more streams at once. One with few does not: its streams all
run, and each stream of another makes their steps longer. So the first may make a step ``stretch``
times as long as the streams of the others take alone: half of the time that this allows is for its
streams, of which it may have one in any case, and what is left is for prompts (``chunks.py``).

Where streams are nearly free, as on a GPU that has too few of them, that bounds nothing; nor are
tenants bounded by those that ask for more than a quarter as much.
"""

from __future__ import annotations

from collections.abc import Iterable

from rosellm.roseinfer.scheduling.cost import Cost
from rosellm.roseinfer.scheduling.fairness import Queue, Tenant

PLANNED_STRETCH = 0.85
"""Of what steps may become longer, the part that is planned for: by so much longer is the mean, and
clients feel those that take longer than was expected."""


class Neighbours:
    """
    Args:
        queue: all tenants.
        decoding: what streams take.
        stretch: times as long as without a tenant that asks for much, steps of others may be.
    """

    def __init__(self, queue: Queue, decoding: Cost, stretch: float) -> None:
        self._queue = queue
        self._decoding = decoding
        self._streams_share = (stretch - 1) / 2
        self._held: dict[Tenant, list[Tenant]] = {}

    def spared(self, tenants: Iterable[Tenant]) -> int:
        """Streams, running or to come, of those that ask for little beside one of these."""
        modest = self._queue.modest(max(tenants, key=lambda tenant: tenant.asks))
        return sum(tenant.asks for tenant in modest)

    def holds_back(self, tenant: Tenant) -> bool:
        """Whether one more sequence of a tenant would take the time that others' streams need."""
        modest = self._queue.modest(tenant)
        if not modest or not tenant.running:
            return False
        share = self._streams_share * tenant.share / max(other.share for other in modest)
        alone = self._decoding.seconds(sum(other.asks for other in modest))
        if self._decoding.each * (tenant.running + 1) <= share * alone:
            return False
        self._held[tenant] = modest
        return True

    def settle(self) -> None:
        """A step was made. Whom it held back has saved nothing up by that; counters change here,
        not where a step is planned by them."""
        for tenant, modest in self._held.items():
            self._queue.lift(tenant, modest)
        self._held.clear()
