"""Who may begin to run: there must be a place in the batch, and blocks for all of its tokens."""

from __future__ import annotations

from collections.abc import Callable

from rosellm.roseinfer.cache.manager import CacheManager
from rosellm.roseinfer.scheduling.fairness import Tenant
from rosellm.roseinfer.scheduling.limits import Limits
from rosellm.roseinfer.scheduling.preemption import Preemption
from rosellm.roseinfer.scheduling.roster import Roster
from rosellm.roseinfer.scheduling.sequence import Sequence
from rosellm.roseinfer.scheduling.sketch import Sketch


class Admission:
    """Starts sequences, behind what of them is in the prefix cache."""

    def __init__(
        self,
        roster: Roster,
        cache: CacheManager,
        limits: Limits,
        preemption: Preemption,
        clock: Callable[[], float],
    ) -> None:
        self._roster = roster
        self._cache = cache
        self._limits = limits
        self._preemption = preemption
        self._clock = clock

    def admit(self, tenant: Tenant, sketch: Sketch) -> Sequence | None:
        """Start a tenant's most urgent waiting sequence, if it and the running ones have room."""
        sequence = tenant.head()
        if self._limits.whole_prompts and len(sequence.tokens) > sketch.budget:
            return None
        full = len(self._roster.running) >= self._limits.sequences
        if full and not self._take_place(tenant, sketch):
            return None
        hits = self._match(sequence)
        if hits is None or not self._find_room(sequence, hits, sketch):
            return None
        self._roster.start(sequence)
        sequence.phases.admitted(self._clock())
        sequence.num_computed = sequence.num_scheduled = self._cache.take(sequence.kv, hits)
        if sequence.cached is None:
            sequence.cached = min(sequence.num_computed, sequence.prompt_len)
        return sequence

    def _take_place(self, tenant: Tenant, sketch: Sketch) -> bool:
        """Whether one that has two places more than a tenant, and was served more, gave one up."""
        return self._preemption.take_from_another(tenant, 1, lambda _: 1, sketch)

    def _find_room(self, sequence: Sequence, hits: list[list[int]], sketch: Sketch) -> bool:
        """Whether there are blocks for a waiting sequence, others' that hold more included.

        What its tenant has running can end first: meanwhile it leaves others' cached prefixes.
        """
        tenant, length, chunk = sequence.tenant, len(sequence.tokens), self._limits.tokens
        running = self._roster.running
        owner = tenant.name if tenant.running else None
        while not self._cache.can_take(hits, length, chunk, len(running), owner):
            need = self._cache.blocks_at_most(length, chunk)
            if not self._preemption.take_from_another(tenant, need, lambda s: s.kv.held, sketch):
                return False
        return True

    def _match(self, sequence: Sequence) -> list[list[int]] | None:
        """What of a sequence is in the cache; scores must be computed, whatever is there."""
        if sequence.unscored:
            return self._cache.no_match()
        return self._cache.match(sequence.kv, sequence.tokens)
