"""Who computes what in the next step.

There is no prefill phase and no decode phase: every sequence has tokens, some
of them computed, and each step lets computed tokens catch up within a budget.
The same rule serves prompts, chunks of prompts, prefix hits, decoding,
speculation and resumption after preemption.

A request with a grammar waits, without holding anything, until ``constrain`` brings the states
that its choices start from. These change only in ``update``.

Knows integers only: no tensors, no text. The cycle is ``schedule`` -> run the
plan -> ``update`` (or ``discard``, after which the same work is planned again). A step may be
planned while the one before is still on its way; results are taken in by order. What happens on
the way stands in the files beside this one:

* ``schedule``: ``turns.py`` decides, with ``admission.py`` and ``preemption.py``; ``drafting.py``
  adds drafts; ``work.py`` writes it down; ``ahead.py`` says what may be planned over it;
* ``update``: ``intake.py``, and ``answers.py`` for what becomes of samples;
* between the two: ``roster.py`` has all requests and sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rosellm.roseinfer.cache.manager import CacheManager
from rosellm.roseinfer.grammar.constraint import Constraint
from rosellm.roseinfer.grammar.masks import Masked
from rosellm.roseinfer.messages import TIMED_OUT, Add, Output, RowError, Stats
from rosellm.roseinfer.scheduling.admission import Admission
from rosellm.roseinfer.scheduling.ahead import Ahead
from rosellm.roseinfer.scheduling.arrivals import Arrivals
from rosellm.roseinfer.scheduling.chunks import Chunks
from rosellm.roseinfer.scheduling.cost import Cost
from rosellm.roseinfer.scheduling.deadlines import Deadlines
from rosellm.roseinfer.scheduling.drafting import add_drafts
from rosellm.roseinfer.scheduling.fairness import Queue
from rosellm.roseinfer.scheduling.intake import Intake
from rosellm.roseinfer.scheduling.limits import Limits
from rosellm.roseinfer.scheduling.neighbours import PLANNED_STRETCH, Neighbours
from rosellm.roseinfer.scheduling.preemption import Preemption
from rosellm.roseinfer.scheduling.roster import Roster
from rosellm.roseinfer.scheduling.sketch import Sketch
from rosellm.roseinfer.scheduling.stopwatch import Stopwatch
from rosellm.roseinfer.scheduling.turns import Turns
from rosellm.roseinfer.scheduling.work import masked, settled, work_of
from rosellm.roseinfer.step import StepPlan, StepResult


class Scheduler:
    """Continuous batching over a paged cache.

    Args:
        cache: block tables.
        limits: of a step and of a sequence.
        ageing: seconds of waiting that are worth one level of priority.
        clock: seconds, monotonic.
        lookup: whether every sequence drafts what it repeats.
        itl_target: seconds between a stream's tokens that prompts are not to exceed, or None.
        output_weight: see ``Queue``.
        stretch: see ``Neighbours``.
    """

    def __init__(
        self,
        cache: CacheManager,
        limits: Limits,
        *,
        ageing: float,
        clock: Callable[[], float],
        lookup: bool = False,
        itl_target: float | None = None,
        output_weight: float = 1.0,
        stretch: float = 2.0,
    ) -> None:
        self.cache = cache
        self.limits = limits
        self.roster = Roster(cache, Queue(output_weight))
        self._clock = clock
        self._arrivals = Arrivals(cache, limits, clock, ageing=ageing, lookup=lookup)
        self._deadlines = Deadlines()
        decoding = Cost()
        planned = 1 + PLANNED_STRETCH * (stretch - 1)
        self._chunks = Chunks(itl_target, planned, decoding)
        self._stopwatch = Stopwatch(clock)
        self._preemption = Preemption(self.roster, cache, clock)
        admission = Admission(self.roster, cache, limits, self._preemption, clock)
        self._neighbours = Neighbours(self.roster.queue, decoding, planned)
        self._turns = Turns(
            self.roster, limits, self._chunks, self._preemption, admission, self._neighbours
        )
        self._intake = Intake(self.roster, cache, clock)
        self._ahead = Ahead()
        self._blocked = False
        self._steps = 0
        self._batched_tokens = 0

    def shorten(self, tokens: int) -> int:
        """Plan steps of no more tokens than that from now on, unless prompts must be whole.
        Returns how many they may have."""
        if not self.limits.whole_prompts:
            self.limits.tokens = min(tokens, self.limits.tokens)
        return self.limits.tokens

    # -- requests ---------------------------------------------------------

    def add(self, message: Add) -> None:
        """Queue a request. Choices after the first wait until its prompt is in the cache."""
        request = self._arrivals.request(
            message, self.roster.queue.open(message.tenant, message.share)
        )
        self.roster.enter(request)
        if message.deadline is not None:
            self._deadlines.add(message.id, message.deadline)
        if not request.held:
            self.roster.offer(request.sequences[:1])

    def constrain(self, request_id: int, constraints: Iterable[Constraint]) -> None:
        """A request's grammar is compiled: queue it, with where each choice begins."""
        request = self.roster.requests[request_id]
        for sequence, constraint in zip(request.sequences, constraints, strict=True):
            sequence.constraint = constraint
            sequence.phases.enter("queue", self._clock())
        request.held = False
        self.roster.offer(request.sequences[:1])

    def fail(self, request_id: int, error: RowError) -> Output:
        """End a request now, with an error."""
        return self._intake.fail(self.roster.requests[request_id], error)

    def abort(self, request_id: int) -> Output | None:
        """End a request now; None if it is not known (any more)."""
        request = self.roster.requests.get(request_id)
        if request is None:
            return None
        self.roster.end(request)
        return Output(request_id, finish="abort", last=True)

    def expire(self) -> list[Output]:
        """End every request whose deadline has come, whatever it does or waits for."""
        requests = self.roster.requests
        expired = [id for id in self._deadlines.expired(self._clock()) if id in requests]
        self._deadlines.sweep(len(requests), requests.__contains__)
        return [self.fail(id, TIMED_OUT) for id in expired]

    @property
    def num_waiting(self) -> int:
        """Sequences that are not running, those that wait for their first choice included."""
        return self.roster.queue.waiting

    @property
    def waiting_tokens(self) -> int:
        """Tokens of what waits; choices share their prompt."""
        return self.roster.queue.tokens

    @property
    def has_work(self) -> bool:
        return bool(self.roster.requests)

    @property
    def runnable(self) -> bool:
        """Whether something can be planned, or waits for what is planned to come back."""
        return any(not request.held for request in self.roster.requests.values())

    # -- the step ---------------------------------------------------------

    def schedule(self) -> StepPlan:
        """Plan the next step within the token budget, over those that are submitted."""
        sketch = Sketch(self.limits.tokens)
        self._turns.fill(sketch)
        add_drafts(sketch, self.cache, self.limits, len(self.roster.running))
        work = [
            work_of(sequence, count, sketch.drafts.get(sequence, ()))
            for sequence, count in sketch.known.items()
        ]
        for sequence, count in sketch.known.items():
            sequence.in_flight += 1
            sequence.num_scheduled += count
        plan = StepPlan(tuple(work))
        self._blocked = sketch.blocked
        if work:
            self._stopwatch.begin()
            self._ahead.submit(plan, sketch.known)
        return plan

    @property
    def hold(self) -> bool:
        """Whether the next step is to be planned only when all that is submitted has come back:
        somebody cannot go on before, or only what others could give up then."""
        return self._blocked or self._ahead.waits

    def constrained(self, plan: StepPlan) -> list[Masked]:
        """The plan's logit rows that a grammar constrains."""
        found: list[Masked] = []
        row = 0
        for work in plan.work:
            found += masked(self.roster.sequences[work.sequence], work, row)
            row += len(work.logits)
        return found

    def settled(self, plan: StepPlan) -> StepPlan:
        """A submitted plan that awaits nothing: all that were submitted before have come back."""
        sequences = self.roster.sequences
        return StepPlan(tuple(settled(sequences[work.sequence], work) for work in plan.work))

    def update(self, plan: StepPlan, result: StepResult) -> list[Output]:
        """Take in what a plan computed; return the news, at most a row per sequence."""
        self._learn_cost(plan)
        self._ahead.take_in(plan)
        rows = []
        for work, done in zip(plan.work, result.work, strict=True):
            sequence = self.roster.sequences[work.sequence]
            sequence.in_flight -= 1
            row = self._intake.take(sequence, work, done)
            if row is not None:
                rows.append(row)
        self._neighbours.settle()
        self._steps += 1
        self._batched_tokens = plan.num_tokens
        return rows

    def discard(self, plan: StepPlan) -> None:
        """Take back the newest submitted plan, as if it had never been scheduled."""
        if plan.work:
            self._stopwatch.withdraw()
            self._ahead.forget()
        for work in plan.work:
            sequence = self.roster.sequences[work.sequence]
            sequence.in_flight -= 1
            sequence.num_scheduled -= work.num_known
            if sequence.finished:
                self.roster.forget_if_idle(sequence)

    def stats(self) -> Stats:
        pools, answers = self.cache.pools, self._intake.answers
        held = [request for request in self.roster.requests.values() if request.held]
        return Stats(
            running=len(self.roster.running),
            waiting=self.num_waiting,
            blocks_free=sum(pool.free for pool in pools),
            blocks_used=sum(pool.used for pool in pools),
            blocks_cached=sum(pool.cached for pool in pools),
            blocks_total=sum(pool.total for pool in pools),
            steps=self._steps,
            preemptions=self._preemption.count,
            batched_tokens=self._batched_tokens,
            waiting_grammar=sum(request.unfinished for request in held),
            incomplete=answers.incomplete,
            drafts=answers.drafts,
            drafted=answers.drafted,
            accepted=answers.accepted,
            waiting_tokens=self.waiting_tokens,
        )

    def check(self) -> None:
        """Raise AssertionError if any invariant is broken. For tests and idle moments."""
        self.cache.check(s.kv for s in self.roster.sequences.values())
        self.roster.check()
        assert len(self.roster.running) <= self.limits.sequences

    def _learn_cost(self, plan: StepPlan) -> None:
        """How long a step took says how much of a prompt the next ones may take."""
        if not plan.work:
            return
        known = [work.num_known for work in plan.work]
        streams = known.count(1)
        self._chunks.learn(self._stopwatch.end(), streams, sum(known) - streams)
