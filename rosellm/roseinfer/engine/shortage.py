"""When memory runs out in a step, again and again: then steps become smaller.

The first times, running the step in halves is all that is done (``EngineCore``): what other
programs took they may give back.
"""

from __future__ import annotations

import logging
from typing import Protocol

from rosellm.roseinfer.scheduling.scheduler import Scheduler
from rosellm.roseinfer.step import StepPlan

log = logging.getLogger(__name__)

PATIENCE = 2
"""So many steps may fail for want of memory before steps become smaller."""

LEAST_TOKENS = 64
"""What fails with so few tokens is no question of size: steps do not become smaller than this."""


class Room(Protocol):
    """What the runner offers."""

    def make_room(self, error: Exception, *, again: bool = False) -> bool:
        """Give back what can be spared, if it was memory that a step lacked. Returns whether.

        Args:
            again: it has been lacking before, so what only makes steps faster goes too.
        """


class Shortage:
    """Of one engine."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._times = 0
        self._told = False

    def meet(self, runner: Room, plan: StepPlan, error: Exception) -> bool:
        """A submitted plan has failed: make room for its parts. False if that was not the reason.

        Call once a plan, whichever of its parts fail after it: they are one occasion.
        """
        if not runner.make_room(error, again=self._times > 0):
            return False
        self._times += 1
        if self._times > PATIENCE and plan.num_tokens > LEAST_TOKENS:
            self._shorten(max(plan.num_tokens // 2, LEAST_TOKENS))
        return True

    def _shorten(self, tokens: int) -> None:
        """Have smaller steps, where they can be any smaller."""
        before = self._scheduler.limits.tokens
        after = self._scheduler.shorten(tokens)
        if after < before and not self._told:
            log.warning(
                "memory runs out again and again: steps have at most %d tokens from now on; with a "
                "smaller --max-num-batched-tokens or --gpu-memory-utilization they need not fail "
                "first",
                after,
            )
            self._told = True
