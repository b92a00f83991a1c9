"""What the routes share: the pipeline, the tokenised prompts, and one model's name."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from msgspec import UNSET

import rosellm
from rosellm.roseinfer.config import UnknownParameters
from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.messages import TIMED_OUT, Ready
from rosellm.roseinfer.server.answer import LONGEST_TIMER_S, Answer, Watcher
from rosellm.roseinfer.server.call import Call
from rosellm.roseinfer.server.grammars import Grammars
from rosellm.roseinfer.server.job import Job
from rosellm.roseinfer.server.journal import Journal, Record
from rosellm.roseinfer.server.limits import Account
from rosellm.roseinfer.server.metrics import Metrics
from rosellm.roseinfer.server.open_request import refusal
from rosellm.roseinfer.server.pipeline import Pipeline
from rosellm.roseinfer.server.prompts import Prompts
from rosellm.roseinfer.server.sampling import Sampling
from rosellm.roseinfer.server.schemas.answering import AnswerFields
from rosellm.roseinfer.server.schemas.responses import MaybeTimings
from rosellm.roseinfer.server.schemas.sampling import SamplingFields
from rosellm.roseinfer.server.state_metrics import Source
from rosellm.roseinfer.server.tracing import Tracing

T = TypeVar("T")

SEED_NAME = "roseinfer-gpt2"
"""What the seed's own curl commands call their model: whatever is served answers to it."""


