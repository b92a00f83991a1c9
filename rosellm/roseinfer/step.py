"""One step of the engine as a value.

A ``StepPlan`` says everything that the runner must know: it can be executed,
thrown away and executed again, or sent to other ranks. It refers to no mutable
state; noise is derived from (seed, choice, position) and KV writes go to slots
that the plan names, so running a plan twice gives the same bits.
"""

from __future__ import annotations

import msgspec

from rosellm.roseinfer.messages import Logprobs, Pooled
from rosellm.roseinfer.request import SamplingParams

UNKNOWN = 0
"""Stands for a token that is awaited."""


class LogitRow(msgspec.Struct, frozen=True):
    """One position whose next token is sampled.

    Attributes:
        offset: index into the work item's tokens.
        position: index of the sampled token among the choice's output tokens.
        history: prompt and output tokens so far, drafts included, when the params look at them,
            else empty. Where the work awaits its token, that is the last one here.
        prompt_len: how many of ``history`` are prompt.
        spare: a token that may have to take the sampled one's place, whose log-probability is
            then wanted as well.
    """

    offset: int
    params: SamplingParams
    choice: int
    position: int
    history: tuple[int, ...] = ()
    prompt_len: int = 0
    spare: int | None = None


class Scoring(msgspec.Struct, frozen=True):
    """Known next tokens whose log-probabilities are wanted.

    Attributes:
        offset: index into the work item's tokens of the first position to score.
        targets: the token that follows it, and those that follow the next positions.
        top: how many likeliest tokens to report beside each.
    """

    offset: int
    targets: tuple[int, ...]
    top: int

    def part(self, first: int, end: int) -> Scoring | None:
        """What of it falls to tokens first to end, seen from the first one."""
        begin = max(first, self.offset)
        targets = self.targets[begin - self.offset : max(end - self.offset, 0)]
        return Scoring(begin - first, targets, self.top) if targets else None


class Work(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one sequence computes in this step.

    Attributes:
        sequence: unique number of the sequence, never reused.
        start: position of the first token; everything before it is in the cache.
        tokens: token ids at positions start, start + 1, ...; the last ones may be drafts.
        tables: block table per KV group, covering all positions up to the last one here.
        logits: positions to sample, in order of offset.
        scoring: prompt positions to score.
        pool: whether the sequence ends here and its vector is wanted.
        awaits: a logit row of the plan that was submitted before this one: the only token here is
            what that row samples, whatever ``tokens`` says.
    """

    sequence: int
    start: int
    tokens: tuple[int, ...]
    tables: tuple[tuple[int, ...], ...]
    logits: tuple[LogitRow, ...] = ()
    scoring: Scoring | None = None
    pool: bool = False
    awaits: int | None = None

    @property
    def drafts(self) -> tuple[int, ...]:
        """Tokens that the sequence does not have (yet): a row stands before each, and one after."""
        return self.tokens[len(self.tokens) + 1 - len(self.logits) :] if self.logits else ()

    @property
    def divisible(self) -> bool:
        """Whether ``part`` may be asked for: drafts belong together, and so does what is pooled."""
        return len(self.tokens) > 1 and len(self.logits) <= 1 and not self.pool

    def part(self, first: int, end: int) -> Work:
        """The same for some of the tokens alone; parts come to what the whole does, one after the
        other."""
        rows = (row for row in self.logits if first <= row.offset < end)
        return msgspec.structs.replace(
            self,
            start=self.start + first,
            tokens=self.tokens[first:end],
            logits=tuple(msgspec.structs.replace(r, offset=r.offset - first) for r in rows),
            scoring=None if self.scoring is None else self.scoring.part(first, end),
        )

    @property
    def num_known(self) -> int:
        """Tokens that it has."""
        return len(self.tokens) - len(self.drafts)


class StepPlan(msgspec.Struct, frozen=True):
    """The work of one step."""

    work: tuple[Work, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(work.tokens) for work in self.work)


class Sample(msgspec.Struct, frozen=True):
    """The token chosen for one logit row; ``spare`` is the row's spare token's score.

    Not ``finite``: the model gave something that is no number, so the token means nothing.
    """

    token: int
    finite: bool = True
    logprobs: Logprobs | None = None
    spare: Logprobs | None = None


class WorkResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one work item came to: a sample per logit row, a score per target, a vector.

    Or the ``fault`` for which there is nothing of it.
    """

    samples: tuple[Sample, ...] = ()
    scores: tuple[Logprobs, ...] = ()
    vector: Pooled | None = None
    fault: str = ""

    def followed_by(self, other: WorkResult) -> WorkResult:
        """What the whole came to of which these are the first and the second part."""
        fault = self.fault or other.fault
        if fault:
            return WorkResult(fault=fault)
        return WorkResult(self.samples + other.samples, self.scores + other.scores)


class StepResult(msgspec.Struct, frozen=True):
    """Results of a plan's work items, in their order."""

    work: tuple[WorkResult, ...]
