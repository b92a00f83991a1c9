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
"""Steps do not become smaller than this: what fails then is no question of size."""


class Room(Protocol):
    """What the runner offers."""

    def make_room(self, error: Exception) -> bool:
        """Give back what can be spared, if it was memory that a step lacked. Returns whether."""


class Shortage:
    """Of one engine."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._times = 0

    def relieve(self, runner: Room, plan: StepPlan, error: Exception) -> bool:
        """After a plan has failed: make room for its parts. False if that was not the reason."""
        if not runner.make_room(error):
            return False
        if plan.num_tokens <= LEAST_TOKENS:
            return True
        self._times += 1
        if self._times <= PATIENCE:
            return True
        tokens = self._scheduler.shorten(max(plan.num_tokens // 2, LEAST_TOKENS))
        if self._times == PATIENCE + 1:
            log.warning(
                "memory runs out again and again: steps have at most %d tokens from now on; with a "
                "smaller --max-num-batched-tokens or --gpu-memory-utilization they need not fail "
                "first",
                tokens,
            )
        return True
