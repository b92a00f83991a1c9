"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

from fastapi import APIRouter, Response

from rosellm.roseinfer.server.answer import Answer
from rosellm.roseinfer.server.call import Call, Called
from rosellm.roseinfer.server.collect import StreamedUsage, Tally, collect
from rosellm.roseinfer.server.completion_choices import CompletionChoices
from rosellm.roseinfer.server.defaults import MAX_TOKENS_COMPLETION
from rosellm.roseinfer.server.job import Job
from rosellm.roseinfer.server.json_response import json_response
from rosellm.roseinfer.server.off_loop import Slices
from rosellm.roseinfer.server.schemas.completions import CompletionRequest
from rosellm.roseinfer.server.schemas.responses import Completion, MaybeTimings
from rosellm.roseinfer.server.service import Served, Service
from rosellm.roseinfer.server.streaming import event_stream
from rosellm.roseinfer.server.unknown_fields import TolerantRoute

router = APIRouter(route_class=TolerantRoute)


@router.post("/v1/completions")
async def create_completion(body: CompletionRequest, service: Served, call: Called) -> Response:
    """Continue one or several prompts; choice index = prompt index * n + choice."""
    service.check_model(body.model)
    service.check_generates()
    service.check_choices(len(body.prompts), body.made)
    jobs = await service.in_time(_jobs(body, service, call), call, body.timeout)
    tally = Tally.of(jobs)
    answer = await service.answer(jobs, call, body.timeout)
    head = service.head("cmpl", body, call)
    choices = CompletionChoices(body, jobs, jobs[0].reader(service.prompts.tokenizer))
    if body.stream:
        await answer.begin()
        make = partial(Completion, **head)
        timings = partial(service.timings, body, call)
        usage = StreamedUsage(body, tally)
        return event_stream(answer, _chunks(answer, usage, make, choices, timings))
    done = await choices.whole(await collect(answer, tally))
    whole = Completion(**head, choices=done, usage=tally.usage())
    whole.timings = service.timings(body, call)
    return json_response(whole)


async def _jobs(body: CompletionRequest, service: Service, call: Call) -> list[Job]:
    with call.timeline.during("tokenise"):
        prompts = await service.prompts.batch(
            body.prompts,
            "prompt",
            answer=body.room(body.max_tokens, default=MAX_TOKENS_COMPLETION),
            keep=body.truncate_prompt_tokens,
            suffix=body.suffix or None,
        )
    with call.timeline.during("grammar"):
        grammar = await service.grammar(body, call.account.tenant)
    jobs, slices = [], Slices()
    for prompt in prompts:
        jobs.append(_job(body, prompt, grammar, service))
        await slices.pause()
    return jobs


def _job(body: CompletionRequest, prompt: list[int], grammar: str, service: Service) -> Job:
    max_tokens = service.sampling.max_tokens(
        body.max_tokens, len(prompt), default=MAX_TOKENS_COMPLETION, param="max_tokens"
    )
    return service.job(
        prompt,
        body,
        max_tokens,
        logprobs=body.answer_logprobs,
        n=body.made,
        prompt_logprobs=body.scored,
        continues=True,
        grammar=grammar,
    )


async def _chunks(
    answer: Answer,
    usage: StreamedUsage,
    make: partial[Completion],
    choices: CompletionChoices,
    timings: Callable[[], MaybeTimings],
) -> AsyncIterator[Completion]:
    async for delta in answer:
        usage.tally.add(delta)
        for choice in await choices.pieces(delta):
            chunk = make(choices=[choice], usage=usage.so_far)
            if choice.finish_reason is not None and not answer.unfinished and usage.last is None:
                chunk.timings = timings()
            yield chunk
    if usage.last is not None:
        yield make(choices=[], usage=usage.last, timings=timings())
