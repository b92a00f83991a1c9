"""A scheduler over a model that needs no tensors and trusts nobody.

The model keeps a "KV cache": for every slot, a fingerprint of all the tokens up to the one
that was computed there (and of what the cache must not be shared across). Before it samples,
it looks at every position of the sequence through the block table that the plan gives, so a
block that is stale, overwritten, not yet computed or somebody else's is noticed at once.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, cycle, islice
from typing import Any

from msgspec.structs import replace

from rosellm.roseinfer.cache.blocks import BlockPool
from rosellm.roseinfer.cache.manager import CacheManager
from rosellm.roseinfer.messages import Add, FinishReason, Logprobs, Output, Pooled, Want
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.scheduling.limits import Limits
from rosellm.roseinfer.scheduling.scheduler import Scheduler
from rosellm.roseinfer.scheduling.sequence import Sequence as Scheduled
from rosellm.roseinfer.step import (
    UNKNOWN,
    LogitRow,
    Sample,
    StepPlan,
    StepResult,
    Work,
    WorkResult,
)

Fingerprint = int
END = 2
"""Sampled now and then, so that answers can end; prompts are made of 0 and 1."""


# -- what every answer must be ----------------------------------------------------------------


def next_token(tokens: Sequence[int], params: SamplingParams, choice: int, position: int) -> int:
    """A pure function of all that came before, the seed, the choice and the position."""
    content = array("q", [params.seed, choice, position, *tokens]).tobytes()
    draw = hashlib.blake2b(content, digest_size=1).digest()[0]
    token = END if draw >= 224 else draw % 2
    if token in params.stop_token_ids and position < params.min_tokens:
        return next(other for other in (0, 1, END) if other not in params.stop_token_ids)
    return token


def alone(add: Add, choice: int, max_model_len: int) -> tuple[list[int], FinishReason]:
    """What a choice comes to when nothing else exists, from its first token on."""
    answer: list[int] = []
    while (reason := finish_reason(add, answer, max_model_len)) is None:
        answer.append(next_token([*add.prompt, *answer], add.params, choice, len(answer)))
    return answer, reason


def finish_reason(add: Add, answer: list[int], max_model_len: int) -> FinishReason | None:
    """Whether, and why, an answer is complete."""
    params = add.params
    if len(answer) > params.min_tokens and answer[-1] in params.stop_token_ids:
        return "stop"
    longest = min(params.max_tokens, max_model_len - len(add.prompt))
    return "length" if len(answer) == longest else None


def score(tokens: Sequence[int]) -> Logprobs:
    """Of the last of these tokens, given the others."""
    return Logprobs(-float(hash(tuple(tokens)) % 1000))


def scores(add: Add) -> list[Logprobs]:
    """What a request is to be told of its prompt, by its first choice."""
    if add.params.prompt_logprobs is None or add.want == "pooled":
        return []
    return [score(add.prompt[: end + 1]) for end in range(1, len(add.prompt))]


def vector(add: Add) -> Pooled:
    return Pooled(array("q", add.prompt).tobytes())


# -- the model --------------------------------------------------------------------------------


@dataclass
class Owner:
    """What a sequence is made of, by the test's own account; the last tokens may be drafts."""

    add: Add
    choice: int
    tokens: list[int]
    drafts: int = 0

    def fingerprints(self, end: int) -> list[Fingerprint]:
        root = hash((self.add.tenant, self.add.cache_salt))
        chain = accumulate(self.tokens[:end], lambda *pair: hash(pair), initial=root)
        return list(chain)[1:]


class WatchedPool(BlockPool):
    """Forgets what a block held when it is handed out; looks at it when it is published."""

    def __init__(self, total: int, block_size: int) -> None:
        super().__init__(total)
        self.kv: list[Fingerprint | None] = [None] * (total * block_size)
        self.evictions: list[int] = []
        self._block_size = block_size
        self._contents: dict[bytes, Fingerprint | None] = {}

    def allocate(self, count: int, owner: str = "") -> list[int]:
        blocks = super().allocate(count, owner)
        assert len(blocks) == count
        for block in blocks:
            self.kv[self._slots(block)] = [None] * self._block_size
        return blocks

    def publish(self, block: int, block_hash: bytes) -> None:
        super().publish(block, block_hash)
        content = self.kv[self._slots(block)]
        assert None not in content, "a block is published that is not computed"
        known = self._contents.setdefault(block_hash, content[-1])
        assert known == content[-1], "one hash, two contents"

    def write(self, block: int, offset: int, value: Fingerprint) -> None:
        assert self.references(block) == 1, "a shared block is written to"
        assert self._hash[block] is None, "a published block is written to"
        self.kv[block * self._block_size + offset] = value

    def _slots(self, block: int) -> slice:
        return slice(block * self._block_size, (block + 1) * self._block_size)

    def _evict(self, asking: str) -> int:
        self.evictions.append(block := super()._evict(asking))
        return block


