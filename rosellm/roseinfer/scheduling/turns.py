"""Whose tokens are in the next step.

Streams come before prompts, so that they keep pace. Prompts share what the step has left: the
tenants are served equally (``fairness.py``), within a tenant the most urgent goes first. How much
of a step prompts may take beside streams, ``chunks.py`` says, and how many streams a tenant may
have beside another's, ``neighbours.py``.
"""

from __future__ import annotations

from collections.abc import Iterable

from rosellm.roseinfer.scheduling.admission import Admission
from rosellm.roseinfer.scheduling.chunks import Chunks
from rosellm.roseinfer.scheduling.fairness import Tenant
from rosellm.roseinfer.scheduling.limits import Limits
from rosellm.roseinfer.scheduling.neighbours import Neighbours
from rosellm.roseinfer.scheduling.preemption import Preemption
from rosellm.roseinfer.scheduling.roster import Roster
from rosellm.roseinfer.scheduling.sequence import Sequence
from rosellm.roseinfer.scheduling.sketch import Sketch


class Turns:
    """Fills a sketch with known tokens."""

    def __init__(
        self,
        roster: Roster,
        limits: Limits,
        chunks: Chunks,
        preemption: Preemption,
        admission: Admission,
        neighbours: Neighbours,
    ) -> None:
        self._roster = roster
        self._limits = limits
        self._chunks = chunks
        self._preemption = preemption
        self._admission = admission
        self._neighbours = neighbours

    def fill(self, sketch: Sketch) -> None:
        running = sorted(self._roster.running.values(), key=lambda s: s.urgency)
        streams = [sequence for sequence in running if sequence.pending <= 1]
        for sequence in streams:
            self._plan(sequence, sketch)
        prompts = _by_tenant(sequence for sequence in running if sequence.pending > 1)
        beyond = sketch.budget - self._prompt_budget(sketch, streams, prompts)
        sketch.budget -= beyond
        self._plan_prompts(prompts, sketch)
        sketch.budget += beyond

    def _plan(self, sequence: Sequence, sketch: Sketch) -> None:
        """Let a running sequence compute as much as the budget and the cache allow."""
        count = min(sequence.pending, sketch.budget)
        if count > 0 and self._preemption.make_room(sequence, count, sketch):
            sketch.put(sequence, count)

    def _prompt_budget(
        self, sketch: Sketch, streams: list[Sequence], prompts: dict[Tenant, list[Sequence]]
    ) -> int:
        """Tokens of the step for prompts, so that the streams beside them keep pace."""
        keeping = {s.tenant for s in streams if s in sketch.known or s.in_flight}
        if not keeping or self._limits.whole_prompts:
            return sketch.budget
        asking = {*prompts, *self._roster.queue.ready()}
        if not asking or len(asking | keeping) == 1:
            return self._chunks.limit(sketch.budget, len(streams), None)
        spared = self._neighbours.spared(asking | keeping)
        return self._chunks.limit(sketch.budget, len(streams), spared)

    def _plan_prompts(self, prompts: dict[Tenant, list[Sequence]], sketch: Sketch) -> None:
        """Share the budget among prompts, running and waiting, the least served tenant first.

        Within a tenant those that run come first. Nothing overtakes a waiting one that has to go
        on waiting: a large request would otherwise starve behind small ones.
        """
        waiting = self._roster.queue.ready()
        while sketch.budget > 0:
            tenant = self._roster.queue.next(prompts, waiting, sketch.by_tenant)
            if tenant is None:
                return
            if prompts.get(tenant):
                self._plan(prompts[tenant].pop(0), sketch)
            elif self._neighbours.holds_back(tenant):
                waiting.remove(tenant)
            elif (admitted := self._admission.admit(tenant, sketch)) is not None:
                self._plan(admitted, sketch)
            else:
                waiting = []


def _by_tenant(sequences: Iterable[Sequence]) -> dict[Tenant, list[Sequence]]:
    found: dict[Tenant, list[Sequence]] = {}
    for sequence in sequences:
        found.setdefault(sequence.tenant, []).append(sequence)
    return found
