"""Who yields when there is not enough for all.

Among those that run, the least urgent yields its blocks to the others. What others have cached is
theirs, up to an equal share: rather than take it, a tenant's own sequences yield to its most urgent
one, which alone may take it, since it could not go on otherwise. A tenant that is behind may
take places and blocks from one that holds many, one sequence after the other, until they hold as
much. What a submitted plan refers to yields nothing until it has come back, and nobody else does in
its place: the sketch is ``blocked``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from rosellm.roseinfer.cache.manager import CacheManager
from rosellm.roseinfer.scheduling.fairness import Tenant
from rosellm.roseinfer.scheduling.roster import Roster
from rosellm.roseinfer.scheduling.sequence import Sequence
from rosellm.roseinfer.scheduling.sketch import Sketch


class Preemption:
    """
    Attributes:
        count: how often a sequence has yielded.
    """

    def __init__(self, roster: Roster, cache: CacheManager, clock: Callable[[], float]) -> None:
        self._roster = roster
        self._cache = cache
        self._clock = clock
        self.count = 0

    def make_room(self, sequence: Sequence, count: int, sketch: Sketch) -> bool:
        """Hold blocks for ``count`` more tokens, at the cost of less urgent sequences."""
        running = self._roster.running
        if sequence.number not in running:
            return False  # preempted earlier in this very step
        length = sequence.num_scheduled + count
        while not self._cache.grow(sequence.kv, length, sparing=sequence.tenant.running > 1):
            victim = max(self._yielding_to(sequence), key=lambda s: s.urgency)
            if not self._yield(victim, sketch) or victim is sequence:
                return False
        return True

    def _yielding_to(self, sequence: Sequence) -> list[Sequence]:
        """Those that may have to yield to this one. While others of its tenant run: those, and the
        sequences of tenants beyond their shares. Within a share what yields is only cached."""
        running = self._roster.running.values()
        if sequence.tenant.running == 1:
            return list(running)
        tenants = {s.tenant for s in running if self._cache.beyond_share(s.tenant.name)}
        return [s for s in running if s.tenant in {sequence.tenant, *tenants}]

    def take_from_another(
        self, tenant: Tenant, need: int, size: Callable[[Sequence], int], sketch: Sketch
    ) -> bool:
        """Preempt a sequence of another tenant, if that one was served more and holds so much more
        that it is not the one with less afterwards, for its share; what a sequence holds, ``size``
        says."""
        held: Counter[Tenant] = Counter()
        least_urgent: dict[Tenant, Sequence] = {}
        for sequence in sorted(self._roster.running.values(), key=lambda s: s.rank):
            held[sequence.tenant] += size(sequence)
            least_urgent[sequence.tenant] = sequence
        victims = [
            sequence
            for other, sequence in least_urgent.items()
            if other.served > tenant.served
            and (held[other] - size(sequence)) / other.share >= (held[tenant] + need) / tenant.share
        ]
        if not victims:
            return False
        greediest = max(victims, key=lambda s: (held[s.tenant] / s.tenant.share, s.urgency))
        return self._yield(greediest, sketch)

    def preempt(self, sequence: Sequence) -> None:
        """Give up the blocks; the tokens will be computed again, to the same bits."""
        self._cache.release(sequence.kv)
        sequence.num_computed = sequence.num_scheduled = 0
        sequence.phases.preempted(self._clock())
        self._roster.stop(sequence)
        self.count += 1

    def _yield(self, sequence: Sequence, sketch: Sketch) -> bool:
        if sequence.in_flight:
            sketch.blocked = True
            return False
        self.preempt(sequence)
        sketch.drop(sequence)
        return True