@dataclass(frozen=True)
class Service:
    """One served model.

    Attributes:
        name: what requests call it in ``model``.
        unknown_parameters: what a field that no schema knows comes to.
        journal: where requests for text are logged.
        max_body: bytes of a request's body. Parsing it holds up the event loop, about 7 ms a
            megabyte at worst.
        log_prompts: whether what a request says may stand in its log line.
        tracing: where requests are traced.
        block_size: tokens in a block of the KV cache.
        max_choices: answers that one HTTP request may ask for; more could never be queued.
        max_prompt_tokens: of all its prompts, for the same reason.
        max_answer_tokens: that its choices x max_tokens may come to.
        default_timeout: seconds that a request may take that does not say it.
    """

    name: str
    ready: Ready
    pipeline: Pipeline
    prompts: Prompts
    sampling: Sampling
    max_choices: int = 1024
    max_prompt_tokens: int = 1 << 62
    max_answer_tokens: int = 1 << 62
    default_timeout: float | None = None
    unknown_parameters: UnknownParameters = "reject"
    journal: Journal | None = None
    max_body: int = 8 << 20
    log_prompts: bool = False
    block_size: int = 16
    tracing: Tracing | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def check_model(self, asked: str, param: str | None = "model") -> None:
        """Refuse a request that is meant for another model."""
        if asked not in (self.name, SEED_NAME):
            raise RequestError(
                f"the model {asked[:100]!r} does not exist; this server has {self.name!r}",
                status=404,
                param=param,
                code="model_not_found",
            )

    def check_generates(self, param: str | None = "model") -> None:
        """Refuse a request for text where the model gives only vectors."""
        if not self.ready.generates:
            raise RequestError(
                f"{self.name!r} is an embedding model: it writes no text, only vectors"
                " (/v1/embeddings)",
                param=param,
                code="unsupported_model",
            )

    def check_choices(self, prompts: int, n: int) -> None:
        """Refuse a fan-out that is too wide before anything is made of it."""
        if prompts * n > self.max_choices:
            raise RequestError(
                f"{prompts} prompts with {n} choices each are more than the {self.max_choices}"
                " answers that one request may ask for",
                param="n",
                code="invalid_value",
            )

    def job(
        self,
        prompt: list[int],
        asked: SamplingFields,
        max_tokens: int,
        *,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        n: int | None = None,
        **more: Any,
    ) -> Job:
        """The job of one prompt.

        Args:
            n: choices to make, where that is not what was asked for.
            logprobs, prompt_logprobs: see ``SamplingParams``.
            more: fields of ``Job``.
        """
        return Job(
            prompt=prompt,
            params=self.sampling.params(
                asked, max_tokens, logprobs=logprobs, prompt_logprobs=prompt_logprobs
            ),
            n=n or asked.choices,
            stop=asked.stops,
            priority=asked.priority or 0,
            cache_salt=asked.cache_salt or "",
            skip_special_tokens=asked.skip_special_tokens is not False,
            include_stop=bool(asked.include_stop_str_in_output),
            **more,
        )

    async def grammar(self, asked: AnswerFields, tenant: str) -> str:
        """The grammar that an answer must match, checked; none if it is free."""
        return "" if asked.form is None else await self.grammars.checked(*asked.form, tenant)

    @cached_property
    def grammars(self) -> Grammars:
        return Grammars(self.prompts.tokenizer, self.ready.vocab_size)

    @cached_property
    def metrics(self) -> Metrics:
        ready, pipeline = self.ready, self.pipeline
        source = Source(
            lambda: pipeline.stats,
            lambda: pipeline.step_sizes,
            lambda: pipeline.restarts,
            lambda: pipeline.engine_pid,
            build={
                "version": rosellm.__version__,
                "fingerprint": ready.fingerprint,
                "dtype": ready.dtype,
                "device": ready.device,
            },
            cache={
                "block_size": str(self.block_size),
                "num_gpu_blocks": str(ready.capacity_tokens // self.block_size),
            },
        )
        return Metrics(self.name, source)

    def check_tokens(self, jobs: Sequence[Job]) -> None:
        """Refuse what is too much for one request, before it is spread out into choices."""
        answers = sum(job.n * job.params.max_tokens for job in jobs)
        if answers > self.max_answer_tokens:
            raise RequestError(
                f"choices x max_tokens come to {answers}; one request may ask for"
                f" {self.max_answer_tokens} tokens",
                param="max_tokens",
                code="invalid_value",
            )
        prompts = sum(len(job.prompt) for job in jobs)
        if len(jobs) > 1 and prompts > self.max_prompt_tokens:
            raise RequestError(
                f"the prompts have {prompts} tokens together, and the queue holds"
                f" {self.max_prompt_tokens}: send fewer at a time",
                param="prompt",
                code="invalid_value",
            )

    def timed(self, jobs: Sequence[Job], call: Call, timeout: float | None) -> list[Job]:
        """The jobs, with the time by which they have to be done."""
        deadline = self._deadline(call, timeout)
        return [replace(job, deadline=deadline) for job in jobs]

    async def in_time(self, work: Awaitable[T], call: Call, timeout: float | None) -> T:
        """The result of what comes before the engine: reading a prompt, checking a grammar.

        Args:
            timeout: see ``answer``.

        Raises:
            RequestError: 504, the request's time was over before.
        """
        deadline = self._deadline(call, timeout)
        if deadline is None:
            return await work
        limit = asyncio.timeout(min(deadline - time.monotonic(), LONGEST_TIMER_S))
        try:
            async with limit:
                return await work
        except TimeoutError:
            if limit.expired():
                raise refusal(TIMED_OUT) from None
            raise

    def _deadline(self, call: Call, timeout: float | None) -> float | None:
        seconds = self.default_timeout if timeout is None else timeout
        return None if seconds is None else call.arrived + seconds

    async def answer(self, jobs: Sequence[Job], call: Call, timeout: float | None = None) -> Answer:
        """Begin to answer jobs, and log them if that is asked for; see ``Pipeline.generate``.

        Args:
            timeout: seconds from the call on, where the request says it.

        Raises:
            RequestError: they are too much for one request, or who asks has no tokens left.
        """
        call.account.check_tokens()
        self.check_tokens(jobs)
        jobs = self.timed(jobs, call, timeout)
        watchers: list[Watcher] = [self.metrics.watch(jobs), call.timeline.watch(jobs)]
        if self.journal is not None:
            watchers.append(Record(self.journal, self.ready.fingerprint, call, jobs))
        return await self.begin(jobs, call.account, watchers)

    async def begin(
        self, jobs: Sequence[Job], account: Account, watchers: Sequence[Watcher] = ()
    ) -> Answer:
        """``Pipeline.generate`` for a tenant, whose tokens it takes."""
        spending = account.spend(sum(len(job.prompt) for job in jobs))
        own = [replace(job, tenant=account.tenant, share=account.share) for job in jobs]
        try:
            return await self.pipeline.generate(own, [*watchers, spending])
        except Exception as error:  # what is refused costs nothing
            spending.see(error)
            raise

    def timings(self, asked: AnswerFields, call: Call) -> MaybeTimings:
        """Where the request's time went so far, if it asks for that."""
        return call.timeline.report() if asked.return_timings else UNSET

    def head(self, prefix: str, asked: AnswerFields, call: Call) -> dict[str, Any]:
        """The fields that every chunk of an answer begins with."""
        return {
            "id": f"{prefix}-{asked.request_id or secrets.token_hex(16)}",
            "created": int(time.time()),
            "model": self.name,
            "system_fingerprint": self.ready.fingerprint,
            "warnings": call.warnings or UNSET,
        }


async def _served(request: Request) -> Service:  # async: FastAPI runs others in a thread
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(_served)]