class FakeModel:
    """Executes plans over the pools' fingerprints.

    Args:
        owner: who a sequence number belongs to.
        max_model_len, longest_draft: limits that the scheduler was given.
    """

    def __init__(
        self,
        pools: Sequence[WatchedPool],
        windows: Sequence[int | None],
        block_size: int,
        owner: Callable[[int], Owner],
        max_model_len: int,
        longest_draft: int,
    ) -> None:
        self.max_model_len = max_model_len
        self.longest_draft = longest_draft
        self._pools = pools
        self._windows = windows
        self._block_size = block_size
        self._owner = owner
        self._late: dict[int, int] = {}

    def execute(self, plan: StepPlan, before: Submitted | None = None) -> StepResult:
        """Run a plan; ``before`` is the one that was submitted before it, and has run."""
        plan = self._with_awaited(plan, before)
        # The past must be in the cache before this step writes anything.
        for work in plan.work:
            self._verify(work, work.start)
            self._check_drafts(work)
        for work in plan.work:
            self._write(work)
        return StepResult(tuple(self._result(work) for work in plan.work))

    def _with_awaited(self, plan: StepPlan, before: Submitted | None) -> StepPlan:
        """The plan with its awaited tokens: from what was sampled, as a device does it."""
        self._late = {}
        rows = [] if before is None or before.result is None else before.rows
        return StepPlan(tuple(self._arrived(work, rows) for work in plan.work))

    def _arrived(self, work: Work, rows: Sequence[tuple[int, int]]) -> Work:
        if work.awaits is None:
            return work
        sequence, token = rows[work.awaits]
        assert sequence == work.sequence, "another's token is awaited"
        assert work.tokens == (UNKNOWN,)
        self._late[sequence] = token
        logits = tuple(
            replace(row, history=(*row.history[:-1], token) if row.history else ())
            for row in work.logits
        )
        return replace(work, tokens=(token,), logits=logits, awaits=None)

    def _reader(self, work: Work) -> Owner:
        """The owner as this work sees it: with the drafts behind all that is known."""
        owner = self._owner(work.sequence)
        if work.sequence in self._late:
            past = owner.tokens[: work.start]
            assert len(past) == work.start, "only one token of a sequence may be awaited"
            token = self._late[work.sequence]
            assert owner.tokens[work.start : work.start + 1] in ([], [token])
            owner = Owner(owner.add, owner.choice, [*past, token])
        drafts = work.tokens[max(0, len(owner.tokens) - work.start) :]
        return Owner(owner.add, owner.choice, [*owner.tokens, *drafts], len(drafts))

    def _check_drafts(self, work: Work) -> None:
        owner = self._reader(work)
        assert work.drafts == tuple(owner.tokens[len(owner.tokens) - owner.drafts :])
        assert work.num_known + owner.drafts == len(work.tokens)
        assert owner.drafts <= self.longest_draft
        if owner.drafts:
            answer = owner.tokens[len(owner.add.prompt) :]
            assert len(answer) < owner.add.params.max_tokens, "the last token needs no draft"
            assert len(owner.tokens) < self.max_model_len

    def _verify(self, work: Work, end: int) -> None:
        expected = self._reader(work).fingerprints(end)
        for pool, window, table in zip(self._pools, self._windows, work.tables, strict=True):
            first = 0 if window is None else max(work.start - window + 1, 0)
            found = [pool.kv[self._slot(table, position)] for position in range(first, end)]
            assert found == expected[first:], f"sequence {work.sequence} reads another's cache"

    def _write(self, work: Work) -> None:
        owner = self._reader(work)
        end = work.start + len(work.tokens)
        assert 0 <= work.start < end <= len(owner.tokens)
        assert list(work.tokens) == owner.tokens[work.start : end]
        values = owner.fingerprints(end)
        for pool, table in zip(self._pools, work.tables, strict=True):
            held = [block for block in table if block != pool.total]
            assert len(set(held)) == len(held)
            for position in range(work.start, end):
                block, offset = divmod(position, self._block_size)
                pool.write(table[block], offset, values[position])

    def _result(self, work: Work) -> WorkResult:
        owner = self._reader(work)
        end = work.start + len(work.tokens)
        at_end = end == len(owner.tokens)
        pooled = owner.add.want == "pooled"
        samples = not pooled and owner.add.params.max_tokens > 0
        rows = 1 + owner.drafts if at_end and samples else 0
        assert len(work.logits) == rows, "a token is sampled at the end, and around each draft"
        assert work.pool == (at_end and pooled)
        self._verify(work, end)
        return WorkResult(
            samples=tuple(
                self._sample(owner, row, work.start, len(owner.tokens) - owner.drafts + index)
                for index, row in enumerate(work.logits)
            ),
            scores=self._scores(owner, work),
            vector=vector(owner.add) if work.pool else None,
        )

    def _scores(self, owner: Owner, work: Work) -> tuple[Logprobs, ...]:
        if work.scoring is None:
            return ()
        assert owner.choice == 0
        assert work.scoring.top == owner.add.params.prompt_logprobs
        first = work.start + work.scoring.offset + 1
        end = first + len(work.scoring.targets)
        assert end <= min(work.start + len(work.tokens) + 1, len(owner.add.prompt))
        assert list(work.scoring.targets) == owner.add.prompt[first:end]
        return tuple(map(score, [owner.add.prompt[: i + 1] for i in range(first, end)]))

    def _sample(self, owner: Owner, row: LogitRow, start: int, end: int) -> Sample:
        """The token after the first ``end``, drafts that stand before it included."""
        tokens, prompt_len = owner.tokens[:end], len(owner.add.prompt)
        assert (row.params, row.choice) == (owner.add.params, owner.choice)
        assert row.offset == end - 1 - start
        assert row.position == end - prompt_len
        if row.params.needs_history:
            assert (list(row.history), row.prompt_len) == (tokens, prompt_len)
        return Sample(next_token(tokens, row.params, row.choice, row.position))

    def _slot(self, table: Sequence[int], position: int) -> int:
        block, offset = divmod(position, self._block_size)
        return table[block] * self._block_size + offset


