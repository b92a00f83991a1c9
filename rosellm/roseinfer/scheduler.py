"""Who computes what in the next step.

There is no prefill phase and no decode phase: every sequence has tokens, some
of them computed, and each step lets computed tokens catch up within a budget.
The same rule serves prompts, chunks of prompts, prefix hits, decoding,
speculation and resumption after preemption.

A request with a grammar waits, without holding anything, until ``constrain`` brings the states
that its choices start from. These change only in ``update``.

Knows integers only: no tensors, no text. The cycle is ``schedule`` -> run the
plan -> ``update`` (or ``discard``, after which the same work is planned again).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from rosellm.roseinfer.cache.manager import CacheManager, SequenceKV
from rosellm.roseinfer.grammar.constraint import Constraint, GrammarError
from rosellm.roseinfer.grammar.masks import Masked
from rosellm.roseinfer.messages import Add, FinishReason, Output, RowError, Stats, Want
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.step import (
    LogitRow,
    Sample,
    Scoring,
    StepPlan,
    StepResult,
    Work,
    WorkResult,
)


@dataclass(eq=False, slots=True)
class Request:
    """One Add and its choices. Followers wait until the first choice's prompt is cached.

    ``held`` until its grammar is compiled.
    """

    id: int
    unfinished: int
    held: bool = False
    sequences: list[Sequence] = field(default_factory=list)
    followers: list[Sequence] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Sequence:
    """One choice of a request: its tokens, and how far they are computed.

    ``num_scheduled`` counts what submitted plans cover, ``num_computed`` what has come
    back; they differ only while a plan is in flight. ``rank`` orders by virtual arrival
    time: a level of priority is worth a fixed number of seconds, so that everything that
    waits overtakes, in time, all that arrives later. ``num_scored`` prompt positions have
    been reported; the last one has nothing to be scored against.
    """

    number: int
    request: Request
    choice: int
    params: SamplingParams
    prompt_len: int
    tokens: list[int]
    rank: tuple[float, int]
    kv: SequenceKV
    want: Want = "tokens"
    num_scored: int = 0
    num_computed: int = 0
    num_scheduled: int = 0
    in_flight: int = 0
    cached: int | None = None
    finished: bool = False
    constraint: Constraint | None = None

    @property
    def pending(self) -> int:
        """Tokens that are known but not yet covered by a plan."""
        return len(self.tokens) - self.num_scheduled

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def samples(self) -> bool:
        """Whether tokens follow the known ones; otherwise the sequence ends with them."""
        return self.want == "tokens" and self.params.max_tokens > 0

    @property
    def unscored(self) -> bool:
        """Whether prompt positions are still to be scored. Siblings leave it to the first."""
        wanted = self.params.prompt_logprobs is not None and self.choice == 0
        return wanted and self.want == "tokens" and self.num_scored < self.prompt_len - 1


class _Draft:
    """A plan in the making: work by sequence number, and what is left of the budget."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.work: dict[int, Work] = {}

    def put(self, work: Work) -> None:
        self.work[work.sequence] = work
        self.budget -= len(work.tokens)

    def drop(self, sequence: Sequence) -> None:
        work = self.work.pop(sequence.number, None)
        if work is not None:
            self.budget += len(work.tokens)


