"""From an ``Add`` to a request and its sequences."""

from __future__ import annotations

from collections.abc import Callable

from rosellm.roseinfer.cache.manager import CacheManager
from rosellm.roseinfer.messages import Add
from rosellm.roseinfer.scheduling.fairness import Tenant
from rosellm.roseinfer.scheduling.limits import Limits
from rosellm.roseinfer.scheduling.phases import Phases
from rosellm.roseinfer.scheduling.sequence import Request, Sequence
from rosellm.roseinfer.speculation.drafter import Drafter


class Arrivals:
    """Numbers the sequences, which gives them their rank.

    Args:
        ageing: seconds of waiting that are worth one level of priority.
        lookup: whether every sequence drafts what it repeats.
    """

    def __init__(
        self,
        cache: CacheManager,
        limits: Limits,
        clock: Callable[[], float],
        *,
        ageing: float,
        lookup: bool,
    ) -> None:
        self._cache = cache
        self._limits = limits
        self._clock = clock
        self._ageing = ageing
        self._lookup = lookup
        self._serial = 0

    def request(self, message: Add, tenant: Tenant) -> Request:
        """The request, with a sequence for each choice; those after the first follow it."""
        choices = message.wanted
        request = Request(message.id, tenant, unfinished=len(choices), held=bool(message.grammar))
        request.sequences = [self._sequence(message, request, choice) for choice in choices]
        request.followers = request.sequences[1:]
        return request

    def _sequence(self, message: Add, request: Request, choice: int) -> Sequence:
        self._serial += 1
        now = self._clock()
        arrival = now + message.priority * self._ageing
        generated = message.generated[choice] if message.generated else []
        drafter = self._drafter(message)
        if drafter:
            drafter.follow(generated)
        return Sequence(
            number=self._serial,
            request=request,
            choice=choice,
            params=message.params,
            prompt_len=len(message.prompt),
            longest=min(len(message.prompt) + message.params.max_tokens, self._limits.length),
            tokens=[*message.prompt, *generated],
            rank=(arrival, self._serial),
            kv=self._cache.new_sequence(message.tenant, message.cache_salt),
            phases=Phases("grammar" if request.held else "queue", now),
            drafter=drafter,
            want=message.want,
        )

    def _drafter(self, message: Add) -> Drafter | None:
        if not self._limits.draft or not (message.prediction or self._lookup):
            return None
        return Drafter(message.prediction, lookup=self._lookup, most=self._limits.draft)