# -- the harness ------------------------------------------------------------------------------


@dataclass
class Asked:
    """One request and what has come of it so far, ``generated`` included."""

    add: Add
    answers: list[list[int]]
    finish: list[FinishReason | None]
    cached: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    scores: list[Logprobs] = field(default_factory=list)
    over: bool = False

    @property
    def unfinished(self) -> int:
        return 0 if self.over else sum(reason is None for reason in self.finish)


@dataclass
class Submitted:
    """A plan on its way, and its result once it has run."""

    plan: StepPlan
    before: Submitted | None = None
    result: StepResult | None = None

    @property
    def rows(self) -> list[tuple[int, int]]:
        """What was sampled by each logit row, and for whom."""
        assert self.result is not None, "it has not run"
        pairs = zip(self.plan.work, self.result.work, strict=True)
        return [(work.sequence, each.token) for work, done in pairs for each in done.samples]


class Harness:
    """A scheduler, its cache, the fake model and a clock; keeps its own books on all of them."""

    def __init__(
        self,
        *,
        block_size: int = 4,
        num_blocks: int = 64,
        windows: Sequence[int | None] = (None,),
        max_num_seqs: int = 8,
        budget: int = 64,
        max_model_len: int | None = None,
        prefix_cache: bool = True,
        ageing: float = 10.0,
        whole_prompts: bool = False,
        lookup: bool = False,
        longest_draft: int = 0,
        itl_target: float | None = None,
        stretch: float = 2.0,
        cost: Callable[[StepPlan], float] = lambda _: 0.0,
    ) -> None:
        self.now = 0.0
        self._cost = cost
        least = [-(-(w - 1) // block_size) + 2 - (-budget // block_size) for w in windows if w]
        sizes = [num_blocks if w is None else min(num_blocks, least.pop(0)) for w in windows]
        self.pools = [WatchedPool(size, block_size) for size in sizes]
        self.cache = CacheManager(self.pools, block_size, prefix_cache, windows)
        self.max_model_len = max_model_len or num_blocks * block_size
        self.scheduler = Scheduler(
            self.cache,
            Limits(max_num_seqs, budget, self.max_model_len, longest_draft, whole_prompts),
            ageing=ageing,
            clock=lambda: self.now,
            lookup=lookup,
            itl_target=itl_target,
            stretch=stretch,
        )
        self.model = FakeModel(
            self.pools, windows, block_size, self._owner, self.max_model_len, longest_draft
        )
        self.asked: dict[int, Asked] = {}
        self.in_flight: deque[Submitted] = deque()
        self._last: Submitted | None = None
        self.steps = 0
        self._sequences: dict[int, tuple[int, int]] = {}

    # -- what a client does --

    def add(
        self,
        prompt: Sequence[int],
        *,
        n: int = 1,
        generated: Sequence[Sequence[int]] = (),
        tenant: str = "",
        share: float = 1.0,
        priority: int = 0,
        cache_salt: str = "",
        want: Want = "tokens",
        prediction: Sequence[int] = (),
        timeout: float | None = None,
        **params: Any,
    ) -> int:
        """Add a request; ``params`` are sampling parameters. Returns its id."""
        add = Add(
            len(self.asked) + 1,
            list(prompt),
            SamplingParams(**{"seed": 0, "max_tokens": 4, **params}),
            n=n,
            generated=[list(tokens) for tokens in generated],
            tenant=tenant,
            share=share,
            priority=priority,
            cache_salt=cache_salt,
            want=want,
            prediction=list(prediction),
            deadline=None if timeout is None else self.now + timeout,
        )
        answers = [list(tokens) for tokens in generated] or [[] for _ in range(n)]
        self.asked[add.id] = Asked(add, answers, [None] * n)
        self.scheduler.add(add)
        return add.id

    def abort(self, id: int) -> Output | None:
        row = self.scheduler.abort(id)
        asked = self.asked.get(id)
        if asked is None or asked.over:
            assert row is None, "an abort of nothing is no news"
        else:
            assert row is not None
            assert (row.id, row.finish, row.last) == (id, "abort", True)
            asked.over = True
        return row

    # -- what the engine does --

    def expire(self) -> list[Output]:
        """End what has run out of time; nothing else may end."""
        rows = self.scheduler.expire()
        for row in rows:
            asked = self.asked[row.id]
            assert (row.finish, row.last, row.tokens) == ("error", True, [])
            assert row.error is not None
            assert (row.error.status, row.error.code) == (504, "timeout")
            assert asked.add.deadline is not None
            assert asked.add.deadline <= self.now
            assert not asked.over
            asked.over = True
        return rows

    def submit(self) -> StepPlan:
        self.expire()
        idle = [s for s in self.scheduler.roster.running.values() if not s.in_flight]
        plan = self.scheduler.schedule()
        self._check_preemptions(idle)
        for work in plan.work:
            sequence = self.scheduler.roster.sequences[work.sequence]
            self._sequences[work.sequence] = (sequence.request.id, sequence.choice)
        self._check_plan(plan)
        submitted = Submitted(plan, self._last)
        self.in_flight.append(submitted)
        if plan.work:
            self._last = submitted
        return plan

    def execute(self, count: int | None = None) -> None:
        """Run those of the submitted plans, or of the oldest ``count``, that have not run yet."""
        for submitted in islice(self.in_flight, count):
            if submitted.result is None:
                submitted.result = self.model.execute(submitted.plan, submitted.before)
                submitted.before = None

    def execute_again(self) -> None:
        """Run the newest plan once more: nothing may change by it."""
        before = self.in_flight[-1].before
        self.execute()
        kv = [list(pool.kv) for pool in self.pools]
        newest = self.in_flight[-1]
        if before is None and any(work.awaits is not None for work in newest.plan.work):
            return  # what it awaited is not kept
        assert self.model.execute(newest.plan, before) == newest.result
        assert kv == [pool.kv for pool in self.pools]

    def complete(self) -> list[Output]:
        """Take in the result of the oldest plan."""
        self.execute(1)
        submitted = self.in_flight.popleft()
        assert submitted.result is not None
        self.now += self._cost(submitted.plan)
        rows = self.scheduler.update(submitted.plan, submitted.result)
        self.steps += 1
        for row in rows:
            self._record(row)
        return rows

    def discard(self) -> None:
        """Take the newest plan back."""
        self.scheduler.discard(self.in_flight.pop().plan)

    def step(self) -> list[Output]:
        self.submit()
        return self.complete()

    def run(self, depths: Sequence[int] = (1,)) -> None:
        """Step until everything is answered.

        ``depths`` are the numbers of plans that may be in flight at once, in turn.
        """
        most = 100 + 5 * self.max_model_len * self._unfinished
        for depth in islice(cycle(depths), most):
            self.submit()
            while self.in_flight and (
                len(self.in_flight) >= depth or self.scheduler.hold or not self.scheduler.has_work
            ):
                self.complete()
            self.check()
            if not self.scheduler.has_work:
                return
        raise AssertionError("the scheduler makes no progress")

    # -- what must hold --

    def answer(self, id: int, choice: int = 0) -> list[int]:
        return self.asked[id].answers[choice]

    def alone(self, id: int, choice: int = 0) -> list[int]:
        return alone(self.asked[id].add, choice, self.max_model_len)[0]

    def check(self) -> None:
        """What holds between any two calls."""
        self.scheduler.check()
        stats = self.scheduler.stats()
        assert stats.running + stats.waiting == self._unfinished
        assert stats.waiting >= 0
        assert self.scheduler.has_work == any(not asked.over for asked in self.asked.values())
        assert stats.blocks_free + stats.blocks_used + stats.blocks_cached == stats.blocks_total
        for pool in self.pools:
            used = sum(pool.references(block) > 0 for block in range(pool.total))
            assert (used, pool.free + pool.used + pool.cached) == (pool.used, pool.total)
            assert pool.available == pool.free + pool.cached

    def check_drained(self) -> None:
        """What holds when every request has been answered."""
        self.check()
        assert not self.scheduler.has_work
        assert not self.scheduler.roster.sequences
        assert all(asked.over for asked in self.asked.values())
        assert all(pool.used == 0 for pool in self.pools)
        self.cache.flush()
        assert all(pool.free == pool.total for pool in self.pools)

    @property
    def _unfinished(self) -> int:
        return sum(asked.unfinished for asked in self.asked.values())

    def _owner(self, number: int) -> Owner:
        id, choice = self._sequences[number]
        asked = self.asked[id]
        return Owner(asked.add, choice, [*asked.add.prompt, *asked.answers[choice]])

    def _check_preemptions(self, idle: Iterable[Scheduled]) -> None:
        """No urgent one yields, within a tenant; nor the last one of the least served tenant."""
        running = self.scheduler.roster.running
        preempted = [s for s in idle if s.number not in running]
        kept = [s for s in idle if s.number in running]
        left = {s.tenant for s in self.scheduler.roster.sequences.values() if not s.finished}
        for gone in preempted:
            own = [s for s in kept if s.tenant is gone.tenant]
            assert all(s.rank < gone.rank for s in own), "an urgent one yields"
            served_less = any(tenant.served < gone.tenant.served for tenant in left)
            urgent = all(s.urgency < gone.urgency for s in kept)
            assert own or served_less or urgent, "it was its turn"

    def _check_plan(self, plan: StepPlan) -> None:
        assert plan.num_tokens <= self.scheduler.limits.tokens
        assert len(plan.work) <= self.scheduler.limits.sequences
        rows = sum(len(work.logits) for work in plan.work)
        assert rows <= max(self.scheduler.limits.sequences, 1 + self.model.longest_draft)
        assert len({work.sequence for work in plan.work}) == len(plan.work)
        for work in plan.work:
            asked = self.asked[self._sequences[work.sequence][0]]
            assert not asked.over
            assert asked.add.deadline is None or self.now < asked.add.deadline

    def _record(self, row: Output) -> None:
        asked = self.asked[row.id]
        assert not asked.over, "a row after the last one"
        assert asked.finish[row.choice] is None, "a row after the choice's last one"
        assert row.tokens or row.finish or row.prompt_logprobs
        assert row.error is None
        assert 0 <= row.cached <= len(asked.add.prompt) - (not asked.add.generated)
        answer = asked.answers[row.choice]
        assert row.choice == 0 or not row.prompt_logprobs
        asked.scores += row.prompt_logprobs or []
        if row.choice == 0 and (row.tokens or row.finish):
            assert asked.scores == scores(asked.add), "all of them, in order, before a token"
        if asked.add.want == "pooled":
            assert (row.tokens, row.pooled, row.finish) == ([], vector(asked.add), "stop")
            asked.over, asked.finish = row.last, ["stop"]
            assert row.last
            return
        for token in row.tokens:
            assert finish_reason(asked.add, answer, self.max_model_len) is None
            tokens = [*asked.add.prompt, *answer]
            assert token == next_token(tokens, asked.add.params, row.choice, len(answer))
            answer.append(token)
        if row.tokens or row.finish:
            assert row.finish == finish_reason(asked.add, answer, self.max_model_len)
        asked.steps.append(self.steps)
        asked.cached.append(row.cached)
        asked.finish[row.choice] = row.finish
        asked.over = row.last
        assert row.last == (None not in asked.finish)
