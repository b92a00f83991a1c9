"""Where a sequence's time goes: it is in one phase at a time, so the parts add up to the whole.

Knows phases and seconds; when one begins is for the scheduler to say.
"""

from __future__ import annotations

from typing import Literal

from rosellm.roseinfer.messages import Timings

Phase = Literal["grammar", "queue", "prefill", "decode", "preempted"]


class Phases:
    """The phases of one sequence.

    Args:
        phase: the first one.
        now: seconds on a monotonic clock, as everywhere here.
    """

    __slots__ = ("_phase", "_seconds", "_since", "preemptions")

    def __init__(self, phase: Phase, now: float) -> None:
        self._phase = phase
        self._since = now
        self._seconds: dict[Phase, float] = {}
        self.preemptions = 0

    def enter(self, phase: Phase, now: float) -> None:
        """From now on it is in this phase."""
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def admitted(self, now: float) -> None:
        """It may run. After a preemption its time is lost until the next token comes."""
        if self._phase != "preempted":
            self.enter("prefill", now)

    def preempted(self, now: float) -> None:
        self.preemptions += 1
        self.enter("preempted", now)

    def took_tokens(self, now: float) -> bool:
        """Tokens have come. Returns whether that ends a phase other than decoding."""
        if self._phase == "decode":
            return False
        self.enter("decode", now)
        return True

    def timings(self, now: float) -> Timings:
        """All up to now."""
        self.enter(self._phase, now)
        return Timings(**self._seconds, preemptions=self.preemptions)
