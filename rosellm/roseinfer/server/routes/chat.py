"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

from fastapi import APIRouter, Response
from msgspec import UNSET

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.server.call import Called
from rosellm.roseinfer.server.chat_answers import ChatAnswers
from rosellm.roseinfer.server.collect import Tally, collect
from rosellm.roseinfer.server.generate import Answer, Job
from rosellm.roseinfer.server.json_response import json_response
from rosellm.roseinfer.server.logprobs import prompt_logprobs
from rosellm.roseinfer.server.off_loop import off_loop
from rosellm.roseinfer.server.schemas.chat import ChatRequest
from rosellm.roseinfer.server.schemas.responses import (
    ChatChunk,
    ChatCompletion,
)
from rosellm.roseinfer.server.service import Served, Service
from rosellm.roseinfer.server.streaming import event_stream
from rosellm.roseinfer.server.tools import ToolUse, shown_tools, tool_use
from rosellm.roseinfer.server.unknown_fields import TolerantRoute

router = APIRouter(route_class=TolerantRoute)


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatRequest, service: Served, call: Called) -> Response:
    """Answer a conversation."""
    service.check_model(body.model)
    service.check_generates()
    service.check_choices(1, body.choices)
    job = await _job(body, service)
    tally = Tally.of([job])
    answer = service.pipeline.generate([job])
    head = service.head("chatcmpl", body, call)
    tokenizer = job.reader(service.prompts.tokenizer)
    answers = ChatAnswers(job, tokenizer)
    if body.stream:
        await answer.begin()
        make = partial(ChatChunk, **head, usage=None if body.include_usage else UNSET)
        return event_stream(answer, _chunks(answer, tally, make, answers))
    wholes = await collect(answer, tally)
    completion = await off_loop(
        sum(whole.scores for whole in wholes),
        lambda: ChatCompletion(
            **head,
            choices=[answers.whole(*each) for each in enumerate(wholes)],
            usage=tally.usage(),
            prompt_logprobs=prompt_logprobs(
                tokenizer, job.prompt, wholes[0].prompt, body.prompt_logprobs
            ),
        ),
    )
    return json_response(completion)


async def _job(body: ChatRequest, service: Service) -> Job:
    newer = body.max_completion_tokens is not None
    asked = body.max_completion_tokens if newer else body.max_tokens
    use = tool_use(body)
    if use is not None:
        service.prompts.formats.check_tools()
        _check_enforced(body, use)
    prompt = await service.prompts.chat(
        body.messages,
        answer=0 if asked == 0 else 1,
        tools=shown_tools(use.tools) if use else None,
        variables=service.prompts.effort(body.reasoning_effort),
    )
    max_tokens = service.sampling.max_tokens(
        asked,
        len(prompt),
        default=None,
        param="max_completion_tokens" if newer else "max_tokens",
    )
    return service.job(
        prompt,
        body,
        max_tokens,
        logprobs=body.answer_logprobs,
        prompt_logprobs=body.prompt_logprobs,
        format=service.prompts.formats.of_answer(service.prompts.end(prompt), use),
    )


def _check_enforced(body: ChatRequest, use: ToolUse) -> None:
    """Fitting a schema is not promised before it can be kept."""
    if use.enforced:
        param = "tool_choice" if use.must else "tools"
        what = "a call that has to be made" if use.must else "strict"
        raise RequestError(
            f"{param}: {what} is not supported yet", param=param, code="unsupported_parameter"
        )


async def _chunks(
    answer: Answer, tally: Tally, make: partial[ChatChunk], answers: ChatAnswers
) -> AsyncIterator[ChatChunk]:
    async for delta in answer:
        tally.add(delta)
        for piece in answers.pieces(delta):
            yield make(choices=[piece])
    if make.keywords["usage"] is None:
        yield make(choices=[], usage=tally.usage())
