"""The engine as a plain, synchronous object: ``add``, ``control``, ``step``.

A process, a thread, asyncio and offline use are thin wrappers round this one.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from rosellm.roseinfer.cache.manager import CacheManager
from rosellm.roseinfer.config import QUEUED_CACHES, SchedulerConfig
from rosellm.roseinfer.engine.pace import Pace
from rosellm.roseinfer.engine.shortage import LEAST_TOKENS, Shortage
from rosellm.roseinfer.grammar.compiler import Compiler, Wanted
from rosellm.roseinfer.grammar.masks import Bits, Masker
from rosellm.roseinfer.grammar.vocabulary import Vocabulary
from rosellm.roseinfer.messages import (
    Abort,
    Add,
    Flush,
    Output,
    Outputs,
    Ready,
    RowError,
)
from rosellm.roseinfer.request import MAX_SEED
from rosellm.roseinfer.scheduling.intake import SEE_LOG
from rosellm.roseinfer.scheduling.limits import Limits
from rosellm.roseinfer.scheduling.scheduler import Scheduler
from rosellm.roseinfer.step import StepPlan, StepResult, Work, WorkResult

log = logging.getLogger(__name__)

_GRAMMAR_WAIT_S = 0.005
"""How long a step waits for a grammar when there is nothing else to do."""

_HOPELESS = 8
"""Requests in a row of which none could be computed: then it is not theirs."""


class PendingResult(Protocol):
    def result(self) -> StepResult: ...


@dataclass(frozen=True)
class Submitted:
    """A plan on its way."""

    plan: StepPlan
    pending: PendingResult


@dataclass(frozen=True)
class Failed:
    """What could not even be submitted: it fails when its result is asked for."""

    error: Exception

    def result(self) -> StepResult:
        raise self.error


class Runner(Protocol):
    """What executes plans, in their order: the model runner, or a fake one in tests.

    ``masks`` are those of the plan's logit rows, where one of them is constrained. A plan may await
    tokens of the one that was executed before it; that one's result need not be asked for.
    ``probe`` raises if the device computes nothing any more, whoever asks for it.
    """

    def execute(self, plan: StepPlan, masks: Future[Bits] | None = None) -> PendingResult: ...

    def make_room(self, error: Exception, *, again: bool = False) -> bool:
        """See ``Room``."""

    def probe(self) -> None: ...


class EngineCore:
    """Schedules requests over a runner.

    With ``overlap`` a step is submitted before the result of the one before is asked for, so that
    the device has work while the host takes results in and plans. Without, there is one at a time.
    All else is the same.

    Args:
        runner: executes plans.
        facts: what the engine came to; ``facts.max_model_len`` and ``vocab_size`` bound
            requests.
        cache: block tables of the runner's cache.
        step_tokens: tokens in one step.
        whole_prompts: see ``Limits``.
        vocabulary: loads what grammars need to know of the tokenizer, when one is needed.
        overlap: whether steps are planned ahead.
    """

    def __init__(
        self,
        runner: Runner,
        facts: Ready,
        config: SchedulerConfig,
        *,
        cache: CacheManager,
        step_tokens: int,
        whole_prompts: bool = False,
        vocabulary: Callable[[], Vocabulary] | None = None,
        overlap: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._compiler = Compiler(vocabulary) if vocabulary else None
        self._masker = Masker(facts.vocab_size)
        self.facts = facts
        self._runner = runner
        self._max_queue = config.max_queue
        self._max_queue_tokens = config.max_queue_tokens or QUEUED_CACHES * facts.capacity_tokens
        self._longest = _longest(facts, cache, step_tokens, whole_prompts)
        self.scheduler = Scheduler(
            cache,
            Limits(
                sequences=config.max_num_seqs,
                tokens=step_tokens,
                length=self._longest,
                draft=config.num_speculative_tokens,
                whole_prompts=whole_prompts,
            ),
            ageing=config.priority_ageing_s,
            clock=clock,
            lookup=config.speculate == "ngram",
            itl_target=None if config.itl_target_ms is None else config.itl_target_ms / 1000,
            output_weight=config.fair_output_weight,
            stretch=config.neighbour_stretch,
        )
        self._overlap = overlap
        self._flight: deque[Submitted] = deque()
        self._rows: list[Output] = []
        self._barren = 0
        self._shortage = Shortage(self.scheduler)
        self.pace = Pace(clock)

    @property
    def runner(self) -> Runner:
        return self._runner

    def add(self, message: Add) -> None:
        """Take a request in. A refusal is the request's only row in the next outputs."""
        try:
            error = self._refusal(message)
        except Exception:
            log.exception("a request could not be looked at")
            error = RowError(f"the request could not be taken in: {SEE_LOG}")
        if error is not None:
            self._rows.append(Output(message.id, finish="error", error=error, last=True))
            return
        self.scheduler.add(message)
        if message.grammar and self._compiler is not None:
            generated = [(message.generated or [[]] * message.n)[each] for each in message.wanted]
            params = message.params
            room = min(params.max_tokens, self._longest - len(message.prompt))
            wanted = Wanted(message.id, message.grammar, generated, room, params.stop_token_ids)
            self._compiler.submit(wanted)

    def control(self, message: Abort | Flush) -> None:
        """Carry out a control; what it does not know (any more) it ignores."""
        if isinstance(message, Flush):
            self.scheduler.cache.flush()
            return
        for request in message.ids:
            if self._compiler is not None:
                self._compiler.forget(request)
            row = self.scheduler.abort(request)
            if row is not None:
                self._rows.append(row)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._rows) or bool(self._flight)

    def step(self) -> Outputs:
        """Schedule, execute, update.

        Raises:
            Exception: whatever is computed fails: the engine or its device is broken.
        """
        self._end_expired()
        self._take_grammars()
        plan = self.scheduler.schedule()
        tokens = plan.num_tokens + sum(each.plan.num_tokens for each in self._flight)
        if tokens:
            with self.pace.step(tokens):
                self._advance(plan)
        rows, self._rows = self._rows, []
        return Outputs(rows, self.scheduler.stats())

    def _end_expired(self) -> None:
        """Requests whose deadline has come run no more."""
        for row in self.scheduler.expire():
            if self._compiler is not None:
                self._compiler.forget(row.id)
            self._rows.append(row)

    def _advance(self, plan: StepPlan) -> None:
        """Submit a plan, and take in what is on its way until no more is than may be."""
        ahead = self._submit(plan)
        if len(self._flight) <= ahead:  # nothing was: the next one can be planned already
            ahead = self._submit(self.scheduler.schedule())
        while len(self._flight) > ahead:
            self._take_in()

    def _submit(self, plan: StepPlan) -> int:
        """Start a plan, if there is anything in it. Returns how many may be on their way now."""
        if not plan.work:
            return 0
        try:
            pending = self._execute(plan)
        except Exception as error:
            pending = Failed(error)
        self._flight.append(Submitted(plan, pending))
        return int(self._overlap and not self.scheduler.hold and not isinstance(pending, Failed))

    def _take_in(self) -> None:
        """Wait for the oldest plan, and take in what came of it."""
        oldest = self._flight.popleft()
        try:
            result = oldest.pending.result()
            self._barren = 0
        except Exception as error:
            self._call_back()
            self._runner.probe()
            plan = self.scheduler.settled(oldest.plan)
            short = self._shortage.meet(self._runner, plan, error)
            result = self._in_parts(plan, error, short)
        self._rows += self.scheduler.update(oldest.plan, result)

    def _call_back(self) -> None:
        """Take back what was submitted on top of a plan that failed: it will be planned again."""
        while self._flight:
            newest = self._flight.pop()
            with suppress(Exception):
                newest.pending.result()  # it writes to its blocks until it is through
            self.scheduler.discard(newest.plan)

    def _in_parts(self, plan: StepPlan, error: Exception, short: bool) -> StepResult:
        """Run a plan that failed once more, perhaps ``short`` of memory. Work that makes it fail
        comes back as a fault, all other work computed.

        A part of a plan is a plan, and nothing of one that failed has been taken in: so the halves
        are run, and their halves, until what fails is alone. What had merely been too much at once
        is computed on the way.
        """
        if len(plan.work) == 1:
            return self._in_chunks(plan.work[0], error) if short else self._fault(error)
        middle = len(plan.work) // 2
        halves = [
            self._compute(StepPlan(part)) for part in (plan.work[:middle], plan.work[middle:])
        ]
        return StepResult(halves[0].work + halves[1].work)

    def _in_chunks(self, work: Work, error: Exception) -> StepResult:
        """A plan's only work, for which there was not enough memory: half of its tokens each."""
        if not work.divisible or len(work.tokens) <= LEAST_TOKENS:
            return self._fault(error)
        middle = len(work.tokens) // 2
        [first] = self._compute(StepPlan((work.part(0, middle),))).work
        if first.fault:
            return StepResult((first,))
        [second] = self._compute(StepPlan((work.part(middle, len(work.tokens)),))).work
        return StepResult((first.followed_by(second),))

    def _compute(self, plan: StepPlan) -> StepResult:
        """Run a plan that awaits nothing, with no other on its way."""
        try:
            result = self._execute(plan).result()
        except Exception as error:
            self._runner.probe()
            return self._in_parts(plan, error, self._runner.make_room(error))
        self._barren = 0
        return result

    def _fault(self, error: Exception) -> StepResult:
        """What comes of a plan's only work when it fails."""
        log.error("a request could not be computed", exc_info=error)
        self._barren += 1
        if self._barren == _HOPELESS:
            raise error
        return StepResult((WorkResult(fault=SEE_LOG),))

    def _execute(self, plan: StepPlan) -> PendingResult:
        """Start the plan; its masks are made meanwhile."""
        masked = self.scheduler.constrained(plan)
        if not masked:
            return self._runner.execute(plan)
        rows = sum(len(work.logits) for work in plan.work)
        return self._runner.execute(plan, self._masker.start(masked, rows))

    def _take_grammars(self) -> None:
        """Let requests run whose grammars are compiled by now; wait for one if all do."""
        if self._compiler is None or not self._compiler.busy:
            return
        idle = not (self.scheduler.runnable or self._rows or self._flight)
        for compiled in self._compiler.finished(_GRAMMAR_WAIT_S if idle else 0.0):
            if compiled.error:
                error = RowError(f"the grammar cannot be used: {compiled.error}", status=400)
                self._rows.append(self.scheduler.fail(compiled.request, error))
            else:
                self.scheduler.constrain(compiled.request, compiled.constraints)

    def _refusal(self, message: Add) -> RowError | None:
        """Why a request cannot be served; the API side has checked most of it before."""
        limit = self._longest
        longest = max(map(len, message.generated), default=0)
        if not message.prompt:
            return RowError("the prompt is empty", status=400, param="prompt")
        known = all(0 <= choice < message.n for choice in message.choices)
        if message.n < 1 or len(message.generated) not in (0, message.n) or not known:
            return RowError("n must be at least 1 and match what is resumed", status=400, param="n")
        if not 0 <= message.params.seed <= MAX_SEED:
            return RowError(f"seed must be 0 to {MAX_SEED}", status=400, param="seed")
        if message.grammar and self._compiler is None:
            return RowError("this engine has no vocabulary for grammars", status=400)
        if message.want == "pooled" and (message.n > 1 or longest):
            return RowError("a prompt has one vector", status=400, param="n")
        if message.want == "tokens" and not self.facts.generates:
            return RowError("this model gives vectors, not tokens", status=400, param="model")
        most = message.params.max_tokens
        samples = message.want == "tokens" and most > 0
        if most < 0 or (longest >= most and (samples or longest)):
            return RowError("nothing is left to generate", status=400, param="max_tokens")
        if len(message.prompt) + longest + samples > limit:
            return RowError(
                f"the prompt has {len(message.prompt)} tokens; the context holds {limit}, "
                "answer included",
                status=400,
                code="context_length_exceeded",
            )
        groups = [group for group in _token_ids(message) if group]
        if min(map(min, groups)) < 0 or max(map(max, groups)) >= self.facts.vocab_size:
            return RowError("the request has token ids outside the vocabulary", status=400)
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(message.params, name)
            if count is not None and not 0 <= count <= self.facts.vocab_size:
                limit = self.facts.vocab_size
                return RowError(f"{name} must be 0 to {limit}", status=400, param=name)
        if message.n > self._max_queue:
            return RowError(
                f"n must be at most {self._max_queue}, as many as the queue holds",
                status=400,
                param="n",
            )
        return None if message.resumed else self._no_room(message)

    def _no_room(self, message: Add) -> RowError | None:
        """Why a request cannot be queued now. Alone in the queue it always can."""
        waiting, tokens = self.scheduler.num_waiting, self.scheduler.waiting_tokens
        if waiting + len(message.wanted) > self._max_queue:
            return _queue_full(f"{waiting} waiting")
        more = len(message.prompt) + sum(map(len, message.generated))
        if waiting and tokens + more > self._max_queue_tokens:
            return _queue_full(f"{tokens} prompt tokens waiting")
        return None


def _queue_full(state: str) -> RowError:
    return RowError(f"the queue is full ({state}); try again later", status=503, code="queue_full")


def _longest(facts: Ready, cache: CacheManager, step_tokens: int, whole_prompts: bool) -> int:
    """Tokens of the longest sequence that could ever be computed."""
    bounds = [facts.max_model_len, cache.longest(step_tokens)]
    bounds.append(step_tokens if whole_prompts else None)
    return min(bound for bound in bounds if bound is not None)


def _token_ids(message: Add) -> list[Sequence[int]]:
    """Every token id in a request, wherever it would index something."""
    params = message.params
    biased = [token for token, _ in params.logit_bias]
    return [
        message.prompt,
        *message.generated,
        message.prediction,
        params.stop_token_ids,
        biased,
    ]