class Scheduler:
    """Continuous batching over a paged cache.

    Args:
        cache: block tables.
        max_num_seqs: sequences in one step.
        max_num_batched_tokens: tokens in one step.
        max_model_len: a sequence ends at this many tokens.
        ageing: seconds of waiting that are worth one level of priority.
        clock: seconds, monotonic.
        whole_prompts: whether a sequence must be computed in one step, as an encoder's.
    """

    def __init__(
        self,
        cache: CacheManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        ageing: float,
        clock: Callable[[], float],
        whole_prompts: bool = False,
    ) -> None:
        self.cache = cache
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self._ageing = ageing
        self._clock = clock
        self._whole_prompts = whole_prompts
        self._requests: dict[int, Request] = {}
        self._sequences: dict[int, Sequence] = {}
        self._waiting: list[tuple[tuple[float, int], Sequence]] = []
        self._num_waiting = 0
        self._running: dict[int, Sequence] = {}
        self._serial = 0
        self._steps = 0
        self._preemptions = 0
        self._batched_tokens = 0
        self._incomplete = 0

    # -- requests ---------------------------------------------------------

    def add(self, message: Add) -> None:
        """Queue a request. Choices after the first wait until its prompt is in the cache."""
        request = Request(message.id, unfinished=message.n, held=bool(message.grammar))
        for choice in range(message.n):
            sequence = self._new_sequence(message, request, choice)
            request.sequences.append(sequence)
            self._sequences[sequence.number] = sequence
        self._requests[message.id] = request
        self._num_waiting += message.n
        request.followers = request.sequences[1:]
        if not request.held:
            self._enqueue(request.sequences[0])

    def constrain(self, request_id: int, constraints: Iterable[Constraint]) -> None:
        """A request's grammar is compiled: queue it, with where each choice begins."""
        request = self._requests[request_id]
        for sequence, constraint in zip(request.sequences, constraints, strict=True):
            sequence.constraint = constraint
        request.held = False
        self._enqueue(request.sequences[0])

    def fail(self, request_id: int, error: RowError) -> Output:
        """End a request now, with an error."""
        self._end(self._requests[request_id])
        return Output(request_id, finish="error", error=error, last=True)

    def abort(self, request_id: int) -> Output | None:
        """End a request now; None if it is not known (any more)."""
        request = self._requests.get(request_id)
        if request is None:
            return None
        self._end(request)
        return Output(request_id, finish="abort", last=True)

    @property
    def num_waiting(self) -> int:
        """Sequences that are not running, those that wait for their first choice included."""
        return self._num_waiting

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    @property
    def runnable(self) -> bool:
        """Whether something can be planned, or waits for what is planned to come back."""
        return any(not request.held for request in self._requests.values())

    # -- the step ---------------------------------------------------------

    def constrained(self, plan: StepPlan) -> list[Masked]:
        """The plan's logit rows that a grammar constrains."""
        found: list[Masked] = []
        row = 0
        for work in plan.work:
            sequence = self._sequences[work.sequence]
            if sequence.constraint is not None:
                found += _masked(sequence, sequence.constraint, work, row)
            row += len(work.logits)
        return found

    def schedule(self) -> StepPlan:
        """Plan the next step within the token budget."""
        draft = _Draft(self.max_num_batched_tokens)
        for sequence in self._by_urgency():
            count = min(sequence.pending, draft.budget)
            if count > 0 and self._make_room(sequence, count, draft):
                draft.put(self._work(sequence, count))
        while draft.budget > 0 and (admitted := self._admit(draft.budget)) is not None:
            count = min(admitted.pending, draft.budget)
            self._make_room(admitted, count, draft)
            draft.put(self._work(admitted, count))
        plan = StepPlan(tuple(draft.work.values()))
        for work in plan.work:
            self._sequences[work.sequence].in_flight += 1
            self._sequences[work.sequence].num_scheduled += len(work.tokens)
        return plan

    def update(self, plan: StepPlan, result: StepResult) -> list[Output]:
        """Take in what a plan computed; return the news, at most a row per sequence."""
        rows = []
        for work, done in zip(plan.work, result.work, strict=True):
            sequence = self._sequences[work.sequence]
            sequence.in_flight -= 1
            if sequence.finished:
                self._forget_if_idle(sequence)
                continue
            sequence.num_computed += len(work.tokens)
            self.cache.publish(sequence.kv, sequence.tokens, sequence.num_computed)
            self.cache.trim(sequence.kv, sequence.num_computed)
            if sequence.num_computed >= sequence.prompt_len:
                self._release_followers(sequence)
            row = self._accept(sequence, work, done)
            if row is not None:
                rows.append(row)
        self._steps += 1
        self._batched_tokens = plan.num_tokens
        return rows

    def discard(self, plan: StepPlan) -> None:
        """Take back the newest submitted plan, as if it had never been scheduled."""
        for work in plan.work:
            sequence = self._sequences[work.sequence]
            sequence.in_flight -= 1
            sequence.num_scheduled -= len(work.tokens)
            if sequence.finished:
                self._forget_if_idle(sequence)

    def stats(self) -> Stats:
        pools = self.cache.pools
        return Stats(
            running=len(self._running),
            waiting=self.num_waiting,
            blocks_free=sum(pool.free for pool in pools),
            blocks_used=sum(pool.used for pool in pools),
            blocks_cached=sum(pool.cached for pool in pools),
            blocks_total=sum(pool.total for pool in pools),
            steps=self._steps,
            preemptions=self._preemptions,
            batched_tokens=self._batched_tokens,
            waiting_grammar=sum(r.unfinished for r in self._requests.values() if r.held),
            incomplete=self._incomplete,
        )

    def check(self) -> None:
        """Raise AssertionError if any invariant is broken. For tests and idle moments."""
        self.cache.check(s.kv for s in self._sequences.values())
        assert len(self._running) <= self.max_num_seqs
        for sequence in self._sequences.values():
            assert 0 <= sequence.num_computed <= sequence.num_scheduled <= len(sequence.tokens)
            assert sequence.in_flight or sequence.num_computed == sequence.num_scheduled
            assert sequence.in_flight or not sequence.finished
            held = len(sequence.kv.tables[0]) * self.cache.block_size
            assert sequence.num_scheduled <= held

    # -- inside -----------------------------------------------------------

    def _new_sequence(self, message: Add, request: Request, choice: int) -> Sequence:
        self._serial += 1
        arrival = self._clock() + message.priority * self._ageing
        generated = message.generated[choice] if message.generated else []
        return Sequence(
            number=self._serial,
            request=request,
            choice=choice,
            params=message.params,
            prompt_len=len(message.prompt),
            tokens=[*message.prompt, *generated],
            rank=(arrival, self._serial),
            kv=self.cache.new_sequence(message.tenant, message.cache_salt),
            want=message.want,
        )

    def _enqueue(self, sequence: Sequence) -> None:
        heapq.heappush(self._waiting, (sequence.rank, sequence))

    def _sweep(self) -> None:
        """Let go of ended sequences in the queue when most of it is made of them."""
        if len(self._waiting) > 2 * self._num_waiting + 64:
            self._waiting = [entry for entry in self._waiting if not entry[1].finished]
            heapq.heapify(self._waiting)

    def _release_followers(self, leader: Sequence) -> None:
        """The first choice's prompt is in the cache: its siblings can share it."""
        for sequence in leader.request.followers:
            self._enqueue(sequence)
        leader.request.followers = []

    def _by_urgency(self) -> list[Sequence]:
        """Running sequences: those that need one token first, so that streams keep pace."""
        return sorted(self._running.values(), key=lambda s: (s.pending > 1, s.rank))

    def _make_room(self, sequence: Sequence, count: int, draft: _Draft) -> bool:
        """Hold blocks for ``count`` more tokens, at the cost of less urgent sequences."""
        if sequence.number not in self._running:
            return False  # preempted earlier in this very step
        while not self.cache.grow(sequence.kv, sequence.num_scheduled + count):
            victim = max(self._running.values(), key=lambda s: s.rank)
            if victim.in_flight:
                return False  # until its plan has come back, its blocks cannot be taken
            self._preempt(victim)
            draft.drop(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Give up the blocks; the tokens will be computed again, to the same bits."""
        del self._running[sequence.number]
        self.cache.release(sequence.kv)
        sequence.num_computed = sequence.num_scheduled = 0
        self._enqueue(sequence)
        self._num_waiting += 1
        self._preemptions += 1

    def _admit(self, budget: int) -> Sequence | None:
        """Start the most urgent waiting sequence, if it and the running ones have room.

        Nothing overtakes it: a large request would otherwise starve behind small ones.
        """
        while self._waiting and self._waiting[0][1].finished:
            heapq.heappop(self._waiting)
        if not self._waiting or len(self._running) >= self.max_num_seqs:
            return None
        sequence = self._waiting[0][1]
        if self._whole_prompts and len(sequence.tokens) > budget:
            return None
        hits = self._match(sequence)
        chunk, reserve = self.max_num_batched_tokens, len(self._running)
        if hits is None or not self.cache.can_take(hits, len(sequence.tokens), chunk, reserve):
            return None
        heapq.heappop(self._waiting)
        self._num_waiting -= 1
        sequence.num_computed = sequence.num_scheduled = self.cache.take(sequence.kv, hits)
        if sequence.cached is None:
            sequence.cached = min(sequence.num_computed, sequence.prompt_len)
        self._running[sequence.number] = sequence
        return sequence

    def _match(self, sequence: Sequence) -> list[list[int]] | None:
        """What of a sequence is in the cache; scores must be computed, whatever is there."""
        if sequence.unscored:
            return self.cache.no_match()
        return self.cache.match(sequence.kv, sequence.tokens)

    def _work(self, sequence: Sequence, count: int) -> Work:
        start = sequence.num_scheduled
        logits: tuple[LogitRow, ...] = ()
        last = count == sequence.pending
        if last and sequence.samples:
            params = sequence.params
            row = LogitRow(
                offset=count - 1,
                params=params,
                choice=sequence.choice,
                position=sequence.num_output,
                history=tuple(sequence.tokens) if params.needs_history else (),
                prompt_len=sequence.prompt_len,
                spare=self._spare(sequence),
            )
            logits = (row,)
        return Work(
            sequence=sequence.number,
            start=start,
            tokens=tuple(sequence.tokens[start : start + count]),
            tables=tuple(tuple(table) for table in sequence.kv.tables),
            logits=logits,
            scoring=self._scoring(sequence, start, count),
            pool=last and sequence.want == "pooled",
        )

    def _spare(self, sequence: Sequence) -> int | None:
        """A token whose score may be told in the place of the sampled one's."""
        if sequence.constraint is None or sequence.params.logprobs is None:
            return None
        return sequence.constraint.spare(self._room(sequence))

    def _scoring(self, sequence: Sequence, start: int, count: int) -> Scoring | None:
        """The chunk's prompt positions that have not been reported yet."""
        if not sequence.unscored:
            return None
        first = max(start, sequence.num_scored)
        targets = sequence.tokens[first + 1 : min(start + count + 1, sequence.prompt_len)]
        top = sequence.params.prompt_logprobs or 0
        return Scoring(first - start, tuple(targets), top) if targets else None

    def _accept(self, sequence: Sequence, work: Work, done: WorkResult) -> Output | None:
        """The news of one sequence, or None."""
        row = Output(
            sequence.request.id,
            sequence.choice,
            cached=sequence.cached or 0,
            prompt_logprobs=list(done.scores) if work.scoring else None,
            pooled=done.vector,
        )
        sequence.num_scored += len(done.scores)
        if sequence.samples:
            try:
                self._append(sequence, done.samples, row)
            except GrammarError as error:
                message = f"the answer cannot go on: {error}"
                return self.fail(sequence.request.id, RowError(message, status=400))
        elif sequence.num_computed == len(sequence.tokens):
            row.finish = "stop" if sequence.want == "pooled" else "length"
        if row.finish is not None:
            self._finish(sequence)
        row.last = row.finish is not None and sequence.request.unfinished == 0
        return row if row.tokens or row.finish or row.prompt_logprobs else None

    def _append(self, sequence: Sequence, samples: tuple[Sample, ...], row: Output) -> None:
        """Append sampled tokens until one of them ends the sequence."""
        if samples and sequence.params.logprobs is not None:
            row.logprobs = []
        for sample in samples:
            taken = self._constrained_sample(sequence, sample, row)
            if taken is None:
                break
            sequence.tokens.append(taken.token)
            row.tokens.append(taken.token)
            if row.logprobs is not None and taken.logprobs is not None:
                row.logprobs.append(taken.logprobs)
            row.finish = self._finish_reason(sequence, taken.token, row)
            if row.finish is not None:
                break

    def _constrained_sample(self, sequence: Sequence, sample: Sample, row: Output) -> Sample | None:
        """What comes of a sample under the sequence's grammar; None if the answer ends before it.

        Raises:
            GrammarError: nothing may come, and the answer may not end.
        """
        constraint = sequence.constraint
        if constraint is None:
            return sample
        if constraint.stuck:
            if not constraint.accepts:
                raise GrammarError("the vocabulary has no token that its grammar allows here")
            row.finish, row.complete = "stop", True
            return None
        token = constraint.take(sample.token, self._room(sequence) - 1)
        if token is None:
            row.finish = "length"
            return None
        return sample if token == sample.token else Sample(token, sample.spare)

    def _room(self, sequence: Sequence) -> int:
        """Tokens that may still come."""
        context = self.max_model_len - len(sequence.tokens)
        return min(sequence.params.max_tokens - sequence.num_output, context)

    def _finish_reason(self, sequence: Sequence, token: int, row: Output) -> FinishReason | None:
        params, constraint = sequence.params, sequence.constraint
        if token in params.stop_token_ids and sequence.num_output > params.min_tokens:
            return "stop"
        room = self._room(sequence)
        if constraint is not None and constraint.ended(room):
            row.complete = True
            return "stop"
        if room > 0:
            return None
        self._incomplete += constraint is not None and not constraint.accepts
        return "length"

    def _end(self, request: Request) -> None:
        for sequence in request.sequences:
            if not sequence.finished:
                self._finish(sequence)

    def _finish(self, sequence: Sequence) -> None:
        """End a sequence. Its blocks go when no submitted plan refers to them any more."""
        sequence.finished = True
        if self._running.pop(sequence.number, None) is None:
            self._num_waiting -= 1
            self._sweep()
        sequence.request.unfinished -= 1
        if sequence.request.unfinished == 0:
            del self._requests[sequence.request.id]
        self._forget_if_idle(sequence)

    def _forget_if_idle(self, sequence: Sequence) -> None:
        if sequence.in_flight == 0:
            self.cache.release(sequence.kv)
            del self._sequences[sequence.number]


def _masked(sequence: Sequence, constraint: Constraint, work: Work, row: int) -> Iterator[Masked]:
    """A sequence's logit rows, of which the first is the step's ``row``-th."""
    first = work.logits[0].offset + 1 if work.logits else 0
    for index, logit in enumerate(work.logits):
        drafts = work.tokens[first : logit.offset + 1]
        may_stop = logit.position >= sequence.params.min_tokens
        yield Masked(row + index, constraint, drafts, may_stop)
