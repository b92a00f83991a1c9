"""What a tenant that asks for much may cost those that ask for little, who feel it in every step.

A tenant with many requests gains by more streams at once. One with few does not: its streams all
run, and each stream of another makes their steps longer. So the first may have as many streams as
take ``STREAMS_SHARE`` of the time that those of the others take alone, and one in any case. With
what ``chunks.py`` leaves to prompts, a step becomes about twice as long.

Where streams are nearly free, as on a GPU that has too few of them, that bounds nothing; nor are
tenants bounded by those that ask for more than a quarter as much.
"""

from __future__ import annotations

from collections.abc import Iterable

from rosellm.roseinfer.scheduling.decoding import Decoding
from rosellm.roseinfer.scheduling.fairness import Queue, Tenant

STREAMS_SHARE = 0.5


class Neighbours:
    """
    Args:
        queue: all tenants.
        decoding: what streams take.
    """

    def __init__(self, queue: Queue, decoding: Decoding) -> None:
        self._queue = queue
        self._decoding = decoding

    def spared(self, tenants: Iterable[Tenant]) -> int:
        """Streams, running or to come, of those that ask for little beside one of these."""
        modest = self._queue.modest(max(tenants, key=lambda tenant: tenant.asks))
        return sum(tenant.asks for tenant in modest)

    def holds_back(self, tenant: Tenant) -> bool:
        """Whether one more sequence of a tenant would take the time that others' streams need."""
        modest = self._queue.modest(tenant)
        if not modest or not tenant.running:
            return False
        share = STREAMS_SHARE * tenant.share / max(other.share for other in modest)
        alone = self._decoding.seconds(sum(other.asks for other in modest))
        if self._decoding.each * (tenant.running + 1) <= share * alone:
            return False
        self._queue.hold_back(tenant, modest)
        return True
