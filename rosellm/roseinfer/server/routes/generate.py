"""``POST /generate``, the seed's own route: plain text, in JSON or as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter, Response

from rosellm.roseinfer.server.answer import Answer
from rosellm.roseinfer.server.call import Called
from rosellm.roseinfer.server.collect import Tally, collect
from rosellm.roseinfer.server.defaults import MAX_TOKENS_GENERATE
from rosellm.roseinfer.server.job import Job
from rosellm.roseinfer.server.json_response import json_response
from rosellm.roseinfer.server.schemas.generate import GenerateRequest
from rosellm.roseinfer.server.schemas.responses import Generated
from rosellm.roseinfer.server.service import Served, Service
from rosellm.roseinfer.server.streaming import Streamed
from rosellm.roseinfer.server.strict_json import StrictRoute

router = APIRouter(route_class=StrictRoute)


@router.post("/generate")
async def generate(body: GenerateRequest, service: Served, call: Called) -> Response:
    """Continue a prompt; the answer is the continuation alone."""
    service.check_generates(param=None)
    with call.timeline.during("tokenise"):
        job = await service.in_time(_job(body, service), call, body.timeout)
    answer = await service.answer([job], call, body.timeout)
    if body.stream:
        await answer.begin()
        return Streamed(answer, _text(answer), "text/plain")
    [whole] = await collect(answer, Tally.of([job]))
    return json_response(Generated(whole.text))


async def _job(body: GenerateRequest, service: Service) -> Job:
    [prompt] = await service.prompts.batch([body.prompt], "prompt")
    sampling = service.sampling
    max_tokens = sampling.max_tokens(
        body.max_new_tokens, len(prompt), default=MAX_TOKENS_GENERATE, param="max_new_tokens"
    )
    params = sampling.params(body.sampling, max_tokens, body.do_sample)
    return Job(prompt, params, continues=True)


async def _text(answer: Answer) -> AsyncIterator[bytes]:
    """A failure has no form in plain text: it is raised, and the transfer stays incomplete."""
    async for delta in answer:
        if delta.text:
            yield delta.text.encode()
