"""What a step came to, taken in: tokens, blocks that others can find, and the news for clients.

Whatever is wrong with one sequence's part ends its request alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from rosellm.roseinfer.cache.manager import CacheManager
from rosellm.roseinfer.grammar.constraint import GrammarError
from rosellm.roseinfer.messages import Output, RowError
from rosellm.roseinfer.scheduling.answers import Answers
from rosellm.roseinfer.scheduling.roster import Roster
from rosellm.roseinfer.scheduling.sequence import Request, Sequence
from rosellm.roseinfer.step import Work, WorkResult

log = logging.getLogger(__name__)

SEE_LOG = "the engine failed over it; the server's log has the details"
"""What a client is told of an exception: its own text is for whoever runs the server."""


class Intake:
    """Advances sequences.

    Attributes:
        answers: what appends their tokens, and counts them.
    """

    def __init__(self, roster: Roster, cache: CacheManager, clock: Callable[[], float]) -> None:
        self._roster = roster
        self._cache = cache
        self._clock = clock
        self.answers = Answers()

    def take(self, sequence: Sequence, work: Work, done: WorkResult) -> Output | None:
        """The news of one sequence, or None. Of one that has ended there is none."""
        if sequence.finished:
            if work.awaits is None:  # else it would not have come to it
                self._roster.queue.charge(sequence, work.start + work.num_known)
            self._roster.forget_if_idle(sequence)
            return None
        if done.fault:
            return self._give_up(sequence, done.fault)
        try:
            return self._accept(sequence, work, done)
        except Exception:
            log.exception("what was computed for a request could not be taken in")
            return self._give_up(sequence, SEE_LOG)

    def fail(self, request: Request, error: RowError) -> Output:
        """End a request now, with an error."""
        self._roster.end(request)
        return Output(request.id, finish="error", error=error, last=True)

    def _give_up(self, sequence: Sequence, fault: str) -> Output:
        """End a request for which something went wrong: what is cached of it may be wrong too."""
        for each in sequence.request.sequences:
            self._cache.retract(each.kv)
        error = RowError(f"the request could not be computed: {fault}", code="engine_error")
        return self.fail(sequence.request, error)

    def _accept(self, sequence: Sequence, work: Work, done: WorkResult) -> Output | None:
        row = Output(
            sequence.request.id,
            sequence.choice,
            cached=sequence.cached or 0,
            prompt_logprobs=list(done.scores) if work.scoring else None,
            pooled=done.vector,
        )
        sequence.num_scored += len(done.scores)
        try:
            accepted = self.answers.append(sequence, work.drafts, done.samples, row)
        except GrammarError as error:
            message = f"the answer cannot go on: {error}"
            return self.fail(sequence.request, RowError(message, status=400))
        self._advance(sequence, work.num_known, accepted)
        if not sequence.samples and sequence.num_computed == len(sequence.tokens):
            row.finish = "stop" if sequence.want == "pooled" else "length"
        self._tell_timings(sequence, row)
        if row.finish is not None:
            self._roster.finish(sequence)
        row.last = row.finish is not None and sequence.request.unfinished == 0
        return row if row.tokens or row.finish or row.prompt_logprobs else None

    def _advance(self, sequence: Sequence, known: int, accepted: int) -> None:
        """Known tokens and right drafts are computed; what was drafted wrongly is not there."""
        self._roster.queue.charge(sequence, sequence.num_computed + known + accepted)
        sequence.num_computed += known + accepted
        sequence.num_scheduled += accepted
        self._cache.publish(sequence.kv, sequence.tokens, sequence.num_computed)
        self._cache.trim(sequence.kv, sequence.num_computed)
        if sequence.num_computed >= sequence.prompt_len:
            self._roster.release_followers(sequence)

    def _tell_timings(self, sequence: Sequence, row: Output) -> None:
        now = self._clock()
        if (row.tokens and sequence.phases.took_tokens(now)) or row.finish is not None:
            row.timings = sequence.phases.timings(now)
