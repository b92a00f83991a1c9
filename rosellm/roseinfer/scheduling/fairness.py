"""Whose turn it is: sequences that wait, by tenant, and what each tenant has been served.

Every tenant has a virtual counter of the tokens computed for it ("Fairness in Serving Large
Language Models", Sheng et al., OSDI 2024). The one with the lowest counter is next. A tenant that
had nothing to wait for saves nothing up: its counter is lifted to the level at which the others
are served by then. Among a tenant's own sequences the order is their rank. So no tenant is served
less than another for asking less, and with one tenant the order is that of ranks alone.

A tenant with a larger share is charged less for a token, and so is served that much more.

A token is charged when it is computed for the first time: neither one that was found in the prefix
cache, nor one that is computed again after a preemption. Counters change only with progress, and so
two tenants cannot preempt each other for ever.

Knows no blocks and no budget.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rosellm.roseinfer.scheduling.sequence import Rank, Sequence


class Tenant:
    """One tenant's sequences that could be admitted, and what it has been served for its share.

    Attributes:
        open: requests that have not ended.
        running: sequences that hold a place in the batch.
    """

    __slots__ = ("_heap", "_ready", "name", "open", "running", "served", "share")

    def __init__(self, name: str) -> None:
        self.name = name
        self.served = 0.0
        self.share = 1.0
        self.open = 0
        self.running = 0
        self._heap: list[tuple[Rank, Sequence]] = []
        self._ready = 0

    @property
    def ready(self) -> bool:
        """Whether one of its sequences could be admitted."""
        return self._ready > 0

    @property
    def asks(self) -> int:
        """Sequences that run or could be admitted."""
        return self.running + self._ready

    def head(self) -> Sequence:
        """The most urgent of those."""
        while self._heap[0][1].finished:
            heapq.heappop(self._heap)
        return self._heap[0][1]

    def push(self, sequence: Sequence) -> None:
        heapq.heappush(self._heap, (sequence.rank, sequence))
        sequence.ready = True
        self._ready += 1

    def remove(self, sequence: Sequence) -> None:
        """Take out the head, or one that has ended."""
        sequence.ready = False
        self._ready -= 1
        if self._heap[0][1] is sequence:
            heapq.heappop(self._heap)
        elif len(self._heap) > 2 * self._ready + 64:
            self._heap = [entry for entry in self._heap if not entry[1].finished]
            heapq.heapify(self._heap)


class Queue:
    """All that waits.

    Args:
        output_weight: what a token of an answer is charged, where one of a prompt is charged 1.

    Attributes:
        waiting: sequences that are not running, also those that cannot be admitted yet.
        tokens: of their prompts and answers so far; choices share their prompt.
    """

    def __init__(self, output_weight: float) -> None:
        self._output_weight = output_weight
        self._tenants: dict[str, Tenant] = {}
        self._level = 0.0
        self._open = 0
        self.waiting = 0
        self.tokens = 0

    def open(self, name: str, share: float = 1.0) -> Tenant:
        """The tenant of a request that comes in, and its share from now on."""
        tenant = self._tenants.setdefault(name, Tenant(name))
        tenant.share = share
        tenant.open += 1
        self._open += 1
        return tenant

    def close(self, tenant: Tenant) -> None:
        """A request of this tenant has ended."""
        tenant.open -= 1
        self._open -= 1
        if not self._open:  # nobody is owed anything
            self._tenants.clear()
            self._level = 0.0
        elif not tenant.open and len(self._tenants) > 64:
            self._forget_idle()

    def enter(self, sequence: Sequence, tokens: int) -> None:
        """A sequence begins to wait."""
        sequence.queued = tokens
        self.waiting += 1
        self.tokens += tokens

    def offer(self, sequence: Sequence) -> None:
        """A sequence that waits could be admitted from now on."""
        tenant = sequence.tenant
        if not tenant.ready:
            tenant.served = max(tenant.served, self._level)
        tenant.push(sequence)

    def offer_again(self, sequence: Sequence) -> None:
        """A sequence that was running could be. Counters stay: a step is being planned by them."""
        sequence.tenant.push(sequence)

    def leave(self, sequence: Sequence) -> None:
        """A sequence waits no more: it is admitted, or has ended."""
        self.waiting -= 1
        self.tokens -= sequence.queued
        sequence.queued = 0
        if sequence.ready:
            sequence.tenant.remove(sequence)

    def ready(self) -> list[Tenant]:
        """Tenants of whom a sequence could be admitted."""
        return [tenant for tenant in self._tenants.values() if tenant.ready]

    def modest(self, beside: Tenant) -> list[Tenant]:
        """Tenants that ask for something, but at most a quarter as much as this one."""
        return [each for each in self._tenants.values() if 0 < 4 * each.asks <= beside.asks]

    def lift(self, tenant: Tenant, others: Iterable[Tenant]) -> None:
        """Take a tenant for served as much as each of these."""
        tenant.served = max(tenant.served, *(other.served for other in others))

    def next(
        self,
        running: Mapping[Tenant, list[Sequence]],
        waiting: Iterable[Tenant],
        planned: Mapping[Tenant, int],
    ) -> Tenant | None:
        """Whose prompt is computed next.

        Args:
            running: prompts that are not computed to their end, in order of rank.
            waiting: tenants of whom a sequence may be admitted.
            planned: tokens of this step so far.
        """
        turns = {tenant: tenant.head() for tenant in waiting if tenant.ready}
        turns.update((tenant, prompts[0]) for tenant, prompts in running.items() if prompts)
        if not turns:
            return None
        chosen = min(turns, key=lambda t: (t.served + planned.get(t, 0) / t.share, turns[t].rank))
        self._level = max(self._level, chosen.served)
        return chosen

    def charge(self, sequence: Sequence, end: int) -> None:
        """All of a sequence's tokens before position ``end`` are computed."""
        first = max(sequence.num_computed, sequence.charged)
        if end > first:
            inputs = max(0, min(end, sequence.prompt_len) - first)
            outputs = end - first - inputs
            tenant = sequence.tenant
            tenant.served += (inputs + self._output_weight * outputs) / tenant.share
            sequence.charged = end

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Raise AssertionError unless the books agree with the sequences that wait."""
        waiting = list(sequences)
        assert self.waiting == len(waiting)
        assert self.tokens == sum(sequence.queued for sequence in waiting)
        for tenant in self._tenants.values():
            ready = sum(s.tenant is tenant and s.ready for s in waiting)
            assert tenant._ready == ready
            assert not ready or tenant.head().ready
            assert tenant.served >= 0
        assert all(s.tenant is self._tenants[s.tenant.name] for s in waiting)

    def _forget_idle(self) -> None:
        """Let go of tenants that would come back with what a new one begins with."""
        self._tenants = {
            name: tenant
            for name, tenant in self._tenants.items()
            if tenant.open or tenant.served > self._level
        }
