"""Tokens that may be computed before the host knows them: those that the newest plan samples.

The device has them as soon as that plan has run, so the next one names the row that samples such a
token in the token's place. It goes no further than one token a sequence, and not at all where the
token's value says what comes next: a grammar's next mask, and drafts. Such sequences ``wait`` for
the plan to come back.

An answer that turns out to have ended has then been computed for one token more, which is thrown
away: slots behind its tokens are nobody else's until no plan refers to them.
"""

from __future__ import annotations

from collections.abc import Iterable

from rosellm.roseinfer.scheduling.sequence import Sequence
from rosellm.roseinfer.step import StepPlan


class Ahead:
    """
    Attributes:
        waits: whether a sequence of the newest plan can go on only when it has come back.
    """

    def __init__(self) -> None:
        self._newest: StepPlan | None = None
        self._sequences: list[Sequence] = []
        self.waits = False

    def submit(self, plan: StepPlan, sequences: Iterable[Sequence]) -> None:
        """A plan is on its way, the newest from now on; its work is these sequences'."""
        self.forget()
        self._newest, self._sequences = plan, list(sequences)
        row = 0
        for work, sequence in zip(plan.work, self._sequences, strict=True):
            if work.logits and sequence.num_scheduled + 1 < sequence.longest:
                if sequence.constraint is None and sequence.drafter is None:
                    sequence.awaited = row
                else:
                    self.waits = True
            row += len(work.logits)

    def take_in(self, plan: StepPlan) -> None:
        """A plan has come back: what it sampled is known."""
        if plan is self._newest:
            self.forget()

    def forget(self) -> None:
        """Nothing is to be planned over."""
        for sequence in self._sequences:
            sequence.awaited = None
        self._newest, self._sequences, self.waits = None, [], False
