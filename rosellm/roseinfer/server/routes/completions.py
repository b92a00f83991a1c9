"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

from fastapi import APIRouter, Response
from msgspec import UNSET

from rosellm.roseinfer.server.collect import Tally, Whole, collect
from rosellm.roseinfer.server.defaults import MAX_TOKENS_COMPLETION
from rosellm.roseinfer.server.generate import Answer, Job
from rosellm.roseinfer.server.json_response import json_response
from rosellm.roseinfer.server.schemas.completions import CompletionRequest
from rosellm.roseinfer.server.schemas.responses import Completion, CompletionChoice
from rosellm.roseinfer.server.service import Served, Service
from rosellm.roseinfer.server.streaming import event_stream
from rosellm.roseinfer.server.strict_json import StrictRoute

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/completions")
async def create_completion(body: CompletionRequest, service: Served) -> Response:
    """Continue one or several prompts; choice index = prompt index * n + choice."""
    service.check_model(body.model)
    service.check_choices(len(body.prompts), body.choices)
    jobs = [await _job(body, index, service) for index in range(len(body.prompts))]
    tally = Tally.of(jobs)
    answer = service.pipeline.generate(jobs)
    head = service.head("cmpl")
    if body.stream:
        await answer.begin()
        make = partial(Completion, **head, usage=None if body.include_usage else UNSET)
        return event_stream(answer, _chunks(answer, tally, make))
    choices = [_choice(index, whole) for index, whole in enumerate(await collect(answer, tally))]
    return json_response(Completion(**head, choices=choices, usage=tally.usage()))


async def _job(body: CompletionRequest, index: int, service: Service) -> Job:
    prompt = body.prompts[index]
    param = "prompt" if len(body.prompts) == 1 else f"prompt[{index}]"
    if isinstance(prompt, str):
        ids = await service.prompts.text(prompt, param)
    else:
        ids = service.prompts.ids(prompt, param)
    max_tokens = service.sampling.max_tokens(
        body.max_tokens, len(ids), default=MAX_TOKENS_COMPLETION, param="max_tokens"
    )
    return service.job(ids, body, max_tokens, continues=True)


def _choice(index: int, whole: Whole) -> CompletionChoice:
    return CompletionChoice(index=index, text=whole.text, finish_reason=whole.finish)


async def _chunks(
    answer: Answer, tally: Tally, make: partial[Completion]
) -> AsyncIterator[Completion]:
    async for delta in answer:
        tally.add(delta)
        if delta.text or delta.finish is not None:
            choice = CompletionChoice(
                index=delta.index, text=delta.text, finish_reason=delta.finish
            )
            yield make(choices=[choice])
    if make.keywords["usage"] is None:
        yield make(choices=[], usage=tally.usage())
