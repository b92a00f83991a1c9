"""A device that is never done when it is asked: it computes in order, on a thread of its own."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from rosellm.roseinfer.engine.core import PendingResult, Runner
from rosellm.roseinfer.step import StepPlan, StepResult

Faulty = Callable[[StepPlan], bool]


class Late:
    """A runner in front of another one.

    Args:
        slow: seconds that a plan may take before it is even looked at, and again afterwards.
        fails: plans whose results are errors, once all of them has been computed.

    Attributes:
        log: what happened, by plan: "submit" and "read".
        deepest: plans that were submitted and not read, at most.
    """

    def __init__(
        self, runner: Runner, slow: float = 0.002, fails: Faulty = lambda _: False, seed: int = 0
    ) -> None:
        self._runner = runner
        self._slow = slow
        self._fails = fails
        self._random = random.Random(seed)
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._host = threading.get_ident()
        self._open = 0
        self.log: list[tuple[str, StepPlan]] = []
        self.deepest = 0

    def execute(self, plan: StepPlan, masks: Future[Any] | None = None) -> PendingResult:
        assert threading.get_ident() == self._host
        self.log.append(("submit", plan))
        self._open += 1
        self.deepest = max(self.deepest, self._open)
        return _Handle(self, plan, self._device.submit(self._run, plan, masks))

    def probe(self) -> None:
        pass

    def make_room(self, error: Exception, *, again: bool = False) -> bool:
        return False

    def read(self, plan: StepPlan, done: Future[PendingResult]) -> StepResult:
        self.log.append(("read", plan))
        self._open -= 1
        return done.result(timeout=30).result()

    def _run(self, plan: StepPlan, masks: Future[Any] | None) -> PendingResult:
        time.sleep(self._slow * self._random.random())
        pending = self._runner.execute(plan, masks)
        time.sleep(self._slow * self._random.random())
        if self._fails(plan):
            raise RuntimeError("told too late")
        return pending


class _Handle:
    def __init__(self, late: Late, plan: StepPlan, done: Future[PendingResult]) -> None:
        self._late = late
        self._plan = plan
        self._done = done

    def result(self) -> StepResult:
        return self._late.read(self._plan, self._done)
