"""Who computes what in the next step.

There is no prefill phase and no decode phase: every sequence has tokens, some
of them computed, and each step lets computed tokens catch up within a budget.
The same rule serves prompts, chunks of prompts, prefix hits, decoding,
speculation and resumption after preemption.

Whose turn it is, ``fairness.py`` says: tenants are served equally, and within a tenant the most
urgent goes first. Streams come before prompts, so that they keep pace; how much of a prompt a step
takes beside them, ``chunks.py`` says. A tenant that is behind may take places and blocks from one
that holds many, one sequence after the other, until they hold as much.

A request with a grammar waits, without holding anything, until ``constrain`` brings the states
that its choices start from. These change only in ``update``.

A sequence whose known tokens all fit may have drafts behind them, computed in what the step has
left over: nobody waits, and nobody is preempted, for tokens that may be wrong. The step samples
after each of them, and a draft that equals its position's own sample has been computed already.
What was computed for the others lies in slots that are written again.

Knows integers only: no tensors, no text. The cycle is ``schedule`` -> run the
plan -> ``update`` (or ``discard``, after which the same work is planned again).
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator

from rosellm.roseinfer.cache.manager import CacheManager
from rosellm.roseinfer.chunks import Chunks
from rosellm.roseinfer.deadlines import Deadlines
from rosellm.roseinfer.fairness import Queue, Tenant
from rosellm.roseinfer.grammar.constraint import Constraint, GrammarError
from rosellm.roseinfer.grammar.masks import Masked
from rosellm.roseinfer.messages import TIMED_OUT, Add, FinishReason, Output, RowError, Stats
from rosellm.roseinfer.phases import Phases
from rosellm.roseinfer.sequence import Request, Sequence
from rosellm.roseinfer.speculation.drafter import Drafter
from rosellm.roseinfer.step import (
    LogitRow,
    Sample,
    Scoring,
    StepPlan,
    StepResult,
    Work,
    WorkResult,
)

log = logging.getLogger(__name__)

SEE_LOG = "the engine failed over it; the server's log has the details"
"""What a client is told of an exception: its own text is for whoever runs the server."""


class _Sketch:
    """A plan in the making: known tokens and drafts of each sequence, and what is left."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.known: dict[Sequence, int] = {}
        self.drafts: dict[Sequence, tuple[int, ...]] = {}
        self.by_tenant: Counter[Tenant] = Counter()

    def put(self, sequence: Sequence, count: int) -> None:
        self.known[sequence] = count
        self.by_tenant[sequence.tenant] += count
        self.budget -= count

    def drop(self, sequence: Sequence) -> None:
        count = self.known.pop(sequence, 0)
        self.by_tenant[sequence.tenant] -= count
        self.budget += count


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
        lookup: whether every sequence drafts what it repeats.
        longest_draft: tokens that one sequence may have drafted in a step.
        itl_target: seconds between a stream's tokens that prompts are not to exceed, or None.
        output_weight: see ``Queue``.
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
        lookup: bool = False,
        longest_draft: int = 0,
        itl_target: float | None = None,
        output_weight: float = 1.0,
    ) -> None:
        self.cache = cache
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self._ageing = ageing
        self._clock = clock
        self._whole_prompts = whole_prompts
        self._lookup = lookup
        self._longest_draft = longest_draft
        self._requests: dict[int, Request] = {}
        self._sequences: dict[int, Sequence] = {}
        self._queue = Queue(output_weight)
        self._deadlines = Deadlines()
        self._chunks = Chunks(itl_target)
        self._begun: deque[float] = deque()
        self._updated = clock()
        self._running: dict[int, Sequence] = {}
        self._serial = 0
        self._steps = 0
        self._preemptions = 0
        self._batched_tokens = 0
        self._incomplete = 0
        self._drafted = 0
        self._accepted = 0

    # -- requests ---------------------------------------------------------

    def add(self, message: Add) -> None:
        """Queue a request. Choices after the first wait until its prompt is in the cache."""
        choices = message.wanted
        tenant = self._queue.open(message.tenant)
        request = Request(message.id, tenant, unfinished=len(choices), held=bool(message.grammar))
        for choice in choices:
            sequence = self._new_sequence(message, request, choice)
            shared = sequence.prompt_len if request.sequences else 0
            self._queue.enter(sequence, len(sequence.tokens) - shared)
            request.sequences.append(sequence)
            self._sequences[sequence.number] = sequence
        self._requests[message.id] = request
        if message.deadline is not None:
            self._deadlines.add(message.id, message.deadline)
        request.followers = request.sequences[1:]
        if not request.held:
            self._queue.offer(request.sequences[0])

    def constrain(self, request_id: int, constraints: Iterable[Constraint]) -> None:
        """A request's grammar is compiled: queue it, with where each choice begins."""
        request = self._requests[request_id]
        for sequence, constraint in zip(request.sequences, constraints, strict=True):
            sequence.constraint = constraint
            sequence.phases.enter("queue", self._clock())
        request.held = False
        self._queue.offer(request.sequences[0])

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

    def expire(self) -> list[Output]:
        """End every request whose deadline has come, whatever it does or waits for."""
        expired = [id for id in self._deadlines.expired(self._clock()) if id in self._requests]
        self._deadlines.sweep(len(self._requests), self._requests.__contains__)
        return [self.fail(id, TIMED_OUT) for id in expired]

    @property
    def num_waiting(self) -> int:
        """Sequences that are not running, those that wait for their first choice included."""
        return self._queue.waiting

    @property
    def waiting_tokens(self) -> int:
        """Tokens of what waits; choices share their prompt."""
        return self._queue.tokens

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
        sketch = _Sketch(self.max_num_batched_tokens)
        running = sorted(self._running.values(), key=lambda s: s.urgency)
        streams = [sequence for sequence in running if sequence.pending <= 1]
        for sequence in streams:
            self._plan(sequence, sketch)
        prompts = _by_tenant(sequence for sequence in running if sequence.pending > 1)
        beyond = sketch.budget - self._prompt_budget(sketch, streams, prompts)
        sketch.budget -= beyond
        self._plan_prompts(prompts, sketch)
        sketch.budget += beyond
        self._add_drafts(sketch)
        work = [
            self._work(sequence, count, sketch.drafts.get(sequence, ()))
            for sequence, count in sketch.known.items()
        ]
        for sequence, count in sketch.known.items():
            sequence.in_flight += 1
            sequence.num_scheduled += count
        if work:
            self._begun.append(self._clock())
        return StepPlan(tuple(work))

    def update(self, plan: StepPlan, result: StepResult) -> list[Output]:
        """Take in what a plan computed; return the news, at most a row per sequence."""
        self._measure(plan)
        rows = []
        for work, done in zip(plan.work, result.work, strict=True):
            sequence = self._sequences[work.sequence]
            sequence.in_flight -= 1
            if sequence.finished:
                self._queue.charge(sequence, work.start + work.num_known)
                self._forget_if_idle(sequence)
                continue
            row = self._news(sequence, work, done)
            if row is not None:
                rows.append(row)
        self._steps += 1
        self._batched_tokens = plan.num_tokens
        return rows

    def discard(self, plan: StepPlan) -> None:
        """Take back the newest submitted plan, as if it had never been scheduled."""
        if plan.work:
            self._begun.pop()
        for work in plan.work:
            sequence = self._sequences[work.sequence]
            sequence.in_flight -= 1
            sequence.num_scheduled -= work.num_known
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
            drafted=self._drafted,
            accepted=self._accepted,
            waiting_tokens=self.waiting_tokens,
        )

    def check(self) -> None:
        """Raise AssertionError if any invariant is broken. For tests and idle moments."""
        self.cache.check(s.kv for s in self._sequences.values())
        unfinished = [s for s in self._sequences.values() if not s.finished]
        self._queue.check(s for s in unfinished if s.number not in self._running)
        assert not any(s.ready or s.queued for s in self._running.values())
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
        now = self._clock()
        arrival = now + message.priority * self._ageing
        generated = message.generated[choice] if message.generated else []
        drafter = self._new_drafter(message)
        if drafter:
            drafter.follow(generated)
        return Sequence(
            number=self._serial,
            request=request,
            choice=choice,
            params=message.params,
            prompt_len=len(message.prompt),
            tokens=[*message.prompt, *generated],
            rank=(arrival, self._serial),
            kv=self.cache.new_sequence(message.tenant, message.cache_salt),
            phases=Phases("grammar" if request.held else "queue", now),
            drafter=drafter,
            want=message.want,
        )

    def _new_drafter(self, message: Add) -> Drafter | None:
        if not self._longest_draft or not (message.prediction or self._lookup):
            return None
        return Drafter(message.prediction, lookup=self._lookup, most=self._longest_draft)

    def _release_followers(self, leader: Sequence) -> None:
        """The first choice's prompt is in the cache: its siblings can share it."""
        for sequence in leader.request.followers:
            self._queue.offer(sequence)
        leader.request.followers = []

    def _prompt_budget(
        self, sketch: _Sketch, streams: list[Sequence], prompts: dict[Tenant, list[Sequence]]
    ) -> int:
        """Tokens of the step for prompts, so that the streams beside them keep pace."""
        keeping = {s.tenant for s in streams if s in sketch.known or s.in_flight}
        if not keeping or self._whole_prompts:
            return sketch.budget
        asking = {*prompts, *self._queue.ready()}
        neighbours = bool(asking) and len(asking | keeping) > 1
        return self._chunks.limit(sketch.budget, neighbours=neighbours)

    def _plan(self, sequence: Sequence, sketch: _Sketch) -> None:
        """Let a running sequence compute as much as the budget and the cache allow."""
        count = min(sequence.pending, sketch.budget)
        if count > 0 and self._make_room(sequence, count, sketch):
            sketch.put(sequence, count)

    def _plan_prompts(self, prompts: dict[Tenant, list[Sequence]], sketch: _Sketch) -> None:
        """Share the budget among prompts, running and waiting, the least served tenant first.

        Within a tenant those that run come first. Nothing overtakes a waiting one that has to go
        on waiting: a large request would otherwise starve behind small ones.
        """
        waiting = self._queue.ready()
        while sketch.budget > 0:
            tenant = self._queue.next(prompts, waiting, sketch.by_tenant)
            if tenant is None:
                return
            if prompts.get(tenant):
                self._plan(prompts[tenant].pop(0), sketch)
            elif (admitted := self._admit(tenant, sketch)) is not None:
                self._plan(admitted, sketch)
            else:
                waiting = []

    def _make_room(self, sequence: Sequence, count: int, sketch: _Sketch) -> bool:
        """Hold blocks for ``count`` more tokens, at the cost of less urgent sequences."""
        if sequence.number not in self._running:
            return False  # preempted earlier in this very step
        while not self.cache.grow(sequence.kv, sequence.num_scheduled + count):
            victim = max(self._running.values(), key=lambda s: s.urgency)
            if victim.in_flight:
                return False  # until its plan has come back, its blocks cannot be taken
            self._preempt(victim)
            sketch.drop(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Give up the blocks; the tokens will be computed again, to the same bits."""
        del self._running[sequence.number]
        self.cache.release(sequence.kv)
        sequence.num_computed = sequence.num_scheduled = 0
        sequence.phases.preempted(self._clock())
        self._queue.enter(sequence, len(sequence.tokens))
        self._queue.offer_again(sequence)
        self._preemptions += 1

    def _admit(self, tenant: Tenant, sketch: _Sketch) -> Sequence | None:
        """Start a tenant's most urgent waiting sequence, if it and the running ones have room."""
        sequence = tenant.head()
        if self._whole_prompts and len(sequence.tokens) > sketch.budget:
            return None
        if len(self._running) >= self.max_num_seqs and not self._take_place(tenant, sketch):
            return None
        hits = self._match(sequence)
        if hits is None or not self._find_room(sequence, hits, sketch):
            return None
        self._queue.leave(sequence)
        sequence.phases.admitted(self._clock())
        sequence.num_computed = sequence.num_scheduled = self.cache.take(sequence.kv, hits)
        if sequence.cached is None:
            sequence.cached = min(sequence.num_computed, sequence.prompt_len)
        self._running[sequence.number] = sequence
        return sequence

    def _take_place(self, tenant: Tenant, sketch: _Sketch) -> bool:
        """Whether one that has two places more than a tenant, and was served more, gave one up."""
        return self._take_from_another(tenant, 1, lambda _: 1, sketch)

    def _find_room(self, sequence: Sequence, hits: list[list[int]], sketch: _Sketch) -> bool:
        """Whether there are blocks for a waiting sequence, others' that hold more included.

        What its tenant has running can end first: meanwhile it leaves others' cached prefixes.
        """
        tenant, length, chunk = sequence.tenant, len(sequence.tokens), self.max_num_batched_tokens
        spare = any(other.tenant is tenant for other in self._running.values())
        owner = tenant.name if spare else None
        while not self.cache.can_take(hits, length, chunk, len(self._running), owner):
            need = self.cache.blocks_at_most(length, chunk)
            if not self._take_from_another(tenant, need, lambda s: s.kv.held, sketch):
                return False
        return True

    def _take_from_another(
        self, tenant: Tenant, need: int, size: Callable[[Sequence], int], sketch: _Sketch
    ) -> bool:
        """Preempt a sequence of another tenant, if that one was served more and holds so much more
        that it is not the one with less afterwards; what a sequence holds, ``size`` says."""
        held: Counter[Tenant] = Counter()
        least_urgent: dict[Tenant, Sequence] = {}
        for sequence in sorted(self._running.values(), key=lambda s: s.rank):
            held[sequence.tenant] += size(sequence)
            if not sequence.in_flight:
                least_urgent[sequence.tenant] = sequence
        victims = [
            sequence
            for other, sequence in least_urgent.items()
            if other.served > tenant.served and held[other] - size(sequence) >= held[tenant] + need
        ]
        if not victims:
            return False
        victim = max(victims, key=lambda s: (held[s.tenant], s.urgency))
        self._preempt(victim)
        sketch.drop(victim)
        return True

    def _measure(self, plan: StepPlan) -> None:
        """Learn how long a step took; with several plans on their way, from the last one's end."""
        if not plan.work:
            return
        now = self._clock()
        began = max(self._begun.popleft(), self._updated)
        self._updated = now
        prompts = sum(work.num_known for work in plan.work if work.num_known > 1)
        streams = sum(work.num_known == 1 for work in plan.work)
        self._chunks.learn(now - began, streams, prompts)

    def _match(self, sequence: Sequence) -> list[list[int]] | None:
        """What of a sequence is in the cache; scores must be computed, whatever is there."""
        if sequence.unscored:
            return self.cache.no_match()
        return self.cache.match(sequence.kv, sequence.tokens)

    def _add_drafts(self, sketch: _Sketch) -> None:
        """Put drafts behind known tokens, in whatever tokens, rows and blocks are left over.

        A step of drafts has no more rows than one without: each takes logits of a whole vocabulary.
        A block stays for everyone who runs.
        """
        rows = max(self.max_num_seqs, 1 + self._longest_draft) - len(sketch.known)
        left = min(sketch.budget, rows)
        wishes = [(s, self._wish(s, left)) for s, n in sketch.known.items() if n == s.pending]
        wishes = sorted((wish for wish in wishes if wish[1]), key=lambda wish: len(wish[1]))
        for index, (sequence, wish) in enumerate(wishes):
            draft = wish[: left // (len(wishes) - index)]
            length = sequence.num_scheduled + sequence.pending + len(draft)
            if draft and self.cache.grow(sequence.kv, length, len(self._running)):
                sketch.drafts[sequence] = draft
                left -= len(draft)

    def _wish(self, sequence: Sequence, limit: int) -> tuple[int, ...]:
        """What a sequence would have drafted. Its last token needs no draft after it.

        A spare token's score is told for the next position alone, so none is drafted with those.
        """
        if sequence.drafter is None or not sequence.samples or self._tells_spares(sequence):
            return ()
        return sequence.drafter.propose(sequence.tokens, min(limit, self._room(sequence) - 1))

    def _work(self, sequence: Sequence, count: int, drafts: tuple[int, ...]) -> Work:
        start = sequence.num_scheduled
        last = count == sequence.pending
        rows = range(1 + len(drafts)) if last and sequence.samples else ()
        return Work(
            sequence=sequence.number,
            start=start,
            tokens=(*sequence.tokens[start : start + count], *drafts),
            tables=tuple(tuple(table) for table in sequence.kv.tables),
            logits=tuple(self._row(sequence, count - 1, drafts[:index]) for index in rows),
            scoring=self._scoring(sequence, start, count),
            pool=last and sequence.want == "pooled",
        )

    def _row(self, sequence: Sequence, last: int, drafts: tuple[int, ...]) -> LogitRow:
        """The row after these drafts, which stand behind the work item's ``last`` known token."""
        params = sequence.params
        return LogitRow(
            offset=last + len(drafts),
            params=params,
            choice=sequence.choice,
            position=sequence.num_output + len(drafts),
            history=(*sequence.tokens, *drafts) if params.needs_history else (),
            prompt_len=sequence.prompt_len,
            spare=self._spare(sequence),
        )

    def _spare(self, sequence: Sequence) -> int | None:
        """A token whose score may be told in the place of the sampled one's."""
        if sequence.constraint is None or not self._tells_spares(sequence):
            return None
        return sequence.constraint.spare(self._room(sequence))

    def _tells_spares(self, sequence: Sequence) -> bool:
        return sequence.constraint is not None and sequence.params.logprobs is not None

    def _scoring(self, sequence: Sequence, start: int, count: int) -> Scoring | None:
        """The chunk's prompt positions that have not been reported yet."""
        if not sequence.unscored:
            return None
        first = max(start, sequence.num_scored)
        targets = sequence.tokens[first + 1 : min(start + count + 1, sequence.prompt_len)]
        top = sequence.params.prompt_logprobs or 0
        return Scoring(first - start, tuple(targets), top) if targets else None

    def _news(self, sequence: Sequence, work: Work, done: WorkResult) -> Output | None:
        """The news of one sequence, or None. Whatever is wrong with it ends its request alone."""
        if done.fault:
            return self._give_up(sequence, done.fault)
        try:
            return self._accept(sequence, work, done)
        except Exception:
            log.exception("what was computed for a request could not be taken in")
            return self._give_up(sequence, SEE_LOG)

    def _give_up(self, sequence: Sequence, fault: str) -> Output:
        """End a request for which something went wrong: what is cached of it may be wrong too."""
        for each in sequence.request.sequences:
            self.cache.retract(each.kv)
        error = RowError(f"the request could not be computed: {fault}", code="engine_error")
        return self.fail(sequence.request.id, error)

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
            accepted = self._append(sequence, work.drafts, done.samples, row)
        except GrammarError as error:
            message = f"the answer cannot go on: {error}"
            return self.fail(sequence.request.id, RowError(message, status=400))
        self._advance(sequence, work.num_known, accepted)
        if not sequence.samples and sequence.num_computed == len(sequence.tokens):
            row.finish = "stop" if sequence.want == "pooled" else "length"
        self._tell_timings(sequence, row)
        if row.finish is not None:
            self._finish(sequence)
        row.last = row.finish is not None and sequence.request.unfinished == 0
        return row if row.tokens or row.finish or row.prompt_logprobs else None

    def _tell_timings(self, sequence: Sequence, row: Output) -> None:
        now = self._clock()
        if (row.tokens and sequence.phases.took_tokens(now)) or row.finish is not None:
            row.timings = sequence.phases.timings(now)

    def _append(
        self,
        sequence: Sequence,
        drafts: tuple[int, ...],
        samples: tuple[Sample, ...],
        row: Output,
    ) -> int:
        """Append sampled tokens until one ends the sequence, or is not what was drafted.

        What was sampled after it does not follow from it. Returns how many drafts were right.
        """
        if samples and sequence.params.logprobs is not None:
            row.logprobs = []
        accepted = 0
        for index, sample in enumerate(samples):
            taken = self._constrained_sample(sequence, sample, row, drafted=index > 0)
            if taken is None:
                accepted -= row.finish is None  # the position is sampled once more
                break
            sequence.tokens.append(taken.token)
            row.tokens.append(taken.token)
            if row.logprobs is not None and taken.logprobs is not None:
                row.logprobs.append(taken.logprobs)
            right = drafts[index : index + 1] == (taken.token,)
            accepted += right
            row.finish = self._finish_reason(sequence, taken.token, row)
            if row.finish is not None or not right:
                break
        if sequence.drafter:
            sequence.drafter.follow(row.tokens)
            sequence.drafter.learn(len(drafts), accepted)
        self._drafted += len(drafts)
        self._accepted += accepted
        return accepted

    def _advance(self, sequence: Sequence, known: int, accepted: int) -> None:
        """Known tokens and right drafts are computed; what was drafted wrongly is not there."""
        self._queue.charge(sequence, sequence.num_computed + known + accepted)
        sequence.num_computed += known + accepted
        sequence.num_scheduled += accepted
        self.cache.publish(sequence.kv, sequence.tokens, sequence.num_computed)
        self.cache.trim(sequence.kv, sequence.num_computed)
        if sequence.num_computed >= sequence.prompt_len:
            self._release_followers(sequence)

    def _constrained_sample(
        self, sequence: Sequence, sample: Sample, row: Output, drafted: bool
    ) -> Sample | None:
        """What comes of a sample under the sequence's grammar; None if the answer ends before it.

        After drafts, None as well if the mask had allowed nothing: the next step will tell why.

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
        if drafted and not constraint.allows(sample.token):
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
            self._queue.leave(sequence)
        sequence.request.unfinished -= 1
        if sequence.request.unfinished == 0:
            del self._requests[sequence.request.id]
            self._queue.close(sequence.tenant)
        self._forget_if_idle(sequence)

    def _forget_if_idle(self, sequence: Sequence) -> None:
        if sequence.in_flight == 0:
            self.cache.release(sequence.kv)
            del self._sequences[sequence.number]


def _by_tenant(sequences: Iterable[Sequence]) -> dict[Tenant, list[Sequence]]:
    found: dict[Tenant, list[Sequence]] = {}
    for sequence in sequences:
        found.setdefault(sequence.tenant, []).append(sequence)
    return found


def _masked(sequence: Sequence, constraint: Constraint, work: Work, row: int) -> Iterator[Masked]:
    """A sequence's logit rows, of which the first is the step's ``row``-th."""
    first = work.logits[0].offset + 1 if work.logits else 0
    for index, logit in enumerate(work.logits):
        drafts = work.tokens[first : logit.offset + 1]
        may_stop = logit.position >= sequence.params.min_tokens
        yield Masked(row + index, constraint, drafts, may_stop)
