"""Where one HTTP request's time goes, from its head to the last byte of its answer.

A request is in one phase at a time, so that the phases add up to the whole. What happens between an
``Add`` and the last row is told by the engine (``messages.Timings``) of the choice that ended last:
the others ran beside it. What is left of that stretch is the way between the two processes.

Knows times and counts, never what was said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from rosellm.roseinfer.messages import Timings
from rosellm.roseinfer.server.schemas.responses import RequestTimings

if TYPE_CHECKING:
    from rosellm.roseinfer.server.delta import Delta
    from rosellm.roseinfer.server.job import Job

Phase = Literal["receive", "tokenise", "grammar", "engine", "respond", "client"]
ENGINE_PHASES = ("grammar", "queue", "prefill", "decode", "preempted")
"""In the order in which a choice goes through them; it may come back to the last two."""


class Timeline:
    """One request's phases and counts.

    Attributes:
        begun: on the clock.
        finish_reasons: of the choices that have ended.
        disconnected: whether the client left before its answer was complete.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.begun = clock()
        self._entered: list[tuple[Phase, float]] = [("receive", self.begun)]
        self._told: dict[int, Timings] = {}
        self._sending = False
        self.generates = False
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.finish_reasons: list[str] = []
        self.disconnected = False

    def enter(self, phase: Phase) -> None:
        """From now on the request is in this phase."""
        if phase != self._entered[-1][0]:
            self._entered.append((phase, self._clock()))

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """In this phase for a while, then in the one that it was in before."""
        before = self._entered[-1][0]
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Something is being sent: once the answer is complete, only the client is waited for."""
        self._sending = True
        if self._entered[-1][0] == "respond":
            self.enter("client")
        try:
            yield
        finally:
            self._sending = False
            if self._entered[-1][0] == "client":
                self.enter("respond")

    def watch(self, jobs: Sequence[Job]) -> Stay:
        """What follows these jobs through the engine, where they are from now on."""
        self.generates = True
        self.prompt_tokens += sum(len(job.prompt) for job in jobs)
        self.enter("engine")
        return Stay(self, sum(job.n for job in jobs))

    def left_engine(self, timings: Timings | None) -> None:
        """The jobs in the engine have ended.

        Args:
            timings: of the choice that ended last, up to now; None if nothing was told.
        """
        if timings is not None:
            last = max(at for at, (phase, _) in enumerate(self._entered) if phase == "engine")
            self._told[last] = timings
        self.enter("client" if self._sending else "respond")

    def now(self) -> float:
        return self._clock()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self._clock() - self.begun

    def stretches(self) -> Iterator[tuple[str, float, float]]:
        """Every phase with its beginning and its end on the clock, in order, without gaps.

        Those of the engine are laid end to end, the way between the processes behind them.
        """
        ends = [at for _, at in self._entered[1:]] + [self._clock()]
        for index, ((phase, start), end) in enumerate(zip(self._entered, ends, strict=True)):
            if index in self._told:
                for name in ENGINE_PHASES:
                    until = min(end, start + getattr(self._told[index], name))
                    if until > start:
                        yield name, start, until
                    start = until
            if end > start:
                yield phase, start, end

    def report(self) -> RequestTimings:
        """All up to now."""
        spent: dict[str, float] = {}
        total = 0.0
        for phase, start, end in self.stretches():
            spent[f"{phase}_s"] = spent.get(f"{phase}_s", 0.0) + end - start
            total = end - self.begun
        rounded = {name: round(seconds, 6) for name, seconds in spent.items()}
        return RequestTimings(
            total_s=round(total, 6),
            **rounded,
            preemptions=sum(timings.preemptions for timings in self._told.values()),
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            computed_tokens=self.prompt_tokens - self.cached_tokens,
            completion_tokens=self.completion_tokens,
        )


class Stay:
    """Jobs in the engine's hands; sees their answer, see ``Watcher``."""

    def __init__(self, timeline: Timeline, choices: int) -> None:
        self._timeline = timeline
        self._open = choices
        self._told: dict[int, tuple[Timings, float]] = {}
        self._latest: int | None = None
        self._ended = False

    def see(self, item: Delta | Exception) -> None:
        """Count its tokens, and remember what the engine told."""
        timeline = self._timeline
        if isinstance(item, Exception):
            self.end()
            return
        timeline.cached_tokens += item.cached
        timeline.completion_tokens += len(item.ids)
        if item.timings is not None:
            self._told[item.index], self._latest = (item.timings, timeline.now()), item.index
        if item.finish is not None:
            timeline.finish_reasons.append(item.finish)
            self._latest = item.index
            self._open -= 1
            if not self._open:
                self.end()

    def end(self) -> None:
        """It is over, whether or not all choices have come to their ends."""
        if not self._ended:
            self._ended = True
            self._timeline.left_engine(self._last())

    def _last(self) -> Timings | None:
        """The timings of the choice that was heard of last; since they came, it has decoded."""
        if self._latest not in self._told:
            return None
        told, at = self._told[self._latest]
        own = {name: getattr(told, name) for name in (*ENGINE_PHASES, "preemptions")}
        own["decode"] += self._timeline.now() - at
        return Timings(**own)
